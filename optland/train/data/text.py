r"""Text as windows of tokens in memory, split without leakage, and a language model's loss in bits per token.

.. math:: \text{bits per token} = L / \ln 2, \qquad \text{perplexity} = e^L

Files are read in sorted order as long as they fit into ``max_bytes``, one of two equal files once. They are dealt out
whole, in random order, to validation, test and training text, so that no file is in two of them. Where the files are
too few or too large for that, the running text is cut at 90 % and at 95 %. Windows are cut within a split, one after
the other: every token but the first is a target exactly once, and no window reaches into another split. The alphabet
of ``characters`` is that of all files; nothing else of the held-out text is known in training.

The embedded default is the Python standard library's own sources, which are wherever this runs. They differ between
Python versions, and so do results: ``TextData.fingerprint`` tells texts apart.
"""

from __future__ import annotations

import glob
import hashlib
import math
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from optland.config import UserError
from optland.pilot import Pilot
from optland.train.data.splits import random_draw
from optland.train.loops.evaluate import Records, evaluate
from optland.train.runs.summary import what_it_took

__all__ = ["TextConfig", "TextData", "TextHistory", "evaluate_text", "load_text", "summarise_text"]

HELD_OUT = 0.05
"""Share of the validation and of the test text."""


@dataclass(frozen=True)
class TextConfig:
    """Which text, in which tokens.

    Attributes:
        paths: Files, folders (all files directly in them) and patterns such as ``books/**/*.txt``; empty takes the
            top-level modules of the Python standard library.
        tokens: ``characters`` of UTF-8 text, or ``bytes`` of anything.
        context: Tokens of a window.
        max_bytes: Most bytes that are kept.
        split_seed: Seed of the order in which files are dealt out.

    Raises:
        ValueError: A value that cannot be, or a window longer than the validation text can be.
    """

    paths: list[str] = field(default_factory=list)
    tokens: Literal["characters", "bytes"] = "characters"
    context: int = 128
    max_bytes: int = 4_000_000
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens not in ("characters", "bytes"):
            raise ValueError(f"tokens: {self.tokens!r} is not known; choose from characters, bytes")
        if self.context < 1:
            raise ValueError(f"context: {self.context} tokens are too few; use at least 1, for example 128")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes: {self.max_bytes} is too small; use for example 4000000")
        if self.context > HELD_OUT * self.max_bytes:
            raise ValueError(
                f"context: {self.context} tokens are more than the validation text can have, {HELD_OUT:.0%} of "
                f"max_bytes {self.max_bytes}; use a smaller one, or more bytes"
            )
        for path in self.paths:
            if not path.strip() or "\0" in path:
                raise ValueError(f"paths: {path!r} is no path; give files, folders or patterns")


