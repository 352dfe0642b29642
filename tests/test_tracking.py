"""Trackers get every row once, whatever happens to a study, and change nothing of it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mortal import Killed, Mortal
from omni_thinker.cli.app import main
from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe, parse_recipe
from omni_thinker.recipe.track import TrackSpec
from omni_thinker.runs.schema.logs import Metrics
from omni_thinker.runs.tracking import process
from omni_thinker.runs.tracking.base import Place, Study, values_of
from omni_thinker.runs.tracking.follow import Follower
from omni_thinker.runs.tracking.send import Sender, check_trackers
from omni_thinker.studies.crews.make import Where
from omni_thinker.studies.study import run_study
from test_resume import traces

RECORDER = "python:own_trackers:Recorder"


def recipe(*to: str, policy: str = "unigram_policy:UnigramPolicy", **track: Any) -> Recipe:
    """A study of seconds: two tasks, two arms, eight steps."""
    small = {
        "difficulty": 0,
        "max_tokens": 6,
        "train": 16,
        "validation": 4,
        "test": 4,
        "reward": {"gate": [], "sum": {"python:fsdp_parts:Letters": 1.0}},
    }
    table = {
        "name": "tracked",
        "model": {"name": "tiny", "policy": f"python:{policy}"},
        "tasks": {"qa": {"source": "builtin:qa", **small}, "math": {"source": "builtin:math", **small}},
        "warmup": {"steps": 2, "batch": 4, "check_every": 1, "check_problems": 2},
        "rl": {"group_size": 2, "problems_per_step": 2, "refill_rounds": 0},
        "evaluation": {"validation_problems": 4, "test_problems": 4, "samples": 1},
        "study": {"steps": 4, "arms": ["start", "joint", "curriculum"], "order": ["math", "qa"], "bootstrap": 50,
                  "checkpoint_steps": 1},
        "track": {"to": list(to), **track},
    }  # fmt: skip
    return parse_recipe(table, "recipe")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "recorder.jsonl").read_text("utf-8").splitlines()]


def expected(run: Path) -> list[tuple[str, int, float]]:
    """Run, step and seconds of each row, which no two rows have alike."""
    rows = [(row["seed"], row["arm"].replace(":", "-"), row["step"], row["seconds"]) for row in rows_of(run)]
    return sorted((f"{run.name}/{arm}/seed-{seed}", step, seconds) for seed, arm, step, seconds in rows)


def recorded(folder: Path) -> list[tuple[str, int, float]]:
    found = []
    for word, *rest in calls(folder):
        if word == "log":
            name, _, step, values = rest
            [seconds] = [value for key, value in values.items() if key.rpartition("/")[2] == "seconds"]
            found.append((name, step, seconds))
    return sorted(found)


def wait_until_gone(run: Path, seconds: float = 120) -> None:
    """Until no process sends this run's rows."""
    with process.held(run, seconds):
        pass


def test_values_have_the_names_of_the_log_and_their_kind_in_front() -> None:
    metrics = {"reward/all": 0.5, "part.math/qa": 0.0}
    row = Metrics(seed=0, arm="joint", kind="train", stage=None, step=1, seconds=2.0, metrics=metrics)
    assert values_of(row) == {"seconds": 2.0, "reward/all": 0.5, "part.math/qa": 0.0}
    row = Metrics(seed=0, arm="joint", kind="test", stage=None, step=1, seconds=2.0, metrics=metrics)
    assert values_of(row) == {"test/seconds": 2.0, "test/reward/all": 0.5, "test/part.math/qa": 0.0}


def test_a_place_is_named_by_study_arm_and_seed() -> None:
    study = Study("run", "id", "project", Path("folder"), False, {})
    place = Place(3, "single:qa")
    assert (place.name(study), place.key, place.slug) == ("run/single-qa/seed-3", "3 single:qa", "single-qa-3")


def line(unit: str, number: int) -> bytes:
    table = {"seed": 0, "unit": unit, "arm": unit, "kind": "train", "stage": None, "step": number, "seconds": 0.5}
    return json.dumps({**table, "metrics": {"x/all": number}}).encode() + b"\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["row", "row", "half", "cut", "sort", "again"]), st.sampled_from("ab"))))
