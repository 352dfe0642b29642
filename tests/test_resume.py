"""Studies that are killed and resumed end as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.runs.machine import machine

ARMS = 'study.arms=["start", "single", "curriculum", "joint", "merge"]'
OPTIONS = (
    "--set",
    ARMS,
    "--set",
    'study.probes=["short", "lora", "gradient"]',
    "--set",
    "study.checkpoint_steps=1",
    "--set",
    "study.bootstrap=100",
)
REPORT = os.environ.get("OMNI_THINKER_SOAK", "")
"""File that a long run's figures go to."""
KILLS = int(os.environ.get("OMNI_THINKER_KILLS", "12"))


def start(*arguments: object, stderr: Path) -> subprocess.Popen[bytes]:
    with stderr.open("ab") as stream:
        command = [sys.executable, "-m", "omni_thinker", "study", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True)


def run(*arguments: object, stderr: Path) -> int:
    return start(*arguments, stderr=stderr).wait(timeout=280)


def traces(out: Path) -> dict[str, Any]:
    """All that a study leaves, without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        del row["seconds"]
        row["metrics"] = {name: value for name, value in row["metrics"].items() if not name.startswith("seconds/")}
    found: dict[str, Any] = {"metrics": rows}
    for name in ("samples.jsonl", "references.jsonl"):
        found[name] = (out / name).read_text("utf-8") if (out / name).exists() else ""
    for name in sorted(path.name for path in out.glob("*.json") if path.name != "status.json"):
        found[name] = without_times(json.loads((out / name).read_text("utf-8")))
    for path in sorted((out / "models").rglob("*.safetensors")):
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def after(journal: Path) -> str:
    """The last move that is in the journal."""
    lines = journal.read_text("utf-8").splitlines() if journal.exists() else []
    for line in reversed(lines):
        try:
            row = json.loads(line.partition(" ")[2])
            return f"{row['key']} ({row['kind']})"
        except ValueError:
            continue
    return "nothing"


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k and k != "machine"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def undisturbed(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert run(repo / "recipes" / "tiny.toml", "--out", folder / "run", *OPTIONS, stderr=folder / "err") == 0
    return folder / "run", time.monotonic() - began


@pytest.mark.timeout(900 + 60 * KILLS)
def test_study_killed_repeatedly_resumes_to_the_same_files(
    undisturbed: tuple[Path, float], repo: Path, tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    out, errors = tmp_path / "run", tmp_path / "err"
    rng = random.Random(0)
    kills, moments = 0, list[str]()
    while True:
        journal = out / "journal.jsonl"
        arguments = [out, "--resume"] if journal.exists() else [repo / "recipes" / "tiny.toml", "--out", out, *OPTIONS]
        process = start(*arguments, stderr=errors)
        if kills < KILLS:
            # Every other kill comes as soon as a move has its line, where a phase ends; the others at a moment after.
            before = journal.stat().st_size if journal.exists() else 0
            while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, seconds / (4 * KILLS)) * (kills % 2))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                process.wait()
                moments.append(after(journal))
        if process.wait(timeout=280) == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.read_text("utf-8")[-2000:]
    assert kills == KILLS, "it ended before all of them"
    found, wanted = traces(out), traces(expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] == wanted[name], name
    if REPORT:
        table = {"kills": kills, "killed_after": moments, "files_equal": len(wanted), "machine": asdict(machine())}
        Path(REPORT).write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def test_resuming_an_ended_study_does_nothing_and_other_recipes_exit_2(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    out, errors = undisturbed[0], tmp_path / "err"
    before = traces(out)
    assert run(out, "--resume", stderr=errors) == 0
    assert "this run has ended; nothing is left to do" in errors.read_text("utf-8")

    assert run(out, "--resume", "--set", "rl.lr=0.5", "--set", "study.steps=9", stderr=errors) == 2
    line = errors.read_text("utf-8").splitlines()[-1]
    assert "rl.lr was 0.001, is 0.5" in line
    assert "study.steps was 8, is 9" in line
    assert run(tmp_path, "--resume", stderr=errors) == 2
    assert "has no run to resume" in errors.read_text("utf-8").splitlines()[-1]
    assert traces(out) == before


def test_resume_with_missing_or_damaged_weights_exits_2_with_one_line(repo: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    process = start(repo / "recipes" / "tiny.toml", "--out", out, *OPTIONS, stderr=errors)
    journal = out / "journal.jsonl"
    while not journal.exists() or "train single:math" not in journal.read_text("utf-8"):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    weights = out / "models" / "seed-0" / "state" / "start.safetensors"
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for damage in (None, whole[:1000], b"pickle", bytes(flipped)):
        weights.unlink() if damage is None else weights.write_bytes(damage)
        assert run(out, "--resume", stderr=errors) == 2
        said = errors.read_text("utf-8").splitlines()[-1]
        assert said.startswith(f"omni-thinker: {weights}: has changed since it was written")
    weights.write_bytes(whole)
    assert run(out, "--resume", stderr=errors) == 0, errors.read_text("utf-8")[-2000:]
    result = out / "result.json"
    before = result.read_bytes()
    result.unlink()
    assert run(out, "--resume", stderr=errors) == 0
    assert json.loads(result.read_bytes()) == json.loads(before)


def test_resume_with_more_seeds_extends_the_study(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    shutil.copytree(undisturbed[0], out)
    assert run(out, "--resume", "--set", "study.seeds=[0, 1]", stderr=errors) == 0, errors.read_text("utf-8")[-2000:]
    known = without_times(json.loads((undisturbed[0] / "result.json").read_text("utf-8")))
    found = without_times(json.loads((out / "result.json").read_text("utf-8")))
    for name, rows in known["arms"].items():
        assert found["arms"][name][0] == rows[0], name
        assert len(found["arms"][name]) == 2
    assert run(out, "--resume", stderr=errors) == 0
    assert "this run has ended" in errors.read_text("utf-8").splitlines()[-1]
    before = traces(out)
    assert run(out, "--resume", "--set", "study.seeds=[0, 2]", stderr=errors) == 2
    assert "study.seeds: the run has [0, 1]; new seeds must follow these" in errors.read_text("utf-8").splitlines()[-1]
    assert traces(out) == before


def test_terminated_study_exits_143_and_leaves_no_process(repo: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    process = start(repo / "recipes" / "tiny.toml", "--out", out, *OPTIONS, stderr=errors)
    while not (out / "journal.jsonl").exists() or (out / "journal.jsonl").stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert f"terminated; resume with `omni-thinker study {out} --resume`" in errors.read_text("utf-8")
    time.sleep(2)  # whoever adopts what was killed has to take note of it
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
