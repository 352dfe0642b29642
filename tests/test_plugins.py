"""Custom tasks, rewards, schedulers and policies that a recipe may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.plugins import Registry, did_you_mean, load_class
from omni_thinker.policy.make import make_policy
from omni_thinker.recipe import ModelSpec, load_recipe
from omni_thinker.studies.setup import prepare
from omni_thinker.studies.study import run_study

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
