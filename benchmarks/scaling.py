"""How costs grow: steps with prompts, groups, answers and threads; studies and plans with tasks; reports with lines.

    python benchmarks/scaling.py [--only plan] [--again] [--table]

Each row runs in a process of its own and is written as soon as it is measured, so a call that was cut off resumes
where it ended; `--again` measures rows anew. Results, with machine and versions, are in `scaling.json` of the
processor's folder. `--table` prints them as Markdown. Limits that are promised fail by the row's name. All rows take
most of an hour on two cores, and nothing else may run beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omni_thinker.report import write_report
from omni_thinker.runs.machine import machine
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.matrix import load_matrix
from omni_thinker.transfer.plan import make_plan
from peers import peak_rss_mb
from suite import RESULTS, processor_name

HERE = Path(__file__).resolve().parent
AXES = (
    *(("prompt-tokens", n, (4, n, 8, 32)) for n in (64, 256, 1024)),
    *(("group", n, (4, 128, n, 32)) for n in (4, 8, 16, 32)),
    *(("completion-tokens", n, (2, 128, 8, n)) for n in (16, 64, 128, 512)),
)
"""Axis, size on it, and prompts, their tokens, group and completion tokens."""
TASKS = (2, 4, 8, 16, 32)
LIMITS = {
    "plan-200": {"seconds": 5.0},
    "records-1000000": {"seconds": 10.0, "peak_rss_mb": 1024.0},
    "command-help": {"seconds": 0.3},
    "command-plan": {"seconds": 1.0},
}
"""What no row may exceed."""
_STUDY = {
    "model.name": "tiny",
    "warmup.steps": 2,
    "warmup.batch": 8,
    "warmup.check_problems": 2,
    "rl.group_size": 4,
    "rl.problems_per_step": 4,
    "rl.lr": 1e-3,
    "evaluation.validation_problems": 8,
    "evaluation.test_problems": 8,
    "evaluation.samples": 2,
    "study.arms": ["start", "curriculum", "joint"],
    "study.bootstrap": 200,
}
_STEPS_A_TASK = 4
_MATRIX = "docs/studies/short-probes/transfer.json"
_COMMANDS = 5
"""How often a command is run; the fastest counts, since the first ones read files from the disk."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="measure rows that were measured before, too")
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown")
    parser.add_argument("--out", type=Path, default=None, help="instead of the processor's own file")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    rows = make_rows()
    if chosen.row:
        print(json.dumps(rows[chosen.row]()), flush=True)
        return
    file = chosen.out or RESULTS / processor_name(machine().cpu) / "scaling.json"
    results: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {"rows": {}}
    if chosen.table:
        print(markdown(results["rows"]))
        return
    names = [name for name in rows if chosen.only in name]
    if not names:
        parser.error(f"no row has {chosen.only!r} in its name; there are {', '.join(rows)}")
    failures = []
    for name in names:
        if chosen.again or name not in results["rows"]:
            results["rows"][name] = _measure(name) | {"load": round(os.getloadavg()[0], 1)}
            results["machine"] = asdict(machine())
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(name, json.dumps(results["rows"][name]), flush=True)
        failures += problems(name, results["rows"][name])
    if failures:
        sys.exit("\n".join(failures))


def make_rows() -> dict[str, Callable[[], dict[str, Any]]]:
    """All rows by name."""
    rows: dict[str, Callable[[], dict[str, Any]]] = {}
    for threads in (1, 2):
        for axis, size, shape in AXES:
            rows[f"step-{axis}-{size}-threads-{threads}"] = partial(step, shape, threads)
    rows |= {f"row-{tokens}": partial(training_row, tokens) for tokens in (1024, 2048, 4096, 8192, 16_384)}
    rows |= {f"study-{count}": partial(study, count) for count in TASKS}
    rows |= {f"plan-{count}": partial(plan, count) for count in (*TASKS, 200)}
    rows |= {f"records-{count}": partial(records, count) for count in (10**3, 10**4, 10**5, 10**6)}
    return rows | {"command-help": partial(command, "--help"), "command-plan": partial(command, "plan", _MATRIX)}


def problems(name: str, row: dict[str, Any]) -> list[str]:
    """Limits that a row exceeds, in words that name it."""
    limits = LIMITS.get(name, {})
    return [f"{name}: {row[key]} {key}, at most {most} are promised" for key, most in limits.items() if row[key] > most]


def _measure(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--row", name], stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent
    )
    if done.returncode:
        sys.exit(f"{name} failed")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def step(shape: tuple[int, int, int, int], threads: int) -> dict[str, Any]:
    """A GRPO step of the built-in model: prompts, their tokens, group and completion tokens."""
    names = ("--prompts", "--prompt-tokens", "--group", "--completion-tokens")
    options = [text for name, value in zip(names, shape, strict=True) for text in (name, str(value))]
    command = [sys.executable, str(HERE / "grpo_step.py"), "--side", "ours", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = min(found["seconds"])
    return {
        "options": " ".join(options),
        "seconds": round(seconds, 2),
        "sample_seconds": found["seconds/sample"],
        "train_seconds": found["seconds/train"],
        "tokens_per_second": round(found["tokens_trained"] / seconds),
        "peak_rss_mb": found["peak_rss_mb"],
    }


def training_row(tokens: int) -> dict[str, Any]:
    """A training pass over one sample of so many tokens, which no row can be cut into."""
    from omni_thinker.policy.torch_policy import TorchPolicy
    from omni_thinker.protocol import TrainGroup
    from omni_thinker.recipe import ModelSpec, RlSpec
    from omni_thinker.rl.losses import make_loss
    from omni_thinker.types import Sample

    policy = TorchPolicy(ModelSpec(name="builtin"))
    rest = peak_rss_mb()
    ids = tuple(np.random.default_rng(0).integers(100, 40_000, tokens).tolist())
    sample = Sample(ids[64:], (-10.0,) * (tokens - 64), "", "length")
    began = time.perf_counter()
    policy.forward_backward([TrainGroup("t", ids[:64], (sample,), (1.0,), (1.0 / tokens,))], make_loss(RlSpec()))
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_rss_mb": peak_rss_mb(),
        "mb_a_1000_tokens": round((peak_rss_mb() - rest) / tokens * 1000),
    }