def test_each_row_is_sent_once_however_the_log_is_rewritten(steps: list[tuple[str, str]]) -> None:
    """Rows of two units come, are cut off and come again, are sorted; the sender is killed and made anew."""
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        spec, log, written, most = TrackSpec(to=(RECORDER,)), run / "metrics.jsonl", list[bytes](), Counter[str]()
        sender = Sender(run, spec, {"name": "x"}, pytest.fail)
        for what, unit in steps:
            number = sum(json.loads(row)["unit"] == unit for row in written)
            if what in ("row", "half"):
                written.append(line(unit, number))
                most[unit] = max(most[unit], number + 1)
                if what == "half":
                    with log.open("ab") as stream:
                        stream.write(written[-1][:20])
                    sender.send()
                    with log.open("ab") as stream:
                        stream.write(written[-1][20:])
                else:
                    with log.open("ab") as stream:
                        stream.write(written[-1])
            elif what == "again":
                sender.close(ended=False)
                sender = Sender(run, spec, {"name": "x"}, pytest.fail)
            elif written:
                written = written[:-1] if what == "cut" else sorted(written, key=lambda row: json.loads(row)["unit"])
                log.with_suffix(".new").write_bytes(b"".join(written))
                os.replace(log.with_suffix(".new"), log)
            sender.send()
        sender.close(ended=True)
        logged = [call[1:4] for call in calls(run / "track")] if any(most.values()) else []
        names = [call for call in logged if str(call[0]).startswith("run/")]
        assert sorted(names) == sorted([f"run/{unit}/seed-0", n, n] for unit in most for n in range(most[unit]))


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"{}\nno\n" + line("a", 0) + b"\xff\n" + line("a", 1))
    follower = Follower(tmp_path / "log")
    assert [(unit, number, row.step) for unit, number, row in follower.poll()] == [("0 a", 0, 0), ("0 a", 1, 1)]
    assert list(follower.poll()) == []
    follower.close()
    assert list(Follower(tmp_path / "none").poll()) == []


def test_tracked_study_has_the_same_numbers_and_every_row_arrives(tmp_path: Path) -> None:
    run_study(recipe(), tmp_path / "plain" / "run")
    run_study(recipe(RECORDER), tmp_path / "tracked" / "run")
    plain, tracked = (traces(tmp_path / name / "run") for name in ("plain", "tracked"))
    assert tracked == plain
    folder = tmp_path / "tracked" / "run" / "track"
    assert recorded(folder) == expected(tmp_path / "tracked" / "run")
    assert [call[0] for call in calls(folder)].count("made") == 1
    assert calls(folder)[-1] == ["close", True]


@pytest.mark.slow
def test_study_of_several_processes_is_tracked_by_one(tmp_path: Path) -> None:
    run_study(recipe(RECORDER, folder=str(tmp_path / "shared"), project="ours"), tmp_path / "run", where=Where(jobs=2))
    assert recorded(tmp_path / "shared") == expected(tmp_path / "run")
    [made] = [call for call in calls(tmp_path / "shared") if call[0] == "made"]
    assert made[1] == "run"
    assert made[3] == "ours"


