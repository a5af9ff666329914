"""``optland verify``: right ones pass, wrong ones are told apart, and bad names are refused with the fix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optland.cli import closed_forms, main, verify
from optland.conformance import Finding, Status, run
from optland.conformance.imported import subject_at
from optland.problems import with_spectrum

QUICK = ["step", "radius", "exact-restore", "rho-zero", "lr-zero", "evaluations"]

WRITTEN = """
import torch


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, **options):
        super().__init__(params, dict(rho=rho, **options))
        self.base = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        every = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in every]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.detach().clone()
                p.add_(p.grad, alpha=FACTOR * group["rho"] / float(norm + 1e-30))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()
        self.zero_grad()

    def step(self, closure=None):
        raise RuntimeError("use first_step and second_step")
"""


@pytest.mark.parametrize("name", closed_forms.CLOSED_FORMS)
def test_what_has_a_closed_form_is_measured(name: str) -> None:
    figure, tolerance = closed_forms.CLOSED_FORMS[name]("cpu")
    assert figure <= tolerance


def test_a_wrong_number_fails_its_line_and_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(closed_forms, "EIGENVALUES", (9.5, *closed_forms.EIGENVALUES[1:]))
    exact = with_spectrum((9.0, *closed_forms.EIGENVALUES[1:]))
    monkeypatch.setattr(closed_forms, "with_spectrum", lambda values: exact)
    monkeypatch.setattr("optland.cli.verify.METHODS", ())
    assert main(["verify", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in told["findings"] if f["status"] == "failed"] == ["extremes"]
    assert told["failed"] == 1


@pytest.mark.parametrize(("factor", "right"), [("1.0", True), ("0.5", False)])
def test_an_optimizer_of_a_module_beside_you_is_held_to_its_paper(
    factor: str, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of the most used implementation; with half the radius the step is not SAM's."""
    name = f"written_{right}".lower()
    (tmp_path / f"{name}.py").write_text(WRITTEN.replace("FACTOR", factor))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {f.check: f.bad for f in run(subject_at(f"{name}:SAM"), only=QUICK).findings}
    assert found == {**dict.fromkeys(QUICK, False), "step": not right, "radius": not right}
    sys.modules.pop(name)


def test_an_optimizer_without_a_base_is_held_to_what_torch_asks() -> None:
    subject = subject_at("torch.optim:AdamW")
    assert (subject.claim.method, subject.claim.off) == ("adamw", None)
    found = run(subject, only=["resume", "storage", "lr-zero", "schedulers", "step"])
    assert found.conforms
    assert {f.check for f in found.findings if f.status == "not applicable"} == {"schedulers", "step"}


def test_ours_is_built_by_its_import_path() -> None:
    assert run(subject_at("optland.optim:ASAM"), only=QUICK).conforms
    made = subject_at("optland.optim:SAM", claims="sam")
    assert run(made, only=["step"]).count() == (1, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["AdamW"], "'AdamW' is no import path; write package.module:name"),
        (["no_such_package:SAM"], "no_such_package cannot be imported"),
        (["torch.optim:AdamX"], "torch.optim has no AdamX"),
        (["torch:ones"], "name an optimizer class, or a conformance Subject"),
        (["torch.optim:AdamW", "--claims", "samm"], "claims 'samm' is not known; choose from"),
        (["--claims", "sam"], "of which optimizer?"),
        (["torch.optim:Optimizer"], "was built neither as"),
        (["--devcie", "cpu"], "unknown option --devcie"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_fix(words: list[str], says: str, capsys: Any) -> None:
    assert main(["verify", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_checks_of_other_methods_are_counted_and_not_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    found = [
        Finding("step", "method", Status.PASSED, 0.0, 1.0),
        Finding("usam-stability", "method", Status.NOT_APPLICABLE, detail="not for sam"),
        Finding("scaler-step", "safety", Status.NOT_APPLICABLE, detail="documents no use with a GradScaler"),
    ]
    monkeypatch.setattr(verify, "_findings", lambda *_: (("mine", f) for f in found))
    assert main(["verify", "mine:SAM"]) == 0
    said = capsys.readouterr().out
    assert "usam-stability" not in said
    assert "documents no use with a GradScaler" in said
    assert "1 of 1 checks passed" in said
    assert "2 do not apply" in said


def test_a_device_that_is_not_there_is_refused(capsys: Any) -> None:
    assert main(["verify", "--device", "cuda"]) == 2
    assert "cuda is not available" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_passes_here(capsys: Any) -> None:
    assert main(["verify"]) == 0
    assert "checks passed on torch" in capsys.readouterr().out
