"""Environments of the package verifiers as tasks. Needs the extra `verifiers`, and skips without it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, RlSpec, TaskSpec
from omni_thinker.rewards.registry import make_reward
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.stream import make_streams
from omni_thinker.tasks.environments.base import make_turns
from omni_thinker.tasks.registry import check_splits, make_task
from omni_thinker.types import SPLITS, Dialogue, Exchange, Group, Sample
from think_models import save_model, template, tokenizer

ENVIRONMENT = """
import verifiers as vf
from datasets import Dataset

class Twice(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["seen"] = 0

    async def env_response(self, messages, state, **kwargs):
        state["seen"] += 1
        if "stop" in messages[-1].content:
            state["final_env_response"] = [vf.UserMessage(content="Done.")]
            return state["final_env_response"]
        if "break" in messages[-1].content:
            raise RuntimeError("broken")
        return [vf.UserMessage(content=f"Are you sure of {messages[-1].content}?")]

def load_environment(count=40, tools=False):
    def shared(completion, answer, **kwargs):
        words = [message.content for message in completion if message.role == "assistant"]
        return float(len(words[-1]) % 3) / 2

    def kept(completion, answer, state, **kwargs):
        return float(answer in completion[-1].content)

    rows = [{"question": f"How much is {n} + {n}?", "answer": str(2 * n)} for n in range(count)]
    rubric = vf.Rubric(funcs=[shared, kept], weights=[1.0, 3.0])
    return Twice(dataset=Dataset.from_list(rows), rubric=rubric, system_prompt="Be brief.", max_turns=3)
"""
RG = """
import verifiers as vf

def load_environment(gym="spell_backward", **options):
    return vf.ReasoningGymEnv(gym, num_train_examples=12, num_eval_examples=12, **options)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Environments as they are installed: modules with a function load_environment."""
    pytest.importorskip("verifiers", reason="needs the extra verifiers")
    (tmp_path / "my_twice.py").write_text(ENVIRONMENT, "utf-8")
    (tmp_path / "my_gym.py").write_text(RG, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("my_twice", "my_gym"):
        sys.modules.pop(name, None)


def _task(source: str, **settings: Any) -> tuple[Any, TaskSpec]:
    spec = TaskSpec.model_validate({"source": source, **settings})
    return make_task("t", spec), spec


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(UserError, match="needs the package verifiers; run: pip install") as refused:
        _task("verifiers:no-such")
    assert refused.value.key == "tasks.t.source"


def test_environment_is_a_task_with_its_rows_turns_and_splits(modules: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    task, spec = _task("verifiers:my-twice", options={"count": 30})
    assert signal.getsignal(signal.SIGINT) is before  # a run's own Ctrl-C stays
    check_splits(task)
    assert sum(len(task.problems(split)) for split in SPLITS) == 30
    problem = task.problems("train")[0]
    assert (problem.system, problem.answer) == ("Be brief.", None)
    assert make_turns({"t": task}, {"t": spec})["t"].most == 3
    gym, spec = _task("verifiers:my-gym")
    assert len(gym.problems("train")) == 12
    assert make_turns({"t": gym}, {"t": spec}) == {}  # one turn
    with pytest.raises(UserError, match="can't load 'no_such_thing'"):
        _task("verifiers:no_such_thing")


def test_rollout_and_rubric_are_the_environments_own(modules: None) -> None:
    """Weights 1 and 3: by hand (1 x length % 3 / 2 + 3 x holds the answer) / 4."""
    task, _ = _task("verifiers:my-twice")
    problem = next(p for p in task.problems("train") if p.prompt == "How much is 6 + 6?")
    reward = make_reward(task.reward, judge=None)

    async def talk(*answers: str, told: int) -> tuple[list[str | None], Any]:
        memory: dict[str, Any] = {}
        said = [await task.reply(problem, answers[: n + 1], memory) for n in range(told)]
        parts = [Sample((1,), (0.0,), text, "stop") for text in answers]
        whole = Sample((1,), (0.0,), answers[-1], "stop", dialogue=Dialogue(tuple(map(Exchange, parts)), memory))
        return said, (await reward.score(Group((), (whole,)), problem))[0]

    said, score = asyncio.run(talk("13", "it is 12", told=1))  # the second is the last
    assert said == ["Are you sure of 13?"]
    assert score.value == pytest.approx((8 % 3 / 2 + 3) / 4)
    said, score = asyncio.run(talk("13", "7", "12", told=2))
    assert said == ["Are you sure of 13?", "Are you sure of 7?"]
    assert score.value == pytest.approx((2 % 3 / 2 + 3) / 4)
    assert score.parts["kept"] == 1.0
    said, score = asyncio.run(talk("stop", told=1))
    assert said == [None]
    assert (score.status, score.value) == ("value", (4 % 3 / 2) / 4)
    alone = asyncio.run(reward.score(Group((), (Sample((1,), (0.0,), "12", "stop"),)), problem))
    assert alone[0].status == "value"
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(talk("break", told=1))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["verifiers:my-twice", "verifiers:my-gym"])
def test_environment_trains_five_steps(modules: None, source: str, tiny_model: Path, tmp_path: Path) -> None:
    """The package's own ReasoningGymEnv, and one with turns."""
    ungated = {"gate": [], "sum": {"verifiers": 1.0}}  # the tiny model hardly ever ends its last answer
    task, spec = _task(source, max_tokens=40, reward=ungated)
    folder = save_model(tiny_model, tmp_path / "model", tokenizer(tiny_model, template()), likely=("<|im_end|>",))
    policy = TorchPolicy(ModelSpec.model_validate({"name": str(folder), "dtype": "float32"}))
    learner = Learner(
        policy,
        RlSpec(group_size=4, problems_per_step=2, kl_every=0, max_error_rate=0.0),
        make_streams({"t": task.problems("train")}, 0),
        {"t": make_reward(task.reward, judge=None)},
        {"t": 40},
        turns=make_turns({"t": task}, {"t": spec}),
    )
    steps = [learner.step({"t": 2}, number) for number in range(5)]
    assert all(step.metrics["error_rate/t"] == 0 for step in steps)
    if source.endswith("twice"):
        assert max(step.metrics["turns/t"] for step in steps) > 1
        assert sum(step.tokens_trained for step in steps) > 0
