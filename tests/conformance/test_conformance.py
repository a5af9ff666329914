"""The conformance suite: our methods pass it, and every check fails on a subject that is broken in its way.

Each broken subject is the package's SAM with one fault, and must be caught by the check meant for that fault; the
identities of methods are broken one parameter at a time, in optimizers written here from the oracles alone.
"""

import json
import time

import pytest
import torch
from torch import nn

from optland.conformance import (
    Claim,
    Drive,
    FirstSecond,
    GradientFirst,
    Phases,
    Status,
    Subject,
    oracles,
    ours,
    run,
)
from optland.conformance.bench import CHECKS
from optland.conformance.finding import KINDS
from optland.conformance.ours import LETTERS
from optland.optim import SAM, TwoPass
from optland.optim.flight import Flight, Phase
from optland.optim.keys import setting
from optland.optim.method import Method

QUICK = [c for c in CHECKS if c not in ("limit-cycle", "compiled-model")]
BASIC = [c.id for c in CHECKS.values() if c.kind == "method" and c.id in QUICK and c.id != "exact-restore"]
BASIC += ["interrupted-step", "not-finite-second", "scaler-step"]


# Of every mechanism one: one pass, two, three, with a memory, decoupled. What all do is tested by name elsewhere too.
QUICK_SUBJECTS = ("sam", "msam", "crsam", "looksam", "wsam")


@pytest.mark.parametrize(
    "subject",
    [s if s.name in QUICK_SUBJECTS else pytest.param(s, marks=pytest.mark.slow) for s in ours()],
    ids=lambda s: s.name,
)
def test_our_methods_are_those_of_their_papers(subject):
    report = run(subject, only=BASIC)
    assert report.conforms, report.table()
    assert report.count("method")[1] >= 6  # and not by not applying


@pytest.mark.slow
@pytest.mark.parametrize("subject", [*ours(), *ours("phase")], ids=lambda s: s.name)
def test_our_methods_conform(subject):
    report = run(subject)
    assert report.conforms, report.table()
    assert report.count("contract")[1] >= 10


NOT_FOR = {
    "returned-loss": {"msam"},
    "checkpoint-first": {"adam_sam"},
    "batchnorm-statistics": {"msam"},
    "dropout-masks": {"msam"},
    "first-pass-only": {"msam"},
    "second-pass-only": {"msam"},
    "not-finite-second": {"msam"},
    "m-sharpness": {"msam", "adam_sam"},
}
"""Checks that all methods are held to but these."""


@pytest.mark.slow
@pytest.mark.parametrize("subject", ours(), ids=lambda s: s.name)
def test_what_does_not_apply_to_our_methods_is_known(subject):
    method = subject.claim.method
    out = {f.check for f in run(subject).findings if f.status == Status.NOT_APPLICABLE}
    others = {c.id for c in CHECKS.values() if c.methods is not None and method not in c.methods}
    known = {check for check, methods in NOT_FOR.items() if method in methods}
    assert out - others == known


# A literal optimizer made of an oracle: right on purpose where the fault is not -------------------------------


class Literal(torch.optim.SGD):
    """Plain SGD fed by an oracle; the closure is called at every point that the oracle asks for."""

    def __init__(self, params, base, method, options):
        super().__init__(params, lr=base.options["lr"], momentum=base.options.get("momentum", 0.0))
        scaled = torch.cat([torch.ones(p.numel(), dtype=torch.bool) for p in self._all()])
        self.oracle = oracles.ORACLES[method](options, scaled)
        self.velocity = None

    def _all(self):
        return [p for group in self.param_groups for p in group["params"]]

    def _put(self, w):
        with torch.no_grad():
            for p, part in zip(self._all(), w.split([p.numel() for p in self._all()]), strict=True):
                p.copy_(part.view_as(p))

    def step(self, closure):
        start = [p.detach().clone() for p in self._all()]
        w = torch.cat([p.double().flatten() for p in start])
        known, losses = {}, []

        def gradient(point):
            key = tuple(point.tolist())
            if key not in known:
                self._put(point)
                with torch.enable_grad():
                    losses.append(closure())
                known[key] = torch.cat([p.grad.double().flatten() for p in self._all()])
            return known[key].clone()

        v = torch.zeros_like(w) if self.velocity is None else self.velocity
        handed = self.oracle(w, gradient, v)
        lr, mu = self.param_groups[0]["lr"], self.param_groups[0]["momentum"]
        self.velocity = handed.gradient if self.velocity is None else mu * self.velocity + handed.gradient
        step = lr * self.velocity + (0.0 if handed.correction is None else lr * handed.correction)
        self._put(w - step)
        return losses[0]


