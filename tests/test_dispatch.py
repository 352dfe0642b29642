"""Which unit comes next, how long a study takes with so many workers, and what becomes of units that break off."""

from __future__ import annotations

import heapq
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.cli.run_commands.status import status
from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe, builtin_recipe
from omni_thinker.runs.lock import Lock
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.runs.tape import Entry
from omni_thinker.studies.dispatch.board import Board
from omni_thinker.studies.dispatch.crew import Broke, Did, Ended, Message, Order, Row, Told, Written
from omni_thinker.studies.dispatch.loop import Dispatcher
from omni_thinker.studies.dispatch.queue import Queue, makespan, ways
from omni_thinker.studies.dispatch.status import STATUS, read_status
from omni_thinker.studies.dispatch.times import forecast, pace_from
from omni_thinker.studies.estimate import SECONDS
from omni_thinker.studies.study import LOGS
from omni_thinker.studies.units import WorkPlan, plan_work

ARMS = ["start", "single", "curriculum", "reverse", "joint", "merge", "sec", "dump", "pac", "worst_task", "tac"]


def recipe(seeds: int = 1, *arms: str) -> Recipe:
    return builtin_recipe([f"study.seeds={list(range(seeds))}", f"study.arms={json.dumps(arms or ARMS)}"])


class Simulated:
    """A crew whose time is that of a simulation. `fails` says what becomes of an attempt."""

    def __init__(
        self,
        size: int,
        seconds: dict[str, float],
        fails: Callable[[Order], Message | None] = lambda _: None,
        *,
        keeps: bool = True,
    ) -> None:
        """keeps: whether a worker keeps the model of its last unit's seed."""
        self.size, self.now, self._seconds, self._fails = size, 0.0, seconds, fails
        self._keeps, self._models = keeps, list[int]()
        """The seeds whose models the free workers hold."""
        self._running: list[tuple[float, int, Order]] = []
        self.stopped = False
        self.orders: list[Order] = []
        self.kept: list[str] = []

    @property
    def near(self) -> set[int]:
        return set(self._models)

    def start(self, order: Order) -> None:
        assert len(self._running) < self.size
        if self._models:
            self._models.remove(order.unit.seed if order.unit.seed in self._models else self._models[0])
        self.orders.append(order)
        heapq.heappush(self._running, (self.now + self._seconds[order.unit.id], len(self.orders), order))

    def wait(self) -> list[Told]:
        if self.stopped:
            orders, self._running = [order for _, _, order in self._running], []
            return [Told(order.unit.id, order.attempt, Broke("simulation", "stopped")) for order in orders]
        self.now, _, order = heapq.heappop(self._running)
        if self._keeps:
            self._models.append(order.unit.seed)
        unit, attempt = order.unit.id, order.attempt
        row = Row("metrics.jsonl", json.dumps({"seed": order.unit.seed, "unit": order.unit.name, "n": attempt}))
        line = Written(Entry(f"move of {unit}", "move", attempt), lambda: self.kept.append(unit))
        last = self._fails(order) or Ended("simulation", self._seconds[unit])
        return [Told(unit, attempt, message) for message in (row, line, Did("step", 1, 2.0), last)]

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


def walked(
    folder: Path, work: WorkPlan, crew: Simulated, seconds: dict[str, float], *, resume: bool = False
) -> tuple[RunDir, list[str]]:
    """A study walked by a simulated crew; the units in the order in which they ended."""
    setting = recipe()
    run, ended = RunDir(folder, setting, resume=resume), list[str]()
    run.open_journal(LOGS, usable=lambda _: True)
    progress = Progress(SECONDS)
    progress.expect(work.total)
    board = Board(run, work, progress)
    board.workers = lambda: crew.size
    dispatcher = Dispatcher(run, work, board, attempts=3, on_end=lambda unit: ended.append(unit.id))
    try:
        dispatcher.walk(crew, ways(work.units, seconds))
    finally:
        run.close()
    return run, ended


