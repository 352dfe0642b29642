"""Third-party scorers: an answer can't change the machine, the gold answer or other scores."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hostile
from omni_thinker.cli import score_file
from omni_thinker.errors import UserError
from omni_thinker.isolation import (
    IsolationError,
    TextEvaluated,
    WalledScorer,
    WorkerDied,
    allow_weak_sandbox,
    call_pool,
    scorers,
    shutdown,
)
from omni_thinker.isolation.inside import guard
from omni_thinker.recipe import RewardSpec, TaskSpec, load_recipe
from omni_thinker.rewards.gym import EVALUATES
from omni_thinker.rewards.registry import make_reward
from omni_thinker.tasks.registry import make_task
from omni_thinker.types import Group, Problem, Sample, Score
from other_users import open_to_others
from timing import quickest
from traces import children, left_behind, state

HANDLER = Path(__file__).with_name("scorer_evaluating.py")
SCORER = WalledScorer(HANDLER)
GOLD = 5


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()
    assert not children()


def ask(answer: str = "", how: str = "compare", evaluates: bool = False, timeout: float = 5.0) -> dict[str, Any]:
    request = {"answer": answer, "how": how, "gold": GOLD if how != "compare" else str(GOLD)}
    return SCORER.call_sync(request, timeout, evaluates=evaluates)


def assert_scores_are_right() -> None:
    for _ in range(4):  # both workers of the pool, whichever is idle
        assert ask("5")["score"] == 1.0
        assert ask("6")["score"] == 0.0


# --- an answer that is code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exec", "eval with names"])
def test_scorer_that_evaluates_an_answer_raises_text_evaluated(how: str) -> None:
    with pytest.raises(TextEvaluated):
        ask("1" if how != "exec" else "x = 1", how)
    assert_scores_are_right()


@pytest.mark.parametrize("how", ["file", "function", "program"])
def test_scorer_that_imports_or_starts_an_answer_ends_without_a_score(how: str) -> None:
    """Importing a file, making a function of compiled text and starting a program all end without a score."""
    answer = "def f(x): return 5" if how == "file" else "5"
    for _ in range(2):
        with pytest.raises(IsolationError):
            ask(answer, how)
    assert_scores_are_right()


def test_eval_without_names_accepts_literals_only() -> None:
    assert ask(" 5", "eval")["score"] == 1.0
    assert ask("[5]", "eval")["score"] == 0.0
    for code in ("2 + 3", "request['gold']", "len('abcde')", "abs(5)"):
        with pytest.raises(IsolationError, match="ValueError"):
            ask(code, "eval")


@pytest.mark.alone
def test_hostile_answers_without_permission_never_run() -> None:
    before = state()
    for program in hostile.ALL.values():
        with pytest.raises(IsolationError):
            ask(program, "exec")
    assert_scores_are_right()
    assert state()["files"] == before["files"]
    assert not left_behind()


@pytest.mark.alone
def test_hostile_answers_with_permission_change_no_score_file_or_process() -> None:
    """Sends the whole corpus as answers to a scorer that runs them, which a recipe may allow."""
    ask("5")
    before = state()

    async def run_all() -> list[Any]:
        request = {"how": "exec", "gold": GOLD}
        calls = [SCORER.call({**request, "answer": program}, 1.0, evaluates=True) for program in hostile.ALL.values()]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    for reply in asyncio.run(run_all()):
        assert isinstance(reply, IsolationError) or set(reply) <= {"score", "said"}
    assert_scores_are_right()
    shutdown()
    after = state()
    assert after["processes"] == set()
    assert after["files"] == before["files"]
    assert after["sockets"] - before["sockets"] == set()
    assert not left_behind()


def test_evaluated_answer_changes_no_later_score() -> None:
    patch = """
import builtins, sys
frame = sys._getframe()
while frame.f_back and "_score_of" not in frame.f_globals:
    frame = frame.f_back
frame.f_globals["_score_of"] = {True: 0.0, False: 1.0}
builtins.len = lambda x: 5
def f(x): return -1
"""
    assert ask(patch, "exec", evaluates=True)["score"] == 1.0  # its own, which the recipe was told of
    assert_scores_are_right()


def test_evaluated_answer_has_no_rights_files_or_network_of_the_user(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("seen")
    open_to_others(tmp_path)
    look = f"""
import os, socket
said = []
for path in ({str(secret)!r}, {str(HANDLER)!r}):
    try: said.append(open(path).read())
    except OSError: pass
for path in ({str(tmp_path / "written")!r}, "/sites/0/written", "/handlers/written", "/usr/written", "/written"):
    try: open(path, "w"); said.append(path)
    except OSError: pass
