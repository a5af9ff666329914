"""The README's tables of learning-rate control, batch size and spikes, from the files in benchmarks/results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = [
    "adam_guard_table",
    "batch_table",
    "control_edge_table",
    "control_new_table",
    "control_report_table",
    "control_table",
    "plateau_table",
    "spikes_table",
]

RESULTS = Path(__file__).resolve().parent / "results"
PLAIN = "`tau=0.05`"
"""The column of the plain rule, ``AutoLR(tau=0.05)``; its cells are called ``relative_step``."""

OTHERS = ("plateau", "greedy_lr", "prodigy", "dog", "schedule_free", "momo", "halving")
"""Methods of others that need no tuned rate: torch's ReduceLROnPlateau, GreedyLR of transformers, and so on."""


def control_table(development: dict[str, Any]) -> str:
    """auto_lr against the plain rule where one constant does not serve, on both groups of tasks."""
    report = json.loads((RESULTS / "control_report.json").read_text())
    lines = [
        f"| tasks | where | {PLAIN} | `auto_lr` | difference | loss, % lower |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for label, result in (("development", development), ("report", report)):
        for name, row in result["pace"].items():
            plain, ours, gain = row["relative_step"], row["auto_lr"], row["advantage"]
            cells = [_score(plain), _score(ours), f"{gain['points']:+.1f}" if "points" in gain else ""]
            lines.append(f"| {label} | {name} | " + " | ".join([*cells, f"{gain['loss']:+.1f}"]) + " |")
    machine = report["machine"]
    lines += [
        "",
        f"Test accuracy in per cent (test loss for text), means of {len(report['seeds']['report'])} seeds; equal "
        "gradient evaluations, probes counted. The constants were chosen on the development tasks alone. "
        f"Measured with torch {machine['torch']}{_before(report, 'pace')}.",
    ]
    if "main" in development:
        lines += [
            "",
            *_main_rows(development),
            "",
            "The same on the development tasks, as in the next table.",
        ]
    return "\n".join(lines)


def _before(result: dict[str, Any], part: str) -> str:
    """Says of a part that was not measured again what it is of."""
    return ", before the pilot was made anew" if part in result.get("of the pilot before", []) else ""


def _main_rows(result: dict[str, Any]) -> list[str]:
    """Every method on every task, at the same budget."""
    methods = ["tuned", "auto_lr", "relative_step", *OTHERS]
    methods = [m for m in methods if any(m in rows for rows in result["main"].values())]
    lines = [
        "| task, optimizer | tuned over 9 rates | " + " | ".join(_column(m) for m in methods[1:]) + " |",
        "|---|" + "---:|" * len(methods),
    ]
    for name, rows in result["main"].items():
        cells = [_score(rows[m]) if m in rows else "" for m in methods]
        lines.append(f"| {name.replace('/', ', ')} | " + " | ".join(cells) + " |")
    return lines


def control_new_table(result: dict[str, Any]) -> str:
    """Every method on the tasks that were named before their first run."""
    return "\n".join(
        [
            *_main_rows(result),
            "",
            "Breast cancer (30 measurements, 300 steps) and a residual MLP of 73 layers (150 steps): test accuracy in "
            f"per cent; autoencoder and LSTM: test loss. Means of {len(result['seeds']['report'])} seeds, equal "
            f"gradient evaluations. Measured with torch {result['machine']['torch']}.",
        ]
    )


def _column(method: str) -> str:
    return PLAIN if method == "relative_step" else f"`{method}`"


def control_report_table(result: dict[str, Any]) -> str:
    """Every method on every report task, a cap on the user's rate, and what each part of ``auto_lr`` is worth."""
    lines = _main_rows(result)
    lines += [
        "",
        "Test accuracy in per cent, higher is better; test loss for text and the noisy quadratic, lower is better. "
        f"Means of {len(result['seeds']['report'])} seeds, equal gradient evaluations, probes and the search of "
        "`halving` counted, the 27 runs that tuned the first column not. Every run lies in "
        f"benchmarks/results/control_report_runs.jsonl. {_probe_shares(result)} "
        f"Measured with torch {result['machine']['torch']}.",
        "",
        *_safe_rows(result),
        "",
        *_ablation_rows(result),
        *(
            ["", f"Parts of `auto_lr` taken away{_before(result, 'ablation')}."]
            if _before(result, "ablation")
            else []
        ),
        "",
        *_published_rows(result),
    ]
    return "\n".join(lines)


def _probe_shares(result: dict[str, Any]) -> str:
    """What probing cost ``auto_lr`` in a sentence."""
    rows = [row["auto_lr"] for row in result["main"].values()]
    evaluations = max(row["probes"] for row in rows)
    wall = {
        name: row["auto_lr"]["probe_seconds"] / row["auto_lr"]["seconds"]
        for name, row in result["main"].items()
    }
    worst = max(wall, key=lambda name: wall[name])
    return (
        f"Probes of `auto_lr` took at most {evaluations:.1%} of the gradient evaluations of training and "
        f"{statistics.median(wall.values()):.1%} of the wall time in the middle, "
        f"{wall[worst]:.1%} at most ({worst.replace('/', ', ')})."
    )


def control_edge_table(result: dict[str, Any]) -> str:
    """Nets that the rule was not made on, and runs that learn late that they have an end."""
    development = json.loads((RESULTS / "control_development.json").read_text())
    lines = [
        f"| task, optimizer | tuned over 9 rates | `auto_lr` | {PLAIN} | `auto_lr`, end called at 80 % |",
        "|---|" + "---:|" * 4,
    ]
    for name, rows in result["main"].items():
        cells = [_score(rows[m]) for m in ("tuned", "auto_lr", "relative_step")]
        lines.append(
            f"| {EDGES[name.split('/')[0]]}, {name.split('/')[1]} | " + " | ".join([*cells, ""]) + " |"
        )
    for row in development["open end"].values():
        task, optimizer = _said(row)["task"], _said(row)["optimizer"]
        rows = development["main"][f"{task}/{optimizer}"]
        cells = [_score(rows[m]) for m in ("tuned", "auto_lr", "relative_step")]
        lines.append(f"| {task}, {optimizer} | " + " | ".join([*cells, _score(row)]) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"Means of {len(result['seeds']['report'])} seeds, equal gradient evaluations. Tied embeddings are in the "
            f"text task above. Measured with torch {result['machine']['torch']}.",
        ]
    )


