"""Which command made a result file, at which commit and on which day: ``benchmarks/results/provenance.json``.

The commit is the one that was checked out when ``benchmarks/readme.py`` first saw the file as it is now.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

__all__ = ["COMMANDS", "provenance_table", "recorded"]

RESULTS = Path(__file__).resolve().parent / "results"
RECORD = RESULTS / "provenance.json"

COMMANDS = {
    "adam_edge": "adam_edge.py",
    "adam_guard": "spikes.py --trial adam_guard",
    "batch": "batch.py",
    "bits": "bits.py",
    "conformance": "conformance.py",
    "claims_check": "claims_check.py --result benchmarks/results/claims_check.json",
    "claims_small": "claims.py",
    "configs": "configs.py",
    "connectivity": "connectivity.py",
    "control_development": "control.py --group development",
    "control_edge": "control.py --group edge --parts main",
    "control_new": "control.py --group new",
    "control_report": "control.py --group report",
    "cuda_cost": "cuda_cost.py",
    "curvature": "curvature.py",
    "curvature_nets": "curvature_nets.py",
    "damage": "damage.py",
    "demo": "demo.py --seeds 1 2 3 4 5 --result benchmarks/results/demo.json",
    "doctor": "doctor.py --report fifth --version 4",
    "doctor_cost": "doctor_cost.py",
    "finetune": "finetune.py",
    "gpu": "gpu.py",
    "hosts": "hosts.py",
    "loop": "loop.py --memory 20",
    "pilot_cost": "pilot_cost.py",
    "plateau": "plateau.py",
    "ranks_cost": "ranks_cost.py",
    "release": "release.py",
    "saddle": "saddle.py",
    "sam_cost": "sam_cost.py --rounds 25 --seconds 0.05 --budget 110",
    "sam_noise": "sam_noise.py",
    "sam_quality": "sam_quality.py --workers 1",
    "slices": "slices.py",
    "spikes": "spikes.py",
    "suggest": "suggest.py",
    "survival": "survival.py",
    "torch_contract": "torch_contract.py",
}
"""The program of a result file with its arguments, after ``python benchmarks/``."""


def files() -> list[Path]:
    """The result files with a program of their own."""
    return sorted(path for path in RESULTS.glob("*.json") if path != RECORD)


def digest(path: Path) -> str:
    """What tells one state of a file from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def recorded() -> dict[str, dict[str, str]]:
    """Digest, commit and date by name, as they stand in the file."""
    found: dict[str, dict[str, str]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def brought_up_to_date() -> dict[str, dict[str, str]]:
    """The record with new entries for files that have changed since, and without those that are gone."""
    old, new = recorded(), {}
    for path in files():
        entry = old.get(path.stem, {})
        new[path.stem] = entry if entry.get("digest") == digest(path) else _now(path)
    return new


def _now(path: Path) -> dict[str, str]:
    """Of a file that is committed as it is, its own commit; else the one that is checked out."""
    changed = _git("status", "--porcelain", "--", str(path))
    commit = _git("log", "-1", "--format=%h %cs", *([] if changed else ["--", str(path)])).split()
    return {"digest": digest(path), "commit": commit[0], "date": commit[1]}


def _git(*words: str) -> str:
    run = subprocess.run(["git", *words], cwd=RESULTS, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def provenance_table() -> str:
    """Every result file with its command, commit and date."""
    lines = ["| result | command | commit | date |", "|---|---|---|---|"]
    for name, entry in recorded().items():
        command = f"python benchmarks/{COMMANDS[name]}"
        lines.append(f"| `{name}.json` | `{command}` | `{entry['commit']}` | {entry['date']} |")
    return "\n".join(lines)
