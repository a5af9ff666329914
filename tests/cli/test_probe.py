"""``optland probe`` on real runs of both recipes, its numbers against float64 computations made from scratch."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from optland import cli, hessian, lanczos
from optland.cli import cost_progress, probe_pace
from optland.cli import probe as probing
from optland.cli import report as reporting
from optland.cli.opened import exact_enough
from optland.cli.recipes import all_recipes
from optland.objective import Objective
from optland.problems import linear_regression
from optland.train import DataConfig, TextConfig, TransformerConfig, load_data, load_text
from optland.train.runs.checkpoint import load_checkpoint, save_checkpoint

D = torch.float64
IMAGES = ["log.wandb=disabled", "log.console=false", "model.name=mlp", "model.width=6", "model.depth=1"]
IMAGES += ["optimizer.weight_decay=0.01", "pilot.budget=0.1"]
TEXT = ["log.wandb=disabled", "log.console=false", "model.width=8", "model.depth=1", "data.max_bytes=20000"]
TEXT += [
    "data.context=16",
    "epochs=1",
    "precision.ema=0.9",
    "optimizer.weight_decay=0.01",
    "pilot.budget=0.1",
]
CHEAP = ["--samples", "30", "--max-matvecs", "6", "--no-density"]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a classifier with 460 weights."""
    return trained("landscape_train", IMAGES, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a transformer, AdamW, with an average of its weights."""
    return trained("language_model", TEXT, tmp_path_factory.mktemp("text"))


def trained(recipe: str, overrides: list[str], folder: Path) -> Path:
    assert cli.main(["run", recipe, "smoke", f"out={folder / 'run'}", *overrides]) == 0
    return folder / "run"


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    """A copy of the classifier's run that a test may spoil."""
    shutil.copytree(images, tmp_path / "run")
    return tmp_path / "run"


def drawn(size: int, num: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:num].sort().values


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["probe", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("optland: ")
    assert said.count("\n") == 1
    return said


# The numbers ---------------------------------------------------------------------------------------


def test_the_classifier_s_numbers_are_those_of_its_dense_hessian(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f.name: hashlib.sha256(f.read_bytes()).digest() for f in images.iterdir()}
    out = tmp_path / "out"
    assert cli.main(["probe", str(images), "--samples", "200", "--seed", "3", "--out", str(out)]) == 0
    found = json.loads((out / "probe.json").read_text())
    assert (out / "probe.png").read_bytes().startswith(PNG)
    assert {f.name: hashlib.sha256(f.read_bytes()).digest() for f in images.iterdir()} == before

    saved = load_checkpoint(images / "checkpoint.pt")
    assert found["step"] == saved["step"] == json.loads((images / "summary.json").read_text())["train/steps"]
    state = {name: value.to(D) for name, value in saved["parts"]["model"].items()}
    data = load_data(DataConfig("digits"))
    which = drawn(len(data.train_y), 200, 3)
    x, y = data.train_x[which].flatten(1).to(D), data.train_y[which]
    shapes = [v.shape for v in state.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [s.numel() for s in shapes])
        w1, b1, w2, b2 = (v.reshape(s) for v, s in zip(pieces, shapes, strict=True))
        return F.cross_entropy((x @ w1.T + b1).relu() @ w2.T + b2, y)

    at = torch.cat([v.flatten() for v in state.values()])
    H = torch.autograd.functional.hessian(loss, at)
    g = float(torch.autograd.functional.jacobian(loss, at).norm())
    exact = torch.linalg.eigvalsh(H)
    scale = float(exact.abs().max())

    assert found["dim"] == len(at) == 460
    assert found["loss"] == pytest.approx(float(loss(at)), rel=1e-5)
    numbers = found["estimates"]
    for i in range(3):
        for name, value in (
            (f"largest eigenvalue {i + 1}", exact[-1 - i]),
            (f"smallest eigenvalue {i + 1}", exact[i]),
        ):
            assert numbers[name]["converged"]
            assert abs(numbers[name]["value"] - float(value)) <= numbers[name]["error"] + 1e-4 * scale, name
    assert numbers["gradient norm (floor: standard error)"]["value"] == pytest.approx(g, rel=1e-3)
    assert numbers["squared Frobenius norm"]["value"] == pytest.approx(float(H.square().sum()), rel=0.1)
    blocks = torch.split(H.diagonal(), [s.numel() for s in shapes])
    layers = dict(zip(state, blocks, strict=True))
    for name, part in [("", numbers["trace"]), *found["trace_per_layer"].items()]:
        true = float(H.trace()) if not name else float(layers[name].sum())
        assert abs(part["value"] - true) <= 5 * part["error"] + 1e-3 * abs(true), name
    share = numbers["share of eigenvalues below 0"]
    assert abs(share["value"] - float((exact < 0).double().mean())) <= 4 * share["error"] + 0.02

    # SAM around heavy ball: lam (1 + rho lam / |g|) = (2 + 2 b) / lr - wd at the edge.
    lam = float(exact[-1])
    edge = 3.8 / (lam * (1 + 0.1 * lam / g) + 0.01)
    assert numbers["largest stable learning rate"]["value"] == pytest.approx(edge, rel=0.02)
    assert found["stability"]["rule"].startswith("SAM rho 0.1 around heavy ball")

    said = capsys.readouterr().out
    assert "200 of 1200 training samples" in said
    assert "eval mode, seed 3, float32" in said
    assert f"at most {found['declared_ge']:.3g} gradient evaluations" in said
    assert 0 < found["cost_ge"] <= found["declared_ge"]
    assert found["notes"] == [note for note in found["notes"] if "weight decay (0.01)" in note], (
        "nothing else to say"
    )
    assert found["verdict"] in said


@pytest.mark.slow
def test_the_transformer_s_numbers_are_those_of_a_literal_product(text: Path, tmp_path: Path) -> None:
    arguments = [
        "--samples",
        "40",
        "--split",
        "val",
        "--double",
        "--no-density",
        "--max-matvecs",
        "120",
        "--k",
        "2",
    ]
    assert cli.main(["probe", str(text), *arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())
    saved = load_checkpoint(text / "checkpoint.pt")["parts"]
    config = TransformerConfig(depth=1, width=8, heads=2)
    data = load_text(TextConfig(tokens="bytes", context=16, max_bytes=20_000))
    x, y = (part[drawn(len(part), 40, 0)] for part in data.windows("val"))
    net = config.build(256, 16).to(D).eval()

    def product() -> tuple[list[Any], Callable[[Any], Any]]:
        params = list(net.parameters())
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(net(x).flatten(0, 1), y.flatten())
            g = torch.autograd.grad(loss, params, create_graph=True)

        def multiply(v: Any) -> Any:
            pieces = torch.split(torch.from_numpy(np.ravel(v)), [p.numel() for p in params])
            dot = sum((a * b.view_as(a)).sum() for a, b in zip(g, pieces, strict=True))
            Hv = torch.autograd.grad(dot, params, retain_graph=True)
            return torch.cat([t.flatten() for t in Hv]).numpy()

        return params, multiply

    averaged = {k.removeprefix("module."): v for k, v in saved["ema"]["average"].items() if k != "n_averaged"}
    net.load_state_dict(averaged)
    params, multiply = product()
    d = sum(p.numel() for p in params)
    ends = eigsh(LinearOperator((d, d), multiply, dtype=np.float64), k=4, which="BE", tol=1e-8)[0]
    assert found["dim"] == d
    assert found["weights"] == "average"
    names = ["smallest eigenvalue 1", "smallest eigenvalue 2", "largest eigenvalue 2", "largest eigenvalue 1"]
    for name, value in zip(names, ends, strict=True):
        estimate = found["estimates"][name]
        assert abs(estimate["value"] - value) <= estimate["error"] + 1e-6, name
        assert estimate["provenance"]["dtype"] == "float64"

    # Stability is that of the weights that AdamW steps, in its own metric, made here from its state.
    net.load_state_dict(saved["model"])
    _, multiply = product()
    roots = []
    for state in saved["optimizer"]["state"].values():
        t = float(state["step"])
        P = (1 - 0.9**t) * ((state["exp_avg_sq"].to(D) / (1 - 0.999**t)).sqrt() + 1e-8)
        roots.append(P.rsqrt().flatten())
    T = torch.cat(roots).numpy()
    scaled = LinearOperator((d, d), lambda v: T * multiply(T * np.ravel(v)), dtype=np.float64)
    top = float(eigsh(scaled, k=1, which="LA", tol=1e-8)[0][0])
    stable = found["stability"]
    assert stable["adaptive"]
    assert stable["sharpness"]["value"] == pytest.approx(top, rel=0.01)
    assert stable["largest"]["value"] == pytest.approx(2 / (top / 19 + 0.01), rel=0.01)
    rates = {name: entry["rate"] for name, entry in stable["rates"].items()}
    assert rates["last"] < rates["median"] < rates["peak"]
    for entry in stable["rates"].values():
        assert entry["ratio"]["value"] == pytest.approx(top / (19 * (2 / entry["rate"] - 0.01)), rel=0.01)


# What is said and written --------------------------------------------------------------------------


def test_where_float32_has_no_digit_of_the_curvature_it_is_measured_in_float64() -> None:
    """A fitted run is what most people probe; here one sample with a loss of 1e-7 and a curvature in closed form."""

    def told_apart(margin: float) -> Objective:
        model = torch.nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[margin, 0.0], [0.0, 0.0]]))
        batch = (torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])

    used, note = exact_enough(told_apart(16.0))
    assert (used.dtype, "float64" in note) in (("float64", True), ("float32", False))
    with hessian(used) as H:
        top = lanczos(H, k=1, ends="top").values[0]
    p = 1 / (1 + math.exp(-16.0))
    assert top.value == pytest.approx(2 * p * (1 - p) * 1.25, rel=1e-6 if note else 0.2)
    for exact in (told_apart(16.0).double(), told_apart(1.6)):  # a loss of 0.2 has all its digits
        assert exact_enough(exact) == (exact, "")


