"""What a host sees: parameters by identity in the model's order, present ones alone, and several optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pilot.runs import Loop, adamw, assert_same, classify, data, relative_length, sgd
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optland.objective import Objective
from optland.optim import SAM
from optland.pilot import AutoLR, Host, Pilot
from optland.train import BatchLoader


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def one_group(model: nn.Module) -> list[Any]:
    return [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)]


def decay_and_no_decay(model: nn.Module) -> list[Any]:
    """As trainers make them: all weights, then all biases, and here backwards too."""
    weights = [p for p in model.parameters() if p.ndim >= 2][::-1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [torch.optim.SGD([{"params": rest}, {"params": weights}], lr=0.1, momentum=0.9)]


def two(model: nn.Module) -> list[Any]:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [torch.optim.SGD(rest, lr=0.1, momentum=0.9), torch.optim.SGD(weights, lr=0.1, momentum=0.9)]


# ---------------------------------------------------------------- groups in any order


@pytest.mark.parametrize(
    ("make", "form"), [(decay_and_no_decay, "closure"), (decay_and_no_decay, "phases"), (two, "phases")]
)
def test_readings_and_lengths_do_not_depend_on_how_parameters_are_grouped(make: Any, form: str) -> None:
    """The same run to rounding: applied rates, edge, noise and curvature at every update."""
    options: dict[str, Any] = {
        "several": True, "model": lambda: mlp().double(), "tensors": [data()[0].double(), data()[1]], "epochs": 6,
        "policies": [AutoLR(tau=0.03), "edge_monitor", "noise_monitor", "curvature_monitor"], "budget": 1.0,
        "form": form,
    }  # fmt: skip
    plain, other = (Loop(m, **options).run() for m in (one_group, make))
    assert other.losses == pytest.approx(plain.losses, rel=1e-7)
    keys = (
        "lr/applied",
        "update/rel",
        "update/grad_norm",
        "edge/ratio",
        "edge/eta_c",
        "noise/b_simple",
        "curv/lambda_max",
    )
    for a, b in zip(plain.log.rows, other.log.rows, strict=True):
        found = [{k: row[k] for k in keys if k in row} for row in (a, b)]
        assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-9), a["step"]
    assert sum("edge/ratio" in row for row in plain.log.rows) > 5


def test_two_optimizers_with_closures_train() -> None:
    run = Loop(two, several=True, model=mlp, epochs=12, policies=["auto_lr"]).run()
    assert run.pilot.step == 96
    assert sum(run.losses[-8:]) < 0.8 * sum(run.losses[:8])


def test_the_edge_is_that_of_the_model_in_its_own_order() -> None:
    """Against a line search of a twin's along the realised update."""
    from optland.curvature import critical_step

    run = Loop(decay_and_no_decay, several=True, model=mlp, policies=["edge_monitor"], budget=1.0)
    found = 0
    for k in range(1, 20):
        before = run.weights()
        run.run(k)
        row = run.log.rows[-1]
        if row.get("edge/resolved") != 1.0:
            continue
        found += 1
        batch = run.pilot.host.batch
        moved = [v - w for v, w in zip(run.weights(), before, strict=True)]
        twin = Objective(copy.deepcopy(run.model), classify, [batch], mode="train")
        exact = critical_step(twin, moved, origin=before, max_forwards=60, rtol=1e-6)
        assert row["edge/eta_c"] == pytest.approx(
            0.1 * exact.step.value, abs=3 * row["edge/eta_c_error"] + 1e-3
        )
    assert found >= 2


# ---------------------------------------------------------------- a part of the net, frozen and unfrozen


def test_the_present_parameters_are_looked_up_at_every_update() -> None:
    model = mlp()
    host = Host(decay_and_no_decay(model), model, classify)
    assert list(host.parameters()) == [n for n, _ in model.named_parameters()], "in the model's order"
    model[0].requires_grad_(False)
    assert list(host.parameters()) == [n for n, _ in model.named_parameters() if not n.startswith("0.")]
    model[0].requires_grad_(True)
    assert len(host.parameters()) == 6
    host.inner[0].param_groups[0]["params"].pop()
    assert len(host.parameters()) == 5


