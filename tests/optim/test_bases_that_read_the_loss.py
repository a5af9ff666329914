"""Bases whose step looks at the loss are told that of pass one; bases that evaluate elsewhere are refused."""

import gc
import weakref

import pytest
import torch
from drivers import ALL, assert_identical, fits, make, passes_of, run, run_phases, wrap
from torch.optim import Optimizer

from optland.optim import ASAM, MSAM, SAM
from optland.optim.saddle import NegativeCurvature


class Polyak(Optimizer):
    """Polyak's step length L / |g|^2 with momentum 0; also keeps what MSAM and Adam-like methods read."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr, "momentum": 0.9, "betas": (0.9, 0.999)})

    def gradients(self):
        return [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]

    def move(self, loss):
        square = sum(g.square().sum() for _, g in self.gradients())
        for p, g in self.gradients():
            state = self.state[p]
            state["exp_avg"] = g.clone()
            state["exp_avg_sq"] = g.square()
            state["step"] = state.get("step", 0) + 1
            p.sub_(self.param_groups[0]["lr"] * float(loss) / square * g)

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.move(loss)
        return loss


class ByKeyword(Polyak):
    @torch.no_grad()
    def step(self, *, scale=1.0, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.move(scale * loss)


class HandsOn(Polyak):
    @torch.no_grad()
    def step(self, *args, **kwargs):
        return Polyak.step(self, *args, **kwargs)


@pytest.mark.parametrize("kind", [Polyak, ByKeyword, HandsOn])
@pytest.mark.parametrize("name", ALL)
def test_without_a_perturbation_it_is_the_base(name, kind, make_network):
    plain, network = make_network(), make_network()
    base = kind(plain.model.parameters(), lr=0.1)
    for _ in range(4):
        base.step(closure=plain.closure(base)) if kind is ByKeyword else base.step(plain.closure(base))
    run(network, wrap(name, kind(network.model.parameters(), lr=0.1), network, rho=0.0), 4)
    assert_identical(network.weights(), plain.weights())


@pytest.mark.parametrize("name", [name for name in ALL if fits(name, "sgd") or name == "adam_sam"])
def test_no_evaluation_is_added(name, make_network):
    network = make_network()
    optimizer = wrap(name, Polyak(network.model.parameters(), lr=0.01), network)
    calls = []

    def closure():
        calls.append(1)
        return network.closure(optimizer)()

    for _ in range(2):
        calls.clear()
        optimizer.step(closure)
        assert len(calls) == optimizer.last_evaluations <= passes_of(name)


def test_the_step_is_that_of_the_loss_at_w_and_the_gradient_above(quadratic):
    optimizer = SAM(Polyak(quadratic.params, lr=0.5), rho=0.2)
    w, H = quadratic.w.clone(), quadratic.H
    for _ in range(3):
        g = H @ w
        h = H @ (w + 0.2 * g / g.norm())
        w = w - 0.5 * (0.5 * w @ H @ w) / h.square().sum() * h
        loss = optimizer.step(quadratic.closure(optimizer))
        assert loss.requires_grad
        torch.testing.assert_close(quadratic.w, w, rtol=1e-12, atol=1e-13)


def test_momentum_sam_tells_the_loss_where_its_gradient_is_from(quadratic):
    optimizer = MSAM(Polyak(quadratic.params, lr=0.5), rho=0.2)
    w, H = quadratic.w.clone(), quadratic.H
    v = torch.zeros_like(w)
    for _ in range(3):
        up = w - (0.2 * v / v.norm() if v.any() else 0.0)
        v = H @ up
        w = w - 0.5 * (0.5 * up @ H @ up) / v.square().sum() * v
        optimizer.step(quadratic.closure(optimizer))
        torch.testing.assert_close(quadratic.w, w, rtol=1e-12, atol=1e-13)


def test_micro_batches_tell_the_sum_of_their_shares(make_network):
    network, plain = make_network(), make_network()
    optimizer = SAM(Polyak(network.model.parameters(), lr=0.1), rho=0.0)
    base = Polyak(plain.model.parameters(), lr=0.1)
    for _ in range(3):
        for part in (slice(0, 6), slice(6, 12)):

            def closure(part=part):
                optimizer.zero_grad()
                loss = 0.5 * network.loss(part)
                loss.backward()
                return loss

            optimizer.accumulate(closure, share=0.5)
        optimizer.step()
        base.step(plain.closure(base))
    for a, b in zip(network.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["sam", "msam", "crsam"])
def test_the_phase_form_has_no_loss_to_tell(name, make_network):
    network = make_network()
    optimizer = wrap(name, Polyak(network.model.parameters()), network)
    before = network.weights()
    with pytest.raises(RuntimeError, match=r"Polyak.step\(\) needs a closure.*the phase form has none"):
        run_phases(network, optimizer, 1)
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), before)


def test_the_class_form_has_none_either(make_network):
    network = make_network()
    optimizer = SAM(network.model.parameters(), Polyak, rho=0.1, lr=0.1)
    network.loss().backward()
    before = network.weights()
    for call in (optimizer.first_step, lambda: optimizer.step(network.closure(optimizer))):
        with pytest.raises(RuntimeError, match="needs a closure"):
            call()
    assert_identical(network.weights(), before)


def test_the_loss_and_its_graph_are_let_go(make_network):
    network = make_network()
    optimizer = make("sam", network)
    kept = []

    def closure():
        optimizer.zero_grad()
        loss = network.loss()
        kept.append(weakref.ref(loss))
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.accumulate(closure)
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


# Bases that evaluate elsewhere ---------------------------------------------------------------------


class LineSearch(Polyak):
    """Halves the step until the loss falls: evaluates at every trial."""

    from_step = 0
    steps = 0

    def try_out(self, p, step):
        p.data.sub_(step)  # past the version counter

    @torch.no_grad()
    def step(self, closure):
        self.steps += 1
        loss, lr = closure(), self.param_groups[0]["lr"]
        for p, g in self.gradients():
            self.try_out(p, lr * g)
        if self.steps > self.from_step:
            closure()
        return loss


class InPlaceLineSearch(LineSearch):
    def try_out(self, p, step):
        p.sub_(step)


def schedule_free(kind):
    import schedulefree

    return lambda params: getattr(schedulefree, kind)(params, lr=0.1)


EVALUATES_ELSEWHERE = {
    "line search": lambda params: LineSearch(params, lr=0.1),
    "in place": lambda params: InPlaceLineSearch(params, lr=0.1),
    "SGDScheduleFreeClosure": schedule_free("SGDScheduleFreeClosure"),
    "AdamWScheduleFreeClosure": schedule_free("AdamWScheduleFreeClosure"),
    "RAdamScheduleFreeClosure": schedule_free("RAdamScheduleFreeClosure"),
}


@pytest.mark.parametrize("build", [SAM, ASAM])
@pytest.mark.parametrize("kind", EVALUATES_ELSEWHERE)
def test_a_base_that_evaluates_elsewhere_is_found_out_and_the_weights_are_put_back(kind, build, make_network):
    network = make_network()
    optimizer = build(EVALUATES_ELSEWHERE[kind](network.model.parameters()), rho=0.1)
    before = network.weights()
    with pytest.raises(RuntimeError, match=r"evaluates the closure at other weights"):
        run(network, optimizer, 1)
    assert_identical(network.weights(), before)


def test_one_that_begins_later_is_found_out_too(make_network):
    network = make_network()
    base = InPlaceLineSearch(network.model.parameters(), lr=0.01)
    base.from_step = 5
    optimizer = SAM(base, rho=0.1)
    run(network, optimizer, 5)
    with pytest.raises(RuntimeError, match=r"evaluates the closure at other weights"):
        run(network, optimizer, 1)


def test_weights_that_are_not_numbers_are_no_move(make_network):
    network = make_network()
    with torch.no_grad():
        network.model[0].bias[0] = torch.nan
    optimizer = SAM(Polyak(network.model.parameters()), check_finite=False)
    run(network, optimizer, 1)


def test_a_saddle_wrapper_goes_around_and_not_inside(make_network):
    inner = NegativeCurvature(torch.optim.SGD(make_network().model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"NegativeCurvature\(SAM\(\.\.\.\)\)"):
        SAM(inner)


def test_a_base_without_a_closure_is_stepped_without_one(make_network):
    class Plain(torch.optim.SGD):
        def step(self):
            return super().step()

    network, other = make_network(), make_network()
    run(network, SAM(Plain(network.model.parameters(), lr=0.1), rho=0.2), 3)
    run(other, SAM(torch.optim.SGD(other.model.parameters(), lr=0.1), rho=0.2), 3)
    assert_identical(network.weights(), other.weights())


def test_hooks_of_the_base_see_the_closure_that_it_is_given(make_network):
    network = make_network()
    optimizer = make("sam", network)
    seen = []
    optimizer.base.register_step_pre_hook(lambda _, args, kwargs: seen.append(args[1]()))
    (loss,) = run(network, optimizer, 1)
    assert [x.item() for x in seen] == [loss]
