"""The conformance suite on this package's optimizers and on those of others.

    python benchmarks/conformance.py                 # about three minutes; prints a table, writes the JSON
    python benchmarks/conformance.py --only step     # one check, nothing written

Every peer is built and driven in its own documented way. What a package says that it does not support is "not
applicable", with its statement; a peer that is not installed is named and left out. The most used implementation
of SAM (davda54/sam) is no package; zij carries an adaptation of it under the same calls, and shares its behaviour.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from optland.conformance import (
    Claim,
    Drive,
    FirstSecond,
    GradientFirst,
    Problem,
    Report,
    SetClosure,
    Subject,
    ours,
    run,
)

NOTES = {
    "zij": "declares torch>=2.12,<2.13 and was run on the torch of this table",
    "davda54/sam": "no package; zij's SAM is an adaptation of it",
    "heavyball": "wraps its own compiled optimizers only, so the checks that compare with torch.optim do not apply",
}
SAM_OPTIONS = {"rho": 0.3}
HALVES = ("first_step", "second_step")
OWN_STEP = "has its own update and no base optimizer"


class BackwardArgument(Drive):
    """torchzero's closures take ``backward`` and leave the backward pass out when it is False."""

    def closure(self, optimizer: Any, problem: Problem) -> Callable[..., torch.Tensor]:
        def closure(backward: bool = True) -> torch.Tensor:
            if not backward:
                return problem.loss()
            optimizer.zero_grad()
            return problem.backward()

        return closure


class FirstGradientOnce(Drive):
    """bSAM makes its state from existing gradients, of which there are none before the first step."""

    returns_loss = False  # it evaluates at random points, by design

    def prepare(self, optimizer: Any, problem: Problem) -> None:
        if all(p.grad is None for p in problem.model.parameters()):
            self.closure(optimizer, problem)()


def class_form(cls: Any, **fixed: Any) -> Callable[..., Any]:
    """(params, base class, options of the method and of the base)."""

    def make(params: Any, base: Any, model: Any, options: Any) -> Any:
        return cls(params, base.cls, **{**fixed, **options}, **base.options)

    return make


def pytorch_optimizer() -> list[Subject]:
    from pytorch_optimizer import BSAM, GSAM, SAM, WSAM, FriendlySAM, LookSAM
    from pytorch_optimizer.lr_scheduler.proportion import ProportionScheduler

    def friendly(params: Any, base: Any, model: Any, options: Any) -> Any:
        names = {"lam": "lmbda"}
        return FriendlySAM(
            params, base.cls, **{names.get(k, k): v for k, v in options.items()}, **base.options
        )

    def asam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return SAM(params, base.cls, rho=options["rho"], adaptive=True, **base.options)

    def gsam(params: Any, base: Any, model: Any, options: Any) -> Any:
        inner = base(params)
        rho = options["rho"]
        held = torch.optim.lr_scheduler.ConstantLR(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), factor=1.0
        )
        scheduler = ProportionScheduler(held, max_lr=0.1, min_lr=0.1, max_value=rho, min_value=rho)
        return GSAM(params, inner, model, scheduler, alpha=options["alpha"])

    def wsam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return WSAM(model, params, base.cls, **options, **base.options)

    def bsam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return BSAM(params, num_data=12, lr=base.options["lr"], rho=options["rho"])

    first: dict[str, Any] = {"drive": GradientFirst(), "halves": HALVES}
    own = dict.fromkeys(("schedulers", "resume-settings"), OWN_STEP)
    return [
        Subject("SAM", class_form(SAM), Claim("sam", SAM_OPTIONS), **first),
        Subject(
            "SAM (two calls)", class_form(SAM), Claim("sam", SAM_OPTIONS), drive=FirstSecond(), halves=HALVES
        ),
        Subject("SAM (adaptive)", asam, Claim("asam", {"rho": 0.3, "eta": 0.0}), **first),
        Subject("GSAM", gsam, Claim("gsam", {"rho": 0.3, "alpha": 0.2}), drive=SetClosure()),
        Subject("WSAM", wsam, Claim("wsam", {"rho": 0.3, "gamma": 0.7, "decouple": True})),
        Subject(
            "LookSAM", class_form(LookSAM), Claim("looksam", {"rho": 0.3, "k": 2, "alpha": 0.7}), **first
        ),
        Subject("FriendlySAM", friendly, Claim("fsam", {"rho": 0.3, "sigma": 1.0, "lam": 0.8}), **first),
        Subject(
            "BSAM",
            bsam,
            Claim("bsam", {"rho": 0.05}, off=None),
            drive=FirstGradientOnce(),
            disclaims=own,
        ),
    ]


