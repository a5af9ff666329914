"""One token-weighted loss on batches of every kind, against a literal mean over all tokens in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence
from torch.utils.data import DataLoader, IterableDataset

from optland import SAM, Objective, Pilot, hessian, lanczos
from optland.batches import join, num_samples, split, take, thin, to_device, to_dtype
from optland.curvature import gradient_noise
from optland.landscape import sam_sharpness
from optland.pilot import suggest_lr

VOCABULARY, MASKED = 7, -100
LENGTHS = ((5, 2, 7, 3, 6, 2, 4, 9), (3, 8, 1, 4, 2, 6))  # sequences of two batches

Sequences = list[tuple[Tensor, Tensor]]


def sequences(lengths: Sequence[int], seed: int) -> Sequences:
    """Tokens and targets, some of which do not count."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for n in lengths:
        tokens, targets = (torch.randint(0, VOCABULARY, (n,), generator=draw) for _ in range(2))
        targets[torch.rand(n, generator=draw) < 0.3] = MASKED
        targets[0] = 1
        found.append((tokens, targets))
    return found


DATA = [sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS)]


class Tagger(nn.Module):
    """A net of tokens, whatever shape they come in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(VOCABULARY, 3), nn.Linear(3, VOCABULARY)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens)))


def summed(model: nn.Module, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the tokens that count, and their number."""
    loss = F.cross_entropy(
        model(tokens).flatten(0, -2), targets.flatten(), ignore_index=MASKED, reduction="sum"
    )
    return loss, (targets != MASKED).sum()


@dataclass
class Padded:
    tokens: Tensor
    targets: Tensor
    name: str = "a batch"


class Graphs:
    """As PyTorch Geometric joins graphs to one batch: nodes in one row, where each graph begins, and its own ``to``."""

    def __init__(self, parts: Sequences) -> None:
        self.nodes = torch.cat([tokens for tokens, _ in parts])
        self.targets = torch.cat([targets for _, targets in parts])
        self.starts = [0, *torch.tensor([len(tokens) for tokens, _ in parts]).cumsum(0).tolist()]

    @property
    def num_graphs(self) -> int:
        return len(self.starts) - 1

    def graph(self, i: int) -> tuple[Tensor, Tensor]:
        a, b = self.starts[i : i + 2]
        return self.nodes[a:b], self.targets[a:b]

    def to(self, device: Any) -> Graphs:
        moved = Graphs([self.graph(i) for i in range(self.num_graphs)])
        moved.nodes, moved.targets = moved.nodes.to(device), moved.targets.to(device)
        return moved