def test_a_workers_seed_goes_first_among_units_that_are_about_as_urgent() -> None:
    work = plan_work(recipe(3))
    begun = [unit for unit in work.units if not (unit.needs or unit.after)]
    assert [unit.seed for unit in begun] == [0, 1, 2]
    queue = Queue(work.units, {unit.id: 100.0 - 6 * unit.seed for unit in work.units})
    assert [queue.pop(near) for near in ({1, 2}, {2}, {1, 2})] == [begun[1], begun[0], begun[2]]
    assert queue.pop({0, 1, 2}) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_unit_comes_once_and_after_what_it_waits_for(seeds: int, workers: int, rng: random.Random) -> None:
    work = plan_work(recipe(seeds))
    first = {unit.id: rng.random() for unit in work.units}
    queue, ended, running = Queue(work.units, first), list[str](), list[Any]()
    while queue.left:
        while len(running) < workers and (unit := queue.pop(rng.choices(range(seeds), k=2))) is not None:
            running.append(unit)
        unit = running.pop(rng.randrange(len(running)))
        assert {f"{unit.seed} {name}" for name in (*unit.needs, *unit.after)} <= set(ended)
        ended.append(unit.id)
        queue.end(unit)
    assert sorted(ended) == sorted(unit.id for unit in work.units)


def test_the_longest_way_comes_first_and_times_add_up_by_hand() -> None:
    work = plan_work(recipe(1, "start", "joint", "sec"))
    # warm-up -> start -> joint, sec -> three evaluations on test, each once both arms have ended
    times = {
        "warmup": 3.0,
        "start": 2.0,
        "joint": 5.0,
        "sec": 4.0,
        "test start": 1.0,
        "test joint": 1.0,
        "test sec": 1.0,
    }
    seconds = {f"0 {name}": value for name, value in times.items()}
    way = ways(work.units, seconds)
    assert way["0 warmup"] == 3 + 2 + 5 + 1
    assert way["0 sec"] == 4 + 1
    assert makespan(work.units, seconds, 1) == sum(times.values())
    assert makespan(work.units, seconds, 2) == 3 + 2 + 5 + 2
    assert makespan(work.units, seconds, 3) == way["0 warmup"]
    assert makespan(work.units, seconds, 2, {"0 warmup", "0 start", "0 joint", "0 sec"}) == 2


@pytest.mark.parametrize("keeps", [True, False])
def test_3000_units_on_64_workers_take_at_most_a_tenth_longer_than_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a disk under load takes a minute for 12,000
    work, rng = plan_work(recipe(100)), random.Random(5)
    assert len(work.units) >= 3000
    seconds = {unit.id: rng.lognormvariate(3.0, 1.0) for unit in work.units}
    crew = Simulated(64, seconds, keeps=keeps)
    _, ended = walked(tmp_path / "run", work, crew, seconds)
    assert len(ended) == len(work.units)
    floor = max(*ways(work.units, seconds).values(), sum(seconds.values()) / 64)
    assert crew.now <= 1.1 * floor
    counted = makespan(work.units, seconds, 64)
    assert crew.now == pytest.approx(counted, rel=0.01 if keeps else 1e-6), "the dry run counts as the walk goes"


def test_a_unit_that_breaks_off_is_made_again_and_leaves_no_row_twice(tmp_path: Path) -> None:
    work = plan_work(recipe(1))
    seconds = {unit.id: unit.seconds(SECONDS) for unit in work.units}
    lost = Broke("node b", "the node was lost")
    crew = Simulated(3, seconds, lambda order: lost if order.unit.name == "joint" and order.attempt < 3 else None)
    run, ended = walked(tmp_path / "run", work, crew, seconds)
    assert ended.count("0 joint") == 1
    orders = [order for order in crew.orders if order.unit.name == "joint"]
    assert [order.attempt for order in orders] == [1, 2, 3]
    # Its own move was whole each time, and is known to the next attempt, as are its inputs.
    assert [len(order.entries["0 joint"]) for order in orders] == [0, 1, 2]
    assert set(orders[0].entries) == {"0 warmup", "0 start", "0 joint"}
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == len(crew.orders)
    assert run.journal.noted("again 0 joint") is None, "the journal knew none when it was opened"
    again = RunDir(run.path, recipe(), resume=True)
    again.open_journal(LOGS, usable=lambda _: True)
    assert (again.journal.noted("again 0 joint") or {})["attempt"] == 3
    status = json.loads((run.path / STATUS).read_text("utf-8"))
    assert status["done"] == len(work.units)


