"""The tables of what survives, and of SAM with wrong labels, from benchmarks/results."""

from __future__ import annotations

from typing import Any

__all__ = ["sam_noise_table", "survival_table"]

WEIGHTS = (
    "4 bits", "3 bits", "2 bits", "pruned 50%", "pruned 70%", "pruned 85%", "noise 0.1", "noise 0.2", "noise 0.3",
    "noise 0.4",
)  # fmt: skip
INPUTS = ("shift", "blur", "input noise", "FGSM 0.1", "FGSM 0.2")


def survival_table(result: dict[str, Any]) -> str:
    """The verdict over all nets that are whole, then each net's rows."""
    nets = result["nets"]
    lines = [_whole(result), ""]
    if nets:
        lines += [*_verdicts(result), ""]
    for net in nets.values():
        lines += [f"### {net['title']}", "", *_rows(net), "", *_settings(net), ""]
    seeds = result["seeds"]
    lines.append(
        f"Test accuracy in per cent (of the text: of its tokens), means of {len(seeds['report'])} fresh seeds; in bold "
        f"what is above the base with a paired 95 % interval, in italics what is below it. Rates and strengths were "
        f"chosen on {len(seeds['choice'])} other seeds by validation without damage. Old task: accuracy that is left "
        f"where training on a second task has brought its loss to the target. Measured with torch "
        f"{result['machine']['torch']}."
    )
    return "\n".join(lines)


def _whole(result: dict[str, Any]) -> str:
    done = [net["title"] for net in result["nets"].values()]
    stands = [net["title"] for net in result["nets"].values() if net["verdict"]["stands"]]
    missing = f" Not measured yet: {'; '.join(result['missing'])}." if result["missing"] else ""
    if not done:
        return f"No net is complete yet.{missing}"
    where = f" ({'; '.join(stands)})" if stands else ""
    return (
        f"Complete nets: {len(done)} of {len(done) + len(result['missing'])} ({'; '.join(done)}).{missing} "
        f"That SAM's nets bear more stands on {len(stands)} of {len(done)}{where}."
    )


def _verdicts(result: dict[str, Any]) -> list[str]:
    primary = result["primary"]
    lines = [
        "| net, SAM against | clean | " + " | ".join(primary) + " | stands |",
        "|---|---:|" + "---:|" * len(primary) + "---|",
    ]
    for net in result["nets"].values():
        v = net["verdict"]
        for other, clean in (("over base", _gain(v["clean"])), ("over random", "")):
            cells = [_gain(v[other][name], v[other][name]["above"]) for name in primary]
            stands = ("yes" if v["stands"] else "no") if other == "over base" else ""
            label = f"{net['title']}, {other.removeprefix('over ')}"
            lines.append(f"| {label} | {clean} | " + " | ".join(cells) + f" | {stands} |")
    lines += [
        "",
        "Gains in points with intervals at the level that Holm's procedure asks over the four damages (clean: 95 %); "
        "in bold what is above zero. The claim stands where two damages are bold in both lines and the clean accuracy "
        "is within 0.8 points.",
    ]
    return lines


def _rows(net: dict[str, Any]) -> list[str]:
    inputs = [name for name in INPUTS if f"{name}/acc" in net["rows"]["base"]]
    columns = ["clean", *WEIGHTS, *inputs, "old task"]
    heads = [name.replace("pruned ", "pruned ").replace("%", " %") for name in columns]
    lines = ["| row | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for row, values in net["rows"].items():
        cells = [_cell(net, row, values, name) for name in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def _cell(net: dict[str, Any], row: str, values: dict[str, Any], name: str) -> str:
    key = "second task/acc" if name == "old task" else f"{name}/acc"
    text = f"{values[key]['mean']:.1f}"
    if row == "base":
        return text
    gain = net["over base"][row][name]
    if gain["mean"] - gain["error"] > 0:
        return f"**{text}**"
    return f"*{text}*" if gain["mean"] + gain["error"] < 0 else text


def _settings(net: dict[str, Any]) -> list[str]:
    heads = [
        "rate",
        "strength",
        "gradient evaluations",
        "weight norm",
        "rate of the last step",
        "training loss",
    ]
    heads += ["second task reached", "dead"]
    lines = ["| row | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row, values in net["rows"].items():
        chosen = net["chosen"][row]
        strength = "" if chosen["strength"] is None else f"{chosen['strength']:g}"
        loss = values["train_loss"]["mean"]
        cells = [
            f"{chosen['lr']:g}", strength, f"{values['ge']['mean']:,.0f}", f"{values['norm']['mean']:.1f}",
            f"{values['lr']['mean']:.1e}", "not finite" if loss is None else f"{loss:.4f}",
            f"{values['second task/reached']['mean']:.0%}", f"{values['dead']['mean']:.0%}",
        ]  # fmt: skip
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Strength: SAM's radius, the size of the noise, the decay of the average (whose norm is that of the base's "
        f"weights). {_same_as_base(net)}The second task ends at a validation loss of {net['target']:g}. A run and its "
        f"measures took {net['seconds per run']:.0f} s of one core.",
    ]
    return lines


def _same_as_base(net: dict[str, Any]) -> str:
    same = net["chosen"]["high rate"]["lr"] == net["chosen"]["base"]["lr"]
    return "No rate above the best is within half a point of it, so `high rate` is the base. " if same else ""


def _gain(gain: dict[str, Any], above: bool = False) -> str:
    text = f"{gain['mean']:+.1f} ± {gain['error']:.1f}"
    return f"**{text}**" if above else text


def sam_noise_table(result: dict[str, Any]) -> str:
    """Accuracy with wrong labels, at the last epoch and where noisy validation stops."""
    missing = f" Not measured yet: {'; '.join(result['missing'])}." if result["missing"] else ""
    if not result["tasks"]:
        return f"No data set is complete yet.{missing}"
    heads = ["rate", "rho", "epochs", "last epoch, %", "over sgd", "stopped, %", "over sgd", "at epoch"]
    heads += ["wrong and right labels learnt, %", "gradient evaluations"]
    lines = ["| data | row | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for task in result["tasks"].values():
        for method, row in task["rows"].items():
            over = ["" if method == "sgd" else _gain(row[f"{key} over sgd"]) for key in ("last", "stopped")]
            cells = [
                f"{row['lr']:g}", "" if row["rho"] is None else f"{row['rho']:g}", str(row["epochs"]),
                f"{row['last']:.1f}", over[0], f"{row['stopped']:.1f}", over[1], f"{row['epoch']:.0f}",
                f"{row['noisy train']:.1f}", f"{row['ge']:,.0f}",
            ]  # fmt: skip
            lines.append(f"| {task['title']} | {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Clean test accuracy, means of {len(result['seeds'])} fresh seeds, gains paired with their 95 % interval. "
        f"Published: {result['published']}. Measured with torch {result['machine']['torch']}.{missing}",
    ]
    return "\n".join(lines)
