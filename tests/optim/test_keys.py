"""Names of this package's entries in a base's groups and state: apart from its own, whatever those are called."""

import copy
import io
from typing import Any

import pytest
import torch
from drivers import ALL, BASES, assert_identical, fits, fitting, make, mean_loss, run, run_phases, wrap
from torch import nn
from torch.optim import SGD, Adadelta, RMSprop

from optland.log import JsonlLogger
from optland.optim import ASAM, GSAM, SAM, LookSAM, create
from optland.optim.keys import PREFIX, key
from optland.optim.registry import BASES as BY_NAME
from optland.optim.registry import METHODS, options_of
from optland.optim.registry import WRAPPERS as SADDLE_WRAPPERS
from optland.pilot import Pilot
from optland.pilot.decision import TURNED
from optland.train.loops.precision import Precision, PrecisionConfig

WRAPPERS: dict[str, Any] = SADDLE_WRAPPERS
NAMESAKES = ("adadelta", "rmsprop", "asgd")


def parameter(*values):
    return nn.Parameter(torch.tensor(values or (1.0, 2.0)))


def own_of(base):
    return set(base.param_groups[0]) | set(base.defaults)


@pytest.mark.parametrize("name", [*ALL, *WRAPPERS])
@pytest.mark.parametrize("base", ["sgd", "adamw", *NAMESAKES])
def test_every_key_that_a_method_adds_has_the_prefix(name, base, make_network):
    if not fits(name, base):
        return  # it reads a moment or a momentum that this base does not keep
    network = make_network()
    inner = BASES[base](network.model.parameters(), lr=0.02)
    keys, defaults = own_of(inner), dict(inner.defaults)
    optimizer = (
        WRAPPERS[name](inner) if name in WRAPPERS else wrap(name, inner, network, gate="large_gradient(3)")
    )
    assert all(added.startswith(PREFIX) for added in own_of(inner) - keys)
    assert {k: inner.defaults[k] for k in defaults} == defaults
    assert {k: inner.param_groups[0][k] for k in defaults} == defaults
    run(network, optimizer, 3)
    plain = make_network()
    alone = BASES[base](plain.model.parameters(), lr=0.02)
    run(plain, alone, 1)
    of_base = set(alone.state[next(plain.model.parameters())])
    of_both = set(inner.state[next(network.model.parameters())])
    assert all(added.startswith(PREFIX) for added in of_both - of_base)


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (lambda groups: SAM(SGD(groups, lr=0.1), rho=0.05), "rho", 0.2),
        (lambda groups: GSAM(SGD(groups, lr=0.1), rho=0.05), "alpha", 0.2),
        (lambda groups: ASAM(SGD(groups, lr=0.1)), "eta", 0.2),
    ],
)
def test_a_short_name_in_a_group_that_is_given_is_ours(build, name, value):
    optimizer = build([{"params": [parameter()], name: value}, {"params": [parameter()]}])
    assert optimizer.param_groups[0][key(name)] == value
    assert optimizer.param_groups[1][key(name)] == optimizer.defaults[key(name)] != value
    optimizer.add_param_group({"params": [parameter()], name: value + 0.1})
    assert optimizer.param_groups[2][key(name)] == value + 0.1
    optimizer.add_param_group({"params": [parameter()], key(name): value + 0.2})
    assert optimizer.param_groups[3][key(name)] == value + 0.2
    assert not any(name in group for group in optimizer.param_groups)


def test_a_short_name_that_the_base_has_itself_is_the_bases():
    groups = [{"params": [parameter()], "rho": 0.7, "sam_rho": 0.3}, {"params": [parameter()]}]
    optimizer = SAM(Adadelta(groups), rho=0.05)
    optimizer.add_param_group({"params": [parameter()], "rho": 0.6})
    assert [group["rho"] for group in optimizer.param_groups] == [0.7, 0.9, 0.6]
    assert [group["sam_rho"] for group in optimizer.param_groups] == [0.3, 0.05, 0.05]
    looking = LookSAM(RMSprop([{"params": [parameter()], "alpha": 0.5, "rho": 0.2}]))
    (group,) = looking.param_groups
    assert (group["alpha"], group["sam_alpha"], group["sam_rho"]) == (0.5, 0.7, 0.2)
    for p in looking.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    group["alpha"] = 0.4  # a live key of the base: nothing to say
    looking.perturb()