EDGES = {
    "finetuned": "digits CNN, fine-tuned to turned digits",
    "lora": "the same by low-rank factors on an MLP",
    "zero_last": "MNIST-1D CNN, last layer zero at the start",
    "deep": "digits ResNet-50",
}


def spikes_table(result: dict[str, Any]) -> str:
    """Twenty corrupt batches with and without ``spike_guard``."""
    arms = {
        "clean": "clean",
        "clean_dropped": "clean, without those 20 steps",
        "corrupt_guarded": "20 corrupt batches, `spike_guard`",
        "corrupt": "20 corrupt batches",
    }
    lines = [
        "| task | " + " | ".join(arms.values()) + " | corrupt steps left out | clean steps left out |",
        "|---|" + "---:|" * (len(arms) + 2),
    ]
    for cell in result["cells"]:
        runs = cell["runs"]["corrupt_guarded"]
        back, harmless = (sum(r[k] for r in runs) for k in ("corrupt_skipped", "corrupt_harmless"))
        total = result["corrupt_batches"] * len(runs)
        losses = [cell["medians"][arm]["val_loss"] for arm in arms]
        cells = ["not finite" if loss is None else f"{loss:.3f}" for loss in losses]
        cells += [f"{back} of {total - harmless}", str(sum(r["clean_skipped"] for r in runs))]
        lines.append(f"| {cell['task']}, {cell['base']} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"Validation loss after the last step, median of {len(result['seeds'])} paired seeds: shuffled labels, "
            "inputs times 1e4, a NaN in turn. Scaled inputs that the net is right about have no loss and no gradient; "
            f"they are not counted. Measured with torch {result['torch']}.",
        ]
    )