def test_a_unit_that_breaks_off_three_times_ends_the_study_and_others_are_kept(tmp_path: Path) -> None:
    work = plan_work(recipe(1))
    seconds = {unit.id: unit.seconds(SECONDS) for unit in work.units}
    crew = Simulated(
        2, seconds, lambda order: Broke("node b", "it ran out of memory") if order.unit.name == "sec" else None
    )
    with pytest.raises(UserError, match="seed 0: sec was tried 3 times, at last on node b: it ran out of memory"):
        walked(tmp_path / "run", work, crew, seconds)
    before = {order.unit.id for order in crew.orders}
    calm = Simulated(2, seconds)
    _, ended = walked(tmp_path / "run", work, calm, seconds, resume=True)
    assert "0 sec" in ended
    assert "0 warmup" in before
    assert "0 warmup" not in ended, "it was kept"


def test_an_interrupted_crew_of_one_may_end_its_step(tmp_path: Path) -> None:
    class Interrupted(Simulated):
        def wait(self) -> list[Told]:
            if not self.stopped:
                raise KeyboardInterrupt
            order = self.orders[-1]
            line = Written(Entry("moved", "move", 1), lambda: self.kept.append(order.unit.id))
            return [Told(order.unit.id, order.attempt, line), *super().wait()]

    work = plan_work(recipe(1, "start"))
    seconds = {unit.id: 1.0 for unit in work.units}
    crew = Interrupted(1, seconds)
    with pytest.raises(KeyboardInterrupt):
        walked(tmp_path / "run", work, crew, seconds)
    assert crew.kept == ["0 warmup"]


def test_a_wrong_recipe_is_not_tried_again(tmp_path: Path) -> None:
    work = plan_work(recipe(1))
    seconds = {unit.id: unit.seconds(SECONDS) for unit in work.units}
    wrong = Broke("node b", "", UserError("spent", key="judge.endpoint.budget"))
    crew = Simulated(2, seconds, lambda order: wrong if order.unit.name == "start" else None)
    with pytest.raises(UserError, match="budget: seed 0: start ended early: spent"):
        walked(tmp_path / "run", work, crew, seconds)
    assert [order.unit.name for order in crew.orders] == ["warmup", "start"]


def test_what_an_attempt_says_after_it_was_given_up_is_not_kept(tmp_path: Path) -> None:
    work = plan_work(recipe(1, "start"))
    late = list[Told]()

    class Late(Simulated):
        def wait(self) -> list[Told]:
            told = super().wait()
            if self.orders[-1].attempt == 1 and self.orders[-1].unit.name == "start":
                late.extend(told[:2])
                return [Told("0 start", 1, Broke("node b", "lost"))]
            return [*late, *told]

    seconds = {unit.id: 1.0 for unit in work.units}
    crew = Late(1, seconds)
    run, _ = walked(tmp_path / "run", work, crew, seconds)
    assert len(late) == 2
    assert crew.kept.count("0 start") == 1
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["n"] for row in rows if row["unit"] == "start"] == [2]