def edges(count: int, parts: int) -> list[tuple[int, int]]:
    return [*pairwise(-(-count * i // parts) for i in range(parts + 1))]


def cut_graphs(batch: Graphs, parts: int) -> list[Graphs]:
    return [
        Graphs([batch.graph(i) for i in range(a, b)])
        for a, b in edges(batch.num_graphs, min(parts, batch.num_graphs))
    ]


def padded(parts: Sequences) -> dict[str, Tensor]:
    tokens, targets = zip(*parts, strict=True)
    return {
        "tokens": pad_sequence(list(tokens), batch_first=True),
        "targets": pad_sequence(list(targets), batch_first=True, padding_value=MASKED),
    }


def row(parts: Sequences) -> dict[str, Tensor]:
    """All sequences in one row, as language models pack them, and where each begins."""
    graphs = Graphs(parts)
    return {
        "tokens": graphs.nodes[None], "targets": graphs.targets[None], "starts": torch.tensor(graphs.starts)
    }  # fmt: skip


def cut_row(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    starts, found = batch["starts"].tolist(), []
    for a, b in edges(len(starts) - 1, parts):
        piece = slice(starts[a], starts[b])
        found.append({
            "tokens": batch["tokens"][:, piece], "targets": batch["targets"][:, piece],
            "starts": batch["starts"][a : b + 1] - starts[a],
        })  # fmt: skip
    return found


def packed(parts: Sequences) -> tuple[PackedSequence, PackedSequence]:
    tokens, targets = zip(*parts, strict=True)
    return pack_sequence(list(tokens), enforce_sorted=False), pack_sequence(
        list(targets), enforce_sorted=False
    )


@dataclass(frozen=True)
class Kind:
    make: Callable[[Sequences], Any]
    loss_fn: Callable[[nn.Module, Any], Any]
    options: dict[str, Any]


KINDS = {
    "dictionary": Kind(padded, lambda m, b: summed(m, b["tokens"], b["targets"]), {}),
    "dataclass": Kind(lambda s: Padded(**padded(s)), lambda m, b: summed(m, b.tokens, b.targets), {}),
    "packed sequences": Kind(packed, lambda m, b: summed(m, b[0].data, b[1].data), {}),
    "one row": Kind(
        row, lambda m, b: summed(m, b["tokens"], b["targets"]),
        {"num_samples": lambda b: len(b["starts"]) - 1, "split": cut_row},
    ),
    "graphs": Kind(
        Graphs, lambda m, b: summed(m, b.nodes, b.targets),
        {"num_samples": lambda b: b.num_graphs, "split": cut_graphs},
    ),
}  # fmt: skip


def oracle(model: nn.Module, groups: Sequence[Sequences]) -> tuple[Tensor, int]:
    """The mean over all tokens that count, one token at a time, and their number."""
    losses = [
        -model(token).log_softmax(-1)[target]
        for group in groups for tokens, targets in group
        for token, target in zip(tokens, targets, strict=True) if target != MASKED
    ]  # fmt: skip
    return torch.stack(losses).mean(), len(losses)


def flat_gradient(model: nn.Module, groups: Sequence[Sequences]) -> tuple[Tensor, int]:
    loss, count = oracle(model, groups)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]), count


def objective(kind: Kind, model: nn.Module | None = None) -> Objective:
    return Objective(model or Tagger(), kind.loss_fn, [kind.make(part) for part in DATA], **kind.options)


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_and_its_gradient_are_those_of_all_tokens(name: str) -> None:
    model = Tagger()
    L = objective(KINDS[name], model)
    expected, _ = oracle(model, DATA)
    gradient, _ = flat_gradient(model, DATA)
    value, found = L.value_and_gradient()
    assert L.num_samples == sum(map(len, LENGTHS))
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), gradient, rtol=1e-11, atol=1e-13)


@lru_cache(maxsize=1)
def sharpest() -> float:
    """The largest eigenvalue of the dense Hessian of the mean over all tokens."""
    model = Tagger()
    names, params = zip(*model.named_parameters(), strict=True)

    def of_flat(w: Tensor) -> Tensor:
        pieces = [x.view(p.shape) for x, p in zip(w.split([p.numel() for p in params]), params, strict=True)]
        weights = dict(zip(names, pieces, strict=True))
        return oracle(lambda t: torch.func.functional_call(model, weights, (t,)), DATA)[0]

    flat = torch.cat([p.detach().flatten() for p in params])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_flat, flat))[-1].item()


