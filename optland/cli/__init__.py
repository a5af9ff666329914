"""The command line: list recipes, copy one, check a configuration, run it, run a grid of it, probe what was trained.

A recipe is a script ``recipes/<name>.py`` that is run, never imported. A copy of one is a recipe of its own, wherever
it lies: ``optland cp landscape_train mine``, then ``optland run mine digits``. Its contract:

- its docstring's first line says what it shows;
- ``Config``, a dataclass, is the schema of its YAML files in ``configs/<name>/``;
- ``main(config: Config, *, resume: bool = False) -> int`` does the work and returns the exit code;
- the :class:`optland.train.RunFolder` it opens is given ``recipe=__file__``, so that the run is known as made by it;
- ``loss_fn(model, batch)`` and ``build(config, device) -> (model, data)``, which ``main`` uses, let ``optland probe``
  come back to a run (:mod:`optland.cli.probe`); without them it can be run all the same;
- its last lines are::

    if __name__ == "__main__":
        raise SystemExit(run_script(__file__))

so that ``python recipes/<name>.py CONFIG key=value`` and ``optland run <name> CONFIG key=value`` are the
same thing. Bad input raises :class:`optland.config.UserError` (or a subclass): the user sees its message,
no traceback, exit code 2. Any other exception is a defect and keeps its traceback.
"""

from __future__ import annotations

from optland.cli.commands import main, run_script

__all__ = ["main", "run_script"]
