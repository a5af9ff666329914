"""PyTorch's own contract of an optimizer, with each of its optimizers as base (see ``tests/contract_of_torch.py``)."""

import re

import pytest
import torch
from contract_of_torch import (
    BY_DESIGN,
    CHECKS,
    TWO_PASS,
    WRAPPERS,
    database,
    one_input_each,
    refusal,
    verdicts,
)
from drivers import slow_unless

USUAL = ("SGD", "AdamW")
ODD = ("Adagrad", "LBFGS", "Rprop", "SparseAdam")
"""State before the first step, closures of its own, rates by weight, sparse gradients alone."""

PAIRS = [
    slow_unless(
        kind == "sam" or case.name in USUAL or (kind == "negative_curvature" and case.name in ODD), case, kind
    )
    for case in one_input_each()
    for kind in WRAPPERS
]


def test_the_wrappers_are_of_different_mechanisms():
    assert len(TWO_PASS) == 5
    assert len(WRAPPERS) - len(TWO_PASS) == 3


@pytest.mark.parametrize(("case", "kind"), PAIRS, ids=str)
def test_every_optimizer_of_torch_at_its_defaults(case, kind):
    said = verdicts(case, kind, thorough=False)
    if case.name not in ("LBFGS", "SparseAdam") and kind != "msam":
        assert said.keys() == CHECKS.keys()  # refused nowhere as a whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("name", [case.name for case in one_input_each()])
def test_every_input_of_torchs_own_tests(name, kind):
    cases = database()
    if isinstance(cases, str):
        pytest.skip(cases)
    cases = [case for case in cases if case.name == name]
    if not cases:
        pytest.skip(f"the database of torch {torch.__version__} has no {name}")
    for case in cases:
        verdicts(case, kind)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("LBFGS", {}, "evaluates the closure by itself"),
        ("SparseAdam", {}, "dense real gradients and found a torch.sparse_coo one"),
        ("SGD", {"dtype": torch.complex64}, "dense real gradients and found a complex one"),
    ],
)
def test_refusals_name_what_is_wrong(name, options, why, kind):
    (case,) = (case for case in one_input_each() if case.name == name)
    said = refusal(case, kind, **options)
    assert said is not None
    assert why in said
    assert any(re.search(pattern, said) for pattern in BY_DESIGN)


def test_msam_says_which_bases_have_no_momentum():
    refused = {case.name for case in one_input_each() if (refusal(case, "msam") or "").startswith("MSAM")}
    assert refused == {"ASGD", "Adadelta", "Adafactor", "Adagrad", "Rprop"}
