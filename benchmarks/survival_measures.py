"""What a trained net of ``benchmarks/survival.py`` is put through, without retraining, and the second task after it.

Weights: rounded to nearest per output channel, pruned by magnitude, shaken by relative noise
(:mod:`optland.landscape.damages`). Inputs of images: moved by a pixel to each side, blurred by [1 2 1] / 4 along each
axis, Gaussian noise, and FGSM; of a text: a share of the input bytes replaced by others of the text. Everything about
inputs is in units of their standard deviation, and what moves in at a border is the border's own value.

Second task: plain training on it from the finished net at one fixed rate, until its validation loss has come down to a
given value; what is left of the first task there, between the two looks on either side of it, in proportion.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from optland.landscape import damaged, pruned, rounded, shaken
from optland.train import BatchLoader
from optland.train.experiments.bank import Measure
from optland.train.experiments.bank_run import Splits, cross_entropy

__all__ = [
    "SecondTask",
    "blurred",
    "fgsm",
    "forgetting",
    "noisy",
    "replaced",
    "scored",
    "shifted",
    "survives",
]

BITS, SHARES, SIGMAS, DRAWS = (4, 3, 2), (0.5, 0.7, 0.85), (0.1, 0.2, 0.3, 0.4), 3
INPUT_NOISE, FGSM_STEPS, REPLACED = 0.5, (0.1, 0.2), 0.05
TESTED, TESTED_WINDOWS = 2000, 256

Batch = tuple[Tensor, Tensor]


@torch.no_grad()
def scored(model: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Loss, and accuracy in per cent."""
    loss, right, count = 0.0, 0, 0
    for x, y in batches:
        logits, target = model(x).flatten(0, -2), y.flatten()
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        right += int((logits.argmax(1) == target).sum())
        count += len(target)
    return {"loss": loss / count, "acc": 100.0 * right / count}


def tested(splits: Splits) -> list[Batch]:
    """The test data that every score is of, the same for all nets: all are paired."""
    num = TESTED_WINDOWS if splits.test[0].dtype == torch.long else TESTED
    return list(splits.batches("test", num=num))


# Inputs ---------------------------------------------------------------------------------------------


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images moved by whole pixels; the border repeats itself into what is left free."""
    h, w = x.shape[2:]
    rows = (torch.arange(h) - down).clamp(0, h - 1)
    columns = (torch.arange(w) - right).clamp(0, w - 1)
    return x[:, :, rows][:, :, :, columns]


def blurred(x: Tensor) -> Tensor:
    """The mean of each pixel with its neighbours along each axis that has more than one pixel, weights 1, 2, 1."""
    for axis in (2, 3):
        if x.shape[axis] > 1:
            index = torch.arange(x.shape[axis])
            before, after = (index - 1).clamp(min=0), (index + 1).clamp(max=len(index) - 1)
            x = 0.25 * x.index_select(axis, before) + 0.5 * x + 0.25 * x.index_select(axis, after)
    return x


def noisy(x: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Inputs with Gaussian noise."""
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def fgsm(model: nn.Module, batch: Batch, size: float) -> Tensor:
    """Inputs moved by ``size`` in every pixel to where the loss rises (Goodfellow et al. 2014, arXiv:1412.6572)."""
    x = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model, (x, batch[1])), x)
    return batch[0] + size * gradient.sign()


