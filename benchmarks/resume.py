"""What going on costs: checkpoints of the built-in model, and the time from a resumed process's start to its next step.

    python benchmarks/resume.py [--every 3] [--json]

Joint training is killed after its first checkpoint and gone on with; the checkpoint's seconds are the pause that it
makes between two steps. Its share at the default interval follows from it: an interval is as long as keeps the share at
`study.checkpoints.COST`, so what is measured is whether a study's own clock finds the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec
from omni_thinker.runs.checkpoints import COST, Checkpoints
from omni_thinker.runs.machine import machine
from omni_thinker.runs.tape import Tape
from omni_thinker.runs.unit_run import UnitRun

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.toml"
SETTINGS = (
    'study.arms=["start", "joint"]',
    "study.steps=6",
    "warmup.steps=1",
    "warmup.check_problems=4",
    "evaluation.validation_problems=8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="omni-thinker-resume-"))
    try:
        found = {**_checkpoint(folder / "own"), "resume_s": _resume(folder, chosen.every), "machine": asdict(machine())}
    finally:
        shutil.rmtree(folder)
    for name, value in found.items():
        print(f"{name}: {value}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(found))


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Seconds and bytes of one, its moments as large as they become."""
    policy = TorchPolicy(ModelSpec(name="builtin"))
    for master in policy._masters:
        master.grad = master.detach().clone()
    policy._updates.optimizer.step()
    alone = UnitRun(folder, "a", Tape([], lambda *_: None, folder), lambda *_: None)
    kept = Checkpoints(folder, alone, "a.checkpoint", 0)
    took = []
    for step in range(1, 4):
        began = time.monotonic()
        kept.write(policy, step)
        took.append(time.monotonic() - began)
        kept.drop()
    size = max(path.stat().st_size for path in folder.iterdir())
    seconds = sorted(took)[1]
    return {"checkpoint_s": seconds, "checkpoint_bytes": size, "share": COST, "interval_s": seconds / COST}


def _resume(folder: Path, every: int) -> float:
    """From the start of a resumed process to the beginning of the first step that it makes."""
    out, log = folder / "run", folder / "log"
    options = [word for key in (*SETTINGS, f"study.checkpoint_steps={every}") for word in ("--set", key)]
    command = [sys.executable, "-m", "omni_thinker", "study"]
    with log.open("wb") as stream:
        begun = [*command, str(RECIPE), "--out", str(out), *options]
        process = subprocess.Popen(begun, stdout=stream, stderr=stream, start_new_session=True)
        _wait(process, lambda: '"0 train joint", "kind": "checkpoint"' in _text(out / "journal.jsonl"))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        began = time.time()
        process = subprocess.Popen(
            [*command, str(out), "--resume"], stdout=stream, stderr=stream, start_new_session=True
        )
        _wait(process, lambda: len(_steps(out)) > every)
        ended = time.time()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ended - began - float(_steps(out)[every]["seconds"])


def _steps(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _text(out / "metrics.jsonl").splitlines(keepends=True) if line.endswith("\n")]
    return [row for row in rows if row["kind"] == "train"]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _wait(process: subprocess.Popen[bytes], happened: Any) -> None:
    while not happened():
        if process.poll() is not None:
            sys.exit(f"the study ended with {process.returncode}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