def adam_guard_table(result: dict[str, Any]) -> str:
    """Spikes that nobody made, under Adam, with the action of ``adam_guard`` on its signal and on others."""
    lines = [
        "| net | rate | row | spikes per run | actions per run | spikes foreseen | lead, updates | training loss "
        "at the end | probes' share |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for net in result["nets"].values():
        for times, rows in net["rates"].items():
            rate = f"{float(times) * net['chosen']['lr']:g}"
            for name, row in rows.items():
                acts, (seen, of) = row["actions"] > 0, row["foreseen"]
                end = "not finite" if row["end"] is None else f"{row['end']:.2e}"
                cells = [f"{row['spikes']:.1f}", f"{row['actions']:.1f}" if acts else ""]
                cells += [
                    f"{seen} of {of}" if acts else "",
                    f"{row['lead']:g}" if acts and row["lead"] else "",
                    end,
                ]
                share = f"{row['probe share']:.0%}" if row["probe share"] else ""
                lines.append(f"| {net['title']} | {rate} | {name} | " + " | ".join([*cells, share]) + " |")
    if not result["nets"]:
        return "No net is complete yet."
    passed = [net["title"] for net in result["nets"].values() if net["passes"]]
    seeds = " and ".join(
        f"{net['seeds']} of {net['of']} seeds ({net['title']})" for net in result["nets"].values()
    )
    told = [
        f"Means of {seeds}. It passes on {len(passed)} of {len(result['nets'])} nets"
        f"{': ' + ', '.join(passed) if passed else ''}.",
        *([f"Not measured yet: {'; '.join(result['missing'])}."] if result["missing"] else []),
        f"Measured with torch {result['torch']}.",
    ]
    return "\n".join([*lines, "", " ".join(told)])


def plateau_table(result: dict[str, Any]) -> str:
    """A rate without a schedule, and three ways to let it fall."""
    arms = list(next(iter(result["cells"].values())))
    lines = [
        "| task, optimizer | " + " | ".join(f"`{arm}`" if arm == "plateau" else arm for arm in arms) + " |",
        "|---|" + "---:|" * len(arms),
    ]
    for name, row in result["cells"].items():
        cells = [f"{row[arm]['test_acc']:.1f} ({row[arm]['train_loss']:.4f})" for arm in arms]
        lines.append(f"| {name.replace('/', ', ')} | " + " | ".join(cells) + " |")
    rates = ", ".join(f"{name} {rate:g}" for name, rate in result["rates"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Test accuracy in per cent (training loss at the end), means of {len(result['seeds'])} seeds, equal "
            f"gradient evaluations. Rates: {rates}. Measured with torch {result['machine']['torch']}.",
        ]
    )


def _safe_rows(result: dict[str, Any]) -> list[str]:
    """``safe_lr`` by the user's rate, in multiples of the tuned one."""
    lines = [
        "| `safe_lr`; the rate is | tuned / 100 | tuned / 10 | tuned | x 10 | x 100 | x 1000 and more |",
        "|---|" + "---:|" * 6,
    ]
    cells: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in result["safe"].values():
        said = _said(row)
        methods = cells.setdefault(f"{said['task']}, {said['optimizer']}", {})
        methods.setdefault(said["method"], []).append(row)
    for name, methods in cells.items():
        mine, plain = (sorted(methods[m], key=lambda r: r["lr"]) for m in ("safe_lr", "tuned"))
        scores = [f"{_score(a)} ({_score(b)})" for a, b in zip(mine, plain, strict=False)]
        scores += [_score(r) for r in mine[3:5]] + [_score(max(mine[5:], key=lambda r: r["test_loss"]))]
        lines.append(f"| {name} | " + " | ".join(scores) + " |")
    return [
        *lines,
        "",
        "In brackets the same schedule without it; 3 seeds; of the last column the worst. Measured with "
        f"`growth={result['safe growth']:g}`.",
    ]


def _published_rows(result: dict[str, Any]) -> list[str]:
    """Rules of others that take the rate from the curvature, and one rate for everything."""
    names = {
        "lecun": "1 / lambda",
        "lambda cap": "capped at 2 (1 - beta) / lambda",
        "cdat": "CDAT",
        "gen": "GeN",
    }
    lines = [
        "| task, sgd | tuned over 9 rates | one rate for all | `auto_lr` | "
        + " | ".join(names.values())
        + " |",
        "|---|" + "---:|" * (3 + len(names)),
    ]
    others: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["published"].values():
        said = _said(row)
        others.setdefault(said["task"], {})[said["method"]] = row
    for task, rows in others.items():
        main = result["main"][f"{task}/sgd"]
        cells = [
            main["tuned"],
            result["calibrated"][f"{task}/sgd"],
            main["auto_lr"],
            *(rows[n] for n in names),
        ]
        lines.append(f"| {task} | " + " | ".join(_score(row) for row in cells) + " |")
    return [
        *lines,
        "",
        "The one rate is the best over the development tasks; 3 seeds for it and for the rules, 5 for the others. "
        "Rules of LeCun 1993, CDAT (Roulet 2024, 2407.06183) and GeN (Bu 2024, 2407.02772) at their published "
        "constants, their products and forward passes counted.",
    ]


def _ablation_rows(result: dict[str, Any]) -> list[str]:
    """``auto_lr`` with one part taken away."""
    rows = result["ablation"]
    methods = list(next(iter(rows.values())))
    heads = ["task, optimizer", "`auto_lr`", *methods[1:]]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * len(methods)]
    for name, row in rows.items():
        cells = [_score(row[m]) if m in row else "" for m in methods]
        lines.append(f"| {name.replace('/', ', ')} | " + " | ".join(cells) + " |")
    return lines