def test_a_report_in_float64_has_the_test_loss_on_the_model_that_it_surveys(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        reporting, "exact_enough", lambda objective: (objective.double(), "Measured in float64.")
    )
    tiny = ["--samples", "24", "--points", "3", "--max-matvecs", "4", "--no-density", "--curve-steps", "0"]
    assert cli.main(["report", str(run), *tiny]) == 0
    page = (run / "report" / "report.html").read_text()
    assert "Measured in float64." in page
    assert "test loss" in page


def test_the_same_probe_gives_the_same_numbers_and_nothing_is_written_over(run: Path) -> None:
    for _ in range(2):
        assert cli.main(["probe", str(run), *CHEAP]) == 0
    first, second = ((run / f"probe{n}.json").read_text() for n in ("", "-2"))
    assert first == second
    assert (run / "probe-2.png").read_bytes().startswith(PNG)
    assert not (run / "probe-3.json").exists()
    assert cli.main(["probe", str(run), *CHEAP, "--seed", "1"]) == 0
    assert json.loads((run / "probe-3.json").read_text())["estimates"] != json.loads(first)["estimates"]


def test_a_slow_machine_measures_less_and_says_what_was_left_out(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "seconds_per_ge", lambda objective: 10.0)
    assert cli.main(["probe", str(run), "--samples", "30", "--seconds", "90"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "To end in about 90 s, each part had at most 25 products in place of 200, and the density was left out"
        in said
    )
    found = json.loads((run / "probe.json").read_text())
    assert (found["max_matvecs"], found["density"]) == (25, None)
    assert any("--max-matvecs 200 --density measures all" in note for note in found["notes"])
    assert found["cost_ge"] <= found["declared_ge"]
    assert cli.main(["probe", str(run), *CHEAP]) == 0  # what is asked for is measured, however long it takes
    assert "To end in" not in capsys.readouterr().out
    assert cli.main(["probe", str(run), "--seconds", "0"]) == 2
    assert "0 is not above 0" in capsys.readouterr().err


def test_the_pace_is_that_of_a_product_and_both_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = linear_regression(torch.ones(6, 2, dtype=D), torch.ones(6, 1, dtype=D))
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(probe_pace, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    spent = []
    with hessian(objective) as H:  # whatever is checked once for a model is behind it
        for _ in range(3):
            H.matvec([torch.ones_like(p) for p in objective.params])
            spent.append(objective.cost_ge)
    pace = probe_pace.seconds_per_ge(objective)
    product = spent[2] - spent[1]
    assert pace == pytest.approx(3.0 / product)  # the second of two, which is timed
    assert objective.cost_ge - spent[2] >= 2 * product


def test_too_few_products_are_told_plainly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", str(run), *CHEAP, "--max-matvecs", "3"]) == 0
    said = capsys.readouterr().out
    assert "NOT CONVERGED" in said
    assert "is at least" in said
    assert "at least" in said.partition("of the edge")[0].rpartition("(")[2]
    assert "up to at most" in said
    found = json.loads((run / "probe.json").read_text())
    assert "NOT CONVERGED: " in found["verdict"]
    assert not found["estimates"]["smallest eigenvalue 1"]["converged"]


def test_a_whole_split_is_no_sample(run: Path) -> None:
    assert cli.main(["probe", str(run), *CHEAP, "--samples", "9999", "--split", "val"]) == 0
    found = json.loads((run / "probe.json").read_text())
    assert found["samples"] == found["of"] == 197
    assert found["point"]["floor_kind"] == "rounding"
    assert found["data"] == "all 197 validation samples"


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_that_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert cli.main(["probe", str(run), *CHEAP]) == 0
    said = capsys.readouterr().out
    assert "its checksum does not match" in said
    assert "using checkpoint.pt.previous" in said
    assert "The run went on to step 38: these are not its final weights" in said
    assert json.loads((run / "probe.json").read_text())["step"] == 0
    newest.unlink()
    assert cli.main(["probe", str(run), *CHEAP]) == 0
    assert "checkpoint.pt is missing" in capsys.readouterr().out
    older = run / "checkpoint.pt.previous"
    older.write_bytes(older.read_bytes()[:-100])
    assert "no usable checkpoint" in refused([str(run), *CHEAP], capsys)


def test_weights_that_a_run_gave_away_are_probed_as_its_checkpoint_is(
    images: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same point, seen through either file; of tied and averaged weights too."""
    for run in (images, text):
        found = []
        for name in ("checkpoint.pt", "model.safetensors"):
            out = tmp_path / run.parent.name / name
            assert cli.main(["probe", str(run / name), *CHEAP, "--out", str(out)]) == 0
            found.append(json.loads((out / "probe.json").read_text()))
        checkpoint, weights = found
        assert weights["step"] == checkpoint["step"]
        assert weights["loss"] == checkpoint["loss"]
        assert weights["ritz_values"] == checkpoint["ritz_values"]
        assert weights["stability"] is None
        assert not any("the run logged" in note for note in weights["notes"])
        kind = "an average of the weights" if run is text else "the weights themselves"
        assert f"The file holds {kind}, and no state of the optimizer." in weights["notes"]
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    shutil.copy(images / "config.yaml", tmp_path)
    assert "no.safetensors is no safetensors file" in refused(
        [str(tmp_path / "no.safetensors"), *CHEAP], capsys
    )


def test_a_bare_checkpoint_needs_its_config(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "elsewhere" / "weights.pt"
    bare.parent.mkdir()
    shutil.copy(run / "checkpoint.pt", bare)
    assert "--config FILE" in refused([str(bare), *CHEAP], capsys)
    assert cli.main(["probe", str(bare), *CHEAP, "--config", str(run / "config.yaml")]) == 0
    found = json.loads((bare.parent / "probe.json").read_text())
    assert found["stability"]["rates"] == {}
    assert found["stability"]["largest"]["value"] > 0
    assert any("auto_lr set them" in note for note in found["notes"])
    other = tmp_path / "other.yaml"
    other.write_text((run / "config.yaml").read_text().replace("width: 6", "width: 7"))
    assert "do not fit the model" in refused([str(bare), *CHEAP, "--config", str(other)], capsys)


def test_a_recipe_that_was_edited_since_shows_in_the_validation_loss(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = all_recipes()["landscape_train"].script.read_text()
    edited = tmp_path / "edited.py"
    edited.write_text(
        script.replace("F.cross_entropy(model(x), y)", "F.cross_entropy(model(x), y, label_smoothing=0.1)")
    )
    assert cli.main(["probe", str(run), *CHEAP, "--recipe", str(edited)]) == 0
    assert "are not those of the run" in capsys.readouterr().out
    start, end = script.index("def build("), script.index("def main(")
    edited.write_text(script[:start] + script[end:])
    assert "has no build" in refused([str(run), *CHEAP, "--recipe", str(edited)], capsys)
    edited.write_text(script[:start] + "def build(config, device):\n    return 1, 2\n\n\n" + script[end:])
    assert "must return (model, data)" in refused([str(run), *CHEAP, "--recipe", str(edited)], capsys)


def test_weights_that_are_not_finite_have_no_curvature(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = load_checkpoint(run / "checkpoint.pt")
    saved["parts"]["model"]["1.bias"][2] = math.nan
    save_checkpoint(run / "checkpoint.pt", saved)
    assert "1 of 6 values of '1.bias' are not finite after step 38" in refused([str(run), *CHEAP], capsys)


def test_without_a_state_of_the_optimizer_there_is_no_ratio_and_that_is_said(
    text: Path, tmp_path: Path
) -> None:
    shutil.copytree(text, tmp_path / "run")
    saved = load_checkpoint(text / "checkpoint.pt")
    saved["parts"]["optimizer"]["state"] = {}
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", saved)
    assert cli.main(["probe", str(tmp_path / "run"), *CHEAP]) == 0
    found = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert found["stability"] is None
    assert any("it has not made a step" in note for note in found["notes"])


def test_the_average_of_a_sam_run_can_be_probed_in_float64(tmp_path: Path) -> None:
    out = trained("landscape_train", [*IMAGES, "precision.ema=0.9", "epochs=1", "pilot.mode=off"], tmp_path)
    assert cli.main(["probe", str(out), *CHEAP, "--double"]) == 0
    found = json.loads((out / "probe.json").read_text())
    assert found["weights"] == "average"
    assert found["dtype"] == "float64"
    assert set(found["stability"]["rates"]) == {"last", "median", "peak"}
    assert not any("validation loss" in note for note in found["notes"])


def test_ctrl_c_ends_it_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = cost_progress.CostProgress.begin

    def interrupted(progress: cost_progress.CostProgress, part: str) -> None:
        begin(progress, part)
        if part == "trace":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cost_progress.CostProgress, "begin", interrupted)
    assert cli.main(["probe", str(run), *CHEAP]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted; nothing was written."
    assert not list(run.glob("*probe*"))


# Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "0"], "--samples: 0 is too small"),
        (["--k", "-1"], "--k: -1 is too small"),
        (["--batch-size", "0"], "--batch-size: 0"),
        (["--seed", "x"], "'x' is no whole number"),
        (["--split", "all"], "invalid choice: 'all'"),
        (["--sample", "3"], "Did you mean '--samples'?"),
        (["--products", "3"], "Did you mean '--max-matvecs'?"),
        (["more"], "'more' is one argument too many"),
        (["--config", "gone.yaml"], "--config: there is no file gone.yaml"),
        (["--recipe", "gone"], "there is no recipe 'gone'"),
        (["--out", "/dev/null/x"], "name another with --out"),
    ],
)
def test_options_that_cannot_be_are_refused(
    images: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert says in refused([str(images), *options], capsys)
    assert not list(images.glob("probe*"))


def test_what_is_no_run_is_refused_and_what_was_meant_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Did you mean 'run'?" in refused([str(tmp_path / "rum")], capsys)
    assert f"such as {run}" in refused([str(tmp_path)], capsys)
    (tmp_path / "empty").mkdir()
    assert "it is no run folder" in refused([str(tmp_path / "empty")], capsys)
    config = (run / "config.yaml").read_text()
    missing = config.replace("root: null", f"root: {tmp_path / 'nowhere'}").replace(
        "name: digits", "name: mnist"
    )
    for text, says in (
        (config.replace("recipe: landscape_train\n", ""), "no recipe is named"),
        (config.replace("recipe: landscape_train", "recipe: gone"), "or name its script with --recipe"),
        (missing, "mnist is not in"),
    ):
        (run / "config.yaml").write_text(text)
        assert says in refused([str(run), *CHEAP], capsys)


def test_the_other_commands_load_no_pytorch() -> None:
    code = "import sys; from optland.cli import commands; commands._parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
