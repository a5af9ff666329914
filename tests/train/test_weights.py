"""Weights as a run gives them away: whole, tied ones once, averages where those are evaluated; early stopping."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import exit_code, start
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from optland.log.unwritten import Unwritten
from optland.train import History, ModelConfig, TransformerConfig, build_model, save_weights
from optland.train.loops.ema import Ema
from optland.train.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from optland.train.runs.weights import BEST, LAST, Weights, about_weights


class Odd(nn.Module):
    """Everything that a file of tensors may stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)
        self.second = nn.Linear(5, 3, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.t())  # tied through a view of the same storage
        self.images = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)  # a buffer of no dimension
        self.bfloat = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.register_buffer("nothing_else", torch.zeros(0, 4))
        self.register_buffer("part", torch.arange(10.0)[2:5])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.images(x)) + self.second(self.first(x.mean((2, 3)))).sum()


def tied() -> nn.Module:
    return TransformerConfig(depth=1, width=8, heads=2, tied=True).build(vocabulary=11, context=6)


@pytest.mark.parametrize(
    ("make", "x"),
    [(tied, torch.arange(12).view(2, 6) % 11), (Odd, torch.randn(2, 3, 4, 4))],
    ids=["a tied transformer", "odd tensors"],
)
def test_what_is_loaded_computes_the_same(make: Callable[[], nn.Module], x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = make(), make()
    net(x)  # moves the statistics of the normalisation
    before = {name: value.clone() for name, value in net.state_dict().items()}
    save_weights(tmp_path / "net.safetensors", net, {"epoch": "3"})
    if make is tied:
        assert load_model(other, tmp_path / "net.safetensors") == (set(), [])
    else:
        other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype
    assert torch.equal(net.eval()(x), other.eval()(x))
    assert about_weights(tmp_path / "net.safetensors")["epoch"] == "3"


def test_a_tied_tensor_is_stored_once_as_safetensors_itself_does_it(tmp_path: Path) -> None:
    net = tied()
    save_weights(tmp_path / "ours.safetensors", net)
    save_model(net, str(tmp_path / "theirs.safetensors"), metadata={"format": "pt"})
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert about_weights(tmp_path / "ours.safetensors") == about_weights(tmp_path / "theirs.safetensors")
    assert "tokens.weight" not in ours
    assert about_weights(tmp_path / "ours.safetensors")["tokens.weight"] == "head.weight"


def test_an_extra_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"scale": 2}

    with pytest.raises(TypeError, match="_extra_state is a dict, and a safetensors file holds tensors alone"):
        save_weights(tmp_path / "net.safetensors", Extra(1, 1))
    assert not list(tmp_path.iterdir())


def row(epoch: int, accuracy: float) -> dict[str, float]:
    return {"epoch": float(epoch), "val/acc": accuracy, "val/loss": 1.0, "test/acc": accuracy - 1.0}


def trained(
    folder: Path, accuracies: list[float], *, average: bool = False
) -> tuple[Weights, nn.Module, Unwritten]:
    """A run whose weights are the number of the epoch."""
    net = nn.Linear(2, 1, bias=False)
    ema = Ema(net, decay=0.5) if average else None
    history, unwritten = History(), Unwritten()
    weights = Weights(folder, unwritten, net, ema, history, {}, nn.Linear, 2, 1)
    for epoch, accuracy in enumerate(accuracies, start=1):
        nn.init.constant_(net.weight, float(epoch))
        if ema is not None:
            ema.update()
        history.add(row(epoch, accuracy))
        weights.keep()
    weights.finish()
    return weights, net, unwritten


def test_the_last_and_the_best_epoch_are_kept(tmp_path: Path) -> None:
    weights, _, unwritten = trained(tmp_path, [90.0, 93.0, 93.0, 91.0])
    best, last = (load_file(tmp_path / name)["weight"] for name in (BEST, LAST))
    assert best.tolist() == [[2.0, 2.0]], "of equal epochs the first is the best"
    assert last.tolist() == [[4.0, 4.0]]
    about = about_weights(tmp_path / BEST)
    assert (about["epoch"], about["val/acc"], about["weights"]) == ("2", "93", "the weights themselves")
    assert unwritten.lines() == []
    said = weights.describe()
    assert f"{tmp_path / BEST} of epoch 2, the best by validation" in said
    assert f"{tmp_path / LAST} of epoch 4, the last (the weights themselves)" in said


def test_where_an_average_is_evaluated_it_is_given_away(tmp_path: Path) -> None:
    weights, net, _ = trained(tmp_path, [90.0, 93.0], average=True)
    given = load_file(tmp_path / LAST)["weight"]
    assert torch.equal(given, weights.model.weight)
    assert not torch.equal(given, net.weight)
    assert about_weights(tmp_path / LAST)["weights"] == "an average of the weights"


def test_a_best_file_of_another_epoch_is_told(tmp_path: Path) -> None:
    """As where a run was resumed before its best epoch, and came out otherwise."""
    weights, net, unwritten = trained(tmp_path, [90.0, 93.0])
    save_weights(tmp_path / BEST, net, {"epoch": "7"})
    with pytest.warns(RuntimeWarning, match="it is of epoch 7, and the best was epoch 2"):
        weights.finish()
    assert unwritten.missing == [BEST]