@pytest.mark.parametrize("name", KINDS)
def test_the_sharpest_curvature_is_that_of_all_tokens(name: str) -> None:
    with hessian(objective(KINDS[name])) as H:
        found = lanczos(H, ends="top", rtol=1e-8, max_matvecs=80)
    assert found.top.value == pytest.approx(sharpest(), rel=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_the_noise_is_that_of_parts_weighted_by_their_tokens(name: str) -> None:
    model, parts = Tagger(), 3
    pieces = [part[a:b] for part in DATA for a, b in edges(len(part), parts)]
    gradients, counts = zip(*(flat_gradient(model, [piece]) for piece in pieces), strict=True)
    samples = sum(map(len, LENGTHS))
    n = torch.tensor(counts, dtype=torch.float64) * samples / sum(counts)
    g = torch.stack(gradients)
    mean = (n[:, None] * g).sum(0) / samples
    trace = (n * (g - mean).square().sum(1)).sum() / (len(n) - 1)
    found = gradient_noise(objective(KINDS[name], model), num_parts=parts)
    assert found.trace_cov.value == pytest.approx(float(trace), rel=1e-10)
    assert found.grad_sq.value == pytest.approx(float(mean @ mean - trace / samples), rel=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_sharpness_of_batches_of_m(name: str) -> None:
    """The data are cut into batches of two sequences; the reference cuts them by hand."""
    model = Tagger()
    rises = []
    for a, b in ((i, i + 2) for i in range(0, 8, 2)):
        for part in DATA:
            if piece := part[a:b]:
                one = Objective(model, KINDS["dictionary"].loss_fn, [padded(piece)])
                rises.append(sam_sharpness(one, 0.1).rise.value)
    found = sam_sharpness(objective(KINDS[name], model), 0.1, m=2)
    assert found.rise.value == pytest.approx(sum(rises) / len(rises), rel=1e-9)


def trained(kind: Kind) -> list[dict[str, Any]]:
    """Ninety updates under all probes; their rows."""
    rows: list[dict[str, Any]] = []
    model = Tagger()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.2), rho=0.05, model=model)
    pilot = Pilot(
        optimizer, model, kind.loss_fn, policies=["noise_monitor", "curvature_monitor", "edge_monitor"], budget=1.0,
        total_steps=90, mode="monitor", log=lambda row, step: rows.append(dict(row)), log_every=1, **kind.options,
    )  # fmt: skip
    for step in range(90):
        batch = kind.make(DATA[step % 2])

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            total, count = kind.loss_fn(model, batch)
            (total / count).backward()
            return total / count

        pilot.after_step(batch, optimizer.step(closure))
    pilot.close()
    return rows


@lru_cache(maxsize=1)
def padded_run() -> list[dict[str, Any]]:
    return trained(KINDS["dictionary"])


@pytest.mark.parametrize("name", [name for name in KINDS if name != "dictionary"])
def test_a_piloted_run_sees_the_same_whatever_the_batches_are(name: str) -> None:
    """Loss, edge, noise and curvature at every update, and no probe is off."""
    expected, found = padded_run(), trained(KINDS[name])
    keys = ("optland/train/loss", "optland/edge/eta_c", "optland/noise/trace_cov", "optland/curv/lambda_max")
    for key in keys:
        reference = [r[key] for r in expected if key in r]
        assert len(reference) > 1
        assert [r[key] for r in found if key in r] == pytest.approx(reference, rel=1e-6)


def test_micro_batches_that_count_differently_make_the_update_of_the_whole() -> None:
    """SAM over sums divided by the tokens of the update, in pieces of any kind, and the pilot agrees with the loss."""
    ends = []
    for pieces in ([DATA[0]], [DATA[0][:3], DATA[0][3:4], DATA[0][4:]]):
        model = Tagger()
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.3), rho=0.1, model=model)
        kind = KINDS["graphs"]
        batches = [kind.make(piece) for piece in pieces]
        pilot = Pilot(optimizer, model, kind.loss_fn, policies=[], total_steps=3, **kind.options)
        for _ in range(3):
            count = sum(kind.loss_fn(model, b)[1] for b in batches)
            losses: list[Tensor] = []
            optimizer.zero_grad()
            for _ in optimizer.passes():
                for b in batches:
                    loss = kind.loss_fn(model, b)[0] / count
                    loss.backward()
                    losses.append(loss.detach())
            optimizer.step()
            pilot.after_step(batches, torch.stack(losses[: len(batches)]).sum())
        pilot.close()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-13)


# ---------------------------------------------------------------- what holds the loss