def replaced(x: Tensor, share: float, seed: int = 0) -> Tensor:
    """Tokens, a share of which is exchanged for other tokens of the same batch, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(x.shape, generator=generator) < share
    others = x.flatten()[torch.randint(x.numel(), x.shape, generator=generator)]
    return torch.where(chosen, others, x)


def _inputs(model: nn.Module, batches: list[Batch]) -> Iterator[tuple[str, list[list[Batch]]]]:
    """Names of damages to the inputs, each with what it makes of the batches: one set or several, to be averaged."""
    if batches[0][0].dtype == torch.long:
        yield "input noise", [[(replaced(x, REPLACED), y) for x, y in batches]]
        return
    moves = [(0, 1), (0, -1)] + ([(1, 0), (-1, 0)] if batches[0][0].shape[2] > 1 else [])
    yield "shift", [[(shifted(x, *move), y) for x, y in batches] for move in moves]
    yield "blur", [[(blurred(x), y) for x, y in batches]]
    yield "input noise", [[(noisy(x, INPUT_NOISE), y) for x, y in batches]]
    for size in FGSM_STEPS:
        yield f"FGSM {size:g}", [[(fgsm(model, (x, y), size), y) for x, y in batches]]


# Weights --------------------------------------------------------------------------------------------


def weight_damages(model: nn.Module) -> Iterator[tuple[str, list[dict[str, Tensor]]]]:
    """Names of damages to the weights, each with the weights that it leaves: one set or several, to be averaged."""
    for bits in BITS:
        yield f"{bits} bits", [rounded(model, bits)]
    for share in SHARES:
        yield f"pruned {share:.0%}", [pruned(model, share)]
    for sigma in SIGMAS:
        yield f"noise {sigma:g}", [shaken(model, sigma, seed=seed) for seed in range(DRAWS)]


def survives(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Test loss and accuracy as the net is and after every damage, ``name/loss`` and ``name/acc``."""
    batches = tested(splits)
    found = {"clean": [scored(model, batches)]}
    for name, several in weight_damages(model):
        for weights in several:
            with damaged(model, weights):
                found.setdefault(name, []).append(scored(model, batches))
    for name, sets in _inputs(model, batches):
        found[name] = [scored(model, changed) for changed in sets]
    return {
        f"{name}/{key}": statistics.fmean(scores[key] for scores in several)
        for name, several in found.items()
        for key in ("loss", "acc")
    }


# The second task ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecondTask:
    """How a net goes on with another task.

    Attributes:
        splits: Makes its data.
        optimizer: Makes the optimizer of the net, at its one rate.
        target: Validation loss at which it ends.
        batch_size: Samples per step.
        every: Steps from one look at that loss to the next.
        max_steps: Steps after which it ends anyway.
        looked_at: Validation samples of a look.
    """

    splits: Callable[[], Splits]
    optimizer: Callable[[nn.Module], Optimizer]
    target: float
    batch_size: int = 64
    every: int = 5
    max_steps: int = 300
    looked_at: int = 500


def forgetting(task: SecondTask) -> Measure:
    """The measure of what is left of the first task once the second one's loss has come down to the target.

    ``reached`` is 1 where it did; ``steps`` are those that it took, ``acc`` and ``loss`` are of the first task's test
    data.
    """

    def measure(model: nn.Module, splits: Splits) -> Mapping[str, float]:
        new = task.splits()
        held, old = list(new.batches("val", num=task.looked_at)), tested(splits)
        optimizer = task.optimizer(model)
        epochs = -(-task.max_steps * task.batch_size // len(new.train[0]))
        before, weights = scored(model, held)["loss"], copy.deepcopy(model.state_dict())
        if before <= task.target:
            return scored(model, old) | {"reached": 1, "steps": 0}
        for step, batch in enumerate(BatchLoader(new.train, task.batch_size, epochs=epochs), start=1):
            model.train()
            optimizer.zero_grad()
            cross_entropy(model, (batch[0], batch[1])).backward()
            optimizer.step()
            if step % task.every and step < task.max_steps:
                continue
            model.eval()
            now = scored(model, held)["loss"]
            if now <= task.target < before:
                share = (before - task.target) / (before - now)
                return _between(model, weights, old, share) | {
                    "reached": 1,
                    "steps": step - task.every * (1 - share),
                }
            if step >= task.max_steps:
                break
            before, weights = now, copy.deepcopy(model.state_dict())
        return scored(model, old) | {"reached": 0, "steps": task.max_steps}

    return measure


def _between(
    model: nn.Module, earlier: dict[str, Tensor], old: list[Batch], share: float
) -> dict[str, float]:
    """Scores of the first task between the last two looks, in proportion."""
    late = scored(model, old)
    model.load_state_dict(earlier)
    early = scored(model, old)
    return {key: (1 - share) * early[key] + share * late[key] for key in late}
