"""What a second worker brings, and what a unit costs: one study by one worker of one core, and by two.

    python benchmarks/workers.py [--rounds 2] [--ray] [--json]

Two seeds of six arms of the built-in model, shortened. One worker is this package's own process on one core; two are
`--jobs 2`, or with `--ray` a cluster of two nodes of one core on this machine. Both sides take turns. The results of
all are compared: they are the same, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_thinker.runs.machine import machine

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.toml"
SETTINGS = (
    "study.seeds=[0, 1]",
    'study.arms=["start", "single", "curriculum", "reverse", "joint", "merge"]',
    'study.single_budget="stage"',
    "study.steps=8",
    "study.bootstrap=200",
    "warmup.steps=4",
    "warmup.check_problems=4",
    "rl.problems_per_step=4",
    "evaluation.validation_problems=8",
    "evaluation.test_problems=8",
)
KEPT = ("result.json", "transfer.json", "plan.json", "scores.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args()
    sides = ["one", "two", *(["ray"] if chosen.ray else [])]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="omni-thinker-workers-"))
    try:
        for turn in range(chosen.rounds):
            for side in sides:
                out = folder / f"{side}-{turn}"
                seconds[side].append(_run(side, out))
                found.append({name: _without_times(json.loads((out / name).read_text("utf-8"))) for name in KEPT})
                print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr)
                shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    table = {
        "seconds": seconds,
        "ratio": {side: median[side] / median["one"] for side in sides[1:]},
        "same": all(each == found[0] for each in found),
        "machine": asdict(machine()),
    }
    for name, value in table.items():
        print(f"{name}: {value}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(table))


def _run(side: str, out: Path) -> float:
    """Seconds of a whole study, its process's start included."""
    options = [word for key in SETTINGS for word in ("--set", key)]
    command = [sys.executable, "-m", "omni_thinker", "study", str(RECIPE), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if side == "one":
        return _timed(["taskset", "-c", "0", *command], environment)
    if side == "two":
        return _timed([*command, "--jobs", "2"], environment)
    os.environ["OMP_NUM_THREADS"] = "1"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        return _timed([*command, "--cluster", cluster.address], environment)
    finally:
        cluster.shutdown()


def _timed(command: list[str], environment: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if "second" not in key and key != "machine"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
