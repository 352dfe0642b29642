"""Real faults in the middle of a study: it waits or resumes, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judge_server import JudgeServer
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec
from omni_thinker.runs.checkpoints import Checkpoints
from omni_thinker.runs.stopping import PATIENCE_S
from omni_thinker.runs.tape import Tape
from omni_thinker.runs.unit_run import UnitRun
from test_resume import traces

AWAY_S = float(os.environ.get("OMNI_THINKER_AWAY_S", "25"))
"""Longer than all attempts at one question take by themselves."""
QUICK = (
    *("--set", 'study.arms=["start", "joint"]'),
    *("--set", "study.steps=12"),
    *("--set", "study.checkpoint_steps=1"),
    *("--set", "study.bootstrap=50"),
    *("--set", "tasks.writing.reward={gate=[], sum={preference=1.0}}"),
)
"""The judge is asked about everything, so that there is something to learn."""
LORA = ("--set", "model.lora.rank=4", "--set", 'study.arms=["start", "joint", "curriculum"]')
PROBES = ("--set", 'study.probes=["short"]')
WRAPPED = """
import sys
{before}
from omni_thinker.cli.app import main
main()
"""


def begin(errors: Path, *arguments: object, before: str = "", home: Path | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRAPPED.format(before=before), "study", *map(str, arguments)]
    environment = {**os.environ, **({} if home is None else {"OMNI_THINKER_HOME": str(home)})}
    with errors.open("ab") as stream:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True, env=environment
        )


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < until
        time.sleep(0.02)


def journalled(out: Path, word: str) -> Callable[[], bool]:
    path = out / "journal.jsonl"
    return lambda: path.exists() and word in path.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def undisturbed(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert begin(folder / "err", repo / "recipes" / "tiny.toml", "--out", folder / "run", *QUICK).wait(280) == 0
    return folder / "run"


# --- workers ---------------------------------------------------------------------------------------------------------


def _workers(parent: int) -> list[int]:
    """Processes that score for `parent`, at any depth."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    below, found = {parent}, list[int]()
    while new := {pid for pid, own in parents.items() if own in below} - below:
        below |= new
    for pid in below - {parent}:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
        except OSError:
            continue
        if "isolation" in command or "harness" in command:
            found.append(pid)
    return found


