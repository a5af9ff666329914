"""The transformer: causal, calm at the start, able to learn, and open to curvature probes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland import vectors
from optland.curvature import hessian, lanczos
from optland.objective import Objective
from optland.train.models.transformer import Attention, Transformer, TransformerConfig


def make(vocabulary: int = 11, context: int = 8, **config: object) -> Transformer:
    torch.manual_seed(0)
    return TransformerConfig(**{"depth": 2, "width": 16, "heads": 2, **config}).build(vocabulary, context)


def tokens(n: int, length: int, vocabulary: int = 11) -> Tensor:
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(1))


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def test_the_future_does_not_change_the_past() -> None:
    net, x = make().eval(), tokens(3, 8)
    for t in range(1, 8):
        changed = x.clone()
        changed[:, t:] = (x[:, t:] + 1) % 11
        before, after = net(x), net(changed)
        assert torch.equal(before[:, :t], after[:, :t]), t
        assert not torch.equal(before[:, t], after[:, t])


def test_attention_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    layer = Attention(TransformerConfig(width=6, heads=2)).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = layer.query_key_value(x).split(6, dim=-1)
    mixed = torch.zeros_like(x)
    for n in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for t in range(5):
                scores = torch.stack([q[n, t, head] @ k[n, s, head] for s in range(t + 1)]) / math.sqrt(3)
                weights = scores.exp() / scores.exp().sum()
                mixed[n, t, head] = sum(a * v[n, s, head] for s, a in enumerate(weights))
    torch.testing.assert_close(layer(x), layer.out(mixed))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("depth", [1, 8])
def test_first_loss_is_that_of_guessing(tied: bool, depth: int) -> None:
    net = make(vocabulary=97, context=32, depth=depth, width=64, tied=tied)
    x = tokens(16, 33, 97)
    assert loss_fn(net, (x[:, :-1], x[:, 1:])).item() == pytest.approx(math.log(97), rel=0.02)


def test_the_number_of_weights_is_counted_by_hand() -> None:
    V, C, d, L = 11, 8, 16, 2
    block = (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
    tied, untied = make(tied=True), make(tied=False)
    assert sum(p.numel() for p in tied.parameters()) == V * d + C * d + L * block + 2 * d
    assert sum(p.numel() for p in untied.parameters()) == 2 * V * d + C * d + L * block + 2 * d
    assert tied.head.weight is tied.tokens.weight


def test_it_learns_one_batch_by_heart() -> None:
    net, x = make(dropout=0.0), tokens(4, 9)
    batch = (x[:, :-1], x[:, 1:])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_fn(net, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_dropout_acts_in_training_only() -> None:
    net, x = make(dropout=0.3), tokens(3, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_curvature_probes_pass_through_the_attention() -> None:
    """The fused kernel has no second derivative; inside a probe the plain one gives the exact product."""
    net, x = make().double(), tokens(6, 9)
    objective = Objective(net, loss_fn, [(x[:, :-1], x[:, 1:])])
    v = vectors.random_unit(objective.params, seed=3)
    with hessian(objective) as H:
        product = H.matvec(v)
        assert H.method == "kept_graph"
        spectrum = lanczos(H, rtol=1e-3, max_matvecs=60)
    assert spectrum.top.converged
    h = 1e-4
    ahead, behind = (objective.gradient(objective.displaced(v, t)) for t in (h, -h))
    expected = vectors.scaled(1 / (2 * h), vectors.subtract(ahead, behind))
    apart = float(vectors.norm(vectors.subtract(product, expected)))
    assert apart < 1e-5 * float(vectors.norm(expected))


def test_a_longer_input_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens are more than the context of 8"):
        make()(tokens(1, 9))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"depth": 0}, "depth: 0 is too few"),
        ({"width": 0}, "width: 0 is too few"),
        ({"heads": -1}, "heads: -1 is too few"),
        ({"width": 30, "heads": 4}, "width: 30 cannot be shared by 4 heads; use 32"),
        ({"width": 2, "heads": 4}, "use 4"),
        ({"depth": 10**8}, "depth: 100000000 blocks are too many; use at most 1000"),
        ({"width": 10**6, "depth": 1}, r"width: 1000000 makes 1.2e\+13 parameters in 1 blocks"),
        ({"dropout": 1.0}, "dropout: 1.0 is not a probability below 1"),
        ({"dropout": float("nan")}, "dropout: nan"),
    ],
)
def test_impossible_sizes_are_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TransformerConfig(**config)
