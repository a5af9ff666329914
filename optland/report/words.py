"""The numbers of a report in words: one short text per part, with how sure it is."""

from __future__ import annotations

import math

import torch

from optland.curvature.points.portrait import Portrait
from optland.curvature.points.verdict import PointKind
from optland.landscape import (
    Connection,
    EffectiveDimension,
    MinimaComparison,
    Rays,
    Slice,
    ruggedness,
)
from optland.landscape.rate import RateSensitivity
from optland.report.findings import Trajectory
from optland.report.survey import Survey

__all__ = [
    "comparison_in_words",
    "connection_in_words",
    "curvature_in_words",
    "dimension_in_words",
    "plane_in_words",
    "point_in_words",
    "rate_in_words",
    "rays_in_words",
    "summary_of",
    "trajectory_in_words",
]


def summary_of(one: Survey) -> dict[str, str]:
    """The few numbers of a survey that come first, by name.

    Args:
        one: The survey.

    Returns:
        Texts under ``loss``, ``test loss`` where one was given, ``largest eigenvalue`` and ``kind of point``.
    """
    point, top = one.portrait.point, one.portrait.spectrum.top
    facts = {"loss": f"{point.loss:.4g} on {point.provenance.data}"}
    if math.isfinite(one.minimum.gap):
        facts["test loss"] = f"{one.minimum.loss + one.minimum.gap:.4g}"
    error = f" ± {top.error:.1g}" if math.isfinite(top.error) else ""
    known = "" if top.converged else ", NOT CONVERGED: at least that"
    facts["largest eigenvalue"] = f"{top.value:.4g}{error}{known}"
    facts["kind of point"] = str(point.verdict)
    return facts


def point_in_words(portrait: Portrait) -> str:
    """The kind of the point, and the evidence for it."""
    point = portrait.point
    size, floor = f"{point.grad_norm.value:.3g}", f"{point.floor:.3g} ({point.floor_kind})"
    here = f"at the loss {point.loss:.4g}"
    zero = f"the gradient norm {size} is 0 within its floor {floor}"
    if point.verdict == PointKind.NOT_CRITICAL:
        return f"Not a critical point {here}: the gradient norm {size} is above its floor {floor}."
    if point.verdict == PointKind.GRADIENT_FLAT:
        return (
            f"Not a critical point {here}, but gradient-flat: the gradient, of norm {size}, lies where the Hessian "
            "is 0."
        )
    if point.verdict == PointKind.STRICT_SADDLE:
        least = "" if point.exact else "at least "
        number = f"{least}{point.index_at_least} of {portrait.dim}"
        return f"A strict saddle {here}: {zero}, and on these samples {number} eigenvalues are negative."
    if point.verdict == PointKind.DEGENERATE:
        return (
            f"A degenerate critical point {here}: {zero}, and the smallest eigenvalue is within tau = "
            f"{point.tau:.2g} of 0, so that it can be a flat valley, a minimum or a saddle of higher order."
        )
    if point.verdict == PointKind.UNKNOWN:
        return f"The kind of point {here} is not known. {point.note}".strip()
    tau = f"{point.tau:.2g}"
    sign = f"above {tau}" if point.verdict == PointKind.MINIMUM else f"below -{tau}"
    words = "minimum" if point.verdict == PointKind.MINIMUM else PointKind.LOCAL_MAXIMUM
    return f"A {words} {here}: {zero}, and every eigenvalue is {sign}."


def curvature_in_words(portrait: Portrait) -> str:
    """Both ends of the spectrum, and what stands apart from the bulk."""
    spectrum, shape = portrait.spectrum, portrait.density
    top = "is" if spectrum.top.converged else "is at least"
    bottom = "is" if spectrum.bottom.converged else "is at most"
    text = f"The largest eigenvalue {top} {spectrum.top.value:.4g}"
    text += f", the smallest {bottom} {spectrum.bottom.value:.4g}"
    if shape is None:
        return f"{text}."
    out = len(shape.outliers)
    apart = f"{out or 'none'} of {portrait.dim} {'stands' if out == 1 else 'stand'} apart from the bulk"
    return f"{text}; {apart}."


def plane_in_words(found: Slice, dim: int) -> str:
    """How far the loss rises over a plane, how rough it is, and what the plane cannot show.

    Args:
        found: The plane.
        dim: Number of weights.
    """
    loss, centre = found.loss, found.centre["loss"]
    finite = loss[torch.isfinite(loss)]
    low = float(finite.min())
    high = float(finite.max())
    text = f"Over this plane the loss runs from {low:.4g} to {high:.4g}; at the weights it is {centre:.4g}."
    if found.nonfinite:
        text += f" {found.nonfinite:.0%} of the points have no finite loss and are left empty."
    if low < centre - 1e-6 * max(1.0, abs(centre)):
        text += f" A point of the plane lies {centre - low:.3g} lower than the weights."
    shape = ruggedness(found)
    text += f" {shape.nonconvex:.0%} of its second differences are negative"
    text += (
        f", and it departs from the best quadratic by {shape.roughness:.1%} of its range (root mean square)."
    )
    bends = [c for c in found.curvature if math.isfinite(c)]
    if bends and found.directions[0].seed is not None:
        each = [f"{c / d.norm**2:.3g}" for c, d in zip(found.curvature, found.directions, strict=True)]
        text += (
            f" Curvature per unit of length along its directions: {' and '.join(each)}. Random directions of {dim} see "
            "about the mean of all eigenvalues, so a saddle can look like a bowl here."
        )
    elif bends:
        text += f" Curvature along its two directions: {bends[0]:.4g} and {bends[-1]:.4g}, the ends of the spectrum."
    return text


