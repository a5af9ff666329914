"""PyTorch's own contract of an optimizer, with every one of its optimizers and inputs as the base of this package's.

    python benchmarks/torch_contract.py                  # about ten minutes on one core; prints, writes the JSON
    python benchmarks/torch_contract.py --only SGD Muon  # some bases, nothing written

The cases and the checks are those of the tests (``tests/contract_of_torch.py``). A cell counts (input, check) pairs:
passed, refused by design or by the base itself, failed. The words of each refusal are kept, with how often they came.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from contract_of_torch import CHECKS, OF_BASE, WRAPPERS, Case, database, refusal  # noqa: E402

METHODS = (
    "SAM",
    "ASAM",
    "MSAM",
    "LookSAM",
    "WSAM",
    "NegativeCurvature",
    "PerturbedGradient",
    "NoisyGradient",
)


def anonymous(said: str, case: Case) -> str:
    """A refusal without the names of this base and this method, where it begins with them or speaks of "this"."""
    said = re.sub(rf"\b{case.name}\b", "<base>", said, count=1)
    return re.sub(rf"\b({'|'.join(METHODS)})\b(?=[:;]| needs)", "<method>", said, count=1)


def outcomes(case: Case, kind: str, words: Counter[str], failures: list[str]) -> Counter[str]:
    """How many checks of a case passed, were refused, failed."""
    found: Counter[str] = Counter()
    for name, check in {"construction": refusal, **CHECKS}.items():
        try:
            said = check(case, kind)
        except Exception as error:
            failures.append(f"{case}, {kind}, {name}: {type(error).__name__}: {str(error)[:300]}")
            found["failed"] += 1
            continue
        found["refused" if said else "passed"] += 1
        if said:
            words[anonymous(said, case)] += 1
            if name == "construction":
                break  # there is no such optimizer
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=None, help="names of bases; writes no file")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/results/torch_contract.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = database()
    if isinstance(cases, str):
        print(cases)
        return 1
    began, words, failures = time.perf_counter(), Counter[str](), list[str]()
    bases: dict[str, Any] = {}
    for name in dict.fromkeys(case.name for case in cases):
        if arguments.only is not None and name not in arguments.only:
            continue
        inputs = [case for case in cases if case.name == name]
        cells = {
            kind: sum((outcomes(case, kind, words, failures) for case in inputs), Counter[str]())
            for kind in WRAPPERS
        }
        bases[name] = {"inputs": len(inputs), "methods": {kind: dict(cell) for kind, cell in cells.items()}}
        row = "  ".join(
            "/".join(str(cell[what]) for what in ("passed", "refused", "failed")) for cell in cells.values()
        )
        print(f"{name:12}{len(inputs):4} inputs  {row}", flush=True)
    print("columns:", ", ".join(WRAPPERS), "; passed/refused/failed (input, check) pairs")
    for said, times in sorted(words.items()):
        print(f"refused {times:5}  {said}")
    print(*failures, sep="\n")
    total = sum((Counter(cell) for base in bases.values() for cell in base["methods"].values()), Counter())
    print(f"{dict(total)} in {time.perf_counter() - began:.0f} s, torch {torch.__version__}")
    if arguments.only is None:
        result = {
            "benchmark": "torch_contract",
            "torch": torch.__version__,
            "checks": ["construction", *CHECKS],
            "total": {what: total[what] for what in ("passed", "refused", "failed")},
            "bases": bases,
            "refused by design": {w: n for w, n in sorted(words.items()) if not w.startswith(OF_BASE)},
            "refused by the base itself": {
                w.removeprefix(OF_BASE): n for w, n in sorted(words.items()) if w.startswith(OF_BASE)
            },
            "failures": failures,
        }
        arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
