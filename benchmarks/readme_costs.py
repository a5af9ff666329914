"""Tables of the loop's and the pilot's cost, the suggested rate and contracts, from benchmarks/results."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from typing import Any

__all__ = [
    "curvature_nets_table",
    "loop_table",
    "pilot_cost_table",
    "ranks_cost_table",
    "suggest_table",
    "torch_contract_table",
]


def _row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def loop_table(result: dict[str, Any]) -> str:
    """Throughput of the recipe over the bare loop, checkpoints and the growth of memory."""
    lines = [
        "| net | bare step, ms | recipe's throughput over the bare loop's | one save, ms | saves' share of time |",
        "|---|---:|---:|---:|---:|",
    ]
    for net, row in result["throughput"].items():
        saves = [f"{1e3 * row['save_seconds']:.0f}", f"{row['checkpoint_share']:.2%}"]
        lines.append(_row(net, f"{row['bare_ms_a_step']:.1f}", f"{row['ratio']:.2f}", *saves))
    memory = result["memory"]
    grown = f"{memory['slope_mib_a_minute']:+.3f} ± {memory['slope_error']:.3f} MiB per minute"
    lines += [
        "",
        f"Memory of a run with the pilot in control: {grown} over {memory['minutes']:.0f} minutes. "
        f"Measured with torch {result['machine']['torch']} on {result['machine']['cpus']} CPU cores.",
    ]
    return "\n".join(lines)


def pilot_cost_table(result: dict[str, Any]) -> str:
    """Wall time that the pilot adds to a step."""
    lines = ["| net, base | policy | bare step, ms | added | aim |", "|---|---|---:|---:|---:|"]
    for row in result["auto_lr"]:
        added = f"{row['added_ms']:+.2f} ms ({row['added_share']:+.1%})"
        where = f"{row['net']}, {row['base']}"
        lines.append(_row(where, "`auto_lr`", f"{row['bare_ms']:.1f}", added, row["bound"]))
    for row in result["probes"]:
        part = f"all monitors, {row['part']} of {row['total']:,} steps"
        where, added = f"{row['net']}, {row['base']}", f"{row['added_share']:+.1%}"
        lines.append(_row(where, part, f"{row['bare_ms']:.1f}", added, row["bound"]))
    machine = result["machine"]
    lines += [
        "",
        f"Medians of interleaved turns, one thread, {machine.get('beside', 'an idle machine')}. Measured with torch "
        f"{machine['torch']}.",
    ]
    return "\n".join(lines)


def ranks_cost_table(result: dict[str, Any]) -> str:
    """Collectives of a pilot whose ranks agree, and their time where it was measured."""
    lines = ["| pilot on 2 processes | collectives per update | bytes per update |", "|---|---|---:|"]
    for row in result["counts"]:
        calls = ", ".join(f"{count:.2f} `{kind}`" for kind, count in row["calls_per_update"].items())
        lines.append(_row(row["pilot"], calls, f"{row['bytes_per_update']:,.0f}"))
    counted = f"Of a net of {result['parameters']} tensors over 200 updates, beside what DDP itself sends."
    return "\n".join([*lines, "", f"{counted} {_ranks_time(result)}"])


def _ranks_time(result: dict[str, Any]) -> str:
    found, version = result["time"], f"Measured with torch {result['machine']['torch']}."
    if found is None:
        return f"The time has not been measured. {version}"

    def milliseconds(row: dict[str, float]) -> str:
        return f"{row['median']:+.2f} ms ({row['low']:+.2f} to {row['high']:+.2f})"

    aim = f"at most {found['bar']:.0%} of {found['step_ms']:.0f} ms for the reductions"
    holds = found["reductions_ms"]["high"] <= found["bar"] * found["step_ms"]
    return (
        f"On a step of {found['ms']['bare']:.0f} ms under DDP the reductions of `auto_lr` add "
        f"{milliseconds(found['reductions_ms'])}, the whole pilot {milliseconds(found['whole_pilot_ms'])}: medians of "
        f"{found['turns']} turns with 95 % intervals, gloo, one thread for each process. The aim, {aim}, "
        f"{'holds' if holds else 'is not shown to hold'}. {version}"
    )


def suggest_table(result: dict[str, Any]) -> str:
    """How far the suggested rate is from the best of nine."""
    lines = [
        "| task, optimizer | best of nine rates | suggested, median | factor apart | says that it converged |",
        "|---|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        middle = statistics.median(s["value"] for s in row["suggested"])
        cells = [
            f"{row['searched']:g}",
            f"{middle:.2g}",
            f"{row['factor_apart']:.1f}",
            "yes" if row["converged"] else "no",
        ]
        lines.append(_row(f"{row['task']}, {row['optimizer']}", *cells))
    apart = [row["factor_apart"] for row in result["rows"]]
    within = sum(value <= 4.0 for value in apart if math.isfinite(value))
    lines += [
        "",
        f"Within a factor of 4 in {within} of {len(apart)} cells; median factor {statistics.median(apart):.1f}. "
        f"Measured with torch {result['machine']['torch']}.",
    ]
    return "\n".join(lines)


def torch_contract_table(result: dict[str, Any]) -> str:
    """PyTorch's own contract of an optimizer over every base."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for base in result["bases"].values():
        for method, counts in base["methods"].items():
            sums[method].update(counts)
    lines = ["| wrapper | passed | refused in words | failed |", "|---|---:|---:|---:|"]
    for method, counts in sums.items():
        lines.append(_row(f"`{method}`", *(f"{counts[kind]:,}" for kind in ("passed", "refused", "failed"))))
    lines += [
        "",
        f"{len(result['checks'])} checks on every input of PyTorch's own tests, over the {len(result['bases'])} "
        f"optimizers of `torch.optim` {result['torch']}.",
    ]
    return "\n".join(lines)


def curvature_nets_table(result: dict[str, Any]) -> str:
    """Right, refused or wrong, by quantity, over all kinds of nets."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in result["rows"]:
        counts[row["quantity"]][row["verdict"]] += 1
    kinds = list(result["counts"])
    lines = [_row("quantity", *kinds), "|---|" + "---:|" * len(kinds)]
    for quantity, found in counts.items():
        lines.append(_row(quantity, *(str(found[kind]) for kind in kinds)))
    lines += [
        "",
        f"{result['nets']} kinds of nets and set-ups against float64 oracles; right: within the stated error. "
        f"Measured with torch {result['torch']}.",
    ]
    return "\n".join(lines)