def test_killed_and_resumed_study_goes_on_in_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mortal = recipe(RECORDER, policy="mortal:MortalUnigram")
    out, kills = tmp_path / "run", 0
    while True:
        monkeypatch.setattr(Mortal, "left", 5)
        try:
            run_study(mortal, out, resume=out.exists())
            break
        except Killed:
            kills += 1
    wait_until_gone(out)
    assert kills >= 1
    found = calls(out / "track")
    assert len({tuple(call) for call in found if call[0] == "made"}) == 1, "one id and name in all processes"
    numbers = Counter((call[1], call[2]) for call in found if call[0] == "log")
    assert max(numbers.values()) == 1
    assert sorted((name, step) for name, step, _ in recorded(out / "track")) == sorted(
        (name, step) for name, step, _ in expected(out)
    )
    assert [call[1] for call in found if call[0] == "close"] == [False] * kills + [True]


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("Failing", "ConnectionError: no route to the tracker at all"),
        ("Dying", "trackers stopped with exit code -6"),
        ("Hanging", "still taking rows"),
    ],
)
def test_tracker_that_fails_costs_one_line_and_nothing_else(
    tracker: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_WAIT_S", 2.0 if tracker == "Hanging" else 120.0)
    to = (f"python:own_trackers:{tracker}",) + ((RECORDER,) if tracker == "Failing" else ())
    with caplog.at_level(logging.WARNING, "omni_thinker"):
        result = run_study(recipe(*to), tmp_path / "run")
    assert result["arms"]
    warnings = [each.getMessage() for each in caplog.records if "tracker" in each.getMessage()]
    assert len(warnings) == 1, warnings
    assert words in warnings[0]
    assert "\n" not in warnings[0]
    if tracker == "Hanging":
        _kill_sender(tmp_path / "run")
    if tracker == "Failing":
        # The other one got all. Of this one it is known what it has, so that later it gets only the rest.
        sent = json.loads((tmp_path / "run" / "track" / "sent.json").read_text("utf-8"))["trackers"]
        count = len(rows_of(tmp_path / "run"))
        logged = Counter(call[1] for call in calls(tmp_path / "run" / "track") if call[0] == "log")
        assert sum(sent[RECORDER]["runs"].values()) == count
        assert sum(sent[to[0]]["runs"].values()) == sum(logged.values()) - count


def _kill_sender(run: Path) -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and any(b"tracking.process" in word for word in words):
            os.kill(int(path.parts[2]), 9)


def test_track_sends_a_run_of_before_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(recipe(), tmp_path / "run")
    count = len(rows_of(tmp_path / "run"))
    for sent in (count, 0):
        monkeypatch.setattr(sys, "argv", ["omni-thinker", "track", str(tmp_path / "run"), "--to", RECORDER, "--json"])
        main()
        table = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (table["sent"], table["rows"], table["failed"]) == (sent, {RECORDER: count}, {})
        assert table["see"] == {RECORDER: f"cat {tmp_path / 'run' / 'track' / 'recorder.jsonl'}"}
    assert recorded(tmp_path / "run" / "track") == expected(tmp_path / "run")


def test_another_folder_gets_all_rows_and_damaged_notes_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(recipe(), tmp_path / "run")
    count = len(rows_of(tmp_path / "run"))

    def sent(*options: str) -> int:
        command = ["omni-thinker", "track", str(tmp_path / "run"), "--to", RECORDER, "--json", *options]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return int(json.loads(capsys.readouterr().out.splitlines()[-1])["sent"])

    elsewhere = ("--folder", str(tmp_path / "elsewhere"))
    assert [sent(), sent(*elsewhere), sent(), sent(*elsewhere)] == [count, count, 0, 0]
    assert (tmp_path / "elsewhere" / "recorder.jsonl").exists()
    (tmp_path / "run" / "track" / "sent.json").write_text('{"id": "x", "trackers": {"a": {"units": {"0 start": "x"}}}}')
    assert sent() == count, "what can't be read is sent anew"


def test_trackers_are_checked_before_step_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"track\.to: unknown tracker 'wandbb'; did you mean 'wandb'"):
        run_study(recipe("wandbb"), tmp_path / "run")
    with pytest.raises(UserError, match="names one of them twice"):
        run_study(recipe(RECORDER, RECORDER), tmp_path / "run")
    monkeypatch.setattr("omni_thinker.runs.tracking.send.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"track\.to: needs the package mlflow: pip install 'omni-thinker\[mlflow\]'"):
        check_trackers(TrackSpec(to=("mlflow",)))
    with pytest.raises(UserError, match=r"needs the packages trackio, mlflow: pip install '.*\[trackio,mlflow\]'"):
        check_trackers(TrackSpec(to=("trackio", "mlflow")))
    assert not (tmp_path / "run").exists()


def test_discarded_run_leaves_nothing_of_its_trackers(tmp_path: Path) -> None:
    """As where no worker can be had: the directory is free again for the next attempt."""
    (tmp_path / "recipe.toml").write_text('name = "x"\n[track]\nto = ["python:own_trackers:Recorder"]\n', "utf-8")
    with process.tracked(TrackSpec(to=(RECORDER,)), tmp_path):
        (tmp_path / "recipe.toml").unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_second_sender_waits_for_the_first(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        process.held(tmp_path, 0.1),
        pytest.raises(UserError, match="another process sends"),
        process.held(tmp_path, 0.3),
    ):
        pass
    assert time.monotonic() - began >= 0.3
