"""What a user gives a pilot: odd things that are right, and wrong ones that are said in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pilot.runs import Loop, Recorder, classify, data, mlp, sgd
from torch import Tensor, nn

from optland.pilot import AutoLR, Pilot, Policy
from optland.pilot.controls import by_name
from optland.pilot.decision import Proposal
from optland.pilot.first_look import scalar
from optland.pilot.probes.base import Probe
from optland.pilot.signal import Signal

# ---------------------------------------------------------------- models and optimizers


class WithEmpty(nn.Module):
    """Has a matrix without an entry, as a head over no class."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, 4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize("mode", ["monitor", "control"])
def test_a_parameter_without_entries_trains_as_if_it_were_not_there(mode: Any) -> None:
    run = Loop(model=WithEmpty, mode=mode, policies=["auto_lr"], epochs=2).run()
    assert run.losses[-1] < run.losses[0]
    assert math.isfinite(run.log.rows[-1]["train/loss"])


def test_a_maximized_objective_and_complex_weights_are_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="maximize=True, and a pilot takes a loss that rises for trouble"):
        Pilot(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), model, classify)
    model = nn.Linear(6, 3, dtype=torch.cfloat)
    with pytest.raises(TypeError, match=r"complex parameter, .* hold it as a real tensor"):
        Pilot(torch.optim.SGD(model.parameters(), lr=0.1), model, classify, mode="monitor")