def literal(method, spoil=lambda options: options, implemented=None):
    """A subject that claims ``method`` and is ``implemented`` (or the same), with its options spoiled."""

    def make(params, base, model, options):
        return Literal(
            params, base, implemented or method, spoil({**LETTERS[implemented or method], **options})
        )

    return Subject("literal", make, Claim(method, LETTERS[method], momentum=0.9 if method == "msam" else 0.0))


IDENTITIES = {
    "sam": ["radius", "norm-precision", "loss-scale"],
    "usam": ["usam-stability"],
    "asam": ["asam-invariance", "asam-radius"],
    "gsam": ["radius", "gsam-orthogonal", "gsam-alpha-zero"],
    "wsam": ["radius", "wsam-gamma-half", "wsam-gamma-zero", "wsam-forms"],
    "looksam": ["radius", "looksam-k-one", "looksam-reuse", "looksam-orthogonal"],
    "fsam": ["radius", "fsam-sigma-zero", "fsam-constant"],
    "vasso": ["radius", "vasso-theta-one"],
    "msam": ["msam-point"],
    "lesam": ["lesam-rise"],
    "fisher_sam": ["fisher-radius"],
    "crsam": ["radius", "crsam-differences"],
}


@pytest.mark.parametrize("method", IDENTITIES)
def test_the_identities_hold_for_the_oracles_themselves(method):
    report = run(literal(method), only=[*IDENTITIES[method], "evaluations", "lr-zero", "returned-loss"])
    assert report.conforms, report.table()
    measured = {f.check for f in report.findings if f.status == Status.PASSED}
    assert measured >= set(IDENTITIES[method])


WRONG = [
    ("sam", "radius", lambda o: {**o, "rho": 0.31}, None),
    ("sam", "norm-precision", lambda o: {**o, "rho": o["rho"] * (1 + 1e-9)}, None),
    ("sam", "loss-scale", None, "usam"),
    ("usam", "usam-stability", lambda o: {**o, "lam": 1.0}, None),
    ("asam", "asam-invariance", lambda o: {**o, "eta": 0.1}, None),
    ("asam", "asam-radius", lambda o: {**o, "eta": 0.1}, None),
    ("gsam", "gsam-orthogonal", lambda o: {**o, "gamma": 0.4}, "wsam"),
    ("gsam", "gsam-alpha-zero", lambda o: {**o, "alpha": 0.1}, None),
    ("wsam", "wsam-gamma-half", lambda o: {**o, "gamma": 0.6}, None),
    ("wsam", "wsam-gamma-zero", lambda o: {**o, "gamma": 0.1}, None),
    ("wsam", "wsam-forms", lambda o: {**o, "gamma": 0.6 if o["decouple"] else 0.7}, None),
    ("looksam", "looksam-k-one", lambda o: {**o, "k": 2}, None),
    ("looksam", "looksam-reuse", lambda o: {**o, "alpha": 0.6}, None),
    ("looksam", "looksam-orthogonal", None, "gsam"),
    ("looksam", "evaluations", lambda o: {**o, "k": 1}, None),
    ("fsam", "fsam-sigma-zero", lambda o: {**o, "sigma": 0.5}, None),
    ("vasso", "vasso-theta-one", lambda o: {**o, "theta": 0.5}, None),
    ("msam", "msam-point", lambda o: {**o, "rho": -0.3}, None),
    ("lesam", "lesam-rise", None, "sam"),
    ("fisher_sam", "fisher-radius", lambda o: {**o, "eta": 0.5}, None),
    ("crsam", "crsam-differences", lambda o: {**o, "beta": 0.0}, None),
    ("crsam", "evaluations", None, "sam"),
    ("pgn", "step", lambda o: {**o, "a": 0.59}, None),
    ("stable_sam", "step", None, "sam"),
    ("sparse_sam", "step", lambda o: {**o, "sparsity": 0.3}, None),
    ("sparse_sam", "step", lambda o: {**o, "refresh": 1}, None),
    ("eigensam", "step", lambda o: {**o, "alpha": 0.49}, None),
]


@pytest.mark.parametrize(
    ("method", "check", "spoil", "implemented"), WRONG, ids=lambda x: x if isinstance(x, str) else ""
)
def test_an_identity_fails_where_the_method_is_another(method, check, spoil, implemented):
    report = run(literal(method, spoil or (lambda o: o), implemented), only=[check])
    assert report.findings[0].status == Status.FAILED, report.table()


# SAM with one fault -------------------------------------------------------------------------------------------


