"""Two small problems: a coupled quadratic, of which everything is known, and a network on fixed data."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Quadratic:
    """f = w'Hw/2 over two tensors (2, 2) and (3,), coupled by H, for use in two groups."""

    H: Tensor
    params: list[nn.Parameter]

    @property
    def w(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.params])

    def loss(self) -> Tensor:
        w = torch.cat([p.flatten() for p in self.params])
        return 0.5 * w @ self.H @ w

    def groups(self) -> list[dict]:
        return [{"params": [p]} for p in self.params]

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure


@pytest.fixture
def quadratic() -> Quadratic:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    w = torch.randn(7, generator=generator, dtype=torch.float64)
    return Quadratic(A @ A.T / 7, [nn.Parameter(w[:4].view(2, 2).clone()), nn.Parameter(w[4:].clone())])


@dataclass
class Network:
    """A model with its batch; ``loss()`` is a function of the weights, buffers and random state."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def loss(self, part: slice = slice(None)) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x[part]), self.y[part])

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """Factory: every call gives the same network and batch; ``layers`` go between the two linear maps."""

    def make(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> Network:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed keeps a stack for each accelerator that is not there, which takes longer than the rest.
            torch.default_generator.manual_seed(1)
            model = nn.Sequential(nn.Linear(4, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).to(dtype)
            x, y = torch.randn(12, 4, dtype=dtype), torch.randint(3, (12,))
        return Network(model, x, y)

    return make