try: socket.create_connection(("127.0.0.1", 9), 1)
except OSError as exc: said.append(type(exc).__name__)
if os.getuid() == 0: said.append("root")
open("mine", "w")
"""
    refused = ("OSError", "ConnectionRefusedError")
    assert ask(look, "exec", evaluates=True)["said"] in [str([name]) for name in refused]
    assert not (tmp_path / "written").exists()
    assert "mine" not in ask("import os\nsaid = os.listdir('.')", "exec", evaluates=True)["said"]


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["leave", "sleep"])
def test_scorer_that_exits_or_hangs_makes_one_answer_an_error(how: str) -> None:
    with pytest.raises(IsolationError):
        ask("5", how, timeout=1.0)
    assert_scores_are_right()


def test_reply_dripped_past_the_deadline_is_an_error() -> None:
    """The worker writes 400 bytes at least 0.5 ms apart, with a deadline of 50 ms."""
    with pytest.raises(IsolationError, match="before the deadline"):
        ask("5", "drip", timeout=0.05)
    assert_scores_are_right()


def test_worker_killed_from_outside_makes_one_answer_an_error() -> None:
    """The worker is killed from outside, as the kernel does when memory runs out."""
    ask("5")
    before = set(_below(os.getpid()))
    with ThreadPoolExecutor() as threads:
        late = threads.submit(ask, "5", "sleep", timeout=20.0)
        for _ in range(500):
            if len(new := [pid for pid in _below(os.getpid()) if pid not in before]) >= 2:  # a keeper and its worker
                break
            time.sleep(0.01)
        os.kill(new[-1], signal.SIGKILL)
        with pytest.raises(IsolationError, match="without a reply"):
            late.result(timeout=10)
    assert_scores_are_right()


def _below(pid: int) -> list[int]:
    """Processes below this one, parents first."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *_below(int(child))]
    return found


def test_a_killed_sandbox_is_replaced() -> None:
    ask("5")
    for worker in [*SCORER._pool()._idle]:
        worker.stop()
    assert ask("5")["score"] == 1.0


def test_forged_reply_of_a_scorer_is_not_taken_for_the_sandbox() -> None:
    forged = [{"outcome": "broken"}, {"evaluated": True}, {"reply": {"score": 1.0}}, [], "x", 1, None]
    for reply in forged:
        line = json.dumps(reply).encode() + b"\n"
        code = f"import os\nos.write(3, {line!r})\nos._exit(0)"
        try:
            answer = ask(code, "exec", evaluates=True)
        except TextEvaluated:
            pytest.fail("a worker spoke for its server")
        except IsolationError:
            continue
        assert answer == reply
    deep = "import os\nos.write(3, b'[' * 100_000 + b']' * 100_000 + bytes([10]))\nos._exit(0)"
    with pytest.raises(IsolationError, match="without a reply"):
        ask(deep, "exec", evaluates=True)
    assert_scores_are_right()


def test_settings_reach_the_scorer_and_hashes_repeat_after_a_restart() -> None:
    request = {"how": "settings"}
    first = SCORER.call_sync(request, 5.0, settings={"a": 1})
    assert {"a": 1} in first["seen"]
    shutdown()
    assert SCORER.call_sync(request, 5.0, settings={"a": 1})["hash"] == first["hash"]


def test_scorer_with_a_missing_import_is_an_isolation_error(tmp_path: Path) -> None:
    handler = tmp_path / "broken.py"
    handler.write_text("import no_such_package")
    with pytest.raises(IsolationError, match="no_such_package"):
        WalledScorer(handler).call_sync({}, 5.0)
    with pytest.raises(IsolationError, match="isn't installed"):
        WalledScorer(tmp_path / "other.py", ["no_such_package"]).call_sync({}, 5.0)


def test_reused_worker_ends_rather_than_evaluate_an_answer() -> None:
    pool = call_pool(HANDLER)
    assert pool.call_sync({"how": "compare", "answer": "5", "gold": "5"}, 10.0) == {"score": 1.0}
    with pytest.raises(WorkerDied):
        pool.call_sync({"how": "exec", "answer": "x = 1", "gold": "5"}, 10.0)
    assert pool.call_sync({"how": "compare", "answer": "6", "gold": "5"}, 10.0) == {"score": 0.0}


# --- what reading a scorer finds --------------------------------------------------------------------------------------


def _indirect(text: str) -> Any:
    return _reads(text)


def _reads(text: str) -> Any:
    return json.loads(text)


def _runs(text: str) -> Any:
    return exec(text)


def _calls_one_that_runs(text: str) -> Any:
    return _runs(text)


class _Scores:
    def score_answer(self, text: str) -> Any:
        return self._value(text)

    def _value(self, text: str) -> Any:
        return eval(text, {})

    def harmless(self, text: str) -> Any:
        return re.compile("a").match(text) or eval(text)


@pytest.mark.parametrize(
    ("scorer", "found"),
    [
        (_indirect, None),
        (_calls_one_that_runs, "exec in test_isolation_scorers.py"),
        (_Scores().score_answer, "eval with names in"),
        (_Scores().harmless, None),
        (len, None),
    ],
)
def test_source_of_a_scorer_shows_where_it_evaluates_text(scorer: Any, found: str | None) -> None:
    where = guard.evaluates(scorer)
    assert where is None if found is None else found in (where or "")