@pytest.mark.parametrize("given", ["start", "added", "loaded"])
def test_one_hyper_parameter_under_both_names_is_refused_before_anything_is_taken(given):
    both = {"params": [parameter()], "rho": 0.2, "sam_rho": 0.3}
    optimizer = SAM(SGD([parameter()], lr=0.1))
    before, saved = copy.deepcopy(optimizer.state_dict()), optimizer.state_dict()
    saved["param_groups"][0] |= {"rho": 0.2, "sam_rho": 0.3, "lr": 7.0}
    act, argument = {
        "start": (SAM, SGD([both], lr=0.1)),
        "added": (optimizer.add_param_group, both),
        "loaded": (optimizer.load_state_dict, saved),
    }[given]
    with pytest.raises(ValueError, match=r"both 'rho' \(0\.2\) and 'sam_rho' \(0\.3\); leave 'rho' out"):
        act(argument)
    assert optimizer.state_dict() == before
    assert (both["rho"], both["sam_rho"]) == (0.2, 0.3)


@pytest.mark.parametrize("form", ["closure", "phases", "perturbed", "accumulate", "class"])
@pytest.mark.parametrize("name", ["sam", "gsam", "msam", "crsam"])
def test_a_short_name_written_into_a_live_group_is_refused_before_anything_moves(name, form, make_network):
    network = make_network(nn.BatchNorm1d(8))
    if form == "class":
        optimizer = SAM(network.model.parameters(), SGD, lr=0.1, momentum=0.9, model=network.model)
        network.loss().backward()
        optimizer.first_step()
        network.loss().backward()
        optimizer.second_step()
        network.loss().backward()
    else:
        optimizer = make(name, network)
        run(network, optimizer, 2)
    for group in optimizer.param_groups:
        group["rho"] = 0.31
    before = network.weights()
    buffers = [b.clone() for b in network.model.buffers()]

    def act():
        if form == "closure":
            run(network, optimizer, 1)
        elif form == "accumulate":
            optimizer.accumulate(network.closure(optimizer))
        elif form == "perturbed":
            with optimizer.perturbed():
                pass
        elif form == "class":
            optimizer.first_step()
        else:
            buffers[:] = [b.clone() for b in network.model.buffers()]
            optimizer.perturb()

    if form in ("phases", "perturbed"):
        network.loss().backward()
        buffers = [b.clone() for b in network.model.buffers()]
    with pytest.raises(ValueError, match=r"param_groups\[0\] was given 'rho' \(0\.31\).*'sam_rho'\] = 0\.31"):
        act()
    assert not optimizer.is_perturbed
    assert_identical(before, network.weights())
    assert_identical(buffers, list(network.model.buffers()))
    for group in optimizer.param_groups:
        group["sam_rho"] = group.pop("rho")
    optimizer.zero_grad()
    if form == "class":
        network.loss().backward()
    (run_phases if form in ("phases", "class") else run)(network, optimizer, 1)


def renamed_to_short(saved, names):
    """A checkpoint as it was before there was a prefix."""
    short = {k: k.removeprefix(PREFIX) for k in names}
    groups = [{short.get(k, k): v for k, v in group.items()} for group in saved["param_groups"]]
    state = {i: {short.get(k, k): v for k, v in entry.items()} for i, entry in saved["state"].items()}
    return {"state": state, "param_groups": groups}


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_with_short_names_goes_on_bit_for_bit(name, make_network):
    network, other = make_network(), make_network()
    base = fitting(name, "sgd")
    optimizer = make(name, network, base, rho=0.11, gate="large_gradient(10)")
    run(network, optimizer, 3)
    ours = {k for k in own_of(optimizer) if k.startswith(PREFIX) and k != "sam_step"}
    ours |= {key(remembered) for remembered in optimizer.method.remembers}
    saved = renamed_to_short(optimizer.state_dict(), ours)
    assert "rho" in saved["param_groups"][0]
    assert "sam_rho" not in saved["param_groups"][0]
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    other.model.load_state_dict(network.model.state_dict())
    resumed = make(name, other, base, lr=9.0, rho=0.9, gate="large_gradient(10)")
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["sam_rho"] == 0.11
    run(network, optimizer, 3)
    run(other, resumed, 3)
    assert_identical(network.weights(), other.weights())