def rays_in_words(found: Rays) -> str:
    """The mean curvature along rays, and whether it is a property of the point."""
    count = len(found.per_ray)
    text = (
        f"Along {count} random unit rays the second difference at h = {found.h:.3g} is {found.mean.value:.3g} ± "
        f"{found.mean.error:.2g}, the Hessian's {found.mean_hessian.value:.3g} ± {found.mean_hessian.error:.2g} "
        f"(standard errors); {found.negative.value:.0%} ± {found.negative.error:.0%} of the rays bend down."
    )
    if found.kinks:
        return (
            f"{text} The two disagree: the net has kinks (ReLU units that switch on the way), so the curvature along "
            "rays belongs to the distance h, and the Hessian does not tell how the loss changes over it."
        )
    return f"{text} The two agree: up to this distance the loss is as smooth as its Hessian says."


def comparison_in_words(found: MinimaComparison) -> str:
    """Which minimum is the flattest, where the measures agree on one."""
    if len(found.minima) == 1:
        return (
            "Each row is a rise of the loss, or a curvature, with everything that decides it in its name. One minimum "
            "alone is neither sharp nor flat: compare it with another one of the same net and data."
        )
    names = {measure: found.flattest(measure) for measure in found.minima[0].measures()}
    told = [name for name in names.values() if name is not None]
    if not told:
        return "No measure tells the minima apart beyond its error."
    most = max(sorted(set(told)), key=told.count)
    unresolved = len(names) - len(told)
    text = f"{most} is the flattest by {told.count(most)} of {len(names)} measures"
    rest = [f"{name} by {told.count(name)}" for name in sorted(set(told) - {most})]
    rest += [f"{unresolved} cannot tell within their errors"] if unresolved else []
    losses = {m.name: m.loss for m in found.minima}
    if losses[most] > 1.5 * min(losses.values()) and losses[most] == max(losses.values()):
        rest.append("it also has the highest loss, and a net that has learned little is flat")
    verdicts = "; ".join([text, *rest])
    return f"{verdicts}. No sharpness has been found to predict generalisation across settings; compare like with like."


def connection_in_words(name: str, found: Connection) -> str:
    """Whether two minima lie in one valley, and what the line and the curve say.

    Args:
        name: The pair, with which the text begins.
        found: The line, and the curve where one was trained.
    """
    linear, curve = found.linear, found.curve
    limit = f"{linear.threshold:g} times the loss of the worse end"
    text = f"{name}: on the straight line the loss rises by {linear.above:.3g} over the worse end"
    if linear.connected:
        return f"{text}, which stays within {limit}: they are connected by the line itself."
    if curve is None:
        return f"{text}, beyond {limit}: not connected by the line. No curve was trained."
    share = f" ({found.remaining:.0%} of the line's)" if linear.above > 0 else ""
    text += f"; on the trained curve by {curve.above:.3g}{share}"
    if curve.connected:
        return f"{text}, within {limit}: one valley, and the line crosses a wall."
    return f"{text}, beyond {limit}: not connected by what was tried; a longer training of the curve may still do it."


def trajectory_in_words(found: Trajectory) -> str:
    """How much of the path the plane holds."""
    first, second = found.path.explained
    return (
        f"The plane holds {first + second:.0%} of the variance of the {len(found.names)} checkpoints around the last "
        f"one ({first:.0%} and {second:.0%}). Random walks in many dimensions also put most of theirs in a plane, so "
        "this is how good the picture is, not a dimension of the landscape."
    )


def dimension_in_words(found: EffectiveDimension) -> str:
    """How many directions hold the gradients."""
    text = (
        f"{found.k90} directions hold 90 % of the squared length of {found.count} batch gradients; the participation "
        f"ratio is {found.participation:.3g}."
    )
    if found.measures_count:
        return f"{text} Both grow with the number of gradients: this measures how many were taken, not the landscape."
    return text


def rate_in_words(found: RateSensitivity) -> str:
    """How far off a rate may be for one step of plain descent."""
    if not math.isfinite(found.best):
        return f"No step along the gradient lowers the loss {found.centre:.4g} on these samples."
    lowest = float(found.losses[torch.isfinite(found.losses)].min())
    text = (
        f"One step of plain descent lowers the loss {found.centre:.4g} most at the rate {found.best:.2g}, to "
        f"{lowest:.4g}; rates within a factor of {found.width:.2g} gain at least half of that"
    )
    if found.status != "resolved":
        return f"{text}. The critical rate was not found ({found.status.replace('_', ' ')})."
    return f"{text}, and from {found.critical.value:.2g} on (the critical rate) a step raises it."
