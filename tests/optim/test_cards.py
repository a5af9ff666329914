"""The cards against what is counted: gradients, copies kept, and copies at the top of the second pass."""

import gc

import pytest
import torch
from drivers import ALL, BASES, fitting, make, run, wrap
from torch import nn

from optland.optim import available, create
from optland.optim.cards import CARDS
from optland.optim.keys import key
from optland.optim.registry import METHODS

OF = {card.name: card for card in CARDS}


@pytest.mark.parametrize("name", ALL)
def test_gradients_a_step(name, make_network):
    network, calls = make_network(), []
    objective = make(name, network) if name == "eigensam" else None
    options = {} if objective is None else {"objective": objective.method.objective}
    base = BASES[fitting(name)](network.model.parameters(), lr=0.1)
    optimizer = METHODS[name](base, **options)  # at the defaults

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        network.loss().backward()

    for _ in range(20):
        optimizer.step(closure)
    assert len(calls) / 20 == pytest.approx(OF[name].gradients, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_copies_kept_from_step_to_step(name, make_network):
    network, other = make_network(), make_network()
    optimizer, plain = make(name, network), BASES[fitting(name)](other.model.parameters(), lr=0.1)
    run(network, optimizer, 3)
    run(other, plain, 3)

    def kept(state):
        return sum(v.numel() for entry in state.values() for v in entry.values() if v.ndim)

    size = sum(p.numel() for p in network.model.parameters())
    assert (kept(optimizer.state) - kept(plain.state)) / size == OF[name].state


@pytest.fixture(scope="module")
def only_new_objects():
    """What lives already is not looked at: it makes the search slow and cancels in the difference."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held(size):
    """Copies of the weights that live now, counted by their memory."""
    memory = {}
    for x in gc.get_objects():
        if type(x) in (torch.Tensor, nn.Parameter):  # isinstance would wake lazy modules
            storage = x.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
    return sum(memory.values()) / size


# Both forms share the ascent, but for momentum SAM; three passes are another matter.
@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "closure") for name in ALL] + [(name, "phases") for name in ("sam", "msam", "crsam")],
)
@pytest.mark.usefixtures("only_new_objects")
def test_copies_at_the_start_of_the_last_pass(name, make_network, form):
    network = make_network()
    network.model = nn.Linear(20000, 3, dtype=torch.float64)  # large beside random states
    network.x = torch.randn(12, 20000, dtype=torch.float64)
    optimizer, seen = make(name, network, guarded=False, telemetry_every=0), []
    run(network, optimizer, 2)
    size = sum(p.numel() * p.element_size() for p in network.model.parameters())
    optimizer.zero_grad()
    gc.collect()
    before = held(size)
    if form == "closure":

        def closure():
            optimizer.zero_grad()
            seen.append(held(size))
            network.loss().backward()

        optimizer.step(closure)
    else:
        for _ in optimizer.passes():
            seen.append(held(size))
            network.loss().backward()
        optimizer.step()
    # at a refresh, what a method proposes to remember is a copy too, until it takes the place of the old one
    proposed = 1 if name in ("sparse_sam", "eigensam") else 0
    assert max(seen) - before == pytest.approx(OF[name].transient + proposed, abs=0.05)


def test_every_method_has_a_card_and_every_card_a_reference():
    assert [card.name for card in CARDS] == ALL
    for card in CARDS:
        assert card.reference.split(", ")[-1].replace(".", "").isdigit()  # an arXiv id
        assert card.when
        assert card.rho
    assert set(ALL) <= set(available())


@pytest.mark.parametrize("name", ALL)
def test_create_passes_every_option_on(name, make_network):
    network = make_network()
    own = dict(METHODS[name](make(name, network).base, **needed(name, network))._own)
    letters = ("rho", "eta", "alpha", "gamma", "beta", "sigma", "theta", "a")
    own = {letter: 0.125 for letter in letters if key(letter) in own}
    optimizer = create(
        name,
        network.model.parameters(),
        base="adamw",
        lr=0.5,
        betas=(0.8, 0.9),
        model=network.model,
        check_finite=False,
        telemetry_every=3,
        only="weights",
        **needed(name, network),
        **own,
    )
    assert type(optimizer) is METHODS[name]
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.5, (0.8, 0.9))
    assert {name: group[key(name)] for name in own} == own
    assert "rho" in own
    assert (optimizer.model, optimizer.check_finite, optimizer.telemetry_every) == (network.model, False, 3)
    with pytest.raises(ValueError, match=r"'roh'. Did you mean 'rho'"):
        create(name, network.model.parameters(), base="adamw", roh=0.1)


def needed(name, network):
    if name != "eigensam":
        return {}
    return {
        "objective": wrap(name, BASES["sgd"](network.model.parameters(), lr=0.1), network).method.objective
    }


def test_create_says_what_is_missing(make_network):
    with pytest.raises(ValueError, match="'eigensam' needs objective="):
        create("eigensam", make_network().model.parameters())
