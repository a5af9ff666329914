"""Export the weights of a run: ``model.safetensors`` of its last epoch, ``best.safetensors`` of its best.

Both hold the weights that the run evaluates: their average where it keeps one. A file of tensors and texts runs no
code, and needs nothing of this package to be read: :meth:`Weights.lines` says in three lines how it is loaded. A tensor
that a model has under two names is stored once, as ``safetensors.torch.save_model`` does it, and
``safetensors.torch.load_model`` gives it back to both.

The best epoch is the one that the history ranks first, by clean validation data. Its file is written when the epoch
ends, and stays should the run break off.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optland import __version__, processes
from optland.config.schema import default_of
from optland.files import write_whole
from optland.log.unwritten import Unwritten
from optland.train.loops.ema import Ema
from optland.train.loops.evaluate import Records

__all__ = ["BEST", "LAST", "Weights", "about_weights", "save_weights"]

LAST, BEST = "model.safetensors", "best.safetensors"

_LOADER = "safetensors.torch"


def save_weights(path: str | Path, model: nn.Module, about: Mapping[str, str] | None = None) -> None:
    """Write a module's parameters and buffers to a safetensors file, whole or not at all.

    Args:
        path: The file.
        model: The module; its tensors stay where they are.
        about: Texts for the file's metadata.

    Raises:
        TypeError: The module keeps an extra state that is no tensor.
        OSError: The disk does not take the file.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_model
        >>> file = Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> net, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> save_weights(file, net, {"epoch": "3"})
        >>> load_model(other, file), torch.equal(net.weight, other.weight), about_weights(file)["epoch"]
        ((set(), []), True, '3')
    """
    from safetensors.torch import save

    tensors, same = _taken_apart(model)
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_whole(path, save(copies, {"format": "pt", **(about or {}), **same}), flush=True)


def _taken_apart(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a module, each once, and by every further name the one that it is stored under.

    A view of another form (tied through a transpose) is a tensor of its own: ``load_model`` cannot join the two.
    """
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} is a {type(tensor).__name__}, and a safetensors file holds tensors alone"
            )
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in names:
            same[name] = names[place]
        else:
            names[place] = name
            tensors[name] = tensor
    return tensors, same


def about_weights(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Args:
        path: The file; its header alone is read.

    Returns:
        The texts by name: ``format``; what :func:`save_weights` was given; for a tensor that is stored under another
        name, that name. The files of a run have ``epoch`` and its evaluation, ``weights`` (themselves or an average),
        ``input`` and ``optland``, the version.

    Raises:
        OSError: The file is not there or cannot be read.
        ValueError: It is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged ({error})") from error


class Weights:
    """The two files of one run.

    None of them is a reason to end it: what cannot be written is noted.

    Args:
        folder: The run's folder.
        unwritten: The run's list of what could not be written.
        model: The module that is trained.
        average: The average of its weights that the run evaluates instead, if any.
        history: Its evaluations.
        inputs: What the model takes, in words, under ``input``, and what is needed to make it, such as the mean.
        make: The function, class or method of a configuration that makes such a model.
        arguments: What it was given: numbers, texts, tuples of them and dataclasses.
    """

    def __init__(
        self,
        folder: Path,
        unwritten: Unwritten,
        model: nn.Module,
        average: Ema | None,
        history: Records,
        inputs: Mapping[str, str],
        make: Callable[..., nn.Module],
        *arguments: Any,
    ) -> None:
        self.model = model if average is None else average.model
        """The module that the run evaluates."""
        self._folder, self._unwritten, self._history = folder, unwritten, history
        self._make, self._arguments = make, arguments
        self._kind = "an average of the weights" if average is not None else "the weights themselves"
        self._about = {"optland": __version__, "weights": self._kind, **inputs}

    def keep(self) -> None:
        """Write ``best.safetensors`` if the evaluation that was just made is the best; call it at each epoch's end.

        Only the first process of a run writes.
        """
        if self._history.best["epoch"] == self._history.last["epoch"]:
            self._write(BEST)

    def finish(self) -> None:
        """Write ``model.safetensors``, and make sure that ``best.safetensors`` is of the best epoch.

        A run that was resumed after its best epoch and ended otherwise than before may have another best; its file is
        then named as missing, because those weights are gone.
        """
        self._write(LAST)
        if not processes.leads() or BEST in self._unwritten.missing:
            return
        with self._unwritten.attempt(BEST, ValueError):
            epoch, best = about_weights(self._folder / BEST).get("epoch"), _text(self._history.best["epoch"])
            if epoch != best:  # a resumed run that did not come out as before
                raise OSError(f"it is of epoch {epoch}, and the best was epoch {best}")

    def describe(self) -> str:
        """Where the files are, and how they are loaded; empty without files."""
        files = [name for name in (BEST, LAST) if (self._folder / name).exists()]
        if not files:
            return ""
        last, best = (_text(row["epoch"]) for row in (self._history.last, self._history.best))
        of = {BEST: f"of epoch {best}, the best by validation", LAST: f"of epoch {last}, the last"}
        shown = "; ".join(f"{self._folder / name} {of[name]}" for name in files)
        lines = [f"weights      {shown} ({self._kind})"]
        if "input" in self._about:
            lines.append(f"input        {self._about['input']}")
        return "\n".join([*lines, "To load them in any program:\n", *self.lines(files[0]), ""])

    def lines(self, name: str = BEST) -> list[str]:
        """Three lines of Python that make the model and load the weights.

        Args:
            name: Which of the two files.

        Returns:
            The imports, the model in evaluation mode, and the loading of the weights. Fields of a configuration that
            have their default are left out; a function of the recipe's own script is taken out of its file.
        """
        code = _Code()
        made, file = code.call(self._make, self._arguments), repr(str(self._folder / name))
        tied = bool(_taken_apart(self.model)[1])
        load = (
            f"{_LOADER}.load_model(model, {file})"
            if tied
            else f"model.load_state_dict({_LOADER}.load_file({file}))"
        )
        return [f"import {', '.join(sorted(code.modules | {_LOADER}))}", f"model = {made}.eval()", load]

    def _write(self, name: str) -> None:
        if not processes.leads():
            return
        about = self._about | {key: _text(value) for key, value in self._history.last.items()}
        with self._unwritten.attempt(name, Exception):
            save_weights(self._folder / name, self.model, about)


class _Code:
    """Python text of a call, and the modules that have to be imported for it."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def call(self, make: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
        owner = getattr(make, "__self__", None)
        name = self.name(make) if owner is None else f"{self.value(owner)}.{make.__name__}"
        return f"{name}({', '.join(self.value(argument) for argument in arguments)})"

    def name(self, thing: Any) -> str:
        """Where the shortest path to a function or class leads; one of the script itself is taken out of its file."""
        module, name = thing.__module__, thing.__qualname__
        if module == "__main__":
            self.modules.add("runpy")
            return f"runpy.run_path({str(getattr(sys.modules[module], '__file__', ''))!r})[{name!r}]"
        parts = module.split(".")
        packages = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        shorter = (p for p in packages if getattr(sys.modules.get(p), name, None) is thing)
        package = next(shorter, module)
        self.modules.add(package)
        return f"{package}.{name}"

    def value(self, value: Any) -> str:
        """A dataclass with the fields that are not the default; all else as Python shows it."""
        if not dataclasses.is_dataclass(value):
            return repr(value)
        items = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        fields = ", ".join(f"{f.name}={self.value(item)}" for f, item in items if item != default_of(f))
        return f"{self.name(type(value))}({fields})"


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