@pytest.mark.parametrize("policies", [[AutoLR(tau=0.03)], ["safe_lr"], ["plateau"], []])
@pytest.mark.parametrize("make", [one_group, two])
def test_layers_may_be_frozen_and_unfrozen_in_mid_run(make: Any, policies: Any) -> None:
    """Every update keeps its scheduled length over what is then trained, and the frozen layer stays where it is."""
    policies = copy.deepcopy(policies)
    run = Loop(
        make, several=True, model=mlp, epochs=8, policies=[*policies, "edge_monitor", "curvature_monitor"], budget=1.0,
        form="phases",
    )  # fmt: skip
    run.model[0].requires_grad_(False)
    for k in range(1, 65):
        if k in (20, 40):
            run.model[0].requires_grad_(k == 20)
            run.model[2].requires_grad_(k == 40)
            for p in run.model.parameters():
                p.grad = None
        trained = [p.requires_grad for p in run.model.parameters()]
        before = run.weights()
        run.run(k)
        after = run.weights()
        for w, v, moves in zip(before, after, trained, strict=True):
            assert torch.equal(w, v) is not moves
        if policies and isinstance(policies[0], AutoLR):
            progress = (k - 0.5) / 64
            shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
            chosen = [[t for t, moves in zip(x, trained, strict=True) if moves] for x in (before, after)]
            assert relative_length(*chosen) == pytest.approx(0.03 * shape, rel=1e-3), k
    assert run.pilot.step == 64
    assert run.pilot.budget.spent["edge"] > 0


def test_a_part_of_the_net_in_the_optimizer_is_measured_as_what_moves() -> None:
    """The rest of the model is trainable, and no optimizer holds it: it has not moved."""

    def head(model: nn.Module) -> list[Any]:
        return [torch.optim.SGD(model[4].parameters(), lr=0.1)]

    run = Loop(head, several=True, model=mlp, policies=[AutoLR(tau=0.02), "edge_monitor"], budget=1.0)
    for k in range(1, 21):
        before = run.weights()
        run.run(k)
        assert all(torch.equal(w, v) for w, v in zip(before[:4], run.weights()[:4], strict=True))
        progress = (k - 0.5) / 40
        shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
        assert relative_length(before[4:], run.weights()[4:]) == pytest.approx(0.02 * shape, rel=1e-3)
    assert run.pilot.budget.spent["edge"] > 0


def test_a_group_that_is_added_is_trained_and_measured() -> None:
    def head(model: nn.Module) -> list[Any]:
        return [torch.optim.SGD(model[4].parameters(), lr=0.1)]

    run = Loop(head, several=True, model=mlp, policies=[AutoLR(tau=0.02)]).run(10)
    run.optimizer.add_param_group({"params": list(run.model[2].parameters())})
    before = run.weights()
    run.run(11)
    after = run.weights()
    assert not torch.equal(before[2], after[2])
    assert relative_length(before[2:], after[2:]) == pytest.approx(0.02 * (1 - 10.5 / 40) / 0.95, rel=1e-3)


# ---------------------------------------------------------------- wrappers


def test_wrappers_around_the_model_are_taken_off() -> None:
    model = mlp()
    optimizer = sgd(model.parameters())
    wrapped = nn.DataParallel(model)
    assert Host([optimizer], wrapped, classify).model is model
    compiled = torch.compile(model, backend="eager")
    assert Host([optimizer], compiled, classify).model is model
    assert list(Host([optimizer], compiled, classify).parameters()) == [
        n for n, _ in model.named_parameters()
    ]


# ---------------------------------------------------------------- what it says of the run


def test_what_policies_are_told_of_the_run() -> None:
    model = mlp()
    optimizer = SAM(adamw(model.parameters()), rho=0.05)
    host = Host([optimizer], model, classify, dataset_size=640)
    host.saw(16)
    facts = host.facts(total_steps=80, has_length=True, open_ended=False, lengths_set=True)
    assert (facts.steps, facts.samples, facts.passes) == (80, 640, 2.0)
    assert (facts.two_pass, facts.adam, facts.has_schedule, facts.lengths_set) == (True, True, False, True)
    assert {"rho", "gate", "beta1", "step_length"} <= facts.can
    assert not {"batch_size", "momentum", "stop"} & facts.can
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    assert host.facts(total_steps=None, has_length=False, open_ended=False, lengths_set=False).has_schedule


