"""Custom tasks, rewards, schedulers and policies that a recipe may name."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.plugins import Registry, did_you_mean, load_class
from omni_thinker.policy.make import make_policy
from omni_thinker.recipe import ModelSpec, load_recipe
from omni_thinker.recipe.schedulers import read_scheduler
from omni_thinker.schedulers.base import InParts, Scheduler
from omni_thinker.schedulers.own import OwnConfig
from omni_thinker.studies.setup import prepare
from omni_thinker.studies.study import run_study
from scripted import setting

ARMS = 'study.arms=["start", "single", "curriculum", "joint", "python:own_schedulers:Lottery"]'


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_schedulers.py").write_text(
        "import random\n"
        "from omni_thinker.schedulers.base import Stateless\n"
        "class Lottery(Stateless):\n"
        "    def __init__(self, tasks, problems_per_step, *, seed=0):\n"
        "        self.tasks, self.size, self.seed = tasks, problems_per_step, seed\n"
        "    def quotas(self, step):\n"
        "        return {random.Random(self.seed + step).choice(self.tasks): self.size}\n"
        "    def stage(self, step):\n"
        "        return None\n"
        "class Greedy(Lottery):\n"
        "    def quotas(self, step):\n"
        "        return {'math': 1000}\n"
        "class Idle:\n"
        "    def __init__(self, tasks, problems_per_step):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_study_with_a_custom_policy_and_scheduler_runs_and_resumes(repo: Path, own: Path) -> None:
    """The study uses a custom policy and a custom scheduler through the methods of their protocols only."""
    options = ["model.policy=python:unigram_policy:UnigramPolicy", ARMS, "rl.kl_every=1", "study.steps=4"]
    result = run_study(load_recipe(repo / "recipes" / "tiny.toml", options), own / "run")
    assert set(result["arms"]) >= {"start", "curriculum", "joint", "single:qa", "python:own_schedulers:Lottery"}
    rows = [json.loads(line) for line in (own / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    lottery = [
        row["metrics"] for row in rows if row["arm"] == "python:own_schedulers:Lottery" and row["kind"] == "train"
    ]
    assert len(lottery) == 4
    assert all(sum(name.startswith("reward/") and name != "reward/all" for name in row) == 1 for row in lottery)
    again = run_study(load_recipe(repo / "recipes" / "tiny.toml", options), own / "run", resume=True)
    assert again["arms"] == result["arms"]
    gradient = load_recipe(repo / "recipes" / "tiny.toml", [options[0], 'study.probes=["gradient"]'])
    with pytest.raises(UserError, match=r"study\.probes.*can't sketch gradients"):
        run_study(gradient, own / "other")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"source": "python:own_schedulers:Greedy"}, "quotas"),
        ({"source": "python:own_schedulers:Idle"}, "lacks quotas"),
        ({"source": "python:own_schedulers:Lottery", "options": {"sede": 1}}, "sede"),
        ({"source": "python:own_schedulers:Nothing"}, "no class 'Nothing'"),
        ({"source": "python:no_such_module:Nothing"}, "can't import 'no_such_module'"),
    ],
)
def test_unusable_custom_scheduler_is_refused_by_prepare(
    repo: Path, own: Path, table: dict[str, Any], words: str
) -> None:
    named = f"study.schedulers.mine={{kind='python', source='{table['source']}', options={{"
    named += ", ".join(f"{key}={value}" for key, value in table.get("options", {}).items()) + "}}"
    recipe = load_recipe(repo / "recipes" / "tiny.toml", [named, 'study.arms=["joint", "mine"]'])
    with pytest.raises(UserError, match=rf"study\.schedulers\.mine.*{words}"):
        prepare(recipe)


def test_unusable_custom_policy_is_refused(own: Path) -> None:
    for place, words in (("python:own_schedulers:Idle", "can't be made"), ("python:x", "must be python:MODULE:CLASS")):
        with pytest.raises(UserError, match=words):
            make_policy(ModelSpec(name="tiny", policy=place))


def test_registry_suggests_near_names_and_refuses_bad_entries() -> None:
    registry = Registry("shape", {"round": "collections:OrderedDict"}, base="builtins:dict")
    assert registry.find("round", "k").__name__ == "OrderedDict"
    registry.add("square", "collections:Counter")
    assert registry.names == ("round", "square")
    with pytest.raises(UserError, match=r"k: unknown shape 'rond'; did you mean 'round'\? known: round, square"):
        registry.find("rond", "k")
    with pytest.raises(UserError, match=r"must derive from builtins\.dict"):
        registry.find("python:pathlib:Path", "k")
    with pytest.raises(UserError, match="exists already"):
        registry.add("round", "x:Y")
    assert did_you_mean("zzz", ["a"]) == "; known: a"
    for wrong in ("python:", "python:json", "python:json:no-name"):
        with pytest.raises(UserError, match="must be python:MODULE:CLASS"):
            load_class(wrong, "k")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def shares(self): return {'math': float('nan'), 'qa': 0.5}", "shares() returned {'math': nan, 'qa': 0.5}"),
        ("def shares(self): return {'math': 1.0}", "a share of at least 0 for each of math, qa, adding up to 1"),
        ("def shares(self): return {'math': 1.5, 'qa': -0.5}", "adding up to 1"),
        ("def shares(self): return None", "shares() returned None"),
        ("def shares(self): return self.missing", "AttributeError"),
        ("pass", "lacks the method shares"),
    ],
)
def test_unsound_shares_of_a_scheduler_are_refused_before_anything_runs(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"unsound_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(
        "from omni_thinker.schedulers.adaptive import Adaptive\n\n"
        f"class Unsound(Adaptive):\n    {body}\n    def update(self, step, metrics): pass\n"
        "    def state(self): return {}\n    def restore(self, state): pass\n"
    )
    with pytest.raises(UserError) as refused:
        _built(name, "Unsound")
    assert str(refused.value).startswith("study.schedulers.x: ")
    assert words in str(refused.value)


def test_scheduler_that_fails_later_names_itself_and_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_later.py").write_text(
        "from omni_thinker.schedulers.base import Stateless\n\n"
        "class Late(Stateless):\n    def __init__(self, tasks, problems_per_step, *, first=1): self.first = first\n"
        "    def quotas(self, step): return {'math': 8 if step < self.first else 9}\n"
        "    def stage(self, step): return 1 / 0\n    def observe(self, step, metrics): raise SystemExit(0)\n"
    )
    scheduler = _built("failing_later", "Late")
    assert scheduler.quotas(0) == {"math": 8}
    with pytest.raises(UserError, match=r"Late: quotas\(1\) returned {'math': 9}, not whole numbers"):
        scheduler.quotas(1)
    with pytest.raises(UserError, match="Late: stage failed: ZeroDivisionError"):
        scheduler.stage(0)
    with pytest.raises(UserError, match="Late: observe failed: SystemExit"):
        scheduler.observe(0, {})
    with pytest.raises(UserError, match="no option 'frost'; it takes first"):
        _built("failing_later", "Late", frost=2)
    with pytest.raises(UserError, match="no class 'Lait'; it has Late"):
        _built("failing_later", "Lait")


def test_scheduler_with_parts_hears_how_far_a_budget_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in_halves.py").write_text(
        "from omni_thinker.schedulers.stages import Stages\n\n"
        "class Halves(Stages):\n"
        "    def __init__(self, tasks, problems_per_step):\n"
        "        super().__init__([(task, 4) for task in tasks], problems_per_step)\n"
    )
    scheduler = _built("in_halves", "Halves")
    assert isinstance(scheduler, InParts)
    assert [scheduler.stage(step) for step in (3, 4)] == ["math", "qa"]
    scheduler.pace(1, 3.9)
    scheduler.pace(2, 4.1)
    assert [scheduler.stage(step) for step in (1, 2, 9)] == ["math", "qa", "qa"]
    assert [scheduler.is_last(step) for step in (1, 2)] == [False, True]


@pytest.mark.parametrize("state", ["{'seen': {1, 2}}", "{1: 2}", "{'pair': (1, 2)}", "{'value': float('inf')}"])
def test_scheduler_state_that_json_loses_is_refused_before_anything_runs(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"lost_state_{abs(hash(state))}"
    (tmp_path / f"{name}.py").write_text(
        "from omni_thinker.schedulers.base import Stateless\n\n"
        "class Lost(Stateless):\n    def __init__(self, tasks, problems_per_step): pass\n"
        "    def quotas(self, step): return {'math': 8}\n    def stage(self, step): return None\n"
        f"    def state_dict(self): return {state}\n"
    )
    with pytest.raises(UserError, match="Lost: its state must be plain JSON"):
        _built(name, "Lost")


def test_module_that_exits_and_options_that_are_no_json_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exits_at_once.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UserError, match=r"can't import 'exits_at_once'.*SystemExit"):
        _built("exits_at_once", "Any")
    for value in (float("nan"), date(2020, 1, 1)):
        with pytest.raises(UserError, match=r"study.schedulers.x.options: .*must hold text, finite numbers"):
            read_scheduler({"kind": "python", "source": "python:a:B", "options": {"a": value}}, "study.schedulers.x")
    with pytest.raises(UserError, match=r'study.schedulers.x.kind: write kind = "python", source = "python:a:B"'):
        read_scheduler({"kind": "python:a:B"}, "study.schedulers.x")


def _built(module: str, name: str, **options: object) -> Scheduler:
    own = OwnConfig(source=f"python:{module}:{name}", options=options)
    return own.build(replace(setting(("math", "qa"), 8), key="study.schedulers.x"))
