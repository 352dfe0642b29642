"""Long runs: interim validations, the best weights by them, early stop, and budgets of tokens."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mortal import Killed, Mortal
from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe, RlSpec, load_recipe
from omni_thinker.report.html import render
from omni_thinker.rl.updates.schedule import learning_rate_of
from omni_thinker.runs.read import load_run
from omni_thinker.schedulers.base import InParts, Parts
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.budget import MOST_STEPS, Budget, Cost
from omni_thinker.studies.interim import Watch, rises
from omni_thinker.studies.study import run_study
from test_resume import traces

RECIPE = """
[model]
name = "tiny"
policy = "python:mortal:MortalUnigram"
{tasks}
[warmup]
steps = 0
[rl]
group_size = 4
problems_per_step = 4
lr = 1e-3
refill_rounds = 0
kl_every = 0
[evaluation]
validation_problems = 8
test_problems = 8
samples = 2
[study]
steps = 8
arms = ["start", "single", "curriculum", "joint"]
checkpoint_steps = 1
bootstrap = 50
"""
TASK = """
[tasks.{name}]
source = "jsonl"
files = ["{file}"]
max_tokens = {tokens}
reward = {{ gate = [], sum = {{ "python:fsdp_parts:Letters" = 1.0 }} }}
"""
INTERIM = ("rl.evaluate_every=2", "rl.evaluate_share=1.0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe of two tasks whose rewards a random model gets by halves; answers of one are about twice as long."""
    tasks = []
    for name, tokens in (("short", 5), ("long", 11)):
        rows = [
            {"id": f"{name} {split} {n}", "prompt": f"{name} {split} {n}", "split": split}
            for split, count in (("train", 16), ("validation", 8), ("test", 8))
            for n in range(count)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        tasks.append(TASK.format(name=name, file=path, tokens=tokens))
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(tasks="".join(tasks)), "utf-8")
    return path


def study(file: Path, out: str, *options: str, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    return file.parent / out, run_study(load_recipe(file, options), file.parent / out, resume=resume)


def rows(out: Path, kind: str, arm: str) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if (row["kind"], row["arm"]) == (kind, arm)]


def exported(out: Path, arm: str) -> bytes:
    [path] = out.glob(f"models/seed-*/{arm}/model.safetensors")
    return path.read_bytes()


def test_interim_validations_change_nothing_that_is_trained(file: Path) -> None:
    plain, without = study(file, "plain")
    out, with_them = study(file, "interim", *INTERIM)
    for arm, [run] in without["arms"].items():
        assert exported(plain, arm.replace(":", "-")) == exported(out, arm.replace(":", "-"))
        times = {"seconds": 0}
        assert with_them["arms"][arm][0] | times == run | times
    for arm in ("joint", "curriculum", "single:long"):
        found = rows(out, "interim", arm)
        assert [row["step"] for row in found] == [2, 4, 6, 8]
        assert all(row["metrics"]["problems/all"] == 16 for row in found)
        assert not rows(plain, "interim", arm)
    page = render(load_run(out))
    assert 'id="figure-interim"' in page
    assert "Interim validations" in page
    assert 'id="figure-interim"' not in render(load_run(plain))


def test_interim_validations_stay_within_their_share(file: Path) -> None:
    """4 steps of 4 problems x 4 answers; a tenth of 64 is 3 problems of each of 2 tasks."""
    recipe = load_recipe(file, ["rl.evaluate_every=4"])
    assert recipe.interim_problems == 3
    assert load_recipe(file, ["rl.evaluate_every=4", "rl.evaluate_problems=2"]).interim_problems == 2
    assert load_recipe(file).interim_problems == 0
    # A task with smaller groups trains fewer answers.
    assert load_recipe(file, ["rl.evaluate_every=4", "tasks.long.rl.group_size=2"]).interim_problems == 1