def study(count: int) -> dict[str, Any]:
    """Probe and plan within a whole study of a random tiny model: shares of its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = tiny_run(Path(folder) / "run", count)
        result = json.loads((run / "result.json").read_text("utf-8"))
        matrix = load_matrix(run / "transfer.json")
        began = time.perf_counter()
        make_plan(matrix)
        planning = time.perf_counter() - began
    probe = sum(row["seconds"] for row in result["probes"] if row["planned_with"])
    return {
        "seconds": round(result["seconds"], 2),
        "probe_seconds": round(probe, 2),
        "plan_seconds": round(planning, 3),
        "share": round((probe + planning) / result["seconds"], 4),
        "peak_rss_mb": peak_rss_mb(),
    }


def tiny_run(out: Path, count: int) -> Path:
    """The run directory of a small study of so many tasks."""
    table: dict[str, Any] = _STUDY | {"study.steps": _STEPS_A_TASK * count}
    for n in range(count):
        settings = {"source": "builtin:math", "difficulty": 0, "max_tokens": 8}
        table |= {f"tasks.t{n}.{key}": value for key, value in settings.items()}
        table |= {f"tasks.t{n}.{split}": size for split, size in (("train", 32), ("validation", 8), ("test", 8))}
    recipe = out.with_suffix(".toml")
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    recipe.write_text('name = "scaling"\n' + "\n".join(lines) + "\n", "utf-8")
    command = [sys.executable, "-m", "omni_thinker", "study", str(recipe), "--out", str(out)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return out


def plan(count: int) -> dict[str, Any]:
    """Planning with the default forecaster. Effects add up to those of four tasks from N(-0.01, 0.03)."""
    rng = np.random.default_rng(0)
    names = tuple(f"t{k}" for k in range(count))
    after = np.clip(0.4 + rng.normal(-0.04 / count, 0.12 / count, (count, count)), 0, 1)
    np.fill_diagonal(after, 0.6)
    matrix = TransferMatrix(
        names,
        dict.fromkeys(names, _cell(0.4)),
        {
            i: {j: _cell(value) for j, value in zip(names, row, strict=True)}
            for i, row in zip(names, after, strict=True)
        },
    )
    began = time.perf_counter()
    found = make_plan(matrix)
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 3),
        "score": round(found.sequence.score, 5),
        "bound": round(found.upper_bound, 5),
        "exact": found.exact,
        "peak_rss_mb": peak_rss_mb(),
    }


def _cell(accuracy: float) -> Estimate:
    return Estimate(float(accuracy), 200, float(np.sqrt(accuracy * (1 - accuracy) / 200)))


def records(count: int) -> dict[str, Any]:
    """A report of a tiny study whose training lines were repeated, at later steps, until there are `count`."""
    with tempfile.TemporaryDirectory() as folder:
        run = tiny_run(Path(folder) / "run", 4)
        size = lengthen(run / "metrics.jsonl", count)
        done = subprocess.run(
            [sys.executable, "-c", _REPORT, str(run)], stdout=subprocess.PIPE, text=True, check=True, cwd=HERE
        )
    return {**json.loads(done.stdout.splitlines()[-1]), "megabytes": round(size / 1e6, 1)}


_REPORT = "import sys, scaling; scaling.report(sys.argv[1])"


def report(run: str) -> None:
    began = time.perf_counter()
    write_report(Path(run))
    print(json.dumps({"seconds": round(time.perf_counter() - began, 2), "peak_rss_mb": peak_rss_mb()}))


def command(*arguments: str) -> dict[str, Any]:
    """A command from the start of its process to its end."""
    seconds = []
    for _ in range(_COMMANDS):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "omni_thinker", *arguments], stdout=subprocess.DEVNULL, check=True, cwd=HERE.parent
        )
        seconds.append(time.perf_counter() - began)
    return {"options": " ".join(arguments), "seconds": round(min(seconds), 2)}


def lengthen(log: Path, count: int) -> int:
    """Stretch every training step to as many steps as it takes for `count` lines; the file's bytes."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    with log.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines if line["kind"] != "train")
        left = count - (len(lines) - len(train))
        for n, line in enumerate(train):
            times = max(0, left) * (n + 1) // len(train) - max(0, left) * n // len(train)
            text = json.dumps(line | {"step": -1}) + "\n"
            before, _, after = text.partition('"step": -1')
            first = line["step"] * -(-left // len(train))
            file.writelines(f'{before}"step": {first + k}{after}' for k in range(times))
    return log.stat().st_size


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """A table for each kind of row."""
    tables = []
    for kind in dict.fromkeys(name.partition("-")[0] for name in make_rows()):
        found = {name: row for name, row in rows.items() if name.startswith(kind + "-")}
        if not found:
            continue
        keys = [key for key in next(iter(found.values())) if key != "options"]
        head = [f"| row | {' | '.join(key.replace('_', ' ') for key in keys)} |", "| --- |" + " ---: |" * len(keys)]
        body = [f"| {name} | {' | '.join(str(row[key]) for key in keys)} |" for name, row in found.items()]
        tables.append("\n".join([*head, *body]))
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
