"""Write the measured tables of README.md, of docs and of the doctor's counts from the files in benchmarks/results.

python benchmarks/readme.py          # rewrite the tables in place
python benchmarks/readme.py --check  # exit with 1 when a table is not that of its result file
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from doctor_calibration import COUNTS, RESULT, rewritten
from readme_claims import claims_small_table
from readme_control import (
    adam_guard_table,
    batch_table,
    control_edge_table,
    control_new_table,
    control_report_table,
    control_table,
    plateau_table,
    spikes_table,
)
from readme_costs import (
    curvature_nets_table,
    loop_table,
    pilot_cost_table,
    ranks_cost_table,
    suggest_table,
    torch_contract_table,
)
from readme_damage import bits_table, damage_table, finetune_table, release_table
from readme_doctor import doctor_cost_table, doctor_table
from readme_provenance import RECORD, brought_up_to_date, provenance_table, recorded  # noqa: F401 - the last is for the test
from readme_summary import summary_table
from readme_survival import sam_noise_table, survival_table

import optland.optim
from optland.conformance.finding import KINDS
from optland.optim.cards import CARDS, Card
from optland.pilot.policies import POLICIES

ROOT = Path(__file__).resolve().parent.parent
PAGES_OF_RESULTS = {"control": "learning_rate"}
"""Where tables of result files stand, by the first word of their names; else with the other policies."""


def demo_table(result: dict[str, Any]) -> str:
    """Medians over seeds with the range."""
    lines = [
        "| digits | | last epoch, % | best by clean validation, % | gradient evaluations | wall time, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for data, label in (("clean", "clean labels"), ("noisy", "40 % random labels")):
        for name, row in result["table"][data].items():
            cells = [
                f"{row[k]['median']:.1f} ({row[k]['min']:.1f} to {row[k]['max']:.1f})"
                for k in ("last", "best")
            ]
            cells += [f"{row['ge']['median']:,.0f}", f"{row['seconds']['median']:.1f}"]
            lines.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
    bars = result["bars"]
    probe = bars["largest probe share of GE (bar: 0.05)"]
    wall = bars["median probe share of wall time"]
    lines += [
        "",
        f"Median of {len(result['seeds'])} seeds (range). Probes took at most {100 * probe:.1f} % of the gradient "
        f"evaluations (they are counted in the column) and {100 * wall:.0f} % of the wall time of a run. "
        f"Measured with torch {result['machine']['torch']} on {result['machine']['cpus']} CPU cores.",
    ]
    return "\n".join(lines)


def curvature_table(result: dict[str, Any]) -> str:
    """Time to the largest eigenvalue within 1 %, ours and the peers'."""
    peers = list(result["peers"])
    lines = [
        "| net | weights | optland, s | " + " | ".join(f"{p}, s" for p in peers) + " |",
        "|---|---:|---:|" + "---:|" * len(peers),
    ]
    for name, case in result["cold"]["cases"].items():
        cells = [_seconds(case["tools"][tool]) for tool in ("ours", *peers)]
        lines.append(f"| {name} | {case['d']:,} | " + " | ".join(cells) + " |")
    cold = result["cold"]
    lines += [
        "",
        f"Geometric mean of optland over the fastest peer: {cold['geometric mean']:.2f}, largest "
        f"{cold['largest']:.2f}. Median of {cold['seeds']} seeds; of each peer the fastest setting that is within "
        f"1 % for every seed. {', '.join(f'{k} {v}' for k, v in result['peers'].items())}; "
        f"torch {result['machine']['torch']}, one CPU thread.",
        "",
        *_curvature_facts(result),
    ]
    return "\n".join(lines)


