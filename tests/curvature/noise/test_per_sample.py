"""Gradients of single samples: mapped against one at a time, and the noise they give against the noise from parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland import vectors
from optland.curvature.noise.gradient_noise import gradient_noise
from optland.curvature.noise.per_sample import per_sample_gradients
from optland.objective import Objective

D = torch.float64


def literal(objective: Objective) -> tuple[list[float], list[float]]:
    """|g_i| and <g_i, g_B> by one backward per sample through plain PyTorch, batches being (x, y) of rank 2 and 1."""
    mean = vectors.flatten(objective.gradient())
    norms, products = [], []
    objective.model.eval()
    for x, y in objective.batches:
        for i in range(len(x)):
            loss = F.cross_entropy(objective.model(x[i : i + 1]), y[i : i + 1])
            g = vectors.flatten(torch.autograd.grad(loss, objective.params))
            norms.append(float(g.norm()))
            products.append(float(g @ mean))
    return norms, products


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_lengths_are_those_of_a_plain_loop(mlp: Objective, method: Any, chunk: int | None) -> None:
    norms, products = literal(mlp)
    found = per_sample_gradients(mlp, method=method, chunk_size=chunk)
    assert found.norms.tolist() == pytest.approx(norms)
    assert found.alignments.tolist() == pytest.approx(products)
    assert found.method == ("loop" if method == "loop" else "vmap")
    assert found.grad_norm == pytest.approx(float(vectors.norm(mlp.gradient())))
    assert float(found.alignments.mean()) == pytest.approx(found.grad_norm**2)


def test_convolutions_embeddings_and_norms_are_mapped() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 3)
    )
    tokens = nn.Sequential(
        nn.Embedding(7, 8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    y = torch.randint(0, 3, (6,))
    for model, x in ((cnn, torch.randn(6, 1, 4, 4)), (tokens, torch.randint(0, 7, (6, 4)))):
        objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
        mapped, looped = (per_sample_gradients(objective, method=way) for way in ("auto", "loop"))
        assert mapped.method == "vmap", mapped.reason
        torch.testing.assert_close(mapped.norms, looped.norms, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mapped.alignments, looped.alignments, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_the_noise_is_that_of_parts_of_one_with_the_same_errors(mlp: Objective, method: Any) -> None:
    found, parts = per_sample_gradients(mlp, method=method).noise(), gradient_noise(mlp, num_parts=100)
    for term in ("trace_cov", "grad_sq"):
        assert getattr(found, term).value == pytest.approx(getattr(parts, term).value)
        assert getattr(found, term).error == pytest.approx(getattr(parts, term).error)
    assert (found.micro_batch, found.large_batch) == (1.0, 11.0)


def test_tokens_weigh_their_samples_and_ignored_samples_count_nothing() -> None:
    """Labels of -100 are ignored; one sample has nothing else."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x = torch.randn(5, 6, 4, dtype=D)
    y = torch.randint(0, 3, (5, 6))
    y[1, 2:], y[3] = -100, -100

    def loss(m: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits, labels = m(batch["x"]).flatten(0, 1), batch["y"].flatten()
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), (labels != -100).sum()

    objective = Objective(model, loss, [{"x": x, "y": y}])
    mapped, looped = (per_sample_gradients(objective, method=way) for way in ("vmap", "loop"))
    assert mapped.counts.tolist() == looped.counts.tolist() == [6, 2, 6, 0, 6]
    torch.testing.assert_close(mapped.norms, looped.norms)
    assert float(mapped.norms[3]) == 0.0
    weighted = (mapped.counts * mapped.alignments).sum() / mapped.counts.sum()
    assert float(weighted) == pytest.approx(mapped.grad_norm**2)