def subject(cls=SAM, drive=None, **kwargs):
    def make(params, base, model, options):
        guarded = (kwargs.get("guard", True) and model) or None
        if isinstance(cls, type) and issubclass(cls, Method):
            return TwoPass(base(params), cls(rho=options["rho"]), model=guarded)
        return cls(base(params), rho=options["rho"], model=guarded)

    (known,) = [s for s in ours() if s.name == "sam"]
    return Subject(
        "broken", make, Claim("sam", {"rho": 0.3}), drive or Drive(), ("perturb", "step"), known.scaled
    )


class PerTensor(Method):
    def perturbation(self, at):
        return [setting(group, "rho") * g / g.norm() for g, group in zip(at.g, at.groups, strict=True)]


class AddSubtractFlight(Flight):
    def land(self):
        ascent, self.ascent = self.ascent, None
        self.to(Phase.IDLE)
        with torch.no_grad():
            for p, w in zip(ascent.moved, ascent.weights, strict=True):
                p.sub_(p - w + torch.finfo(p.dtype).eps * p)
        return ascent


class AddSubtract(SAM):
    flight_class = AddSubtractFlight


class SwapsStorage(SAM):
    def step(self, closure=None):
        loss = super().step(closure)
        for p in self._params:
            p.data = p.data.clone()
        return loss

    step.hooked = True  # type: ignore[attr-defined]


class KeepsStateToItself(SAM):
    def state_dict(self):
        return {**super().state_dict(), "state": {}}


