"""Lottery tickets: a sparse part of the start, trained alone, matches the whole net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optland.train.experiments.bank import score
from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.claims.cells import each, plain
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import by_data, mean
from optland.train.experiments.claims.trained_net import trained_net
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band
from optland.train.loops.seeding import seed_everything

KEPT, ROUNDS = 0.2, 3
"""Share of the weights that is left, and rounds of pruning until there."""


def ticket(dial: Dial, data: str, seed: int) -> Trial:
    """The trial of one seed."""
    return Trial("lottery ticket", data, seed, dial, drawn, ("samples", "epochs", "net", "units"))


def tickets(dial: Dial) -> list[Trial]:
    """Those of all data sets and seeds."""
    return [ticket(dial, data, seed) for data, seed in each(dial)]


def drawn(trial: Trial) -> dict[str, Any]:
    """Test accuracy of the whole net, of the ticket, and of as many weights at random from another start.

    The ticket is drawn in :data:`ROUNDS` rounds, each of which goes back to the start (Frankle and Carbin 2019,
    arXiv:1803.03635). The random masks have as many weights in every layer as the ticket's.
    """
    run = plain(trial.dial, trial.data, trial.seed, times=0.5)
    splits = load_splits(run)
    whole = trained(run, splits, {}, trial.seed)
    masks: dict[str, Tensor] = {}
    model = whole
    for k in range(1, ROUNDS + 1):
        masks = largest(model, masks, KEPT ** (k / ROUNDS))
        model = trained(run, splits, masks, trial.seed)
    other = trial.seed + 1000
    shuffled = {name: m.flatten()[order(m.numel(), other)].reshape(m.shape) for name, m in masks.items()}
    random = trained(run, splits, shuffled, other)
    test = score("test")
    nets = {"whole": whole, "ticket": model, "random": random}
    accs = {name: test(net, splits)["acc"] for name, net in nets.items()}
    kept = sum(float(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    return {**accs, "kept": kept, "ge": run.budget * (ROUNDS + 2.0)}


def trained(run: BankRun, splits: Splits, masks: dict[str, Tensor], start: int) -> nn.Module:
    """The net of a run from the start of a seed, where the weights outside of the masks stay 0.

    Args:
        run: What is trained; its own seed decides the order of the data.
        splits: Its data.
        masks: By the name of the weight, 1 where it lives; weights without a mask all live.
        start: Seed of the initial weights.

    Raises:
        RuntimeError: The loss was not finite.
    """
    seed_everything(start)
    first = {name: t.clone() for name, t in splits.build(run).state_dict().items()}

    def masked(model: nn.Module) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in masks:
                    p.mul_(masks[name])

    def begin(model: nn.Module) -> None:
        model.load_state_dict(first)
        masked(model)

    return trained_net(run, at_start=begin, after_step=lambda model, step: masked(model))[0]


def largest(model: nn.Module, masks: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the largest share of the weights of all layers together; biases are kept.

    Args:
        model: The trained net.
        masks: Of the rounds before: what they took away counts as 0, and stays away.
        share: Of all weights, those of the rounds before included.

    Returns:
        For each matrix and kernel a mask of its shape, 1 for the weights that are kept. Equal sizes at the edge are all
        kept.

    Example:
        >>> net = nn.Linear(4, 1)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.1, -3.0, 0.2, 2.0]]))
        >>> largest(net, {}, 0.5)["weight"].tolist()
        [[0.0, 1.0, 0.0, 1.0]]
    """
    weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.ndim > 1}
    every = torch.cat([(w * masks.get(name, torch.ones(()))).flatten() for name, w in weights.items()])
    least = every.sort(descending=True).values[max(0, round(share * len(every)) - 1)]
    return {name: ((w * masks.get(name, torch.ones(()))) >= least).to(w.dtype) for name, w in weights.items()}


def order(count: int, seed: int) -> Tensor:
    """A random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def against(other: str) -> Any:
    """Test accuracy of the ticket less that of another net."""

    def effect(evidence: Evidence, dial: Dial) -> Found:
        points: dict[str, list[tuple[float, float]]] = {data: [] for data in dial.data}

        def one(data: str, seed: int) -> float:
            trial = ticket(dial, data, seed)
            points[data].append((evidence.trial(trial, other), evidence.trial(trial, "ticket")))
            return points[data][-1][1] - points[data][-1][0]

        values = by_data(dial, one)
        every = [pair for found in points.values() for pair in found]
        beside = {
            f"accuracy, {other}": mean(a for a, _ in every),
            "accuracy, ticket": mean(b for _, b in every),
        }
        beside["weights kept, share"] = KEPT
        return Found(values, beside, points, (f"test accuracy, {other}, %", "test accuracy, ticket, %"))

    return effect


CLAIMS = (
    Claim(
        name="ticket: whole",
        text="A sparse part of the net at its start, trained alone, matches the whole net",
        source="first document; Frankle and Carbin 2019, arXiv:1803.03635",
        measured="test accuracy in points, a fifth of the weights less all; 1 point less is a match, 5 are none",
        band=Band(low=-1.0, high=100.0, null=-5.0),
        effect=against("whole"),
        trials=tickets,
    ),
    Claim(
        name="ticket: chance",
        text="Winning tickets are favourable starts: as many weights at random do worse",
        source="first document; Frankle and Carbin 2019, arXiv:1803.03635",
        measured="test accuracy in points, the ticket less as many weights at random; 1 point is the least",
        band=Band(low=1.0, high=100.0, null=0.0),
        effect=against("random"),
        trials=tickets,
    ),
)