def _are_gone(workers: list[int]) -> None:
    assert workers, "nothing scored for it"
    until = time.monotonic() + 5  # whoever adopts what was killed has to take note of it
    while left := [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find the workers in")
def test_study_with_workers_killed_from_outside_ends_the_same(repo: Path, tmp_path: Path) -> None:
    arguments = (*QUICK, "--set", "study.steps=40", "--set", "study.checkpoint_steps=0")
    calm, out = tmp_path / "calm", tmp_path / "run"
    assert begin(tmp_path / "err", repo / "recipes" / "tiny.toml", "--out", calm, *arguments).wait(280) == 0
    process = begin(tmp_path / "err", repo / "recipes" / "tiny.toml", "--out", out, *arguments)
    wait_for(process, journalled(out, "train joint"))
    lines = out / "metrics.jsonl"
    killed = seen = 0
    while process.poll() is None:
        for pid in sorted(_workers(process.pid))[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
                killed, seen = killed + 1, lines.read_bytes().count(b"\n")
            except ProcessLookupError:
                continue
        time.sleep(1.0)  # so that the next one gets to its feet
        # On a slow machine that takes longer, and an answer whose second worker dies too is rightly given up.
        while process.poll() is None and lines.read_bytes().count(b"\n") < seen + 2:
            time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "err").read_text("utf-8")[-2000:]
    assert killed >= 3
    assert traces(out) == traces(calm)


@pytest.mark.parametrize("workers", [1, 5])
def test_study_with_1_or_5_workers_ends_the_same(undisturbed: Path, repo: Path, tmp_path: Path, workers: int) -> None:
    before = f"from omni_thinker.isolation import use_workers\nuse_workers({workers})"
    out = tmp_path / "run"
    process = begin(tmp_path / "err", repo / "recipes" / "tiny.toml", "--out", out, *QUICK, before=before)
    assert process.wait(280) == 0, (tmp_path / "err").read_text("utf-8")[-2000:]
    assert traces(out) == traces(undisturbed)


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., JudgeServer]]:
    servers: list[JudgeServer] = []

    def make(**options: Any) -> JudgeServer:
        servers.append(JudgeServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def _judged(server: JudgeServer) -> tuple[str, ...]:
    keys = (f'base_url="{server.url}"', 'model="m"', 'cache="none"', "concurrency=4")
    return ("--set", 'judge.kind="endpoint"', *(word for key in keys for word in ("--set", f"judge.endpoint.{key}")))


def _without_spending(found: dict[str, Any]) -> dict[str, Any]:
    """A request that was under way when the server went is asked again: that costs, and is counted."""
    for row in found["metrics"]:
        for name in ("requests", "tokens", "money"):
            row["metrics"].pop(f"judge/{name}", None)
    return found


@pytest.mark.timeout(AWAY_S + 300)
def test_study_waits_for_a_judge_that_goes_away_and_ends_the_same(
    serve: Callable[..., JudgeServer], repo: Path, tmp_path: Path
) -> None:
    recipe, errors = repo / "recipes" / "tiny.toml", tmp_path / "err"
    server = serve()
    assert begin(errors, recipe, "--out", tmp_path / "calm", *QUICK, *_judged(server)).wait(280) == 0
    process = begin(errors, recipe, "--out", tmp_path / "run", *QUICK, *_judged(server))
    wait_for(process, journalled(tmp_path / "run", '"key": "0 train joint", "kind": "checkpoint"'))
    server.close()
    time.sleep(AWAY_S)
    assert process.poll() is None, errors.read_text("utf-8")[-2000:]
    serve(port=server.port)
    assert process.wait(280) == 0, errors.read_text("utf-8")[-2000:]
    said = errors.read_text("utf-8")
    assert said.count("can't be reached") == 1
    assert said.count("is back after") == 1
    assert "waiting up to 900 s" in said
    calm, found = (_without_spending(traces(tmp_path / name)) for name in ("calm", "run"))
    assert found == calm


def test_judge_that_stays_away_ends_the_run_which_resumes_to_the_same_end(
    serve: Callable[..., JudgeServer], repo: Path, tmp_path: Path
) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    server = serve()
    assert begin(errors, recipe, "--out", tmp_path / "calm", *QUICK, *_judged(server)).wait(280) == 0
    impatient = ("--set", "judge.endpoint.patience_s=2", "--set", "judge.endpoint.attempts=2")
    process = begin(errors, recipe, "--out", out, *QUICK, *_judged(server), *impatient)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
    server.close()
    assert process.wait(120) == 2
    last = errors.read_text("utf-8").splitlines()[-1]
    assert "tasks.writing.reward" in last
    assert "scores are errors" in last
    other = serve()  # somewhere else, where the recipe may follow it
    assert begin(errors, out, "--resume", *_judged(other)).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    calm, found = (_without_spending(traces(tmp_path / name)) for name in ("calm", "run"))
    assert found == calm


# --- clocks, caches, numbers -----------------------------------------------------------------------------------------

JUMPING = """
import random, time
real, jumps = time.time, random.Random(0)
time.time = lambda: real() + jumps.choice([-864000.0, 0.0, 864000.0])
"""


def test_study_with_a_jumping_clock_resumes_to_the_same_end(undisturbed: Path, repo: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *QUICK, before=JUMPING)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for age, path in enumerate(sorted(out.rglob("*.safetensors"))):
        os.utime(path, (1e9 - 1e7 * age, 1e9 - 1e7 * age))
    assert begin(errors, out, "--resume", before=JUMPING).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(undisturbed)


def nobody(*_: object) -> None:
    """Nothing is kept."""


def test_drop_saves_the_newest_checkpoints_by_step_not_by_file_time(tmp_path: Path) -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    kept = Checkpoints(tmp_path, UnitRun(tmp_path, "a", Tape([], nobody, tmp_path), nobody), "a.checkpoint", 1)
    for step in (8, 9, 10):
        kept.write(policy, step)
        os.utime(tmp_path / f"a.checkpoint.{step}.safetensors", (1e9 - step, 1e9 - step))
    kept.drop()
    assert {path.name for path in tmp_path.iterdir()} == {f"a.checkpoint.{step}.safetensors" for step in (9, 10)}
    kept.read(policy, {"file": "a.checkpoint.9.safetensors"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint.9.safetensors"], "10 was passed over: damaged"


def test_study_whose_cache_folder_is_deleted_resumes_to_the_same_end(
    undisturbed: Path, repo: Path, tmp_path: Path
) -> None:
    out, errors, home = tmp_path / "run", tmp_path / "err", tmp_path / "home"
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *QUICK, home=home)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
    shutil.rmtree(home)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "move"'))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(home, ignore_errors=True)
    assert begin(errors, out, "--resume", home=home).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(undisturbed)


def test_three_non_finite_updates_end_the_run_and_write_the_batch(repo: Path, tmp_path: Path) -> None:
    recipe = repo / "recipes" / "tiny.toml"
    for rate in (
        1e9,
        1e20,
    ):  # by the rounding of the CPU, at the first of these it may be the samples that make no sense
        out, errors = tmp_path / f"run-{rate:g}", tmp_path / f"err-{rate:g}"
        assert begin(errors, recipe, "--out", out, *QUICK, "--set", f"rl.lr={rate:g}").wait(280) == 2
        said = errors.read_text("utf-8").splitlines()
        if "aren't finite: it has diverged" not in said[-1]:
            break
    assert sum("an update was skipped" in line for line in said) == 3
    assert said[-1].startswith("omni-thinker: ")
    assert "not finite in 3 updates in a row" in said[-1]
    assert str(out / "diverged.json") in said[-1]
    batch = json.loads((out / "diverged.json").read_text("utf-8"))
    assert batch["arm"] == "joint"
    assert batch["lr"] == pytest.approx(rate)
    sample = batch["groups"][0]["samples"][0]
    assert len(sample["tokens"]) == len(sample["logprobs"]) > 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    applied = [row["metrics"].get("update_applied") for row in rows if row["kind"] == "train"]
    assert applied.count(0.0) == 2, "the third ended it"


def test_diverged_model_without_updates_ends_the_run(repo: Path, tmp_path: Path) -> None:
    """All its samples score alike, so there are no updates that could notice."""
    out, errors = tmp_path / "run", tmp_path / "err"
    recipe = repo / "recipes" / "tiny.toml"
    assert begin(errors, recipe, "--out", out, *QUICK, "--set", "rl.lr=1e38").wait(280) == 2
    assert "aren't finite: it has diverged" in errors.read_text("utf-8").splitlines()[-1]


# --- going on ------------------------------------------------------------------------------------------------------


def test_killed_study_with_lora_resumes_to_the_same_end(repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    options = (*QUICK, *LORA, *PROBES)
    assert begin(errors, recipe, "--out", tmp_path / "calm", *options).wait(280) == 0
    arguments: tuple[object, ...] = (recipe, "--out", out, *options)
    for moment in ("checkpoint", '"0 train curriculum", "kind": "checkpoint"', '"0 train joint", "kind": "checkpoint"'):
        process = begin(errors, *arguments)
        wait_for(process, journalled(out, moment))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        arguments = (out, "--resume")
    assert begin(errors, *arguments).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(tmp_path / "calm")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_sigint_or_sigterm_ends_after_the_step_with_a_checkpoint(
    undisturbed: Path, repo: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *QUICK, "--set", "study.checkpoint_steps=0")
    wait_for(process, lambda: (out / "metrics.jsonl").exists() and '"train"' in (out / "metrics.jsonl").read_text())
    workers = _workers(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    _are_gone(workers)
    said = errors.read_text("utf-8")
    assert "stopping after this step, which is saved" in said
    assert f"resume with `omni-thinker study {out} --resume`" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert '"key": "0 train joint", "kind": "checkpoint"' in (out / "journal.jsonl").read_text("utf-8")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert begin(errors, out, "--resume").wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(undisturbed)


def test_second_interrupt_exits_at_once_and_the_study_still_resumes(
    undisturbed: Path, repo: Path, tmp_path: Path
) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *QUICK)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
    workers = _workers(process.pid)
    for pid in workers:  # the step can't end by itself
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S - 5) == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    _are_gone(workers)
    assert "Traceback" not in errors.read_text("utf-8")
    assert begin(errors, out, "--resume").wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(undisturbed)


def test_killed_train_resumes_and_refuses_other_steps(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "omni_thinker", "train"]
    options = ("--set", "study.checkpoint_steps=1", "--set", "study.bootstrap=50")
    arguments = [str(repo / "recipes" / "tiny.toml"), "--steps", "4", "--out", str(out), *options]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, str(out), "--resume"], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    other = subprocess.run(
        [*command, str(out), "--resume", "--steps", "9"], capture_output=True, text=True, check=False, timeout=280
    )
    assert other.returncode == 2
    assert "study.steps was 4, is 9" in other.stderr.splitlines()[-1]