def test_a_checkpoint_of_the_base_keeps_what_is_the_bases(make_network):
    network = make_network()
    plain = RMSprop(network.model.parameters(), lr=0.1, alpha=0.5)
    run(network, plain, 1)
    optimizer = GSAM(RMSprop(network.model.parameters(), lr=0.2), alpha=0.3)
    optimizer.load_state_dict(plain.state_dict())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["alpha"], group["sam_alpha"]) == (0.1, 0.5, 0.3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("base", BY_NAME)
def test_by_name_an_option_of_both_is_told_apart_by_the_prefix(name, base):
    shared = {option for option in options_of(name, base) if option.startswith(PREFIX)}
    assert shared == (
        {"sam_alpha"} if base == "rmsprop" and name in ("gsam", "looksam", "eigensam") else set()
    )


def test_create_takes_the_prefixed_option_and_refuses_the_one_that_could_be_either():
    optimizer = create("gsam", [parameter()], base="rmsprop", lr=0.1, sam_alpha=0.3, rho=0.2)
    (group,) = optimizer.param_groups
    assert (group["alpha"], group["sam_alpha"], group["sam_rho"]) == (0.99, 0.3, 0.2)
    with pytest.raises(
        ValueError, match=r"'gsam' and its base 'rmsprop' both.* 'alpha'; write sam_alpha=0\.3"
    ):
        create("gsam", [parameter()], base="rmsprop", lr=0.1, alpha=0.3)


ATTRIBUTES = (
    "base", "model", "telemetry", "gate", "evaluations", "last_evaluations", "perturb", "is_perturbed", "events",
    "steps", "verdict", "trigger", "train_mode", "_keys", "_own", "_sum",
)  # fmt: skip


class Namesake(SGD):
    """An optimizer whose own attributes have the names of ours."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for name in ATTRIBUTES:
            setattr(self, name, f"its {name}")


@pytest.mark.parametrize("name", [*ALL, *WRAPPERS])
def test_attributes_of_the_base_with_names_of_ours_are_neither_read_nor_written(name, make_network):
    if not fits(name, "sgd"):
        return  # it keeps no second moment
    one, two = make_network(), make_network()
    optimizers = []
    for network, base in ((one, SGD), (two, Namesake)):
        inner = base(network.model.parameters(), lr=0.1, momentum=0.9)
        optimizers.append(WRAPPERS[name](inner) if name in WRAPPERS else wrap(name, inner, network))
    run(one, optimizers[0], 4)
    run(two, optimizers[1], 4)
    assert_identical(one.weights(), two.weights())
    assert [getattr(optimizers[1].base, name) for name in ATTRIBUTES] == [
        f"its {name}" for name in ATTRIBUTES
    ]
    assert optimizers[1].last_evaluations == optimizers[0].last_evaluations


@pytest.mark.parametrize("around", [lambda base: base, SAM])
@pytest.mark.parametrize("mode", ["monitor", "control"])
def test_nor_does_the_pilot_take_them_for_ours(around, mode, make_network, tmp_path):
    networks, turned, costs = (make_network(), make_network()), [], []
    for network, base in zip(networks, (SGD, Namesake), strict=True):
        optimizer = around(base(network.model.parameters(), lr=0.1))
        precision = Precision(PrecisionConfig(clip=0.1), optimizer)
        log = JsonlLogger(tmp_path / "log.jsonl")
        pilot = Pilot(
            optimizer, network.model, mean_loss, mode=mode, policies=["spike_guard"], log=log, log_every=1
        )
        turned.append([name for name in TURNED if pilot.host.can_turn(name)])
        for _ in range(3):
            loss = precision.step(network.closure(optimizer))
            pilot.after_step((network.x, network.y), loss)
        costs.append(pilot.budget.train_ge)
        pilot.load_state_dict(pilot.state_dict())
    assert turned[0] == turned[1]
    assert costs[0] == costs[1]
    assert_identical(networks[0].weights(), networks[1].weights())
