"""Seconds of whole commands: this code against an earlier commit's, on the built-in model.

    python benchmarks/earlier.py --peer 9b8a2db --what start --json
    python benchmarks/earlier.py --peer 9b8a2db --what quickstart --rounds 2 --json

start: from the start of the process to the first RL step of a fresh study without a warm-up, of the quickstart's tasks
that need no judge, with two problems of each in an evaluation. quickstart: all of recipes/quickstart.toml. The earlier
code is checked out beside, and runs in this environment. Memory is that of all processes of a command at once (their
proportional set size, read every second). Nothing else may run beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import arguments, compare, finish_side

ROOT = Path(__file__).resolve().parent.parent
_RECIPE = "recipes/quickstart.toml"
_START = """
name = "start"
tasks.math = { source = "builtin:math", max_tokens = 8 }
tasks.coding = { source = "builtin:coding", max_tokens = 32 }
tasks.qa = { source = "builtin:qa", max_tokens = 12 }
warmup.steps = 0
evaluation = { validation_problems = 2, test_problems = 2 }
study = { steps = 24, arms = ["start", "joint"] }
model = { name = "builtin", system = "" }
"""
_TIMES = {"start": 3, "quickstart": 1}
"""How often a side does it in a round."""
_POLL_S = 0.02
_MEMORY_S = 1.0


def main() -> None:
    parser = arguments(__doc__, ("9b8a2db",))
    parser.add_argument("--what", choices=tuple(_TIMES), default="start")
    chosen = parser.parse_args()
    if not chosen.side:
        compare(chosen, {"what": chosen.what})
        return
    with _code(chosen.peer if chosen.side == "peer" else None) as code:
        measured = [_measure(chosen.what, code) for _ in range(_TIMES[chosen.what])]
    finish_side([seconds for seconds, _ in measured], peak_rss_mb=max(memory for _, memory in measured))


@contextmanager
def _code(commit: str | None) -> Iterator[Path]:
    """A folder with the code: this one, or a fresh one of the commit."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        subprocess.run(["git", "worktree", "add", "--detach", code, commit], cwd=ROOT, check=True, capture_output=True)
        try:
            yield code
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", code], cwd=ROOT, check=True)


def _measure(what: str, code: Path) -> tuple[float, float]:
    """Seconds and megabytes of one command."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        study = [sys.executable, "-m", "omni_thinker", "study", "--out", str(out)]
        if what == "quickstart":
            return _until([*study, _RECIPE], code, None)
        recipe = Path(folder) / "start.toml"
        recipe.write_text(_START, "utf-8")
        return _until([*study, str(recipe)], code, out / "metrics.jsonl")


def _until(command: list[str], code: Path, metrics: Path | None) -> tuple[float, float]:
    """Run a command to its end, or to the beginning of the first RL step in `metrics`; seconds, and megabytes."""
    environment = {**os.environ, "PYTHONPATH": str(code / "src")}
    began, most, seen = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen(command, cwd=code, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(_POLL_S)
            now = time.perf_counter()
            if now - seen > _MEMORY_S:
                most, seen = max(most, _memory_mb(process.pid)), now
            if metrics is not None and (step := _first_step(metrics)) is not None:
                most = max(most, _memory_mb(process.pid))
                process.kill()
                return now - began - step, most
        seconds = time.perf_counter() - began
    if process.returncode or metrics is not None:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, most


def _first_step(metrics: Path) -> float | None:
    """Seconds that the first RL step took, once it is over."""
    if not metrics.exists():
        return None
    for line in metrics.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            return float(row["seconds"])
    return None


def _memory_mb(pid: int) -> float:
    """Proportional set size of a process and of all that it started."""
    try:
        table = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    except OSError:  # it has ended
        return 0.0
    own = next((int(line.split()[1]) for line in table.splitlines() if line.startswith("Pss:")), 0)
    return own / 1024 + sum(_memory_mb(int(child)) for child in children)


if __name__ == "__main__":
    main()