@dataclass(frozen=True)
class TextData:
    """Three texts as token numbers.

    Attributes:
        alphabet: The character of each token; None for bytes.
        context: Tokens of a window.
        train: Tokens ``(n,)`` in reading order; likewise ``val`` and ``test``.
    """

    alphabet: str | None
    context: int
    train: Tensor
    val: Tensor
    test: Tensor

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return 256 if self.alphabet is None else len(self.alphabet)

    @property
    def inputs(self) -> dict[str, str]:
        """What a model of this text takes, in words, with the alphabet that numbers it."""
        if self.alphabet is None:
            return {"input": "bytes as numbers"}
        return {
            "input": "places of characters in the alphabet of the file's metadata",
            "alphabet": self.alphabet,
        }

    @property
    def fingerprint(self) -> str:
        """Start of the SHA-256 of all tokens with their split: equal for equal data."""
        digest = hashlib.sha256(repr((self.alphabet, self.context)).encode())
        for tokens in (self.train, self.val, self.test):
            digest.update(len(tokens).to_bytes(8, "little") + tokens.cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def windows(self, split: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each ``(windows, context)``; a target is the token that follows.

        Views, not copies.

        Returns:
            Inputs and targets, int64. A rest of less than ``context`` tokens at the end of a split is left out.

        Example:
            >>> x, y = TextData("abc", 2, *3 * [torch.tensor([0, 1, 2, 0, 1])]).windows("train")
            >>> x.tolist(), y.tolist()
            ([[0, 1], [2, 0]], [[1, 2], [0, 1]])
        """
        tokens: Tensor = getattr(self, split)
        pieces = tokens.unfold(0, self.context + 1, self.context)
        return pieces[:, :-1], pieces[:, 1:]

    def size(self, split: Literal["train", "val", "test"]) -> int:
        """Number of windows of a split."""
        return len(self.windows(split)[0])

    def sample(
        self, split: Literal["train", "val", "test"], num: int, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Windows of a split, drawn at random without replacement: inputs and targets, each ``(num, context)``.

        Args:
            split: Which split.
            num: How many; all of them, in reading order, where there are no more.
            seed: Seed of the draw.

        Returns:
            Inputs and targets, int64, on the device of the text.

        Raises:
            ValueError: ``num`` is below 1.
        """
        x, y = self.windows(split)
        chosen = random_draw(len(x), num, seed).to(x.device)
        return x[chosen], y[chosen]

    def decode(self, tokens: Tensor) -> str:
        """The text of some tokens.

        Args:
            tokens: Numbers ``(n,)`` of one stretch of text.

        Returns:
            The text; bytes that are no UTF-8 become the replacement character.
        """
        if self.alphabet is None:
            return bytes(tokens.tolist()).decode("utf-8", errors="replace")
        return "".join(self.alphabet[t] for t in tokens.tolist())

    def to(self, device: torch.device | str) -> TextData:
        """The same data on ``device``.

        Args:
            device: The tokens of all splits go there.
        """
        moved = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **moved)


def load_text(config: TextConfig) -> TextData:
    """Read, split and number the text.

    Args:
        config: Files, kind of token, length of a window and most bytes; by default the standard library's sources.

    Returns:
        The alphabet and three splits as numbers, whole files where that comes out near the shares; ``windows`` cuts
        them into inputs and targets.

    Raises:
        UserError: A path that matches no file, a file that cannot be read or is no text, no text at all, or too little
            for one window in each split.

    Example:
        >>> data = load_text(TextConfig(tokens="bytes", max_bytes=100_000, context=16))
        >>> x, y = data.windows("val")
        >>> torch.equal(x[:, 1:], y[:, :-1]), torch.equal(x[1:, 0], y[:-1, -1])
        (True, True)
    """
    texts = _read(_files(config.paths), config)
    if not texts:
        raise UserError(
            f"data.paths: all of {_named(config.paths)} is empty; give files with some text in them"
        )
    splits = [b"".join(split) for split in _deal(texts, config.split_seed)]
    if config.tokens == "bytes":
        alphabet, numbered = None, [np.frombuffer(split, dtype=np.uint8) for split in splits]
    else:
        alphabet, numbered = _number([split.decode("utf-8") for split in splits])
    for name, tokens in zip(("training", "validation", "test"), numbered, strict=True):
        if len(tokens) <= config.context:
            raise UserError(
                f"data.paths: the {name} text of {_named(config.paths)} has {len(tokens)} tokens, a window with its "
                f"targets needs {config.context + 1}; give more text, or a data.context below {len(tokens)}"
            )
    train, val, test = (torch.from_numpy(tokens.astype(np.int64)) for tokens in numbered)
    return TextData(alphabet, config.context, train, val, test)


def _named(paths: Sequence[str]) -> str:
    return ", ".join(paths) or "the standard library"


def _files(paths: Sequence[str]) -> list[Path]:
    """The files meant, each once, in sorted order."""
    if not paths:
        return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found: set[Path] = set()
    for path in paths:
        here = Path(path).expanduser()
        matches = here.iterdir() if here.is_dir() else map(Path, glob.glob(str(here), recursive=True))
        files = {match.resolve() for match in matches if match.is_file()}
        if not files:
            raise UserError(f"data.paths: there is no file at {path}; give a file, a folder or a pattern")
        found |= files
    return sorted(found)


def _read(files: Sequence[Path], config: TextConfig) -> list[bytes]:
    """Contents of the files that fit into ``max_bytes``, one of equal ones once; only a first file is cut."""
    texts: dict[bytes, None] = {}
    room = config.max_bytes
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"data.paths: {file} cannot be read: {error.strerror}") from error
        if config.tokens == "characters":
            _require_text(content, file)
        if not content or content in texts:
            continue
        if len(content) > room:
            if texts:
                continue
            content = _cut(content, room)
        texts[content] = None
        room -= len(content)
    return list(texts)


def _require_text(content: bytes, file: Path) -> None:
    fix = "leave it out with a pattern such as '*.txt', or use data.tokens=bytes"
    if b"\0" in content:
        raise UserError(f"data.paths: {file} is not text, it holds a zero byte; {fix}")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.paths: {file} is not UTF-8 text (byte {error.start}); {fix}") from error


