"""Whole studies of a model that thinks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.cli.single_eval import evaluate_model
from omni_thinker.recipe import EngineSpec, Recipe, parse_recipe
from omni_thinker.report.html import write_report
from omni_thinker.rl.loop import Learner, StepResult
from omni_thinker.studies.study import run_study
from think_models import OPEN, TAGS, save_model, tokenizer

PART = '''
from omni_thinker.rewards.parts import SamplePart, valued

class Odd(SamplePart):
    """1 where the answer has an odd number of characters; an error where it is shown a thought."""

    async def score_sample(self, sample, problem):
        if "think>" in sample.text:
            raise ValueError("a thought")
        return valued(float(len(sample.text) % 2))
'''


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "odd_part.py").write_text(PART)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = tokenizer(tiny_model, OPEN, TAGS)
    model = save_model(tiny_model, tmp_path / "model", made, likely=("</think>", "<|im_end|>"))
    reward = {"gate": [], "sum": {"python:odd_part:Odd": 0.5, "finished": 0.5}}
    sizes = {"train": 16, "validation": 3, "test": 3, "reward": reward}
    tasks = {
        "none": {"source": "builtin:math", "thinking": "off", "max_tokens": 12, **sizes},
        "five": {"source": "builtin:math", "thinking": 5, "max_tokens": 12, **sizes},
        "free": {"source": "builtin:qa", "max_tokens": 16, **sizes},
    }
    return parse_recipe(
        {
            "model": {"name": str(model), "dtype": "float32"},
            "tasks": tasks,
            "warmup": {"steps": 1, "batch": 6, "lr": 1e-4},
            "rl": {"group_size": 4, "problems_per_step": 6, "lr": 1e-4},
            "evaluation": {"validation_problems": 3, "test_problems": 3, "samples": 2, "keep_samples": 3},
            "study": {"steps": 3, "arms": ["start", "joint"], "bootstrap": 50, "checkpoint_steps": 1},
        },
        "test",
    )


def _rows(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]


def _traces(out: Path) -> list[Any]:
    metrics = [{**row["metrics"], "step": row["step"], "kind": row["kind"]} for row in _rows(out, "metrics.jsonl")]
    untimed = [{name: value for name, value in row.items() if not name.startswith("seconds/")} for row in metrics]
    return [untimed, (out / "samples.jsonl").read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_study_of_a_thinking_model_scores_answers_and_resumes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thoughts of no token, of at most five, and of as many as the model likes; killed in the middle and resumed."""
    out = tmp_path / "run"
    run_study(recipe, out)
    answers = _rows(out, "samples.jsonl")
    assert {row["task"] for row in answers} == {"none", "five", "free"}
    for row in answers:
        assert row["status"] == "value"
        assert row["score"] == (len(row["response"]) % 2 + row["parts"]["finished"]) / 2
        assert "think>" not in row["response"] + (row["thoughts"] or "")
    thoughts = {task: [row["thoughts"] for row in answers if row["task"] == task] for task in ("none", "five", "free")}
    assert None not in thoughts["five"] + thoughts["free"]
    assert any(row["thoughts"] and row["response"] for row in answers)
    unended = [row for row in answers if (row["reason"] or "").endswith("within its thoughts")]
    assert unended
    assert all(row["response"] == "" and row["score"] == 0.0 for row in unended)

    steps = [row["metrics"] for row in _rows(out, "metrics.jsonl") if row["kind"] == "train"]
    assert len(steps) == 3
    for metrics in steps:
        assert metrics["mismatch_abs/all"] < 1e-4
        assert metrics["thought_length/five"] <= 5 + 3 + 1
        assert metrics["answer_length/five"] <= 12
        assert metrics["tokens_trained/all"] < metrics["tokens_sampled/all"]
    assert sum(metrics["thoughts_closed/five"] for metrics in steps) > 0
    assert not any(metrics.get("thoughts_closed/free") for metrics in steps)
    assert '<details class="thoughts">' in write_report(out).read_text("utf-8")
    asked = recipe.model_copy(update={"engine": EngineSpec(sampler="vllm")})  # which has no part in it
    evaluated = evaluate_model(str(out / "models" / "seed-0" / "joint"), asked, "test", None)
    assert evaluated["metrics"]["thought_length/five"] <= 9

    real, again = Learner.step, tmp_path / "again"

    def killed(self: Learner, quotas: Any, number: int, rate: float | None) -> StepResult:
        if number == 2:
            raise MemoryError("the process dies here")
        return real(self, quotas, number, rate)

    monkeypatch.setattr(Learner, "step", killed)
    with pytest.raises(MemoryError):
        run_study(recipe, again)
    monkeypatch.setattr(Learner, "step", real)
    run_study(recipe, again, resume=True)
    assert _traces(again) == _traces(out)