def test_times_come_from_a_run_or_a_file_and_make_a_forecast(tmp_path: Path) -> None:
    rows = [
        {"arm": "warmup", "kind": "warmup", "seconds": 1.0},
        {"arm": "warmup", "kind": "validation", "seconds": 4.0},
        {"arm": "joint", "kind": "train", "seconds": 2.0},
        {"arm": "joint", "kind": "train", "seconds": 4.0},
        {"arm": "joint", "kind": "validation", "seconds": 6.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    pace = pace_from(tmp_path)
    assert pace == {"warmup": 1.0, "check": 4.0, "step": 3.0, "interim": 6.0, "validation": 6.0, "test": 6.0}
    given_times = tmp_path / "times.json"
    given_times.write_text(json.dumps(pace), "utf-8")
    assert pace_from(given_times) == pace
    work = plan_work(recipe(2, "start", "joint"))
    graph = forecast(work, pace)
    each = 40 * 1.0 + 9 * 4.0 + 6.0 + 48 * 3.0 + 6.0  # warm-up, its checks, start, joint and its evaluation
    assert graph["critical_seconds"] == pytest.approx(each + 6.0)
    assert graph["work_seconds"] == pytest.approx(2 * (each + 2 * 6.0))
    assert graph["workers"]["1"] == graph["work_seconds"]
    assert graph["workers"]["64"] == graph["critical_seconds"]
    assert graph["critical_path"][0] == "seed 0: warmup"
    whole = '{"warmup": 1, "check": 1, "step": %s, "validation": 1, "test": 1}'
    for text, words in (
        ("[]", "must be a run's directory"),
        ('{"step": 1}', "warmup"),
        ("{", "must be"),
        ("[" * 100_000, "must be"),
        (whole % ("9" * 400), "must be"),
        (whole % "1e308", "without end"),
        (whole % "-1", "below 0"),
    ):
        given_times.write_text(text, "utf-8")
        with pytest.raises(UserError, match=words):
            pace_from(given_times)
    for took in ("NaN", "-5", "Infinity", "9" * 400):
        rows_of_a_run = [f'{{"arm": "joint", "kind": "train", "seconds": {took}}}', json.dumps(rows[-1])]
        (tmp_path / "metrics.jsonl").write_text("\n".join(rows_of_a_run), "utf-8")
        with pytest.raises(UserError, match=r"metrics\.jsonl: --times: (has times|can't be read)"):
            pace_from(tmp_path)


def test_a_damaged_status_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seconds = {unit.id: 1.0 for unit in plan_work(recipe(1, "start")).units}
    walked(run, plan_work(recipe(1, "start")), Simulated(1, seconds), seconds)
    assert read_status(run)["state"] == "ended"
    good = json.loads((run / STATUS).read_text("utf-8"))
    lock = Lock(run)  # as if it were at work
    assert read_status(run)["state"] == "running"
    damaged = [
        {name: value for name, value in good.items() if name != "running"},
        good | {"running": [{"seed": 0}]},
        good | {"running": [{"seed": 0, "unit": "joint", "line": 3, "seconds": 1.0}]},
        good | {"seconds_left": None},
        good | {"at": 10**400},
        good | {"units": {"start": {"running": 1, "waiting": float("nan"), "done": 0}}},
        [],
    ]
    for text in (*map(json.dumps, damaged), "{", "[" * 100_000, ""):
        (run / STATUS).write_text(text, "utf-8")
        with pytest.raises(UserError, match="isn't what a run writes"):
            read_status(run)
    lock.release()
    (run / STATUS).unlink()
    with pytest.raises(UserError, match="an earlier version"):
        read_status(run)


def test_status_of_a_run_that_starts_or_was_stopped_names_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Lock(tmp_path)
    assert read_status(tmp_path)["state"] == "starting"
    lock.release()
    counts = {"mixtures": {"done": 1, "running": 2, "waiting": 3}}
    running = [{"seed": 0, "unit": "joint", "line": "begins", "seconds": 1.0}]
    table = {"at": 1.0, "done": 1, "units": counts, "running": running, "workers": 2, "seconds_left": 9.0}
    (tmp_path / STATUS).write_text(json.dumps(table), "utf-8")
    status(tmp_path)
    told = capsys.readouterr().out
    assert "mixtures: 1 done, 5 waiting" in told, "nobody works on what was running"
    assert f"resume with `omni-thinker study {tmp_path} --resume`" in told
    counts["mixtures"] = {"done": 6, "running": 0, "waiting": 0}
    (tmp_path / STATUS).write_text(json.dumps(table), "utf-8")
    (tmp_path / "report.html").write_text("", "utf-8")
    status(tmp_path)
    assert f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_a_run_that_did_nothing_leaves_its_folder_free(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", recipe())
    run.open_journal(LOGS, usable=lambda _: True)
    run.journal.cut()
    run.discard()
    run.close()
    check_free(tmp_path / "run")