def batch_table(result: dict[str, Any]) -> str:
    """Steps and loss of a growing batch, and where it stands to the noise scale."""
    lines = [
        "| task | run | validation loss | test acc. | steps | samples | largest batch |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, rows in result["steps"].items():
        for name, row in rows.items():
            cells = [
                f"{row['val_loss']:.3f}",
                f"{row['test_acc']:.1f}",
                f"{row['steps']:.2f}",
                f"{row['samples']:.2f}",
            ]
            lines.append(f"| {task} | {name} | " + " | ".join([*cells, str(row["largest"])]) + " |")
    inside = {
        name: statistics.fmean(run["inside"] for run in runs) for name, runs in result["tracking"].items()
    }
    lines += [
        "",
        f"Means of {result['seeds']} seeds; steps and samples over those of the fixed batch, probes counted. On the "
        "noisy quadratic, where the noise scale is known, the batch is within a factor of 2 of it in "
        + " and ".join(f"{share:.0%} of steps ({name})" for name, share in inside.items())
        + f". Measured with torch {result['machine']['torch']}.",
    ]
    return "\n".join(lines)


def _said(row: dict[str, Any]) -> dict[str, str]:
    """What a row's cell is of."""
    return dict(part.split("=") for part in row["cell"].split("/"))


def _score(row: dict[str, Any]) -> str:
    by_loss = row["cell"].startswith(("task=text", "task=quadratic", "task=autoencoder", "task=char_lstm"))
    value = f"{row['test_loss']:.3g}" if by_loss else f"{row['test_acc']:.1f}"
    return value + (f" ({row['dead']} dead)" if row["dead"] else "")
