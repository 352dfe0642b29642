"""A study whose seeds run side by side, each in a process of its own, and then are one study.

Each seed is a study with its own directory under `seeds/`, journal and all, so that a kill costs what it costs one.
Once all have ended their directories are joined, and the whole is read from them like a resumed study."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.policy.fsdp.place import given_place
from omni_thinker.recipe import Recipe, load_recipe
from omni_thinker.runs.join import join_runs
from omni_thinker.runs.journal import NAME as JOURNAL
from omni_thinker.runs.lock import Lock
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.resume import dated, refuse_changes
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.studies.estimate import power_words
from omni_thinker.studies.setup import prepare
from omni_thinker.studies.study import LOGS, run_study
from omni_thinker.studies.units import plan_work

SEEDS = "seeds"
_STOP_WAIT_S = 40.0
"""Time for a process to stop: a step and a checkpoint."""
_POLL_S = 0.2
_FOLLOWS = "OMNI_THINKER_FOLLOWS"


def is_parallel(out: Path) -> bool:
    """Whether a directory holds a study whose seeds run side by side and aren't joined yet."""
    return (out / SEEDS).is_dir() and not (out / JOURNAL).exists()


def run_parallel(
    recipe: Recipe, out: Path, jobs: int, *, resume: bool = False, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a study with at most `jobs` seeds at a time. `options` of the command line are handed on.

    Raises UserError before anything is written for whatever can be checked beforehand, and where a seed ends with an
    error; the others are then stopped, and kept."""
    if given_place() is not None:
        raise UserError("torchrun's processes share one model; leave out --jobs", key="--jobs")
    _check_limits(recipe)
    recipe = dated(recipe, out if resume else None)
    now = recipe.model_dump(mode="json")
    if resume:
        refuse_changes(out, load_recipe(out / "recipe.toml").model_dump(mode="json"), now)
    else:
        check_free(out)
        if (out / SEEDS).exists():
            raise UserError("exists already; choose another --out", file=out / SEEDS)
    plan_work(recipe)
    setup = prepare(recipe, resumed=out if resume else None)
    run = RunDir(out, recipe, resume=resume)
    run.write_recipe(recipe)
    setup.keep_drawn(out)
    with Progress() as progress:
        count = len(recipe.study.seeds)
        progress.say(f"study {recipe.name!r} into {out}: {count} seeds, {min(jobs, count)} at a time")
        if not resume and (words := power_words(setup)):
            progress.say(f"power: {words}")
        del setup  # a judge's model among it; the processes load their own
        _Processes(recipe, out, jobs, options).run(progress)
    parts = {seed: out / SEEDS / str(seed) for seed in recipe.study.seeds}
    join_runs(list(parts.values()), out, LOGS, {"recipe": now})
    run.close()
    result = run_study(recipe, out, resume=True)
    drop_parts(recipe, out)
    return result


def drop_parts(recipe: Recipe, out: Path) -> None:
    """Remove the seeds' own directories once they are joined."""
    if not (out / SEEDS).is_dir() or is_parallel(out):
        return
    for seed in recipe.study.seeds:
        if (out / SEEDS / str(seed) / JOURNAL).exists():  # else it is somebody else's
            shutil.rmtree(out / SEEDS / str(seed), ignore_errors=True)
            _log(out, seed).unlink(missing_ok=True)
    if not any((out / SEEDS).iterdir()):
        (out / SEEDS).rmdir()


def follow_parent() -> None:
    """End as by SIGTERM once the process that started this one is gone, however it went: it holds the other end of
    this one's standard input. Does nothing in a process that wasn't started here."""
    if os.environ.pop(_FOLLOWS, ""):

        def watch() -> None:
            while os.read(0, 1):  # not sys.stdin, whose lock would be held when this process ends
                pass
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, name="omni-parent", daemon=True).start()


def _check_limits(recipe: Recipe) -> None:
    """Raises UserError for limits that every process would take for its own."""
    endpoint = recipe.judge.endpoint
    if recipe.judge.kind != "endpoint" or endpoint is None:
        return
    for key in ("budget", "requests_per_minute", "tokens_per_minute"):
        if key in endpoint.model_dump(exclude_defaults=True):
            raise UserError("can't be split among processes; leave out --jobs", key=f"judge.endpoint.{key}")


class _Processes:
    """One for each seed, so many at a time."""

    def __init__(self, recipe: Recipe, out: Path, jobs: int, options: Sequence[str]) -> None:
        self.seeds, self.out, self.options = list(recipe.study.seeds), out, tuple(options)
        self.jobs = min(jobs, len(self.seeds))
        self.running: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
        self.devices = list(islice(cycle(_devices()), self.jobs))

    def run(self, progress: Progress) -> None:
        """Raises UserError where one ends with an error; the others are stopped then, and kept."""
        waiting, shown = list(self.seeds), 0.0
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.jobs:
                    self._start(waiting.pop(0))
                for seed, (process, device) in list(self.running.items()):
                    if process.poll() is None:
                        continue
                    del self.running[seed]
                    self.devices += [device] if device else []
                    if process.returncode:
                        how = f"killed by {_signal(-process.returncode)}; " if process.returncode < 0 else ""
                        raise UserError(
                            f"seed {seed} ended early: {how}{_last_line(self.out, seed)}", file=_log(self.out, seed)
                        )
                    progress.say(f"seed {seed} has ended")
                if self.running and time.monotonic() - shown > 1:
                    shown = time.monotonic()
                    progress.show(" | ".join(f"seed {seed}: {_last_line(self.out, seed)}" for seed in self.running))
                time.sleep(_POLL_S)
        finally:
            self._stop()

    def _start(self, seed: int) -> None:
        folder = self.out / SEEDS / str(seed)
        folder.parent.mkdir(exist_ok=True)
        _await_free(folder)
        if (folder / JOURNAL).exists():
            arguments = [str(folder), "--resume"]
        else:
            shutil.rmtree(folder, ignore_errors=True)  # stopped before its first move
            arguments = [str(self.out / "recipe.toml"), "--out", str(folder)]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {"OMP_NUM_THREADS": str(max(1, cores // self.jobs)), **os.environ, _FOLLOWS: "1"}
        device = self.devices.pop(0) if self.devices else ""
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        last = (*self.options, "--set", f"study.seeds=[{seed}]")
        with _log(self.out, seed).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "omni_thinker", "study", *arguments, *last],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,  # a Ctrl-C is passed on once, not heard twice
            )
        self.running[seed] = process, device

    def _stop(self) -> None:
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            try:
                process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_free(folder: Path) -> None:
    """Wait until a process that outlived its parent has ended. Raises UserError where it doesn't."""
    until = time.monotonic() + _STOP_WAIT_S
    while folder.is_dir():
        try:
            Lock(folder).release()
            return
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(_POLL_S)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _log(out: Path, seed: int) -> Path:
    return out / SEEDS / f"{seed}.log"


def _last_line(out: Path, seed: int) -> str:
    try:
        lines = _log(out, seed).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return lines[-1].strip() if lines else "begins"


def _devices() -> list[str]:
    """GPUs that this process may use, where there are several to be dealt out, in turn if there are more processes."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(place) for place in range(count)]