class Unshared(SAM):
    """Groups are copied at loading, so that the base no longer sees what schedulers write."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.copied = [dict(group) for group in self.base.param_groups]

    @property
    def param_groups(self):
        return self.__dict__.get("copied", self.base.param_groups)


class Frozen(SAM):
    """Groups are copies from the start."""

    @property
    def param_groups(self):
        if "copied" not in self.__dict__:
            self.copied = [dict(group) for group in self.base.param_groups]
        return self.copied


class HooksEachPass(SAM):
    """Its hooks run when pass two is called, too."""

    def step(self, closure=None):
        def calling():
            if self.is_perturbed:
                for hook in self._optimizer_step_post_hooks.values():
                    hook(self, (), {})
            return closure()

        return super().step(closure and calling)


class ReturnsPerturbedLoss(SAM):
    def step(self, closure=None):
        losses = []

        def seen():
            losses.append(closure())
            return losses[-1]

        super().step(closure and seen)
        return losses[-1] if losses else None


def unchecked(base, **options):
    return SAM(base, **{**options, "check_finite": False})


class Permissive(SAM):
    """Takes every step that a GradScaler asks for, and gives its state away in mid-step."""

    def step(self, closure=None):
        scaler = self.__dict__.pop("found_inf", None)
        loss = super().step(closure)
        if scaler is not None:
            self.found_inf = scaler
        return loss

    def _refuse_in_flight(self, action):
        pass


class NoAbandonFlight(Flight):
    def abandon(self):
        self.ascent = None
        self.to(Phase.IDLE)
        self.guard.end_second()


class NoAbandon(SAM):
    flight_class = NoAbandonFlight


class NoCopies(SAM):
    def __getstate__(self):
        raise TypeError("cannot be copied")


class NeedsClosure(SAM):
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("closure required")
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]


class Lost(SAM):
    """Added groups do not reach the base."""

    def add_param_group(self, group):
        return None


class DecaysUnused(SAM):
    """Gives zeros to what has no gradient, in pass two."""

    def step(self, closure=None):
        def filling():
            loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            return loss

        return super().step(closure and filling)


class Twice(SAM):
    """One evaluation too many."""

    def step(self, closure=None):
        def twice():
            if not self.is_perturbed:
                closure()
            return closure()

        return super().step(closure and twice)


class HalfRadius(Method):
    def radius(self, group, length):
        return setting(group, "rho") / (1.0 + length)


class Rough(Method):
    """A step of its own when rho is 0."""

    def combine(self, at):
        return [h * (1.0 + 1e-6) for h in at.h]

    def reuse(self, at):
        return [g * (1.0 + 1e-6) for g in at.g]


class Drifts(Method):
    @torch.no_grad()
    def after_update(self, memory):
        for group in memory.groups:
            for p in group["params"]:
                p.add_(0.1)


class ForgetsFlight(Flight):
    """Restores only what has a gradient in pass two."""

    def land(self):
        left = [p for p in self.ascent.moved if p.grad is None or not p.grad.any()]
        kept = [p.detach().clone() for p in left]
        ascent = super().land()
        with torch.no_grad():
            for p, k in zip(left, kept, strict=True):
                p.copy_(k)
        return ascent


class Forgets(SAM):
    flight_class = ForgetsFlight


class KeyErrorFlight(Flight):
    def descend(self):
        for p, g in zip(self.params, self.ascent.gradients, strict=True):
            if p.grad is not None and g is None:
                raise KeyError("no gradient in pass one")
        super().descend()


class KeyErrorInPassTwo(SAM):
    flight_class = KeyErrorFlight


FAULTS = {
    "norm for each tensor": (PerTensor, {}, {"step", "step-adamw", "radius", "norm-precision", "tied"}),
    "adds and subtracts": (AddSubtract, {}, {"exact-restore"}),
    "swaps storage": (SwapsStorage, {}, {"storage"}),
    "state not saved": (KeepsStateToItself, {}, {"resume"}),
    "groups apart after loading": (Unshared, {}, {"resume-settings"}),
    "hooks in each pass": (HooksEachPass, {}, {"hooks"}),
    "loss of pass two": (ReturnsPerturbedLoss, {}, {"returned-loss"}),
    "no finite check": (unchecked, {}, {"not-finite-first", "not-finite-second"}),
    "no refusals": (Permissive, {}, {"scaler-misuse", "call-order"}),
    "left at w + eps": (NoAbandon, {}, {"interrupted-step"}),
    "no copies": (NoCopies, {}, {"deepcopy", "pickle"}),
    "needs a closure": (NeedsClosure, {}, {"checkpoint-first", "checkpoint-later", "scaler-step"}),
    "group lost": (Lost, {}, {"added-group"}),
    "decays the unused": (DecaysUnused, {}, {"frozen-unused"}),
    "one gradient too many": (Twice, {}, {"evaluations", "radius"}),
    "no guard": (
        SAM,
        {"guard": False},
        {"batchnorm-statistics", "batchnorm-count"},
    ),
    "not the base at rho 0": (Rough, {}, {"rho-zero"}),
    "moves without a rate": (Drifts, {}, {"lr-zero"}),
    "one parameter left behind": (Forgets, {}, {"first-pass-only"}),
    "no gradient in pass one": (KeyErrorInPassTwo, {}, {"second-pass-only"}),
    "radius depends on the loss": (HalfRadius, {}, {"loss-scale", "radius"}),
    "groups are copies": (Frozen, {}, {"schedulers"}),
}


RAISING = {"no copies", "needs a closure", "no gradient in pass one"}
"""Faults that show as an exception; any other exception would mean that the broken class is out of date."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_the_check_meant_for_it(fault):
    cls, options, expected = FAULTS[fault]
    report = run(subject(cls, **options), only=sorted(expected))
    assert {f.check for f in report.failures} == expected, report.table()
    erred = {f.check for f in report.failures if f.status == Status.ERROR}
    assert erred <= (expected if fault in RAISING else set()), report.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["adds and subtracts", "swaps storage", "hooks in each pass", "no guard", "loss of pass two"]
)
def test_and_by_no_other(fault):
    cls, options, expected = FAULTS[fault]
    if fault == "adds and subtracts":  # these want the bits of w too
        expected = expected | {"interrupted-step", "not-finite-first", "not-finite-second"}
    report = run(subject(cls, **options), only=QUICK)
    assert {f.check for f in report.failures} == expected, report.table()


class NewMasks(Drive):
    """A draw of random numbers between the passes that nobody takes back."""

    def closure(self, optimizer, problem):
        inner = super().closure(optimizer, problem)

        def closure():
            torch.manual_seed(len(problem.points))
            return inner()

        return closure


class SecondBatchLost(Drive):
    """Pass two sees the last micro-batch only."""

    def closure(self, optimizer, problem):
        calls = []
        whole = problem.parts

        def closure():
            optimizer.zero_grad()
            calls.append(1)
            problem.parts = whole if len(calls) == 1 else whole[-1:]
            loss = problem.backward()
            problem.parts = whole
            return loss

        return closure


class Adds(SAM):
    """Lets gradients from outside the closure into pass one and loses them in pass two."""

    def step(self, closure=None):
        if closure is not None and any(p.grad is not None for g in self.param_groups for p in g["params"]):
            loss = closure()
            self.perturb()
            closure()
            super().step()
            return loss
        return super().step(closure)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (subject(drive=NewMasks()), "dropout-masks"),
        (subject(drive=SecondBatchLost()), "accumulation"),
        (subject(Adds), "accumulation-misuse"),
    ],
    ids=["dropout-masks", "accumulation", "accumulation-misuse"],
)
def test_a_faulty_loop_is_caught(broken, check):
    report = run(broken, only=[check])
    assert report.findings[0].status == Status.FAILED, report.table()


