"""Measure again and compare: ``python bench compare bench/results/latest.json``.

Fails (exit status 1) if a fastbp figure has grown by more than --slowdown. What seems to have
is measured again, twice at most, and its least time counts: on a shared machine a single
measurement may be unlucky, a slower program always is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report.runs import GROWTH, LOOP, OURS

REPEATS = 2
BENCH = Path(__file__).resolve().parents[1]


def measure(output: Path, items: list[str]) -> dict[str, Any]:
    """Run these items and return pytest-benchmark's records by name."""
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-quiet", *items]
    code = subprocess.run([*command, f"--benchmark-json={output}"], cwd=BENCH.parent).returncode
    if code:
        sys.exit(f"the benches failed (exit status {code}): nothing to compare")
    return by_name(json.loads(output.read_text()))


def by_name(saved: dict[str, Any]) -> dict[str, Any]:
    return {item["fullname"]: item for item in saved["benchmarks"]}


def least(item: dict[str, Any]) -> float:
    return item["stats"]["min"]


def is_ours(item: dict[str, Any]) -> bool:
    info = item["extra_info"]
    return info["contestant"] in OURS or info["suite"] in (LOOP, GROWTH)


def slower(old: dict[str, Any], new: dict[str, Any], limit: float) -> list[str]:
    """The fastbp items of both runs whose least time has grown beyond the limit, worst first."""
    grown = {
        name: least(new[name]) / least(old[name])
        for name in old.keys() & new.keys()
        if is_ours(old[name])
    }
    found = [name for name, growth in grown.items() if growth > 1 + limit]
    return sorted(found, key=grown.__getitem__, reverse=True)


def compare(path: Path, limit: float) -> int:
    saved = json.loads(path.read_text())
    old = by_name(saved)
    os.environ["FASTBP_BENCH_SEED"] = str(saved["machine_info"]["fastbp"]["seed"])
    output = path.resolve().with_name("compared.json")  # the benches run in the repository's root
    new = measure(output, [str(BENCH)])
    for _ in range(REPEATS):
        suspects = slower(old, new, limit)
        if not suspects:
            break
        print(f"{len(suspects)} of {len(new)} seem slower: measured again")
        again = output.with_name("again.json")
        for name, item in measure(again, suspects).items():
            new[name] = min(new[name], item, key=least)
        again.unlink()
    common = old.keys() & new.keys()
    if not common:
        sys.exit(f"{path} has nothing in common with this run: make bench saves a new one")
    if missing := sorted(old.keys() - new.keys()):
        print(f"{len(missing)} figures of {path} were not measured now, such as {missing[0]}")
    peers = [least(new[n]) / least(old[n]) for n in common if not is_ours(old[n])]
    if peers:
        print(
            f"What is not fastbp takes {statistics.median(peers) - 1:+.0%} (median): that is the "
            f"machine's part in what follows."
        )
    offenders = slower(old, new, limit)
    for name in offenders:
        before, now = 1e6 * least(old[name]), 1e6 * least(new[name])
        print(f"SLOWER  {now / before - 1:+.0%}  {before:.4g} -> {now:.4g} µs  {name}")
    verdict = f"{len(offenders)} of {len(common)} figures" if offenders else "nothing"
    print(f"Against {path}: {verdict} slower by more than {limit:.0%}")
    return 1 if offenders else 0


def percent(text: str) -> float:
    return float(text.rstrip("%")) / 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saved", type=Path, help="JSON of the run to compare with")
    parser.add_argument("--slowdown", type=percent, default=0.25, help="such as 25%% (default)")
    arguments = parser.parse_args()
    if not arguments.saved.exists():
        print(f"{arguments.saved} does not exist; make bench writes it", file=sys.stderr)
        return 2
    return compare(arguments.saved, arguments.slowdown)
