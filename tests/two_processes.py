"""A problem that two processes share, and what they compare: for the scripts in ``distributed``."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from optland.optim.registry import METHODS

SHARDS = hasattr(torch.cpu.Stream, "record_event")
"""Whether FSDP2 works on the processor; torch 2.6 has the class and raises in the first forward pass."""

METHOD_OPTIONS = {
    "sam": {"rho": 0.2},
    "asam": {"rho": 0.5},
    "msam": {"rho": 0.3},
    "looksam": {"rho": 0.2, "k": 2},
}
SAMPLES = 12


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """The same network and batch in every process."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(SAMPLES, 4, dtype=torch.float64), torch.randint(3, (SAMPLES,))


def mine() -> slice:
    """The samples of this rank."""
    size = SAMPLES // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def wrap(name: str, model: nn.Module, **options: Any) -> Any:
    """The method over SGD with momentum, or over Adam where it needs that."""
    params = model.parameters()
    base = (
        torch.optim.AdamW(params, lr=0.01)
        if name == "adam_sam"
        else torch.optim.SGD(params, lr=0.1, momentum=0.9)
    )
    return METHODS[name](base, model=model, **{**METHOD_OPTIONS.get(name, {"rho": 0.2}), **options})


def whole(t: Tensor) -> Tensor:
    """A tensor with all its shards."""
    shards: Any = t.detach()
    return shards.full_tensor() if hasattr(t, "full_tensor") else shards


def assert_close(model: nn.Module, expected: nn.Module, what: str, tolerance: float = 1e-10) -> None:
    """Weights equal up to the order of sums."""
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            whole(p), whole(q), rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
        )


def assert_replicas_identical(model: nn.Module, what: str) -> None:
    """Bit for bit, as nothing brings replicas together again."""
    for p in model.parameters():
        others = [torch.empty_like(p) for _ in range(dist.get_world_size())]
        dist.all_gather(others, p.detach())
        assert all(torch.equal(others[0], other) for other in others), what


def sharded(net: nn.Module) -> Any:
    """Over both ranks, layer by layer."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)