def zij() -> list[Subject]:
    """Its LookSAM is left out: by its documentation it wants a base that counts steps, which SGD does not."""
    from zij.contrib.sharpness_aware import asam, gsam, sam, wsam

    def make_asam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return asam.ASAM(params, base.cls, rho=options["rho"], **base.options)

    def make_gsam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return gsam.GSAM(params, base(params), model, rho=options["rho"], gsam_alpha=options["alpha"])

    def make_wsam(params: Any, base: Any, model: Any, options: Any) -> Any:
        return wsam.WSAM(params, base.cls, model, **options, **base.options)

    first: dict[str, Any] = {"drive": GradientFirst(), "halves": HALVES}
    return [
        Subject("SAM", class_form(sam.SAM), Claim("sam", SAM_OPTIONS), **first),
        Subject(
            "SAM (two calls)",
            class_form(sam.SAM),
            Claim("sam", SAM_OPTIONS),
            drive=FirstSecond(),
            halves=HALVES,
        ),
        Subject("ASAM", make_asam, Claim("asam", {"rho": 0.3, "eta": 0.0}), **first),
        Subject(
            "GSAM",
            make_gsam,
            Claim("gsam", {"rho": 0.3, "alpha": 0.2}),
            drive=SetClosure(),
            disclaims={"resume": "its documentation has the state of the base saved separately"},
        ),
        Subject("WSAM", make_wsam, Claim("wsam", {"rho": 0.3, "gamma": 0.7, "decouple": True})),
    ]


def torchzero() -> list[Subject]:
    import torchzero as tz

    def maker(cls: Any) -> Callable[..., Any]:
        def make(params: Any, base: Any, model: Any, options: Any) -> Any:
            known = {k: v for k, v in options.items() if k in ("rho", "p")}
            decay, rate = tz.m.WeightDecay(base.options["weight_decay"]), tz.m.LR(base.options["lr"])
            if base.name == "adamw":
                return tz.Optimizer(params, cls(**known), tz.m.Adam(), decay, rate)
            momentum = base.options["momentum"]
            inner = [tz.m.HeavyBall(momentum, ema_init="zeros")] if momentum else []  # as SGD starts
            return tz.Optimizer(params, cls(**known), decay, *inner, rate)

        return make

    drive = BackwardArgument()
    own = dict.fromkeys(
        ("rho-zero", "step-adamw"), "its base optimizers are its own, not those of torch.optim"
    )
    return [
        Subject("SAM", maker(tz.m.SAM), Claim("sam", {"rho": 0.3, "p": 2.0}), drive, disclaims=own),
        Subject("ASAM", maker(tz.m.ASAM), Claim("asam", {"rho": 0.3, "eta": 0.0}), drive, disclaims=own),
    ]


def temperon() -> list[Subject]:
    from temperon import Temperon

    def make(params: Any, base: Any, model: Any, options: Any) -> Any:
        return Temperon(base(params), total_steps=10_000, tail_frac=1.0, rho=options["rho"])

    wrapper = "is not a torch Optimizer, by its documentation; schedules and hooks go to the inner one"
    accumulation = "its documentation says that accumulation is not supported"
    return [
        Subject(
            "Temperon (SAM throughout)",
            make,
            Claim("sam", SAM_OPTIONS),
            disclaims={
                **dict.fromkeys(("schedulers", "hooks", "checkpoint-first", "checkpoint-later"), wrapper),
                "accumulation-misuse": accumulation,
            },
        )
    ]


PEERS: dict[str, tuple[str, Callable[[], list[Subject]]]] = {
    "pytorch_optimizer": ("pytorch-optimizer", pytorch_optimizer),
    "torchzero": ("torchzero", torchzero),
    "temperon": ("temperon", temperon),
    "zij": ("zij", zij),
}


def measured(only: list[str] | None) -> tuple[dict[str, str], dict[str, list[Report]], list[str]]:
    """Versions, reports by package, and the peers that are not installed."""
    versions = {"torch": torch.__version__, "optland": importlib.metadata.version("optland")}
    reports = {"optland": [run(s, only=only) for s in ours()]}
    missing = []
    for package, (distribution, subjects) in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                built = subjects()
        except ImportError as error:
            missing.append(f"{package} ({error})")
            continue
        versions[package] = importlib.metadata.version(distribution)
        reports[package] = [run(s, only=only) for s in built]
    return versions, reports, missing


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=None, help="identifiers of checks; writes no file")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/conformance.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions, reports, missing = measured(arguments.only)
    kinds = ("method", "contract", "model", "safety")
    for package, rows in reports.items():
        for report in rows:
            print(f"\n{package} {versions[package]} {report.table()}")
    print(f"\n{'passed / applicable':52}" + "".join(f"{kind:>10}" for kind in kinds))
    for package, rows in reports.items():
        for report in rows:
            cells = ["{}/{}".format(*report.count(kind)) for kind in kinds]
            print(f"{package + ' ' + report.subject:52}" + "".join(f"{cell:>10}" for cell in cells))
    for name in missing:
        print(f"not installed: {name}")
    if arguments.only is None:
        result = {
            "benchmark": "conformance",
            "versions": versions,
            "missing": missing,
            "notes": NOTES,
            "reports": {p: [r.to_dict() for r in rows] for p, rows in reports.items()},
        }
        arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(report.conforms for report in reports["optland"]))


if __name__ == "__main__":
    raise SystemExit(main())