def test_the_size_of_the_data_is_that_of_who_knows_it() -> None:
    model = mlp()
    host = Host([sgd(model.parameters())], model, classify)
    assert host.dataset_size is None
    host.loader = DataLoader(TensorDataset(*data(48)), batch_size=8)
    assert host.dataset_size == 48
    host.loader = BatchLoader(data(64), 8, epochs=1)
    assert host.dataset_size == 64
    assert Host([sgd(model.parameters())], model, classify, dataset_size=10).dataset_size == 10


def test_a_batch_is_counted_cut_and_told_from_a_list_of_several() -> None:
    model = mlp()
    host = Host([sgd(model.parameters())], model, classify)
    x, y = data(12)
    assert host.count((x, y)) == host.count([x, y]) == host.count({"x": x, "y": y}) == host.count(x) == 12
    several = [(x[:5], y[:5]), (x[5:], y[5:])]
    assert host.count(several) == 12
    assert host.pieces((x, y)) == [(x, y)]
    assert host.pieces([x, y]) == [[x, y]], "a list of tensors is one batch"
    assert host.pieces(several) == several
    assert [len(p[0]) for p in host.parts((x, y), 4)] == [3, 3, 3, 3]
    assert len(host.parts(several, 4)) == 4
    assert len(host.some((x, y), 5)[0]) == 5


def test_batches_of_other_types_are_counted_and_cut_by_the_users_own_functions() -> None:
    class Graphs:
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

    def loss_fn(model: nn.Module, batch: Graphs) -> Tensor:
        return classify(model, (batch.x, batch.y))

    def split(batch: Graphs, parts: int) -> list[Graphs]:
        return [Graphs(a, b) for a, b in zip(batch.x.chunk(parts), batch.y.chunk(parts), strict=True)]

    x, y = data(16 * 20)
    ends = []
    for own in (False, True):
        torch.manual_seed(0)
        model = mlp()
        optimizer = sgd(model.parameters())
        options: dict[str, Any] = {"num_samples": lambda b: len(b.x), "split": split} if own else {}
        pilot = Pilot(
            optimizer, model, loss_fn if own else classify, policies=["auto_lr", "noise_monitor", "curvature_monitor"],
            total_steps=20, budget=1.0, **options,
        )  # fmt: skip
        for k in range(20):
            piece = (x[16 * k : 16 * k + 16], y[16 * k : 16 * k + 16])
            batch = Graphs(*piece) if own else piece
            optimizer.zero_grad()
            loss = (loss_fn if own else classify)(model, batch)
            loss.backward()
            optimizer.step()
            pilot.after_step(batch, loss)
        noise = pilot.history.last("noise/b_simple")
        assert noise is not None
        ends.append((model.state_dict(), pilot.samples, noise.value, pilot.budget.spent))
    assert_same(ends[0], ends[1])


def test_a_smaller_batch_is_ragged_until_the_batch_is_turned() -> None:
    model = mlp()
    host = Host([sgd(model.parameters())], model, classify)
    for samples in (16, 16, 5):
        host.saw(samples)
        assert host.is_ragged(samples) is (samples == 5)
    assert host.batch_size == 16


def test_after_a_smaller_batch_was_asked_for_it_is_the_measure() -> None:
    model = mlp()
    host = Host([sgd(model.parameters())], model, classify)
    host.loader = BatchLoader(data(64), 32, epochs=1)
    host.saw(32)
    assert host.is_ragged(16)
    assert host.turn("batch_size", 16.0)
    host.saw(16)
    assert not host.is_ragged(16)
    assert host.is_ragged(7)


def test_a_data_set_smaller_than_the_batch_is_still_probed() -> None:
    """Every batch holds all there is."""
    run = Loop(model=mlp, tensors=data(10), batch=16, epochs=40, policies=["edge_monitor"], budget=1.0).run()
    assert run.pilot.budget.spent["edge"] > 0