def _curvature_facts(result: dict[str, Any]) -> list[str]:
    """Certificates, traces and warm starts in sentences."""
    held, trace, warm = result["certificates"], result["trace"], result["warm"]
    runs = sum(c["of"] for c in held["cases"].values())
    ratios = [c["ratio"] for c in trace["cases"].values()]
    low, high = trace["coverage"]
    return [
        f"Certificates held in {held['share']:.0%} of {runs} runs. A trace at {trace['products']} products has "
        f"{min(ratios):.2f} to {max(ratios):.2f} of Hutchinson's error on four trained nets, and its 95 % intervals "
        f"held in {low:.0%} to {high:.0%} of {trace['seeds']} seeds. During training a warm look costs "
        f"{warm['value']['mean products']:.1f} products, audits included (cold: {warm['mean cold products']:.1f}), and "
        f"{warm['value']['within 2 %']:.1%} of the looks are within 2 % of a cold run at the same weights.",
    ]


def _seconds(row: dict[str, Any]) -> str:
    return "missed" if row["seconds"] is None else f"{row['seconds']:.2f}"


def methods_table() -> str:
    """The methods of the registry, from their cards."""
    lines = [
        "| name | class | gradients per step | kept | use it when | rho | source |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for card in CARDS:
        cells = [f"`{card.name}`", _class_of(card), f"{card.gradients:g}", str(card.state)]
        lines.append("| " + " | ".join([*cells, card.when, card.rho, card.reference]) + " |")
    lines += [
        "",
        "*Gradients*: forward and backward passes of a sample in a step, at the defaults. *Kept*: copies of the "
        "weights in the state, beside the base's own; during the second pass there are two more.",
    ]
    return "\n".join(lines)


def _class_of(card: Card) -> str:
    """The class, where the method is more than a name for ``create`` and ``wrap``."""
    name = card.method.__name__
    return f"`{name}`" if name in optland.optim.__all__ else ""


def sam_quality_table(result: dict[str, Any]) -> str:
    """What every method gains over the tuned base, task by task: where validation stops, and at the last epoch."""
    seeds, tasks = result["seeds"], result["table"]
    lines = [*_quality(result, "best", "best epoch by clean validation"), ""]
    lines += [*_quality(result, "last", "last epoch"), ""]
    lines += [_certain(result["bars"][which], tasks, which) for which in ("best", "last")]
    lines.append(
        f"First row: accuracy of the base, SGD with its learning rate tuned; below: what is added to it, in points, "
        f"paired over {len(seeds['report'])} fresh seeds with its 95 % interval. All settings were chosen by clean "
        f"validation on {len(seeds['tune'])} other seeds. Cost: gradient evaluations, the base's are 1. Measured with "
        f"torch {result['machine']['torch']}."
    )
    return "\n".join(lines)


def _certain(bars: dict[str, Any], tasks: dict[str, Any], which: str) -> str:
    """Where SAM's gain over the base is certain, in a sentence."""
    gains = [tasks[task]["title"] for task in bars["SAM gains"]]
    if not gains:
        return f"At the {which} epoch the gain of SAM over the base is certain on none of the {len(tasks)} tasks."
    bar = next(key for key in bars if key.startswith("at most"))
    cheap = ", ".join(bars[bar]) or "none"
    where = "; ".join(gains)
    return f"At the {which} epoch the gain of SAM over the base is certain on: {where}. Cheap ones ({bar}): {cheap}."


def _quality(result: dict[str, Any], which: str, label: str) -> list[str]:
    tasks = result["table"]
    base, longer, *_ = names = list(next(iter(tasks.values()))["rows"])
    least = result["bars"][which]["least share"]
    titles = " | ".join(content["title"] for content in tasks.values())
    lines = [f"| {label} | cost | {titles} | least share of SAM's gain |"]
    lines.append("|---|---:|" + "---:|" * (len(tasks) + 1))
    for name in names:
        rows = [content["rows"][name] for content in tasks.values()]
        cells = [
            f"{row[which]['mean']:.1f} %" if name == base else _gain(row, f"gain, {which}") for row in rows
        ]
        kept = f"{100 * least[name]['share']:.0f} %" if name in least else ""
        lines.append(
            f"| {name} | {max(row['cost'] for row in rows):.2f} | " + " | ".join(cells) + f" | {kept} |"
        )
        if name == "sam":
            over = [_gain(row, f"gain over 2x epochs, {which}") for row in rows]
            lines.append(f"| sam against {longer} (equal GE) | | " + " | ".join(over) + " | |")
    return lines


def _gain(row: dict[str, Any], key: str) -> str:
    error = row[key]["error"]
    return f"{row[key]['mean']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def sam_cost_table(result: dict[str, Any]) -> str:
    """Time of a step over that of the base, ours and the most used package's."""
    columns = ["SAM", "ASAM", "LookSAM", "MSAM"]
    lines = [
        "| net | base step, ms | two passes | "
        + " | ".join(columns)
        + " | SAM above two passes, us | SAM over pytorch_optimizer's |",
        "|---|---:|---:|" + "---:|" * (len(columns) + 2),
    ]
    for name, net in result["nets"].items():
        rows = net["rows"]
        cells = [f"{rows[c]['over_base']:.2f}" for c in ["two passes", *columns]]
        peer = net["over_peer"].get("SAM")
        lines.append(
            f"| {name} | {rows['base']['us'] / 1e3:.2f} | "
            + " | ".join(cells)
            + f" | {rows['SAM']['us_above_two_passes']:.0f} | "
            + ("-" if peer is None else f"{peer:.2f}")
            + " |"
        )
    machine = result["machine"]
    fewest = min(net["rounds"] for net in result["nets"].values())
    lines += [
        "",
        f"Time of a step over that of the base optimizer; LookSAM with k = 5. Medians of {fewest} "
        f"interleaved rounds or more, one CPU thread; torch {machine['torch']}"
        + "".join(f", {name} {version}" for name, version in result["peers"].items())
        + ".",
    ]
    return "\n".join(lines)


def conformance_table(result: dict[str, Any]) -> str:
    """Passed of the checks that apply, by kind, one row per optimizer."""
    lines = [
        "| package | optimizer | " + " | ".join(KINDS) + " | all |",
        "|---|---|" + "---:|" * (len(KINDS) + 1),
    ]
    for package, reports in result["reports"].items():
        rows = {report["subject"]: report["findings"] for report in reports}
        if package == "optland":  # a row for all, as long as there is nothing to tell them apart by
            rows = {f"all {len(rows)} methods": [f for findings in rows.values() for f in findings]}
        for subject, findings in rows.items():
            cells = [_passed(findings, kind) for kind in (*KINDS, None)]
            lines.append(f"| {package} | {subject} | " + " | ".join(cells) + " |")
    said = [f"{kind}: {what}" for kind, what in KINDS.items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"Passed / applicable. {'; '.join(said)}. {versions}."]
    return "\n".join(lines)


def _passed(findings: list[dict[str, Any]], kind: str | None) -> str:
    chosen = [f["status"] for f in findings if kind in (None, f["kind"]) and f["status"] != "not applicable"]
    return f"{chosen.count('passed')}/{len(chosen)}"


def connectivity_table(result: dict[str, Any]) -> str:
    """Barriers between independently trained nets: of the line, of a trained curve, and after alignment."""
    lines = [
        "| nets | line | trained curve | share left | line after alignment |",
        "|---|---:|---:|---:|---:|",
    ]
    for case in result["table"].values():
        for row in case["pairs"]:
            cells = [f"{row['linear']:.3f}", f"{row['curve']:.4f}", f"{100 * row['share']:.1f} %"]
            cells.append(f"{row['aligned']:.3f}" if "aligned" in row else "")
            lines.append(f"| {case['title']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Barrier: the loss above the worse end; a line for each pair of seeds. "
        + f"Measured with torch {result['machine']['torch']}.",
    ]
    return "\n".join(lines)


def cuda_cost_table(result: dict[str, Any]) -> str:
    """What a step costs on a GPU."""
    methods = list(next(iter(result["table"].values())))
    lines = ["| net | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name, rows in result["table"].items():
        cells = [f"{rows[m]['ms']:.1f} ms" if m == "base" else f"{rows[m]['ratio']:.2f}" for m in methods]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Times of a step over the base's, on one {result['device']}, torch {result['torch']}."]
    return "\n".join(lines)


def policies_table() -> str:
    """The pilot's policies, from their cards."""
    lines = [
        "| policy | what it does | reads | turns | cost beyond the probes | when | measured in | source |",
        "|" + "---|" * 8,
    ]
    for name, policy in POLICIES.items():
        card = policy.card
        measured = ", ".join(map(_link, card.measured)) or "for display"
        cells = [card.does, card.reads, card.turns, card.cost, card.when, measured, card.reference]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _link(file: str) -> str:
    page = PAGES_OF_RESULTS.get(file.split("_")[0], "other_policies")
    return f"[{file}](../results/{page}.md)"


PROBES = (
    ("lanczos", "eigenvalues and vectors at both ends", "15 to 60 H", "products", "residual, certificate"),
    ("SpectrumTracker", "the same along training, from a warm start", "4 to 6 H per look",
     "products + k", "residual, cold audits"),
    ("trace", "mean curvature times d", "30 H", "rank of the basis", "standard error"),
    ("density", "all eigenvalues as a density", "256 H", "64", "standard error, width"),
    ("classify", "kind of point: minimum, saddle, degenerate", "2 G + up to 200 H", "products", "tau, 99 %"),
    ("critical_step", "longest step that does not raise the loss", "6 to 12 F", "1", "bracket"),
    ("gradient_noise", "critical batch size, B_simple", "G by parts", "2", "standard error"),
    ("rate_sensitivity", "loss after one step, by learning rate", "G + 37 F", "2", "bracket of the critical rate"),
    ("line", "loss along a direction", "41 F + H", "2", "exact; curvature stamp"),
    ("plane", "loss over two directions, eigenvectors or checkpoints", "625 F + 2 H", "3", "exact"),
    ("rays", "curvature at a distance, kinks", "20 (5 F + H)", "2", "standard error, kink flag"),
    ("gradient_smoothness", "how far the gradient holds along itself", "G per distance", "2", "exact"),
    ("average_sharpness", "mean rise under noise", "51 F", "2", "standard error"),
    ("sam_sharpness", "rise after SAM's step", "G + F", "2", "over batches of m"),
    ("worst_sharpness", "largest rise in a ball", "40 G", "5", "a lower bound"),
    ("compare_minima", "all of these at several minima", "about 300 G each", "products", "as its parts"),
    ("damage", "rise of the loss when weights are rounded, pruned, shaken or moved", "2 G + 31 H", "3",
     "residual or standard error; verdict"),
    ("linear_path", "barrier on the line between two minima", "33 F", "2", "exact at its points"),
    ("connect", "a trained curve of low loss between them", "300 steps + 94 F", "6", "an upper bound"),
    ("align", "units of one net renumbered to match another's", "F", "2", "linear assignment"),
    ("effective_dimension", "directions that hold the gradients", "G",
     "gradients, or their sketch", "flag where it counts gradients"),
    ("trajectory_plane", "plane of a training path", "none", "checkpoints", "explained variance"),
)  # fmt: skip
"""Name; what one learns; cost in passes over the data; vectors as long as the weights; what comes with the number."""


def probes_table() -> str:
    """Every probe with what it tells and costs."""
    lines = ["| probe | tells | cost | vectors held | error |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | " + " | ".join(cells) + " |" for name, *cells in PROBES]
    lines += [
        "",
        "Defaults; in passes over the data: F a forward, G a gradient (3 F), H a Hessian product (about 2.5 G).",
    ]
    return "\n".join(lines)


def slices_table(result: dict[str, Any]) -> str:
    """Time of a plane against the peer's."""
    lines = [
        "| net | forward | forwards per point | time over loss-landscapes' | points in one call |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["nets"].items():
        cells = [f"{row['forward ms']:.2f} ms", f"{row['forwards a point']:.3f}", f"{row['ratio']:.2f}"]
        lines.append(f"| {name} | " + " | ".join([*cells, str(row["points together"])]) + " |")
    lines += [
        "",
        f"A {result['points']} x {result['points']} plane, ours with the curvature of both directions, "
        f"medians of {result['repeats']} interleaved repeats. Measured with torch {result['machine']['torch']} and "
        f"loss-landscapes {result['peer']}.",
    ]
    return "\n".join(lines)


def saddle_table(result: dict[str, Any]) -> str:
    """Who leaves which start, and the other parts in sentences."""
    starts = list(next(iter(result["escapes"].values())))
    lines = ["| optimizer | " + " | ".join(starts) + " |", "|---|" + "---:|" * len(starts)]
    for method, row in result["escapes"].items():
        cells = [f"{v['escaped']:.0%}" + (f", {v['calls']:.0f}" if v["calls"] else "") for v in row.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    false = sum(v["false"] for row in result["escapes"].values() for v in row.values())
    lines += [
        "",
        f"Share of {result['seeds']} seeds that left within 400 closure calls, and the median calls to a loss 0.001 "
        f"below the saddle's, the base's own steps included. Verdicts of a minimum at a saddle: {false}. "
        f"Measured with torch {result['machine']['torch']}.",
        "",
        *_saddle_peers(result),
        "",
        *_saddle_facts(result),
    ]
    return "\n".join(lines)


def _saddle_peers(result: dict[str, Any]) -> list[str]:
    """How many of the same starts other packages leave."""
    rows = {name: row for name, row in result["peers"].items() if name != "versions"}
    left = [f"{name} {sum(at['escaped'] for at in row.values())}" for name, row in rows.items()]
    starts = len(next(iter(rows.values())))
    false = [name for name, row in rows.items() if any(at["false"] for at in row.values())]
    versions = ", ".join(f"{name} {version}" for name, version in result["peers"]["versions"].items())
    said = f" {', '.join(false)} call a saddle a success." if false else ""
    return [
        f"Of the same {starts} starts others leave, within 10,000 calls and 8 s: {'; '.join(left)} ({versions}).{said}"
    ]


def _ratio(result: dict[str, Any], method: str) -> str:
    """Gradient evaluations over the base's, mean of the seeds that got there."""
    found = [row["ratio"][method] for row in result["autoencoder"]["seeds"]]
    known = [r for r in found if r is not None]
    return f"{sum(known) / len(known):.2f}" if len(known) == len(found) else "more than the budget"


def _saddle_facts(result: dict[str, Any]) -> list[str]:
    octopus, certificate = result["octopus"], result["certificate"]
    ours, plain = octopus["NegativeCurvature"], octopus["SGD"]
    worst = max(row["worst"] for row in result["healthy"].values())
    at = {
        k: v["moved"]
        for k, v in certificate.items()
        if isinstance(v, dict) and k.endswith("two sets of batches")
    }
    minimum, middle, origin = at.values()
    round_and_round = result["circling"]
    halves = [cell["half"] for cell in round_and_round["cells"].values()]
    return [
        f"Saddles in a row (octopus): {ours['calls_per_saddle']:.0f} calls per saddle with `NegativeCurvature`, "
        f"{octopus['PerturbedGradient']['calls_per_saddle']:.0f} with kicks, both linear up to 20; plain gradient "
        f"descent takes {plain['factor_per_saddle']:.1f} times as long with each further one. Healthy training pays at "
        f"most {worst:.1%} for looks, and is bit-identical until the first. On minibatches, with `probe=` and `check=` "
        f"of 256 samples each: {minimum:.1%} of 200 looks at a minimum end in a move, {origin:.0%} at a strong saddle, "
        f"{middle:.0%} at a weak one. On a deep autoencoder of digits, whose tuned SGD leaves the plateau by itself, "
        "it is no faster: "
        f"{_ratio(result, 'NegativeCurvature')} of that SGD's gradient evaluations to the same loss, against "
        f"{_ratio(result, 'Adam')} with tuned Adam.",
        "",
        f"Saddles that SAM circles (within rho its step leads back) and SGD leaves, {len(halves)} cells of surface, "
        f"start and rho, {result['seeds']} seeds each: `NegativeCurvature(SAM(SGD))` is half way down within "
        f"{round_and_round['times']} times SGD's closure calls in {round_and_round['within_half']:.0%} of the runs of "
        f"every cell, at the median in {min(h['median'] / h['sgd_median'] for h in halves):.2f} to "
        f"{max(h['median'] / h['sgd_median'] for h in halves):.2f} times as many.",
    ]


TABLES = {
    "adam_guard": adam_guard_table,
    "batch": batch_table,
    "bits": bits_table,
    "saddle": saddle_table,
    "slices": slices_table,
    "control_development": control_table,
    "control_report": control_report_table,
    "cuda_cost": cuda_cost_table,
    "curvature_nets": curvature_nets_table,
    "control_edge": control_edge_table,
    "control_new": control_new_table,
    "loop": loop_table,
    "pilot_cost": pilot_cost_table,
    "ranks_cost": ranks_cost_table,
    "spikes": spikes_table,
    "suggest": suggest_table,
    "plateau": plateau_table,
    "claims_small": claims_small_table,
    "connectivity": connectivity_table,
    "damage": damage_table,
    "demo": demo_table,
    "doctor": doctor_table,
    "doctor_cost": doctor_cost_table,
    "finetune": finetune_table,
    "release": release_table,
    "curvature": curvature_table,
    "conformance": conformance_table,
    "sam_cost": sam_cost_table,
    "sam_noise": sam_noise_table,
    "sam_quality": sam_quality_table,
    "survival": survival_table,
    "torch_contract": torch_contract_table,
}


def tables() -> dict[str, str]:
    """Every table by its name."""
    found = {"methods": methods_table(), "policies": policies_table(), "probes": probes_table()}
    found |= {"summary": summary_table(), "provenance": provenance_table()}
    results = ROOT / "benchmarks" / "results"
    if not (results / "doctor_cost.json").exists():
        found["doctor_cost"] = "To be measured on an idle machine: `python benchmarks/doctor_cost.py`."
    return found | {
        name: make(json.loads((results / f"{name}.json").read_text()))
        for name, make in TABLES.items()
        if name not in found
    }


def pages() -> dict[Path, str]:
    """The README, the pages of docs and the counts of the doctor, with their text."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), COUNTS]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def filled(texts: dict[Path, str]) -> dict[Path, str]:
    """The pages with every marked table made anew; each stands on one of them."""
    new = dict(texts)
    for name, table in tables().items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        held = f"{table}\n".replace("\\", r"\\")  # a backslash in it is no reference
        found = 0
        for path, text in new.items():
            new[path], count = re.subn(pattern, rf"\g<1>{held}\g<2>", text, flags=re.S)
            found += count
        if found != 1:
            raise SystemExit(
                f"one page of README.md and docs must hold the table '{name}' once, found {found}"
            )
    new[COUNTS] = rewritten(new[COUNTS], json.loads(RESULT.read_text(encoding="utf-8")))
    return new


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    record = json.dumps(brought_up_to_date(), indent=1) + "\n"
    if arguments.check and record != RECORD.read_text():
        return 1
    RECORD.write_text(record)
    texts = pages()
    new = filled(texts)
    if arguments.check:
        return int(new != texts)
    for path, text in new.items():
        if text != texts[path]:
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
