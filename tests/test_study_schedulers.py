"""Arms that schedulers make: as recipes name them, in a study, and through a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from omni_thinker.errors import UserError
from omni_thinker.recipe import parse_recipe, scheduled_arms
from omni_thinker.recipe.schedulers import PLAIN, plain
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.schedulers.base import Config
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import read_stages
from omni_thinker.studies.budget import Cost
from omni_thinker.studies.result import _as_trained
from omni_thinker.studies.scheduled import check_schedulers, make_scheduler
from omni_thinker.studies.session import ArmResult
from omni_thinker.studies.setup import prepare
from omni_thinker.studies.training import Stage
from omni_thinker.studies.units import probe_lengths, steps_after_probe
from test_faults_study import QUICK, begin, journalled, wait_for
from test_resume import traces

TASKS: dict[str, Any] = {"a": {"source": "builtin:math"}, "b": {"source": "builtin:qa", "weight": 3.0}}
SIZES = {"a": 100, "b": 400}


def scheduler(spec: dict[str, Any], judged: tuple[str, ...] = (), steps: int = 10) -> Any:
    table = {"tasks": TASKS, "study": {"arms": ["x"], "schedulers": {"x": spec}, "steps": steps}}
    recipe = parse_recipe({**table, "rl": {"problems_per_step": 8}}, "r.toml")
    return make_scheduler(recipe, "x", SIZES, judged, seed=0)


def test_uniform_and_proportional_shares_equal_values_by_hand() -> None:
    assert scheduler({"kind": "uniform"}).quotas(0) == {"a": 4, "b": 4}
    assert scheduler({"kind": "proportional"}).shares == pytest.approx({"a": 0.2, "b": 0.8})
    assert scheduler({"kind": "proportional", "temperature": 2.0}).shares == pytest.approx({"a": 1 / 3, "b": 2 / 3})


def test_proportional_shares_at_extreme_temperatures_are_finite() -> None:
    cold = scheduler({"kind": "proportional", "temperature": 0.001})
    assert cold.shares == pytest.approx({"a": 0.0, "b": 1.0})
    assert cold.quotas(0) == {"b": 8}
    assert scheduler({"kind": "proportional", "temperature": 1e9}).shares == pytest.approx({"a": 0.5, "b": 0.5})


def test_pac_cold_start_is_shorter_than_the_run() -> None:
    assert [scheduler({"kind": "pac"}, steps=n).cold_start for n in (1, 10, 400)] == [0, 2, 50]
    assert scheduler({"kind": "pac", "cold_start": 9}).cold_start == 9
    with pytest.raises(UserError, match=r"study.schedulers.x.cold_start: must be fewer than the 10 steps"):
        scheduler({"kind": "pac", "cold_start": 10})


def test_first_scheduler_leaves_at_least_one_step_to_all_tasks() -> None:
    late = scheduler({"kind": "first", "tasks": ["a"], "share": 0.99})
    assert [late.quotas(step) for step in (8, 9)] == [{"a": 8}, {"a": 2, "b": 6}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ["start", "joint", "first"]}, "study.arms.first: no task is scored by a judge"),
        (
            {"arms": ["joint", "x"], "schedulers": {"x": {"kind": "pac", "cold_start": 60}}},
            "study.schedulers.x.cold_start: must be fewer than the 48 steps",
        ),
    ],
)
def test_unusable_scheduler_of_a_recipe_is_refused_by_prepare(changes: dict[str, Any], words: str) -> None:
    recipe = parse_recipe({"model": {"name": "tiny"}, "tasks": TASKS, "study": changes}, "r.toml")
    with pytest.raises(UserError) as caught:
        prepare(recipe)
    assert words in str(caught.value)


def test_tac_without_down_proj_layers_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    for file in (*tiny_model.glob("*token*"), *tiny_model.glob("*.jinja")):
        shutil.copy(file, tmp_path)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=64, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    table = {"model": {"name": str(tmp_path)}, "tasks": TASKS, "study": {"arms": ["joint", "tac"]}}
    with pytest.raises(UserError, match=r"study.arms.tac: needs gradients of layers named down_proj"):
        check_schedulers(parse_recipe(table, "r.toml"), SIZES, ())


def test_sequence_arm_with_fewer_steps_than_tasks_counts_one_pass_per_stage(tmp_path: Path) -> None:
    """With two steps and four tasks, no task has a whole stage as its unit of length."""
    tasks = {name: {"source": "builtin:math"} for name in "abcd"}
    study = {"steps": 2, "arms": ["joint", "x"], "schedulers": {"x": {"kind": "sequence", "stages": ["d", "a"]}}}
    evaluation = Evaluation({}, {}, 0)
    arm = ArmResult("x", tmp_path, Cost(), {}, [Stage("d", evaluation, 1), Stage("a", evaluation, 1)])
    assert [own.passes for own in _as_trained(arm, parse_recipe({"tasks": tasks, "study": study}, "r.toml"))] == [1, 1]


def test_first_scheduler_trains_the_named_or_judged_tasks_then_all() -> None:
    first = scheduler({"kind": "first", "tasks": ["a"], "share": 0.3})
    assert [first.quotas(step) for step in (0, 2, 3)] == [{"a": 8}, {"a": 8}, {"a": 2, "b": 6}]
    judged = scheduler({"kind": "first"}, judged=("b",))
    assert [judged.quotas(step) for step in (1, 2)] == [{"b": 8}, {"a": 2, "b": 6}]
    with pytest.raises(UserError, match="no task is scored by a judge"):
        scheduler({"kind": "first"})


def test_read_stages_shares_all_steps_by_length() -> None:
    assert read_stages(["a", "b", "a:0.5"], 10) == [("a", 4), ("b", 4), ("a", 2)]
    assert read_stages(["a", "b", "a"], 10) == [("a", 4), ("b", 3), ("a", 3)]
    assert scheduler({"kind": "sequence", "stages": ["b", "a:1.5"]}).stages == (("b", 4), ("a", 6))


@pytest.mark.parametrize(
    ("study", "key"),
    [
        ({"arms": ["secc"]}, "study.arms"),
        ({"arms": ["sequence"]}, "study.arms"),
        ({"schedulers": {"joint": {"kind": "sec"}}}, "study.schedulers.joint"),
        ({"schedulers": {"../x": {"kind": "sec"}}}, "study.schedulers.../x"),
        ({"schedulers": {"single-a": {"kind": "sec"}}}, "study.schedulers.single-a"),
        ({"schedulers": {"probe-a": {"kind": "sec"}}}, "study.schedulers.probe-a"),
        ({"schedulers": {"state": {"kind": "sec"}}}, "study.schedulers.state"),
        ({"schedulers": {"charged": {"kind": "sec"}}}, "study.schedulers.charged"),
        ({"arms": ["python:a:B", "python-a-B"], "schedulers": {"python-a-B": {"kind": "sec"}}}, "study.arms"),
        ({"schedulers": {"x": {"kind": "worst_task", "rate": 1000}}}, "study.schedulers.x.rate"),
        ({"bootstrap": 1}, "study.bootstrap"),
        ({"arms": ["serial"]}, "study.arms"),
        ({"arms": ["charged"]}, "study.arms"),
        ({"schedulers": {"x": {"kind": "serial"}}}, "study.schedulers.x.kind"),
        ({"schedulers": {"x": {"kind": "oracle"}}}, "study.schedulers.x.kind"),
        ({"schedulers": {"x": {"kind": "sec", "window": 3}}}, "study.schedulers.x.window"),
        ({"schedulers": {"x": {"kind": "sec", "rate": 2.0}}}, "study.schedulers.x.rate"),
        ({"schedulers": {"x": {"kind": "first", "tasks": ["nope"]}}}, "study.schedulers.x"),
        ({"schedulers": {"x": {"kind": "sequence", "stages": []}}}, "study.schedulers.x.stages"),
        ({"schedulers": {"x": {"kind": "sequence", "stages": ["a:0"]}}}, "study.schedulers.x"),
        ({"schedulers": {"x": {"kind": "sequence", "stages": ["c"]}}}, "study.schedulers.x"),
    ],
)
def test_bad_scheduler_settings_are_refused_by_key(study: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe({"tasks": TASKS, "study": study}, "r.toml")
    assert str(refused.value).startswith(f"r.toml: {key}: ")


@pytest.mark.parametrize("kind", PLAIN)
def test_every_kind_is_made_from_its_own_config(kind: str) -> None:
    spec = plain(kind)
    assert spec.kind == kind
    assert isinstance(spec, Config)
    assert sum(scheduler({"kind": kind}, judged=("b",)).quotas(0).values()) == 8


def test_unknown_key_of_a_scheduler_names_the_nearest() -> None:
    study = {"arms": ["x"], "schedulers": {"x": {"kind": "sec", "rat": 0.1}}}
    with pytest.raises(UserError, match=r"r.toml: study.schedulers.x.rat: unknown key; did you mean 'rate'"):
        parse_recipe({"tasks": TASKS, "study": study}, "r.toml")
    with pytest.raises(UserError, match=r"study.schedulers.x.kind: unknown scheduler 'sek'; did you mean 'sec'"):
        parse_recipe({"tasks": TASKS, "study": {**study, "schedulers": {"x": {"kind": "sek"}}}}, "r.toml")


def test_scheduler_kinds_without_settings_can_be_arms() -> None:
    arms = ["start", "sec", "joint", "mine", "dump"]
    table = {"arms": arms, "schedulers": {"mine": {"kind": "sec", "rate": 0.1}, "unused": {"kind": "tscl"}}}
    found = scheduled_arms(parse_recipe({"tasks": TASKS, "study": table}, "r.toml").study)
    assert list(found) == ["sec", "mine", "dump"]
    settings = {"kind": "sec", "update": None, "reads": (), "rate": 0.1, "temperature": 0.2}
    assert found["mine"].model_dump() == settings
    assert isinstance(scheduler({"kind": "uniform"}), Mixture)


ARMS = (
    *(
        "--set",
        'study.arms=["start", "joint", "sec", "dump", "tscl", "worst_task", "round_robin", "mine", "refresh", "tac", '
        '"serial"]',
    ),
    *("--set", 'study.schedulers.mine={kind="pac", cold_start=2}'),
    *("--set", 'study.schedulers.refresh={kind="sequence", stages=["coding", "writing", "coding:0.5"]}'),
    *("--set", 'study.schedulers.serial={kind="weighted", update="task"}'),
    *("--set", "study.steps=6"),
)


@pytest.mark.timeout(600)
def test_study_killed_in_scheduled_arms_resumes_to_the_same_end(repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    options = (*QUICK, *ARMS)
    assert begin(errors, recipe, "--out", tmp_path / "calm", *options).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    arguments: tuple[object, ...] = (recipe, "--out", out, *options)
    for arm in ("sec", "mine", "tac"):
        process = begin(errors, *arguments)
        wait_for(process, journalled(out, f'"key": "0 train {arm}", "kind": "checkpoint"'))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        arguments = (out, "--resume")
    assert begin(errors, *arguments).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert traces(out) == traces(tmp_path / "calm")
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert [len(runs) for runs in result["arms"].values()] == [1] * 11
    assert {run["steps"] for name, (run,) in result["arms"].items() if name != "start"} == {6}
    assert [stage["task"] for stage in result["arms"]["refresh"][0]["stages"]] == ["coding", "writing", "coding"]
    assert "hold for all 9 arms at once" in result["verdict"]


SEEDS = (
    *("--set", 'study.arms=["start", "joint", "curriculum_net", "joint_planned"]'),
    *("--set", "study.steps=12"),
    *("--set", 'study.probes=["short"]'),
    *("--set", "study.probe_share=0.2"),
    *("--set", "study.seeds=[0, 1]"),
)


def groups_asked(out: Path, arm: str) -> dict[int, Counter[str]]:
    """Groups of each task that an arm's steps asked for, by seed."""
    asked: dict[int, Counter[str]] = {}
    for line in (out / "metrics.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["arm"] == arm and row["kind"] == "train":
            found = {
                k.removeprefix("groups_asked/"): v for k, v in row["metrics"].items() if k.startswith("groups_asked/")
            }
            asked.setdefault(row["seed"], Counter()).update(found)
    return asked


@pytest.mark.timeout(600)
def test_verdict_waits_for_the_last_seed_and_is_stricter_after_extension(repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    process = begin(errors, recipe, "--out", out, *QUICK, *SEEDS)
    wait_for(process, (out / "result.json").exists)
    early = json.loads((out / "result.json").read_text("utf-8"))
    assert process.wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert early["seeds_left"] == 1
    assert early["verdict"] == "No verdict yet: 1 of 2 seeds are to come."
    assert not any(row["shown"] for row in early["comparisons"])
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert result["seeds_left"] == 0
    assert "joint training" in result["verdict"]
    assert "with 90 % probability, if noise is as usual" in errors.read_text("utf-8")
    # The probe's steps are missing from the arm that pays for it.
    [probe, _] = result["probes"]
    assert 0 < probe["steps"] < 12
    assert [run["steps"] for run in result["arms"]["curriculum_net"]] == [12 - probe["steps"]] * 2
    assert [run["steps"] for run in result["arms"]["joint"]] == [12, 12]
    assert [run["steps"] for run in result["arms"]["joint_planned"]] == [12, 12]
    asked = groups_asked(out, "joint_planned")
    plans = json.loads((out / "plan.json").read_text("utf-8"))["seeds"]
    for seed, plan in plans.items():
        total = sum(asked[int(seed)].values())
        assert total == 12 * 4
        for task, share in plan["mixture"]["shares"].items():
            assert abs(asked[int(seed)][task] - share * total) <= 2
    assert {row["arm"] for row in result["forecasts"]} >= {"joint", "joint_planned"}

    assert begin(errors, out, "--resume", "--seeds", "3").wait(280) == 0, errors.read_text("utf-8")[-2000:]
    longer = json.loads((out / "result.json").read_text("utf-8"))
    assert len(longer["arms"]["joint"]) == 3
    [tokens] = [
        note for note in longer["notes"] if note.startswith("Tokens sampled and trained, in multiples of joint")
    ]
    own, paid, told, planned = (float(number) for number in re.findall(r"\d+\.\d\d", tokens))
    assert own < paid < told
    joint, net, mixed = (sum(run["tokens_sampled"] + run["tokens_trained"] for run in longer["arms"][arm])
                         for arm in ("joint", "curriculum_net", "joint_planned"))  # fmt: skip
    assert planned == round(mixed / joint, 2)
    probes = sum(probe["tokens_sampled"] + probe["tokens_trained"] for probe in longer["probes"])
    evaluated = sum(probe["tokens_evaluated"] for probe in longer["probes"])
    assert (own, paid, told) == tuple(
        round(tokens / joint, 2) for tokens in (net, net + probes, net + probes + evaluated)
    )
    assert any("gave a verdict once before" in note and "97.5 %" in note for note in longer["notes"])


def test_curriculum_net_without_a_probe_or_steps_left_is_refused() -> None:
    study = {"arms": ["curriculum_net", "joint"], "steps": 12, "order": ["a", "b"]}
    with pytest.raises(UserError, match=r"needs a probe and no study\.order"):
        steps_after_probe(parse_recipe({"tasks": TASKS, "study": study}, "r.toml"))
    whole = {"arms": ["curriculum_net", "joint", "single"], "steps": 12}
    with pytest.raises(UserError, match="leaves no stage for 'curriculum_net'"):
        steps_after_probe(parse_recipe({"tasks": TASKS, "study": whole}, "r.toml"))
    cheap = parse_recipe({"tasks": TASKS, "study": {"arms": ["curriculum_net", "joint"], "steps": 48}}, "r.toml")
    assert steps_after_probe(cheap) == 48 - sum(probe_lengths(cheap, "short").values())