def test_all_of_it_is_off_in_every_other_recipe(repo: Path) -> None:
    off = RlSpec()
    assert (off.lr_schedule, off.epochs, off.accumulate) == ("constant", 1, 1)
    assert (off.evaluate_every, off.keep, off.patience) == (0, "last", 0)
    keys = ("lr_schedule", "lr_min", "lr_decay", "epochs", "accumulate", "evaluate_every", "keep", "patience")
    for path in (repo / "recipes").rglob("*.toml"):
        recipe = load_recipe(path)
        if path.name == "long.toml":
            assert recipe.interim_problems == 32
            continue
        assert {key: getattr(recipe.rl, key) for key in keys} == {key: getattr(off, key) for key in keys}
        assert recipe.study.budget == "steps"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["rl.evaluate_every=1"], r"rl\.evaluate_every: 1 problems of each of 2 tasks every 1 steps are 12% of the 16"),
        (["rl.evaluate_every=4", "rl.evaluate_problems=4"], r"rl\.evaluate_problems: 4 problems .* more than 10%"),
        (["rl.evaluate_every=99", "rl.evaluate_problems=9"], r"rl\.evaluate_problems: validation has 8 problems"),
        (["rl.keep='best'"], r"rl\.keep: needs interim validations \(rl\.evaluate_every\)"),
        (["rl.patience=2"], r"rl\.patience: needs interim validations"),
        (["study.budget='tokens'"], r"study\.tokens: a budget of tokens needs"),
        (["study.tokens=1000"], r'study\.tokens: counts where study\.budget = "tokens"'),
    ],
)
def test_keys_that_do_not_go_together_are_refused(file: Path, options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe(file, options)


def test_best_weights_are_those_of_the_highest_interim_validation(file: Path) -> None:
    options = (*INTERIM, "rl.keep='best'", "rl.lr=0.01", "study.seeds=[1]", 'study.arms=["start", "joint"]')
    out, result = study(file, "best", *options)
    [joint] = result["arms"]["joint"]
    means = {
        row["step"]: float(np.mean([row["metrics"][f"reward/{task}"] for task in ("short", "long")]))
        for row in rows(out, "interim", "joint")
    }
    assert joint["selected"] == max(means, key=lambda step: means[step])
    assert joint["selected"] < 8 == joint["steps"], "the last weights must not be the best ones, or nothing is shown"
    # They are those that an arm of so many steps ends with, and these alone are tested.
    short, other = study(file, "short", *options, f"study.steps={joint['selected']}", "rl.keep='last'")
    assert exported(out, "joint") == exported(short, "joint")
    assert other["arms"]["joint"][0]["test"] == joint["test"]
    assert [row["step"] for row in rows(out, "test", "joint")] == [joint["selected"]]
    note = next(note for note in result["notes"] if "chosen by their interim validations" in note)
    assert f"joint (seed 1) {joint['selected']} of 8" in note
    assert "never by the test split" in note
    assert not list(out.rglob("*.best.*"))


def test_early_stop_ends_an_arm_and_says_what_it_spent(file: Path) -> None:
    _, result = study(file, "early", *INTERIM, "rl.patience=2", "rl.lr=1e-9")
    [joint], [curriculum], [single] = (result["arms"][arm] for arm in ("joint", "curriculum", "single:long"))
    # Nothing is learnt: the second and third validations don't rise.
    assert (joint["stopped"], joint["steps"], joint["budget_used"]) == ("plateau", 6, 0.75)
    # Its last stage begins with step 5, so one validation of it is a beginning and one a wait.
    assert (curriculum["stopped"], curriculum["steps"]) == ("budget", 8)
    # Its probe, the first 4 steps, is needed whatever validation says.
    assert (single["stopped"], single["steps"]) == ("plateau", 6)
    assert any(
        "Ended early" in note and "joint (seed 0) after 6 steps, 75% of its budget" in note for note in result["notes"]
    )


def test_budget_of_tokens_is_kept_by_every_arm(file: Path) -> None:
    tokens = 1600
    out, result = study(file, "tokens", "study.budget='tokens'", f"study.tokens={tokens}", "rl.lr_schedule='linear'")
    arms = {arm: run for arm, [run] in result["arms"].items() if arm != "start"}
    steps = {arm: run["steps"] for arm, run in arms.items()}
    assert steps["single:short"] > steps["joint"] > steps["single:long"], "answers of other lengths take other steps"
    for arm, run in arms.items():
        spent = run["tokens_sampled"] + run["tokens_trained"]
        trained = rows(out, "train", arm)
        longest = max(2 * row["metrics"]["tokens_sampled/all"] for row in trained)
        assert tokens <= spent < tokens + longest
        assert run["budget_used"] == pytest.approx(spent / tokens)
        assert run["stopped"] == "budget"
        # The schedule follows the budget: it falls to nearly 0 at the end of every arm.
        rates = [row["metrics"]["lr"] for row in trained]
        assert rates[2:] == sorted(rates[2:], reverse=True)
        assert rates[-1] < 0.35 * 1e-3
    stages = [row["stage"] for row in rows(out, "train", "curriculum")]
    halves = {
        task: sum(
            2 * row["metrics"]["tokens_sampled/all"] for row in rows(out, "train", "curriculum") if row["stage"] == task
        )
        for task in ("short", "long")
    }
    assert all(half == pytest.approx(tokens / 2, rel=0.35) for half in halves.values()), halves
    assert stages.count("short") > stages.count("long")
    assert any("Shares of the budget of tokens" in note and "joint (seed 0)" in note for note in result["notes"])
    assert any(f"had {tokens} tokens, sampled and trained" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("policy", "kills"), [("Unigram", (3, 2)), ("Unigram", (9, 1, 4)), ("Unigram", (14, 7, 7)), ("Torch", (5, 4))]
)
def test_killed_study_with_every_option_ends_as_undisturbed(
    file: Path, policy: str, kills: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        *INTERIM,
        f"model.policy='python:mortal:Mortal{policy}'",
        *(['study.arms=["start", "joint"]'] if policy == "Torch" else []),
        "rl.keep='best'",
        "rl.patience=2",
        "rl.epochs=2",
        "rl.accumulate=2",
        "rl.lr=0.02",
        "rl.lr_schedule='cosine'",
        "study.budget='tokens'",
        "study.tokens=1600",
        "study.checkpoint_steps=2",
    )
    undisturbed, _ = study(file, "undisturbed", *options)
    for number, left in enumerate(kills):
        monkeypatch.setattr(Mortal, "left", left)
        with pytest.raises(Killed):
            study(file, "killed", *options, resume=number > 0)
    monkeypatch.setattr(Mortal, "left", -1)
    killed, _ = study(file, "killed", *options, resume=True)
    assert traces(killed) == traces(undisturbed)


def test_watch_by_hand() -> None:
    """Two tasks; only their mean counts, and the first of equals is the best."""

    def values(*scores: float) -> dict[str, dict[str, float]]:
        return {"a": {"1": scores[0], "2": scores[1]}, "b": {"1": scores[2], "2": scores[3]}}

    watch = Watch(["a", "b"])
    assert watch.see(10, values(0, 1, 0, 0))
    assert (watch.best, watch.score, watch.waited) == (10, 0.25, 0)
    assert watch.see(20, values(0, 1, 0, 1))  # + 0.25; standard errors 0 and 0.5, of the mean 0.25: no rise beyond
    assert (watch.best, watch.waited) == (20, 1)
    assert not watch.see(30, values(0, 1, 0, 1))
    assert (watch.best, watch.waited) == (20, 2)
    assert watch.see(40, values(1, 1, 1, 1))  # + 0.75 from step 10; 0.5 and 0: 0.25
    assert (watch.best, watch.score, watch.waited) == (40, 1.0, 0)
    assert not watch.see(50, values(0, 0, 0, 0))
    assert watch.waited == 1
    assert not watch.see(60, values(0, 0, 0, 0), counts=False)
    assert watch.waited == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_rise_of_one_task_is_a_paired_comparison(pairs: list[tuple[float, float]]) -> None:
    before = {"a": {str(n): pair[0] for n, pair in enumerate(pairs)}}
    now = {"a": {str(n): pair[1] for n, pair in enumerate(pairs)}}
    differences = [b - a for a, b in pairs]
    expected = np.mean(differences) > np.std(differences, ddof=1) / sqrt(len(pairs)) + 1e-9
    assert rises(before, now, ["a"]) == expected
    assert not (rises(before, now, ["a"]) and rises(now, before, ["a"]))
    one = {"a": {"0": 1.0}}
    assert not rises({"a": {"0": 0.0}}, one, ["a"]), "one problem says nothing"


def test_parts_end_where_their_share_of_a_budget_is_spent() -> None:
    stages = Stages([("a", 3), ("b", 5)], 4)
    assert [stages.stage(step) for step in range(8)] == ["a"] * 3 + ["b"] * 5
    with pytest.raises(IndexError):
        stages.stage(8)
    for step, place in enumerate([0.4, 1.6, 2.9, 3.1, 9.0, 9.5], 1):
        stages.pace(step, place)
    assert [stages.stage(step) for step in range(7)] == ["a"] * 4 + ["b"] * 3
    assert [stages.is_last(step) for step in (3, 4)] == [False, True]
    assert isinstance(stages, InParts)
    assert not isinstance(Mixture({"a": 1.0}, 4), InParts)
    parts = Parts([1, 1, 1])
    parts.pace(1, 7.0)  # a step that takes all of the budget: each part has one nevertheless
    parts.pace(2, 8.0)
    assert [parts.at(step) for step in range(4)] == [(0, 0), (1, 0), (2, 0), (2, 1)]


@given(st.integers(1, 50), st.integers(0, 500), st.floats(1, 1e4))
def test_budgets_by_hand(steps: int, spent: int, step_tokens: float) -> None:
    by_steps, by_tokens = Budget(steps, steps), Budget(steps, steps, step_tokens)
    cost = Cost(steps=spent, tokens_sampled=spent, tokens_trained=2 * spent)
    assert by_steps.place(cost) == spent
    assert by_steps.is_spent(cost) == (spent >= steps)
    assert by_tokens.place(cost) == pytest.approx(3 * spent / step_tokens)
    enough, many = by_tokens.place(cost) >= steps, spent >= MOST_STEPS * steps
    assert by_tokens.is_spent(cost) == (enough or many)
    assert by_tokens.is_endless(cost) == (many and not enough)


def test_net_curriculum_falls_over_the_steps_it_has_and_a_probe_over_those_of_an_arm(file: Path) -> None:
    options = ("rl.lr_schedule='cosine'", "study.probes=['short']", "study.probe_share=0.3")
    out, _ = study(file, "net", *options, 'study.arms=["start", "joint", "curriculum_net"]')
    recipe: Recipe = load_recipe(file, options)
    for arm, whole in (("joint", 8), ("curriculum_net", 6), ("probe:long", 8)):
        rates = [row["metrics"]["lr"] for row in rows(out, "train", arm)]
        assert rates == [learning_rate_of(recipe.rl, step, whole) for step in range(len(rates))]
        assert len(rates) == (1 if arm == "probe:long" else whole)
