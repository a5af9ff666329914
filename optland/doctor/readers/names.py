"""The names that other tools give to values, as ours: ``eval_loss`` and ``valid/loss`` are both ``val/loss``."""

from __future__ import annotations

import functools
import re

__all__ = ["canonical"]

_SPLITS = {
    "train": "train", "training": "train", "tr": "train", "val": "val", "valid": "val", "validation": "val",
    "eval": "val", "dev": "val", "test": "test",
}  # fmt: skip
_WHAT = {"loss": "loss", "acc": "acc", "accuracy": "acc"}
_EXACT = {
    "learning_rate": "lr/applied", "lr": "lr/applied", "grad_norm": "update/grad_norm", "gradnorm": "update/grad_norm",
    "gradient_norm": "update/grad_norm", "loss": "train/loss",
}  # fmt: skip
_NOISE = {"step", "epoch", "run", "model", "mean", "avg", "global", "batch"}


@functools.lru_cache(maxsize=4096)  # a log asks for the same few names row after row
def canonical(name: str) -> str | None:
    """Our key for a name of theirs; None for one that the rules do not read.

    Args:
        name: As it stands in the log; a key of ours is returned as it is, also with a prefix ``optland/``.

    Returns:
        ``train/``, ``val/`` or ``test/`` with ``loss`` or ``acc``, ``lr/applied``, ``update/grad_norm``, or a key of
        ours.

    Example:
        >>> [canonical(name) for name in ("eval_loss", "train/loss", "Accuracy/valid", "lr-AdamW", "my - val_acc")]
        ['val/loss', 'train/loss', 'val/acc', 'lr/applied', 'val/acc']
        >>> canonical("train_samples_per_second") is None
        True
    """
    plain = name.strip().removeprefix("optland/")
    if plain.split("/")[0] in ("edge", "noise", "curv", "sam", "layer", "update", "lr") and "/" in plain:
        return plain
    plain = plain.rpartition(" - ")[2]  # the run's name, in an export
    lowered = plain.lower().replace("train/global_step", "")
    if lowered in _EXACT:
        return _EXACT[lowered]
    if lowered.startswith("lr-"):
        return "lr/applied"
    words = [w for w in re.split(r"[/_\-.: ]+", lowered) if w and w not in _NOISE]
    if not 1 <= len(words) <= 2:
        return _EXACT.get("_".join(words[-2:])) if words[:1] == ["train"] and len(words) == 3 else None
    splits = [_SPLITS[w] for w in words if w in _SPLITS]
    what = [_WHAT[w] for w in words if w in _WHAT]
    if len(splits) == 1 and len(what) == 1:
        return f"{splits[0]}/{what[0]}"
    if words[-1] in _EXACT and splits == ["train"]:
        return _EXACT[words[-1]]
    if len(words) == 1 and what:
        return f"train/{what[0]}"
    return None
