"""Two optimizers that step in turn: an update is one for both or for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pilot.contract.loops import Run, batch_number, differences

pytestmark = pytest.mark.filterwarnings("ignore:the gradient of update:RuntimeWarning")

POISONED = (7, 8, 20)


class Half(Run):
    """One of two optimizers gets a gradient that is not finite, at scripted updates.

    Args:
        which: The first or the second.
    """

    def __init__(self, form: str, which: int, **options: Any) -> None:
        self.which = which
        super().__init__("adamw", form, updates=30, poisoned=POISONED, **options)

    def _optimizers(self) -> list[Any]:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        return [torch.optim.AdamW(matrices, lr=0.01), torch.optim.SGD(others, lr=0.05, momentum=0.9)]

    @property
    def _takes_closure(self) -> bool:
        return False

    def _poison(self) -> None:
        if len(self.losses) + 1 in self.poisoned:
            p = self.optimizers[self.which].param_groups[0]["params"][0]
            p.grad.view(-1)[0] = torch.inf


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", ["plain", "scaled"])
@pytest.mark.parametrize("policy", ["auto_lr", "spike_guard"])
def test_an_update_is_none_for_both(form: str, which: int, policy: str) -> None:
    run = Half(form, which, policies=[policy])
    assert run.pilot is not None
    for number in range(1, run.updates + 1):
        before, scale = [p.detach().clone() for p in run.model.parameters()], run.scaler.get_scale()
        run.update()
        stayed = [torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True)]
        if number in POISONED:
            assert all(stayed)
            assert form == "plain" or run.scaler.get_scale() == scale / 2, "the scaler has seen it"
        else:
            assert not any(stayed[-2:])
    assert run.pilot.lost == len(POISONED)
    assert run.pilot.step == run.updates - len(POISONED)
    assert not any(d.actuator == "rewind" for d in run.pilot.decisions)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("mode", ["monitor", "shadow"])
def test_looking_on_leaves_the_half_updates_as_they_are(mode: str, which: int) -> None:
    expected = Half("scaled", which).train().bits()
    run = Half("scaled", which, policies=["auto_lr"], mode=mode, budget=1.0).train()
    assert differences(expected, run.bits()) == []


def test_a_step_forgotten_is_an_error() -> None:
    run = Half("plain", 0, policies=["auto_lr"]).train(3)
    assert run.pilot is not None
    batch = batch_number(3)
    loss = run.gradient([batch])
    run.optimizers[0].step()
    with pytest.raises(RuntimeError, match="after 1 of 2 optimizers"):
        run.pilot.after_step(batch, loss)
