"""``import optland``: the names that most people need, and none of their imports before they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import optland

SLOW_TO_IMPORT = [
    "wandb",
    "scipy",
    "matplotlib",
    "plotly",
    "sklearn",
    "torchvision",
    "omegaconf",
    "lightning",
    "transformers",
    "accelerate",
    "timm",
    "sympy",
    "torch.distributed.tensor",
]

NAMES = [
    "SAM",
    "ASAM",
    "MSAM",
    "NegativeCurvature",
    "Pilot",
    "Objective",
    "hessian",
    "ggn",
    "lanczos",
    "trace",
    "density",
    "critical_step",
    "plot",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_its_home(name: str) -> None:
    value = getattr(optland, name)
    assert value.__name__ == name
    assert value.__module__.startswith("optland.")
    assert value is getattr(sys.modules[value.__module__], name)


def test_the_names_are_listed() -> None:
    assert sorted([*NAMES, "__version__"]) == dir(optland) == sorted(optland.__all__)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Lanczos'; its names are .*lanczos"):
        optland.Lanczos  # noqa: B018


def test_nothing_is_imported_before_it_is_used() -> None:
    """Nor are packages that take long, by what most people import."""
    code = (
        "import sys, optland; print('torch' in sys.modules);"
        "optland.hessian; print('optland.curvature' in sys.modules, 'optland.pilot' in sys.modules);"
        "import optland.optim.saddle, optland.pilot, optland.landscape;"
        "print(*[name for name in sys.argv[1:] if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *SLOW_TO_IMPORT, "torch._dynamo"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "False"]