def test_a_table_as_long_as_a_chunk_is_not_cut_by_sample() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    batch = (torch.randn(7, 2, dtype=D), torch.randint(0, 3, (7,)), torch.tensor([1.0, 5.0, 2.0], dtype=D))

    def loss(m: nn.Module, b: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(m(b[0]), b[1], weight=b[2], reduction="sum"), len(b[0])

    objective = Objective(model, loss, [batch])
    mapped, looped = (per_sample_gradients(objective, method=way, chunk_size=3) for way in ("vmap", "loop"))
    torch.testing.assert_close(mapped.norms, looped.norms)


@dataclass
class Pair:
    x: Tensor
    y: Tensor


def test_dataclass_batches_are_mapped() -> None:
    torch.manual_seed(0)
    objective = Objective(
        nn.Linear(2, 3),
        lambda m, b: F.cross_entropy(m(b.x), b.y),
        [Pair(torch.randn(4, 2), torch.randint(0, 3, (4,)))],
    )
    mapped, looped = (per_sample_gradients(objective, method=way) for way in ("vmap", "loop"))
    torch.testing.assert_close(mapped.norms, looped.norms)


def test_a_loss_that_reads_a_value_back_falls_to_the_loop_and_says_why() -> None:
    def loss(m: nn.Module, x: Tensor) -> Tensor:
        out = m(x).square().mean()
        return out * 2 if float(out.detach()) > 0 else out

    objective = Objective(nn.Linear(2, 1), loss, [torch.randn(4, 2)])
    found = per_sample_gradients(objective)
    assert found.method == "loop"
    assert found.reason.startswith("vmap failed")
    assert found.cost_ge == objective.cost_ge <= per_sample_gradients.cost(objective)
    with pytest.raises(RuntimeError):
        per_sample_gradients(objective, method="vmap")


def test_a_map_that_does_not_add_up_costs_three_gradients_as_declared() -> None:
    """The gradient of the whole, a map whose loss is another one, and the loop."""
    calls = 0

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return m(x).square().mean() * (2.0 if calls == 2 else 1.0)

    objective = Objective(nn.Linear(2, 1), loss, [torch.randn(8, 2)])
    found = per_sample_gradients(objective)
    assert (found.method, "do not add up" in found.reason) == ("loop", True)
    assert found.cost_ge == per_sample_gradients.cost(objective) == 3 * 8


def test_a_preconditioner_scales_the_gradients(mlp: Objective) -> None:
    P = [torch.rand(p.shape, dtype=D) + 0.5 for p in mlp.params]
    found = per_sample_gradients(mlp, preconditioner=P)
    expected = gradient_noise(mlp, num_parts=100, preconditioner=P)
    assert found.noise().trace_cov.value == pytest.approx(expected.trace_cov.value)
    norms = [
        float(vectors.norm([g / p.sqrt() for g, p in zip(sample.gradient(), P, strict=True)]))
        for x, y in mlp.batches
        for sample in (
            Objective(mlp.model, mlp.loss_fn, [(x[i : i + 1], y[i : i + 1])]) for i in range(len(x))
        )
    ]
    assert found.norms.tolist() == pytest.approx(norms)


def test_the_largest_gradient_is_that_of_the_mislabelled_sample() -> None:
    x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
    y = (x[:, 0] > 0).long()
    y[0] = 1
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-3.0], [3.0]]))
        model.bias.zero_()
    found = per_sample_gradients(Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)]))
    assert int(found.norms.argmax()) == 0


def test_wrong_usage_names_the_fix(mlp: Objective) -> None:
    with pytest.raises(ValueError, match="method 'map'"):
        per_sample_gradients(mlp, method="map")
    with pytest.raises(ValueError, match="chunk_size=0"):
        per_sample_gradients(mlp, chunk_size=0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"BatchNorm1d .* mode='eval'"):
        per_sample_gradients(Objective(model, lambda m, x: m(x).mean(), [torch.randn(4, 3)], mode="train"))
    one = Objective(nn.Linear(3, 1), lambda m, x: m(x).square().mean(), [torch.randn(2, 3)])
    with pytest.raises(ValueError, match="at least three"):
        per_sample_gradients(one).noise()


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_looking_changes_nothing(method: Any, mode: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.3), nn.Linear(6, 2))
    model(torch.randn(5, 4)).square().mean().backward()
    model[2].eval()
    params = list(model.parameters())

    def snapshot() -> list[Any]:
        return [
            [p.detach().clone().tolist() for p in params],
            [(id(p), p.data_ptr(), p._version, p.requires_grad, id(p.grad)) for p in model.parameters()],
            [p.grad.tolist() for p in params if p.grad is not None],
            [m.training for m in model.modules()],
            torch.get_rng_state().tolist(),
        ]

    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.randn(6, 4)], mode=mode)
    before = snapshot()
    assert per_sample_gradients(objective, method=method).method == method
    assert snapshot() == before
