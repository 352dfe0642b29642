"""A study whose seeds run side by side, each in a process of its own, and then are one study.

Each seed is a study with its own directory under `seeds/`, journal and all, so that a kill costs what it costs one.
Once all have ended their directories are joined, and the whole is read from them like a study that is gone on with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe
from omni_thinker.runs.join import join_runs
from omni_thinker.runs.journal import NAME as JOURNAL
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.study.ahead import expected_work
from omni_thinker.study.setup import prepare
from omni_thinker.study.study import LOGS, run_study

SEEDS = "seeds"
_WAIT_S = 40.0
"""For a process that was asked to stop: a step and a checkpoint."""
_LOOK_S = 0.2


def is_parallel(out: Path) -> bool:
    """Whether a directory holds a study whose seeds run side by side and aren't joined yet."""
    return (out / SEEDS).is_dir() and not (out / JOURNAL).exists()


def run_parallel(
    recipe: Recipe, out: Path, jobs: int, *, resume: bool = False, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a study with at most `jobs` seeds at a time. `options` of the command line are handed on.

    Raises UserError before anything is written for whatever can be checked beforehand, and where a seed ends with an
    error; the others are then stopped, and kept.
    """
    endpoint = recipe.judge.endpoint
    if recipe.judge.kind == "endpoint" and endpoint and endpoint.budget.model_dump(exclude_defaults=True):
        raise UserError("can't be split among processes; leave out --jobs", key="judge.endpoint.budget")
    if not resume:
        check_free(out)
        expected_work(recipe)
        prepare(recipe)
    run = RunDir(out, recipe, resume=resume)
    if not (out / JOURNAL).exists():
        with Progress({}, {}) as progress:
            progress.say(f"study {recipe.name!r} into {out}: {len(recipe.study.seeds)} seeds, {jobs} at a time")
            _run_all(recipe, out, jobs, options, progress)
        parts = [out / SEEDS / str(seed) for seed in recipe.study.seeds]
        join_runs(parts, out, LOGS, {"recipe": recipe.model_dump(mode="json")})
    run.close()
    result = run_study(recipe, out, resume=True)
    shutil.rmtree(out / SEEDS, ignore_errors=True)
    return result


def _run_all(recipe: Recipe, out: Path, jobs: int, options: Sequence[str], progress: Progress) -> None:
    waiting, running = list(enumerate(recipe.study.seeds)), dict[int, subprocess.Popen[bytes]]()
    shown = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, seed = waiting.pop(0)
                running[seed] = _start(out, seed, place, jobs, options)
            for seed, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[seed]
                if process.returncode:
                    raise UserError(f"seed {seed} ended early: {_last_line(out, seed)}", file=_log(out, seed))
                progress.say(f"seed {seed} has ended")
            if running and time.monotonic() - shown > 1:
                shown = time.monotonic()
                progress.show(" | ".join(f"seed {seed}: {_last_line(out, seed)}" for seed in running))
            time.sleep(_LOOK_S)
    finally:
        _stop(running.values())


def _start(out: Path, seed: int, place: int, jobs: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = out / SEEDS / str(seed)
    folder.parent.mkdir(exist_ok=True)
    if (folder / JOURNAL).exists():
        arguments = [str(folder), "--resume"]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first move
        arguments = [str(out / "recipe.toml"), "--out", str(folder)]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    if (gpus := _gpus()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
    with _log(out, seed).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "omni_thinker", "study", *arguments, *options, "--set", f"study.seeds=[{seed}]"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,  # a Ctrl-C is passed on once, not heard twice
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]] | Any) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _log(out: Path, seed: int) -> Path:
    return out / SEEDS / f"{seed}.log"


def _last_line(out: Path, seed: int) -> str:
    try:
        lines = _log(out, seed).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return lines[-1].strip() if lines else "begins"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
