"""What a second worker brings, and what a unit costs: one study by one worker of one core, and by two.

    python benchmarks/workers.py [--rounds 2] [--sides one two ray] [--json]

Two seeds of six arms of the built-in model, shortened. One worker is this package's own process on one core; two are
`--jobs 2`; `ray` is a cluster of two nodes of one core on this machine. The sides take turns. Results and
weights of all are compared: they are the same, bit for bit.

With `ray` also what a unit costs: all units of a study that has ended are handed to a cluster once more, one by one.
Their workers have nothing to compute, for the journal has all of it; what is left is scheduling.
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
from hashlib import sha256
from pathlib import Path
from typing import Any

from omni_thinker.recipe import load_recipe
from omni_thinker.recipe.cluster import ClusterSpec
from omni_thinker.runs.machine import machine
from omni_thinker.runs.rundir import RunDir
from omni_thinker.studies.crews.cluster import Cluster
from omni_thinker.studies.crews.make import hello_of
from omni_thinker.studies.dispatch.crew import Ended, Order
from omni_thinker.studies.setup import prepare
from omni_thinker.studies.study import LOGS
from omni_thinker.studies.units import plan_work

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.toml"
SETTINGS = (
    "study.seeds=[0, 1]",
    'study.arms=["start", "single", "curriculum", "reverse", "joint", "merge"]',
    'study.single_budget="stage"',
    "study.steps=4",
    "study.bootstrap=200",
    "warmup.steps=1",
    "warmup.check_problems=2",
    "rl.problems_per_step=2",
    "evaluation.validation_problems=2",
    "evaluation.test_problems=2",
)
KEPT = ("result.json", "transfer.json", "plan.json", "scores.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--sides", nargs="+", default=["one", "two"], choices=["one", "two", "ray"])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args()
    sides = [side for side in ("one", "two", "ray") if side in chosen.sides]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="omni-thinker-workers-"))
    try:
        for turn in range(chosen.rounds):
            for side in sides:
                out = folder / f"{side}-{turn}"
                seconds[side].append(_run(side, out))
                found.append(_kept(out))
                print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr)
                if side != "ray" or turn < chosen.rounds - 1:
                    shutil.rmtree(out)
        cost = _unit_cost(out) if "ray" in sides else None
    except subprocess.CalledProcessError as error:
        sys.exit(f"the study ended with code {error.returncode}: see {out}.log and {out}")
    shutil.rmtree(folder)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    table = {
        "seconds": seconds,
        "ratio": {side: median[side] / median[sides[0]] for side in sides[1:]},
        "unit_s": cost,
        "same": all(each == found[0] for each in found),
        "machine": asdict(machine()),
    }
    for name, value in table.items():
        print(f"{name}: {value}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(table))


def _kept(out: Path) -> dict[str, Any]:
    """What a study came to: documents without times, and digests of weights."""
    kept = {name: _without_times(json.loads((out / name).read_text("utf-8"))) for name in KEPT}
    weights = sorted((out / "models").rglob("*.safetensors"))
    return kept | {str(path.relative_to(out)): sha256(path.read_bytes()).hexdigest() for path in weights}


def _unit_cost(out: Path) -> dict[str, float]:
    """Seconds of a unit without work on a cluster of one core: the median, and the most."""
    recipe = load_recipe(out / "recipe.toml")
    work, run = plan_work(recipe), RunDir(out, recipe, resume=True)
    run.open_journal(LOGS, usable=lambda _: True)
    setup = prepare(recipe, resumed=out)
    crew = Cluster("auto", ClusterSpec(cores=1), hello_of(setup, out, judged=False), out)
    took = []
    for unit in work.units:
        inputs = work.inputs(unit)
        entries = {each.id: run.journal.entries(each.id) for each in (*inputs, unit)}
        began = time.monotonic()
        crew.start(Order(unit, 1, tuple(inputs), entries))
        while not any(isinstance(told.message, Ended) for told in crew.wait()):
            pass
        took.append(time.monotonic() - began)
    crew.close()
    return {"median": statistics.median(took[1:]), "most": max(took[1:]), "units": len(took)}


def _run(side: str, out: Path) -> float:
    """Seconds of a whole study, its process's start included."""
    options = [word for key in SETTINGS for word in ("--set", key)]
    command = [sys.executable, "-m", "omni_thinker", "study", str(RECIPE), "--out", str(out), *options]
    environment, log = {**os.environ, "OMP_NUM_THREADS": "1"}, Path(f"{out}.log")
    if side == "one":
        return _timed(["taskset", "-c", "0", *command], environment, log)
    if side == "two":
        return _timed([*command, "--jobs", "2"], environment, log)
    os.environ["OMP_NUM_THREADS"] = "1"
    from ray.cluster_utils import Cluster as Nodes

    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        return _timed([*command, "--cluster", cluster.address], environment, log)
    finally:
        cluster.shutdown()


def _timed(command: list[str], environment: dict[str, str], log: Path) -> float:
    began = time.monotonic()
    with log.open("w") as written:
        subprocess.run(command, env=environment, check=True, stdout=written, stderr=written)
    return time.monotonic() - began


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if "second" not in key and key != "machine"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