def _cut(content: bytes, size: int) -> bytes:
    """At most ``size`` bytes, not ending inside a character."""
    # A character has at most three bytes after its first; in bytes that are no text there may be no first.
    for back in range(min(4, size + 1)):
        if size < len(content) and content[size - back] & 0xC0 != 0x80:
            return content[: size - back]
    return content[:size]


def _deal(texts: Sequence[bytes], seed: int) -> list[list[bytes]]:
    """Training, validation and test text: whole files where that comes out near the shares, else stretches."""
    total = sum(map(len, texts))
    quota = HELD_OUT * total
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    train: list[bytes] = []
    held_out: list[list[bytes]] = [[], []]
    for k in order:
        fits = [part for part in held_out if sum(map(len, part)) + len(texts[k]) <= quota]
        (fits[0] if fits else train).append(texts[k])
    if all(sum(map(len, part)) >= quota / 2 for part in held_out):
        return [train, *held_out]
    stream = b"".join(texts)
    a, b = (len(_cut(stream, round(share * total))) for share in (1 - 2 * HELD_OUT, 1 - HELD_OUT))
    return [[stream[:a]], [stream[a:b]], [stream[b:]]]


def _number(texts: Sequence[str]) -> tuple[str, list[Any]]:
    """The sorted alphabet of all texts, and each as positions in it."""
    codes = [np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) for text in texts]
    alphabet, numbers = np.unique(np.concatenate(codes), return_inverse=True)
    edges = np.cumsum([len(code) for code in codes])[:-1]
    return "".join(map(chr, alphabet.tolist())), np.split(numbers, edges)


def evaluate_text(model: nn.Module, windows: tuple[Tensor, Tensor], batch_size: int = 64) -> dict[str, float]:
    """Mean cross-entropy of a token in nats, the same in bits (``bpc``), and perplexity, in evaluation mode.

    Args:
        model: Maps tokens ``(n, context)`` to logits ``(n, context, vocabulary)``; its modes are restored.
        windows: Inputs and targets, :meth:`TextData.windows`.
        batch_size: Windows at a time.

    Returns:
        ``loss`` in nats, ``bpc`` in bits per token, and ``perplexity``; all over the tokens, whatever the size of a
        batch.
    """
    loss = evaluate(model, *windows, batch_size)["loss"]
    # The perplexity of a diverged net would leave the range of a float.
    return {"loss": loss, "bpc": loss / math.log(2), "perplexity": math.exp(min(loss, 700.0))}


class TextHistory(Records):
    """Evaluations of a language model; the best is the one of lowest validation loss."""

    def scores(self, model: nn.Module, data: TextData) -> dict[str, float]:
        """Evaluate on the validation and test text.

        Args:
            model: What the run evaluates: the net, or its average.
            data: Its text.

        Returns:
            ``loss``, ``bpc`` and ``perplexity`` under ``val/`` and ``test/``.
        """
        values = {split: evaluate_text(model, data.windows(split)) for split in ("val", "test")}
        return {f"{split}/{name}": v for split, found in values.items() for name, v in found.items()}

    def rank(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """The lower validation loss; one that is not finite is the last of all."""
        loss = row["val/loss"]
        return (-loss if math.isfinite(loss) else -math.inf,)


def summarise_text(
    pilot: Pilot,
    history: TextHistory,
    data: TextData,
    rows: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The closing table: bits per character and perplexity, cost, decisions, verdict, and at most one action.

    Args:
        pilot: The run's pilot.
        history: Its evaluations; at least one.
        data: The text.
        rows: Its logged rows.
        events: Its logged decisions.

    Returns:
        The table in the order in which it is shown. ``bpc`` is bits per token, a character or a byte; what every kind
        of run has is that of :func:`optland.train.runs.summary.what_it_took`.
    """
    last, best = history.last, history.best
    return {
        "test/bpc last": last["test/bpc"],
        "test/bpc best by validation": best["test/bpc"],
        "test/perplexity last": last["test/perplexity"],
        "val/bpc last": last["val/bpc"],
        "val/bpc best": best["val/bpc"],
        "train/epochs": int(last["epoch"]),
        "data/tokens": sum(len(t) for t in (data.train, data.val, data.test)),
        "data/fingerprint": data.fingerprint,
        **what_it_took(pilot, rows, events),
    }