class Output(dict[str, Any]):
    """As the ``ModelOutput`` of transformers: a mapping whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class Result:
    loss: Tensor
    logits: Tensor


@pytest.mark.parametrize("wrap", [Output, Result, dict])
def test_a_mapping_or_an_object_with_a_loss_is_its_mean(wrap: Callable[..., Any]) -> None:
    """Weighted by samples, as any mean is; also by micro-batches, one backward pass and vmap."""

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Any:
        logits = model(batch["tokens"])
        loss = F.cross_entropy(logits.flatten(0, -2), batch["targets"].flatten(), ignore_index=MASKED)
        return wrap(loss=loss, logits=logits)

    model = Tagger()
    batches = [padded(part) for part in DATA]
    found = Objective(model, loss_fn, batches).value()
    means = [oracle(model, [part])[0].item() for part in DATA]
    assert found == pytest.approx((8 * means[0] + 6 * means[1]) / 14, rel=1e-12)
    rate = suggest_lr(model, loss_fn, batches, torch.optim.SGD(model.parameters(), lr=0.1), num_steps=12)
    assert rate.value > 0


def test_the_loss_of_transformers_is_taken_as_it_comes() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    ).double()
    ids = torch.randint(1, 11, (4, 6))
    labels = ids.clone()
    labels[1, :4] = labels[2, :2] = MASKED
    batches = [{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}]
    logits = model(ids).logits[:, :-1].log_softmax(-1)
    kept = [(i, t) for i in range(4) for t in range(5) if labels[i, t + 1] != MASKED]
    by_hand = torch.stack([-logits[i, t, labels[i, t + 1]] for i, t in kept]).mean().item()

    def counted(net: nn.Module, batch: dict[str, Tensor]) -> Any:
        count = (batch["labels"][:, 1:] != MASKED).sum()
        return net(**batch, num_items_in_batch=1).loss, count  # 1: the sum, which is divided by nothing else

    together = [{"input_ids": ids, "labels": labels}]
    assert Objective(model, lambda m, b: m(**b), together).value() == pytest.approx(by_hand, rel=1e-6)
    assert Objective(model, counted, batches).value() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"logits": torch.zeros(2)}, "a dict of 'logits'"),
        ({"loss": None}, "a dict with a loss of None"),
        (None, "a NoneType"),
        (3.0, "a float"),
        (
            (torch.tensor(1.0), torch.zeros(4, 3)),
            r"Tensor of shape \(4, 3\), which is no pair of sum and count",
        ),
        ((torch.tensor(1.0), 2, 3), "which is no pair"),
        ((2.0, 3), "a tuple of float, int"),
    ],
)
def test_anything_else_is_refused_in_words(returned: Any, words: str) -> None:
    L = Objective(Tagger(), lambda m, b: returned, [torch.zeros(3, dtype=torch.long)])
    with pytest.raises(TypeError, match=f"{words}.*; return the mean loss"):
        L.value()


# ---------------------------------------------------------------- packed sequences


def test_packed_sequences_are_counted_cut_joined_and_moved() -> None:
    batch = packed(DATA[0])
    assert num_samples(batch) == 8
    for pieces in (split(batch, 3), [take(batch, 5)], [thin(batch, 3)]):
        rows = [one for piece in pieces for one in zip(*(list(p) for p in map(unpacked, piece)), strict=True)]
        kept = [*range(8)] if len(pieces) == 3 else [*range(5)] if len(rows) == 5 else [0, 3, 6]
        assert len(rows) == len(kept)
        for (tokens, targets), i in zip(rows, kept, strict=True):
            assert torch.equal(tokens, DATA[0][i][0])
            assert torch.equal(targets, DATA[0][i][1])
    again = join(split(batch, 3))
    assert [torch.equal(a, b) for a, b in zip(unpacked(again[0]), unpacked(batch[0]), strict=True)] == [
        True
    ] * 8
    moved = to_device(batch, "meta")[0]
    assert (moved.data.device.type, moved.batch_sizes.device.type) == ("meta", "cpu")
    floats = to_dtype(pack_sequence([torch.ones(2), torch.ones(1)]), torch.float64)
    assert floats.data.dtype == torch.float64


def unpacked(item: PackedSequence) -> list[Tensor]:
    return nn.utils.rnn.unpack_sequence(item)


def test_an_object_with_its_own_way_to_a_device_is_moved() -> None:
    moved = to_device({"graphs": Graphs(DATA[0]), "name": "x"}, "meta")
    assert moved["graphs"].nodes.device.type == "meta"
    assert moved["name"] == "x"


# ---------------------------------------------------------------- what is missing is named


def test_a_count_without_a_cut_is_refused_where_rows_are_no_samples() -> None:
    kind = KINDS["one row"]
    L = Objective(Tagger(), kind.loss_fn, [row(DATA[0])], num_samples=kind.options["num_samples"])
    assert L.value() == pytest.approx(objective_value(DATA[:1]), rel=1e-12)
    with pytest.raises(
        TypeError, match=r"8 samples cannot be cut along the leading dimension .*\(1\); give split="
    ):
        gradient_noise(L)


def objective_value(groups: Sequence[Sequences]) -> float:
    return oracle(Tagger(), groups)[0].item()


def test_a_cut_that_loses_samples_is_refused() -> None:
    kind = KINDS["graphs"]
    L = Objective(
        Tagger(), kind.loss_fn, [Graphs(DATA[0])], num_samples=lambda b: b.num_graphs,
        split=lambda b, parts: cut_graphs(b, parts)[1:],
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="6 samples in all of a batch of 8; every sample belongs in one part"
    ):
        gradient_noise(L, num_parts=4)


@pytest.mark.parametrize("name", ["num_samples", "split"])
def test_what_is_no_function_is_refused(name: str) -> None:
    model = Tagger()
    with pytest.raises(TypeError, match=f"{name}=64 is no function"):
        Pilot(
            torch.optim.SGD(model.parameters(), lr=0.1), model, KINDS["dictionary"].loss_fn, total_steps=3,
            **{name: 64},
        )  # fmt: skip


def test_batches_of_one_sample_have_no_noise_and_that_is_said_once() -> None:
    kind, batch = KINDS["dictionary"], row(DATA[0])
    del batch["starts"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(Kind(lambda _: batch, kind.loss_fn, {}))
    (told,) = [str(w.message) for w in said]
    assert "the noise probe compares parts of a batch" in told
    assert "num_samples= and split=" in told


# ---------------------------------------------------------------- streams


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples that come one by one, the same ones each time; nobody knows how many."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(3)
        for _ in range(40):
            tokens = torch.randint(0, VOCABULARY, (4,), generator=draw)
            yield tokens, tokens.roll(1)


def means(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def test_a_stream_is_read_by_objective_and_pilot() -> None:
    loader = DataLoader(Stream(), batch_size=16)  # of 16, 16 and 8
    model = Tagger()
    expected = oracle(model, [list(Stream())])[0].item()
    assert Objective(model, means, loader).value() == pytest.approx(expected, rel=1e-12)
    for length in ({"total_steps": 6}, {"total_samples": 80}, {"open_ended": True}):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Pilot(optimizer, model, means, **length) as pilot:
            for batch in pilot.batches(loader, epochs=2):
                optimizer.zero_grad()
                loss = means(model, batch)
                loss.backward()
                optimizer.step()
                pilot.after_step(batch, loss)
            assert (pilot.step, pilot.samples) == (6, 80)
            assert pilot.host.dataset_size is None


def test_a_stream_of_unknown_length_asks_for_one() -> None:
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pilot = Pilot(optimizer, model, means)
    batch = next(iter(pilot.batches(DataLoader(Stream(), batch_size=16))))
    means(model, batch).backward()
    with pytest.raises(ValueError, match="total_steps"):
        optimizer.step()
    pilot.close()
