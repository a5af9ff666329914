"""Every method of the registry over any base, and the loops that drive it."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import ASGD, SGD, Adadelta, Adam, AdamW, Optimizer, RMSprop

from optland.objective import Objective
from optland.optim.registry import METHODS

__all__ = ["ALL", "BASES", "PASSES", "TRUE_UNITS", "Lion", "assert_identical", "fits", "fitting", "make"]
__all__ += [
    "assert_same_state",
    "mean_loss",
    "passes_of",
    "remembered",
    "run",
    "run_phases",
    "slow_unless",
    "snapshot",
    "wrap",
]

ALL = list(METHODS)

TRUE_UNITS = {"usam", "lesam", "fisher_sam", "fsam", "vasso", "wsam"}
"""Methods for which the length of the gradient matters: a GradScaler's scale has to be told."""

REMEMBERED = {
    "looksam": {"sam_look_direction"},
    "fsam": {"sam_gradient_mean"},
    "vasso": {"sam_gradient_mean"},
    "sparse_sam": {"sam_sparse_mask"},
    "eigensam": {"sam_top_eigenvector"},
}

SHORT = {"looksam": {"k": 2}, "sparse_sam": {"refresh": 2}, "eigensam": {"refresh": 2}}
"""Options that bring every kind of step into a run of three."""


def passes_of(name):
    """Backward passes of a full step, as the papers have it."""
    return {"msam": 1, "crsam": 3}.get(name, 2)


PASSES = [(name, number) for name in ALL for number in range(1, passes_of(name) + 1)]
"""All (method, number of a pass)."""


def remembered(name):
    """Keys in the state of what a method keeps for each parameter."""
    return REMEMBERED.get(name, set())


def slow_unless(wanted, *values):
    """A row of a table, in the default tier where ``wanted``."""
    return pytest.param(*values, marks=() if wanted else pytest.mark.slow)


class Lion(Optimizer):
    """Sign of an interpolated momentum (Chen et al. 2023): betas and a first moment, no second."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (one * m + (1 - one) * p.grad).sign())
                m.mul_(two).add_(p.grad, alpha=1 - two)
        return loss


def schedule_free(params, lr, **options):
    import schedulefree

    optimizer = schedulefree.AdamWScheduleFree(params, lr=lr, **options)
    optimizer.train()
    return optimizer


def muon(params, lr, **options):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no torch.optim.Muon, which came with 2.9")
    return torch.optim.Muon(params, lr=lr, **options)


BASES = {
    "sgd": partial(SGD, momentum=0.9),
    "sgd foreach": partial(SGD, momentum=0.9, foreach=True),
    "sgd single": partial(SGD, momentum=0.9, foreach=False),
    "sgd fused": partial(SGD, momentum=0.9, fused=True),
    "adam": Adam,
    "adamw": AdamW,
    "adamw foreach": partial(AdamW, foreach=True),
    "adamw fused": partial(AdamW, fused=True),
    "rmsprop": partial(RMSprop, momentum=0.5),
    "adadelta": Adadelta,
    "asgd": partial(ASGD, lambd=0.1, alpha=0.6),
    "lion": Lion,
    "muon": muon,
    "schedulefree": schedule_free,
}


def fits(name, base):
    """Whether this base has what the method reads: a second moment, a momentum."""
    if name == "adam_sam":
        return base.startswith(("adam", "schedulefree"))
    return not (name == "msam" and base in ("schedulefree", "adadelta", "asgd"))


def fitting(name, base="sgd"):
    """The base asked for, or AdamW where the method cannot do without a second moment."""
    return base if fits(name, base) else "adamw"


def mean_loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def wrap(name, base, network, *, guarded=True, **options):
    """The method around a base that is there already."""
    options = {**SHORT.get(name, {}), "telemetry_every": 1, **options}
    if name == "eigensam":
        options.setdefault("objective", Objective(network.model, mean_loss, [(network.x, network.y)]))
    if guarded:
        options.setdefault("model", network.model)
    return METHODS[name](base, **options)


def make(name, network, base="sgd", *, lr=0.1, params=None, base_options=None, **options):
    """The method over a fitting base, on all parameters of the network."""
    build = BASES[fitting(name, base)]
    params = network.model.parameters() if params is None else params
    return wrap(name, build(params, lr=lr, **(base_options or {})), network, **options)


def run(network, optimizer, steps):
    """The closure form; returns the losses."""
    return [optimizer.step(network.closure(optimizer)).item() for _ in range(steps)]


def run_phases(network, optimizer, steps, **options):
    """The phase form, whatever the method and its gate ask for."""
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in optimizer.passes(**options):
            network.loss().backward()
        optimizer.step()


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def snapshot(optimizer):
    """State and groups, as (place, value) pairs that compare bit for bit."""
    saved = optimizer.state_dict()
    pairs = {
        (i, name): torch.as_tensor(value).clone()
        for i, entry in saved["state"].items()
        for name, value in entry.items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]
    ]
    return pairs, groups


def assert_same_state(a, b):
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for place, value in a[0].items():
        assert torch.equal(value, b[0][place]), place