def micro_subject(wrong):
    def micro(optimizer, problem, parts):
        total = [torch.zeros_like(p) for p in optimizer._params]
        for part in parts:
            problem.parts = [part]
            optimizer.zero_grad()
            problem.backward()
            optimizer.perturb()
            problem.backward()
            optimizer.restore()
            for t, p in zip(total, optimizer._params, strict=True):
                # backward weights a part by its share of the batch already
                t += p.grad / (len(parts) if wrong else 1)
        for t, p in zip(total, optimizer._params, strict=True):
            p.grad = t
        optimizer.step()

    good = subject()
    return Subject("micro", good.make, good.claim, micro=micro)


@pytest.mark.parametrize("wrong", [False, True])
def test_m_sharpness(wrong):
    finding = run(micro_subject(wrong), only=["m-sharpness"]).findings[0]
    assert finding.status == (Status.FAILED if wrong else Status.PASSED), finding


# The runner ---------------------------------------------------------------------------------------------------


class Hangs(SAM):
    def step(self, closure=None):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    step.hooked = True  # type: ignore[attr-defined]


def test_a_hang_and_an_exception_are_findings():
    finding = run(subject(Hangs), only=["evaluations"], time_limit=0.1).findings[0]
    assert finding.status == Status.ERROR
    assert "over 0.1 s" in finding.detail

    def make(params, base, model, options):
        raise RuntimeError("not today\nreally")

    finding = run(Subject("raises", make, Claim("sam")), only=["step"]).findings[0]
    assert finding.status == Status.ERROR
    assert finding.detail == "float64: RuntimeError: not today"


def test_running_leaves_no_trace_and_refuses_unknown_names():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    run(subject(), only=["dropout-masks"])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="no checks are named stepp"):
        run(subject(), only=["stepp"])
    with pytest.raises(ValueError, match="time_limit=0"):
        run(subject(), time_limit=0)


def test_what_is_not_claimed_does_not_count():
    base = subject()
    quiet = Subject("quiet", base.make, Claim("other"), disclaims={"hooks": "says so"})
    report = run(quiet, only=["hooks", "step", "scaler-step"])
    assert {f.status for f in report.findings} == {Status.NOT_APPLICABLE}
    assert "hooks (says so)" in report.table()
    assert report.count() == (0, 0)
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["figure"] is None


def test_drives_make_the_same_step():
    ends = []

    def legacy(params, base, model, options):
        return SAM(params, base.cls, rho=0.3, **base.options)

    for made, drive in (
        (None, Drive()),
        (None, Phases()),
        (legacy, FirstSecond()),
        (legacy, GradientFirst()),
    ):
        chosen = subject(drive=drive)
        report = run(Subject("x", made or chosen.make, chosen.claim, drive), only=["step", "evaluations"])
        assert report.conforms, report.table()
        ends.append(report)
    assert len(ends) == 4


def test_every_check_has_a_kind_and_says_what_its_figure_is():
    for check in CHECKS.values():
        assert check.kind in KINDS
        assert "igure" in (check.run.__doc__ or ""), check.id


def test_every_check_is_shown_to_fail():
    shown = {c for _, _, checks in FAULTS.values() for c in checks} | {row[1] for row in WRONG}
    shown |= {"dropout-masks", "accumulation", "accumulation-misuse", "m-sharpness"}
    elsewhere = {"limit-cycle", "p-norm", "fsam-constant", "compiled-model"}
    assert set(CHECKS) - shown == elsewhere


class NotANumber(Method):
    def combine(self, at):
        return [h * float("nan") for h in at.h]


@pytest.mark.parametrize(
    ("check", "method", "cls"),
    [
        ("limit-cycle", "sam", HalfRadius),
        ("p-norm", "sam", SAM),
        ("fsam-constant", "fsam", NotANumber),
        ("compiled-model", "sam", "compiled"),
    ],
)
def test_the_rest_can_fail_too(check, method, cls):
    def make(params, base, model, options):
        if cls == "compiled":
            if not isinstance(model, nn.Sequential):
                params = params[:1]
            return SAM(base(params), rho=options["rho"])
        if issubclass(cls, Method):
            return TwoPass(base(params), cls(rho=options["rho"]), check_finite=False)
        return cls(base(params), rho=options["rho"], check_finite=False)

    options = {
        "rho": 0.3,
        **({"p": 2.0} if check == "p-norm" else {"sigma": 1.0} if method == "fsam" else {}),
    }
    finding = run(Subject("broken", make, Claim(method, options)), only=[check]).findings[0]
    assert finding.status == Status.FAILED, finding