def test_guard_allows_imports_and_arithmetic_and_ends_on_other_code() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guard\n"
        "guard.forbid_evaluation(frozenset({'int'}))\n"
        "import csv, dataclasses, wave\n"
        "assert eval('int(2) * int(3)') == 6\n"
        "print('here', flush=True)\n"
        "eval(sys.argv[2])"
    )
    refused = ("len('a')", "[int(x) for x in '12'].pop()", "(lambda: int(1))()", "(int := float)(1)", "int.real")
    for text in (*refused, "int(1) if int(0) else int(2)"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(guard.__file__).parent), text],
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.returncode) == ("here\n", guard.EVALUATED), done.stderr


# --- reasoning-gym ----------------------------------------------------------------------------------------------------


def gym_scores(task: Any, answers: list[str]) -> list[Score]:
    problem: Problem = task.problems("test")[0]
    reward = make_reward(RewardSpec(sum={"reasoning_gym": 1.0}), judge=None)
    group = Group((1,), tuple(Sample((1,), (0.0,), answer, "stop") for answer in answers))
    return asyncio.run(reward.score(group, problem))


@pytest.mark.usefixtures("own_home")
def test_set_that_evaluates_answers_needs_permission_of_the_recipe() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
    spec = TaskSpec(source="reasoning_gym:simple_integration", train=4, validation=2, test=2)
    with pytest.raises(UserError, match=r"tasks\.t\.allow_evaluating_scorers: .*parse_expr in simple_integration"):
        make_task("t", spec)
    task = make_task("t", spec.model_copy(update={"allow_evaluating_scorers": True}))
    gold = task.problems("test")[0].answer or ""
    right, wrong = gym_scores(task, [gold, "7*x"])
    assert right.value == 1.0
    assert wrong.value is not None
    assert wrong.value < 1.0


def test_row_cannot_grant_permission_to_evaluate(tmp_path: Path) -> None:
    row = {"id": 1, "response": "x", "gym": "simple_integration", "gym_config": {}, "evaluates": True, "entry": {}}
    [problem] = [score_file._problem(row, {})]
    assert "evaluates" not in problem.data
    assert score_file._problem(row, {EVALUATES: True}).data["evaluates"] is True
    for wrong in ('"yes"', "1"):
        recipe = tmp_path / "r.toml"
        recipe.write_text(f'[tasks.t]\nsource = "reasoning_gym:gcd"\nallow_evaluating_scorers = {wrong}\n')
        with pytest.raises(UserError, match="allow_evaluating_scorers"):
            load_recipe(recipe)


def test_gym_options_that_are_not_json_are_a_user_error() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
    spec = TaskSpec(source="reasoning_gym:chain_sum", options={"min_terms": datetime.date(2020, 1, 1)})
    with pytest.raises(UserError, match=r"tasks\.t\.options: must be text, numbers"):
        make_task("t", spec)


@pytest.mark.usefixtures("own_home")
def test_set_that_evaluates_lists_only_needs_no_permission() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
    task = make_task("t", TaskSpec(source="reasoning_gym:spiral_matrix", train=4, validation=2, test=2))
    gold = task.problems("test")[0].answer or ""
    scores = gym_scores(task, [gold, str([int(part) for part in gold.split()]), "no list"])
    assert [score.status for score in scores] == ["value"] * 3
    assert [score.value for score in scores] == [1.0, 0.1, 0.0]  # as the package has it


@pytest.mark.usefixtures("own_home")
def test_gym_scores_40_answers_within_2_seconds() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
    task = make_task("t", TaskSpec(source="reasoning_gym:chain_sum", train=4, validation=2, test=2))
    assert gym_scores(task, [task.problems("test")[0].answer or ""])[0].value == 1.0
    answers = [str(number) for number in range(40)]
    assert quickest(lambda: gym_scores(task, answers), within=2.0) < 2.0  # 20 a second


def test_gym_tasks_are_refused_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
    shutdown()
    monkeypatch.setattr("omni_thinker.isolation.bubblewrap.shutil.which", lambda name: None)
    allow_weak_sandbox(False)
    try:
        with pytest.raises(UserError, match=r"tasks\.t\.source: .*apt-get install bubblewrap"):
            make_task("t", TaskSpec(source="reasoning_gym:chain_sum"))
        with pytest.raises(UserError, match="apt-get install bubblewrap"):
            make_reward(RewardSpec(sum={"reasoning_gym": 1.0}), judge=None)
    finally:
        monkeypatch.undo()
        allow_weak_sandbox(False)


def test_sleeping_scorer_ends_at_the_deadline_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_PREPARE_S", 0.5)
    with pytest.raises(IsolationError, match="before the deadline"):
        ask("5", "sleep", timeout=0.5)