def test_an_export_that_fails_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "safetensors.torch", None)
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            weights, _, unwritten = trained(tmp_path, [90.0])
    assert unwritten.missing == [BEST, LAST]
    assert weights.describe() == ""


def own_net(width: int) -> nn.Module:
    return nn.Linear(width, 1)


CASES = [
    (build_model, (ModelConfig(name="resnet8", width=4, norm="batch"), (1, 8, 8), 10)),
    (TransformerConfig(depth=1, width=8, heads=2).build, (11, 6)),
    (nn.Linear, (3, 2)),
]


def execute(script: str, said: Path) -> None:
    """Run a script whose output goes into a file."""
    with said.open("w") as file, contextlib.redirect_stdout(file):
        exec(script, {})


def test_the_printed_lines_load_the_weights_in_a_fresh_process(tmp_path: Path) -> None:
    """All cases in one process, each in a namespace of its own."""
    script, sums = [], []
    for number, (make, arguments) in enumerate(CASES):
        folder = tmp_path / f"run [{number}] 'quoted'"
        folder.mkdir()
        net, history = make(*arguments), History()
        history.add(row(1, 90.0))
        weights = Weights(folder, Unwritten(), net, None, history, {"input": "anything"}, make, *arguments)
        weights.keep()
        weights.finish()
        _, _, lines = weights.describe().partition("To load them in any program:\n\n")
        assert lines.splitlines() == [*weights.lines()]
        assert len(weights.lines()) == 3
        script += [f"space = {{}}; exec({lines!r}, space); model = space['model']"]
        script += ["print(sum(float(p.detach().double().sum()) for p in model.parameters()), model.training)"]
        sums.append(sum(float(p.detach().double().sum()) for p in net.parameters()))
    said = tmp_path / "said.txt"
    assert exit_code(start(execute, "\n".join(script), said)) == 0
    printed = [line.split() for line in said.read_text().splitlines()]
    assert [float(total) for total, _ in printed] == sums
    assert {training for _, training in printed} == {"False"}


def test_a_net_of_the_script_itself_is_taken_out_of_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "mine.py"
    script.write_text("from torch import nn\n\ndef own_net(width):\n    return nn.Linear(width, 1)\n")
    monkeypatch.setattr(own_net, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    net, history = own_net(3), History()
    history.add(row(1, 90.0))
    weights = Weights(tmp_path, Unwritten(), net, None, history, {}, own_net, 3)
    weights.keep()
    space: dict[str, Any] = {}
    exec("\n".join(weights.lines()), space)
    assert torch.equal(space["model"].weight, net.weight)


# Checkpoints that other programs read ---------------------------------------------------------------------


def test_torch_itself_reads_a_checkpoint(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    Checkpoint(str(tmp_path / "c.pt"), every=1, model=net).save(4)
    for options in ({}, {"mmap": True}):
        read = torch.load(str(tmp_path / "c.pt"), weights_only=True, **options)
        assert read["step"] == 4
        assert torch.equal(read["parts"]["model"]["weight"], net.weight)


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "c.pt"), {"step": 3})
    assert load_checkpoint(str(tmp_path / "c.pt")) == {"step": 3}


def test_a_checkpoint_of_the_form_before_is_read(tmp_path: Path) -> None:
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"step": 3}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    (tmp_path / "c.pt").write_bytes(b"optland-checkpoint-1 " + digest + b"\n" + buffer.getvalue())
    assert load_checkpoint(tmp_path / "c.pt") == {"step": 3}


# Early stopping -------------------------------------------------------------------------------------------


def epochs_of(accuracies: list[float], patience: int | None, history: History) -> list[int]:
    """Epochs that are trained, two batches each."""
    batches = range(2 * int(history.last["epoch"]) if history.state_dict() else 0, 2 * len(accuracies))
    seen = []
    for batch in history.until_stalled(batches, patience):
        if batch % 2:
            seen.append(batch // 2 + 1)
            history.add(row(seen[-1], accuracies[batch // 2]))
    return seen


@pytest.mark.parametrize(("patience", "last"), [(None, 8), (0, 8), (1, 3), (2, 4), (3, 7), (4, 8), (100, 8)])
def test_a_run_ends_when_its_best_is_so_many_epochs_old(patience: int | None, last: int) -> None:
    # The best: epochs 1, 2, 4 and so on; equal to the best is no better.
    accuracies = [90.0, 92.0, 92.0, 93.0, 91.0, 91.0, 92.0, 92.0]
    if patience == 2:
        accuracies[3] = 92.0
    history = History()
    assert epochs_of(accuracies, patience, history) == list(range(1, last + 1))
    again = History()
    again.load_state_dict(history.state_dict())
    resumed = epochs_of(accuracies, patience, again)
    assert resumed == list(range(last + 1, 9)) if not history.stalled(patience) else resumed == []


def test_a_stalled_run_takes_no_batch_more() -> None:
    taken = []

    def batches() -> Any:
        for number in range(10):
            taken.append(number)
            yield number

    history = History()
    for number in history.until_stalled(batches(), 1):
        history.add(row(number + 1, 50.0))
    assert taken == [0, 1]
