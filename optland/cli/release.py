"""``optland release``: what a trained run bears, and its weights rounded or pruned, with bits by layer."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from optland import __version__
from optland.cli.opened import OpenedRun, measuring
from optland.cli.probe import writable
from optland.cli.terminal import DONE, FAILED, complain, say, table_console
from optland.config import UserError
from optland.files import for_json, write_whole
from optland.landscape import Damage, DamageSpec, bits_by_layer, damage, damaged, rounded
from optland.landscape.bits import num_products
from optland.log.unwritten import Unwritten
from optland.objective import Objective
from optland.train.runs.trained_run import disagreement, find_checkpoint
from optland.train.runs.weights import save_weights

__all__ = ["release"]

Weights = Mapping[str, Tensor]


def release(arguments: argparse.Namespace) -> int:
    """Run ``optland release``.

    Args:
        arguments: Those of :func:`optland.cli.release_options.add_arguments`.

    Returns:
        The exit code.

    Raises:
        UserError: Something of what was given cannot be used.
    """
    try:
        spec = DamageSpec.parse(arguments.damage)
    except ValueError as error:
        raise UserError(f"--for: {error}") from error
    return measuring(lambda: _Release(arguments, spec).run(), "Interrupted; nothing was written.")


class _Release:
    """One release in progress."""

    def __init__(self, arguments: argparse.Namespace, spec: DamageSpec) -> None:
        a = self.arguments = arguments
        self.spec = spec
        self.out = writable(Path(a.out) if a.out else find_checkpoint(Path(a.run)).parent)
        self.opened = OpenedRun(
            a.run, config=a.config, recipe=a.recipe, device=a.device, batch_size=a.batch_size
        )
        self.model = self.opened.trained.evaluated
        self.val, self.test = self._objective("val"), self._objective("test")
        self.notes = list(self.opened.trained.notes)

    def run(self) -> int:
        """Measure, choose, print, write."""
        opened = self.opened
        say(f"{opened.checkpoint} (step {opened.trained.step}), with {opened.recipe.script}")
        note = disagreement(opened.trained, opened.script.loss_fn, opened.data, opened.batch_size)
        self.notes += [note] if note else []
        try:
            ways, bits = self._ways()
            found = {name: damage(self.val, weights, max_matvecs=0) for name, weights in ways.items()}
        except ValueError as error:
            raise UserError(f"{opened.checkpoint}: {error}") from error
        best = min(found, key=lambda name: _or_inf(found[name].measured.value))
        tested = damage_on(self.test, ways[best])
        self._show(found, best, tested, bits.get(best, {}))
        return self._write(ways[best], self._content(found, best, tested, bits.get(best, {})))

    def _objective(self, split: Any) -> Objective:
        a = self.arguments
        return self.opened.objective(self.model, split, samples=a.samples, seed=a.seed, double=False)

    def _ways(self) -> tuple[dict[str, list[Weights]], dict[str, dict[str, int]]]:
        """The weights after the damage, by the name of each way to do it, and the bits of each rounding.

        A rounding has two ways, the same bits everywhere and bits by layer, unless dealing them out would take more
        Hessian products than are allowed.
        """
        weights = self.spec.weights(self.model, seed=self.arguments.seed)
        if self.spec.kind != "int":
            return {str(self.spec): list(weights)}, {}
        b, most = int(self.spec.amount), self.arguments.max_matvecs
        uniform, dealt = f"{b} bits everywhere", f"{b} bits on average, by layer"
        bits = {uniform: dict.fromkeys(weights[0], b)}
        ways: dict[str, list[Weights]] = {uniform: list(weights)}
        if (needed := num_products(self.model, b)) > most:
            self.notes.append(
                f"bits are the same everywhere: dealing them out takes {needed} products; --max-matvecs is {most}"
            )
        else:
            bits[dealt] = bits_by_layer(self.val, b)
            ways[dealt] = [rounded(self.model, bits[dealt])]
        return ways, bits

    def _show(self, found: Mapping[str, Damage], best: str, tested: float, bits: Mapping[str, int]) -> None:
        table = Table(title=f"rise of the loss for {self.spec}", title_style="bold")
        for column in ("way", "predicted", "measured", "order"):
            table.add_column(column, justify="right" if column in ("predicted", "measured") else "left")
        for name, d in found.items():
            error = f" ± {d.measured.error:.2g}" if d.num_damages > 1 else ""
            table.add_row(
                name, f"{d.predicted.value:+.4g}", f"{d.measured.value:+.4g}{error}", str(d.verdict)
            )
        table.caption = f"on {self.val.data}, loss {found[best].loss:.4g}"
        table_console().print(table)
        say(f"\ntaken: {best}; on {self.test.data} the loss rises by {tested:+.4g}")
        for name, b in bits.items():
            say(f"  {b} bits  {name}")
        for note in self.notes:
            say(f"note: {note}")

    def _content(
        self, found: Mapping[str, Damage], best: str, tested: float, bits: Mapping[str, int]
    ) -> dict[str, Any]:
        a = self.arguments
        return {
            "optland": __version__, "run": str(self.opened.trained.folder), "step": self.opened.trained.step,
            "checkpoint": self.opened.checkpoint.name, "for": str(self.spec), "taken": best,
            "samples": self.val.num_samples, "test_samples": self.test.num_samples, "seed": a.seed,
            "loss": for_json(found[best].loss), "test_rise": for_json(tested),
            "ways": {name: _plain(d) for name, d in found.items()}, "bits": dict(bits),
            "cost_ge": self.val.cost_ge + self.test.cost_ge, "notes": self.notes,
        }  # fmt: skip

    def _write(self, weights: Sequence[Weights], content: Mapping[str, Any]) -> int:
        unwritten, stem = Unwritten(), self.out / f"release-{str(self.spec).replace('=', '-')}"
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        with unwritten.attempt(f"{stem.name}.json"):
            write_whole(f"{stem}.json", text)
            say(f"\nwrote {stem}.json")
        if self.spec.kind == "noise":
            say("noise is nothing to be written: the weights of the run are those to use")
        else:
            with unwritten.attempt(f"{stem.name}.safetensors"), damaged(self.model, weights[0]):
                about = {
                    "optland": __version__,
                    "damage": str(self.spec),
                    "bits": json.dumps(content["bits"]),
                }
                save_weights(f"{stem}.safetensors", self.model, about)
                say(f"wrote {stem}.safetensors")
        for line in unwritten.lines():
            complain(line)
        return FAILED if unwritten.missing else DONE


def damage_on(objective: Objective, weights: Sequence[Weights]) -> float:
    """Mean rise of the loss.

    Args:
        objective: The loss; the model has its own weights again afterwards.
        weights: For each draw of the damage the damaged tensors by name.

    Returns:
        In nats per sample.
    """
    before, rises = objective.value(), []
    for one in weights:
        with damaged(objective.model, one):
            rises.append(objective.value() - before)
    return sum(rises) / len(rises)


def _plain(found: Damage) -> dict[str, Any]:
    return {
        name: [for_json(e.value), for_json(e.error)]
        for name, e in (("predicted", found.predicted), ("measured", found.measured))
    } | {"order": str(found.verdict)}


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
