"""The configuration of a model: which architecture, how deep, how wide, what else; impossible choices are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optland.config import did_you_mean
from optland.config.imports import is_import_path
from optland.train.models.initialisation import parse_scheme
from optland.train.models.layers import GROUPS, MAX_DEPTH, Norm, Plan, check_dropout
from optland.train.models.own import check_own
from optland.train.models.registry import MODELS, Architecture
from optland.train.models.torchvision_models import PREFIX, check_name

__all__ = ["MAX_WIDTH", "ModelConfig"]

MAX_WIDTH = 65_536
"""Beyond these no net can be built in reasonable memory and time; a slip of the keyboard is told at once."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model, how deep and how wide.

    Attributes:
        name: A key of :data:`MODELS`, or ``torchvision:NAME`` for one of torchvision's classifiers (random weights),
            or ``package.module:name``, a function or class of your own that makes the model; its parameters are those
            of ``image_shape``, ``num_classes``, ``width``, ``depth``, ``norm``, ``skips``, ``dropout`` that it takes.
        width: Hidden units of ``mlp``, channels of the first layer of the convolutional nets, embedding of ``vit``;
            null takes the architecture's own.
        depth: Hidden layers of ``mlp``, blocks of ``vit``, weight layers of ``resnet`` and ``densenet``; null takes
            the architecture's own.
        norm: ``batch`` (null takes it), ``group`` (8 groups) or ``none``, for ``resnet``, ``resnet8`` and
            ``densenet``.
        skips: Whether ``resnet`` and ``resnet8`` have their skip connections; null means yes.
        dropout: Dropout probability before the last layer, in [0, 1).
        init: ``default`` (PyTorch's), ``kaiming_normal``, ``kaiming_uniform``, ``xavier_normal``,
            ``xavier_uniform``, ``orthogonal``, ``normal`` or ``normal:STD``.

    Raises:
        ValueError: A value that cannot be, or a choice that the architecture does not have.

    Example:
        >>> ModelConfig(name="resnet", depth=20, skips=False).plan()
        Plan(width=16, depth=20, norm='batch', skips=False, dropout=0.0)
    """

    name: str = "cnn"
    width: int | None = None
    depth: int | None = None
    norm: Norm | None = None
    skips: bool | None = None
    dropout: float = 0.0
    init: str = "default"

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(f"width: {self.width} units are too few; use at least 1")
        if self.width is not None and self.width > MAX_WIDTH:
            raise ValueError(f"width: {self.width} units are too many; use at most {MAX_WIDTH}")
        check_dropout(self.dropout)
        try:
            parse_scheme(self.init)
        except ValueError as error:
            raise ValueError(f"init: {error}") from error
        if self.name.startswith(PREFIX):
            self._check_torchvision()
        elif is_import_path(self.name):
            check_own(self.name, self.settings())
        elif self.name in MODELS:
            self._check_choices(MODELS[self.name])
        else:
            hint = did_you_mean(self.name, MODELS)
            known = [*sorted(MODELS), f"{PREFIX}NAME", "package.module:name"]
            raise ValueError(f"name: model {self.name!r} is not known; choose from {known}.{hint}")

    def plan(self) -> Plan:
        """The net's size with the architecture's own values where none are given.

        Returns:
            What a family of :data:`MODELS` is built from. A model of torchvision's or of one's own has no plan
            (KeyError).
        """
        own = MODELS[self.name]
        return Plan(
            width=own.width if self.width is None else self.width,
            depth=own.depth if self.depth is None else self.depth,
            norm=self.norm or own.norm or "none",
            skips=bool(own.skips if self.skips is None else self.skips),
            dropout=self.dropout,
        )

    def settings(self) -> dict[str, Any]:
        """What a model of one's own may have a parameter for, beside the shape of the data.

        Returns:
            Values by the name of the parameter; None where the configuration says nothing.
        """
        return {key: getattr(self, key) for key in ("width", "depth", "norm", "skips", "dropout")}

    def _check_torchvision(self) -> None:
        try:
            check_name(self.name)
        except ValueError as error:
            raise ValueError(f"name: {error}") from error
        for key in ("width", "depth", "norm", "skips"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key}: {self.name} has its own, {getattr(self, key)} cannot be set; use null"
                )
        if self.dropout:
            raise ValueError(f"dropout: {self.name} has its own, {self.dropout} cannot be set; use 0")

    def _check_choices(self, own: Architecture) -> None:
        for key, choice in (("depth", own.min_depth), ("norm", own.norm), ("skips", own.skips)):
            given = getattr(self, key)
            if given is not None and choice is None:
                having = [name for name, model in MODELS.items() if _offers(model, key)]
                raise ValueError(
                    f"{key}: {self.name} does not let it be chosen, so not {given} either; use null, or one of {having}"
                )
        plan = self.plan()
        if own.min_depth is not None:
            self._check_depth(own, own.min_depth, plan.depth)
        step, why = own.width_step, "units of an attention head"
        if plan.norm == "group":
            step, why = GROUPS, "groups of 'norm: group'"
        if plan.width % step:
            near = max(step, plan.width - plan.width % step)
            raise ValueError(
                f"width: {plan.width} is not a multiple of {step}, the {why}; use {near} or {near + step}"
            )

    def _check_depth(self, own: Architecture, least: int, depth: int) -> None:
        if depth < least:
            raise ValueError(f"depth: {depth} layers are too few for {self.name}; use at least {least}")
        if depth > MAX_DEPTH:
            raise ValueError(f"depth: {depth} layers are too many; use at most {MAX_DEPTH}")
        if (depth - least) % own.depth_step:
            near = f"{depth - 1} or {depth + 1}"
            raise ValueError(
                f"depth: {depth} is no whole number of {self.name}'s two-layer blocks; use {near}"
            )


def _offers(model: Architecture, key: str) -> bool:
    return (model.min_depth if key == "depth" else getattr(model, key)) is not None