def test_the_shape_of_a_schedule_is_a_share_of_its_highest_rate_so_far() -> None:
    """A cyclic schedule begins at its lowest rate, and one that goes below zero stands still."""
    optimizer = sgd((model := mlp()).parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    host = Pilot(optimizer, model, classify, mode="off", total_steps=10).host
    found = []
    for lr in (0.05, 0.5, 0.25, 0.5, -0.1):
        optimizer.param_groups[0]["lr"] = lr
        found.append(host.shape())
    assert found == [1.0, 1.0, 0.5, 1.0, 0.0]
    other = Pilot(sgd(model.parameters()), model, classify, mode="off").host
    other.load_state_dict(host.state_dict())
    other.optimizers[0].param_groups[0] |= {"lr": 0.25, "initial_lr": 0.05}
    assert other.shape() == 0.5


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("loss", [np.float32(0.5), np.float64(0.5), np.array(0.5), 0.5])
def test_numbers_of_numpy_are_numbers(loss: Any) -> None:
    assert scalar(loss) == 0.5


def with_noise_levels(model: nn.Module, batch: Any) -> Tensor:
    """A loss that draws its size, as that of one noise level does."""
    return classify(model, batch) * 10.0 ** float(4 * torch.rand(()) - 2)


def test_a_loss_that_is_drawn_is_not_taken_for_another_one() -> None:
    for seed in range(4):
        Loop(loss_fn=with_noise_levels, seed=seed).run(2)


def test_a_list_that_was_one_batch_is_told_what_a_list_is_taken_for() -> None:
    model, optimizer = (made := mlp()), sgd(made.parameters())
    pilot = Pilot(
        optimizer, model, lambda m, b: classify(m, [b[0]["x"], b[0]["y"]]), policies=[], total_steps=9
    )
    x, y = (t[:16] for t in data())
    classify(model, (x, y)).backward()
    optimizer.step()
    with pytest.raises(TypeError, match=r"a list is taken for the micro-batches .* make it a tuple"):
        pilot.after_step([{"x": x, "y": y}, {"x": x, "y": y}], 1.0)


# ---------------------------------------------------------------- policies


class Mine(Policy):
    """Asks for what it was made with."""

    name = "mine"

    def __init__(self, asked: Any, *turns: str, caps: tuple[str, ...] = ()) -> None:
        self.asked, self.turns, self.caps = asked, frozenset(turns), frozenset(caps)

    def decide(self, history: Any) -> Any:
        return self.asked


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "policies=None is no list"), (AutoLR(), "is no list; use"),
        ([AutoLR], r"AutoLR is a class; .* AutoLR\(\)"),
        ([None], "None is no policy"), ([3], "3 is no policy"),
    ],
)  # fmt: skip
def test_policies_that_are_none_are_refused(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        by_name(given)


def test_names_that_are_no_set_are_refused() -> None:
    policy = Mine([])
    policy.turns = "lr_factor"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="mine: turns is 'lr_factor'; make it a frozenset"):
        by_name([policy])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (None, "mine returned None for a list of proposals"), ("no", "mine returned 'no' for a list"),
        (["no"], "mine returned 'no' among its proposals"),
        ([Proposal("lr_factor", "half", "why")], "mine asks for lr_factor 'half', which is no number"),
    ],
)  # fmt: skip
def test_what_is_no_proposal_is_said_with_the_policys_name(asked: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Loop(policies=[Mine(asked, "lr_factor")]).run(1)


@pytest.mark.parametrize("length", [math.nan, math.inf, -1.0])
def test_a_length_that_cannot_be_leaves_the_update_as_it_is(length: float) -> None:
    run = Loop(policies=[Mine([Proposal("step_length", length, "why")], "step_length")], epochs=1).run()
    assert all(bool(p.isfinite().all()) for p in run.weights())
    assert not run.pilot.decisions


def test_a_cap_below_zero_is_zero_and_one_that_is_no_number_is_none() -> None:
    for asked, applied in ((-1.0, 0.0), (math.nan, 0.05)):
        run = Loop(policies=[Mine([Proposal("lr", asked, "why", cap=True)], caps=("lr",))]).run(3)
        assert run.applied[-1] == applied


# ---------------------------------------------------------------- probes


class Look(Probe):
    """Measures what it was made with."""

    name = "look"
    yields = frozenset({"my/x"})
    every = 1

    def __init__(self, found: Any = (), spent: float = 1.0, cost: Any = 1.0) -> None:
        self.found, self.says, self.declared = found, spent, cost

    def cost(self, host: Any) -> float:
        return self.declared() if callable(self.declared) else self.declared

    def measure(self, host: Any) -> Any:
        torch.rand(3)
        host.model(host.batch[0])
        self.spent = self.says
        return self.found


def test_a_probe_that_draws_and_passes_forward_changes_nothing() -> None:
    looked = Look([Signal("my/x", 1.0, 1)])
    run, off = (
        Loop(mode=mode, budget=0.5, probes=probes).run(20)
        for mode, probes in (("monitor", [looked]), ("off", []))
    )
    assert "my/x" in run.log.rows[-1] or any("my/x" in row for row in run.log.rows)
    assert torch.equal(
        torch.cat([p.flatten() for p in run.weights()]), torch.cat([p.flatten() for p in off.weights()])
    )
    assert all(torch.equal(a, b) for a, b in zip(run.model.buffers(), off.model.buffers(), strict=True))


@pytest.mark.filterwarnings("ignore:.* probe failed at update:RuntimeWarning")
@pytest.mark.parametrize(
    "wrong",
    [Look(["no"]), Look([], spent=math.nan), Look([], spent=-1.0), Look(cost=lambda: 1 / 0)],
)
def test_a_probe_that_gives_nonsense_is_off_and_training_goes_on(wrong: Look) -> None:
    run = Loop(mode="monitor", budget=0.5, probes=[wrong]).run(20)
    assert run.calls == 20
    assert "look" not in [p.name for p in run.pilot.looks.probes]


def test_two_probes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two probes have one name"):
        Loop(mode="monitor", budget=0.5, probes=[Look(), Look()])


# ---------------------------------------------------------------- saved states, lengths


def test_a_state_of_another_kind_of_pilot_is_refused_before_anything_is_changed() -> None:
    state = Loop(policies=["auto_lr"]).run(3).pilot.state_dict()
    other = Loop(policies=["safe_lr"]).pilot
    with pytest.raises(
        ValueError, match=r"with policies \['auto_lr'\], and this one is .* with \['safe_lr'\]"
    ):
        other.load_state_dict(state)
    assert other.step == 0
    with pytest.raises(ValueError, match="this is no state of a pilot"):
        other.load_state_dict(mlp().state_dict())


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3"])
def test_epochs_are_a_whole_number(epochs: Any) -> None:
    model = mlp()
    pilot = Pilot(sgd(model.parameters()), model, classify, policies=[], log=Recorder())
    with pytest.raises(ValueError, match=r"epochs=.* must be a whole number, at least 1"):
        next(pilot.batches([data()], epochs=epochs))
