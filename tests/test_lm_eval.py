"""EleutherAI's harness on our models, with tasks of this test's own, since no data can be fetched here."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from omni_thinker.cli.app import main
from omni_thinker.cli.harness import Wanted, _metrics, check_harness, run_harness
from omni_thinker.errors import UserError

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm-eval")
ROWS = [
    ("The sky is", [" blue", " seven"], 0),
    ("Two and two are", [" green", " four"], 1),
    ("Fire is", [" hot", " six"], 0),
]
CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks: one to be answered from three choices, one whose data are away."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [json.dumps({"question": q, "choices": c, "label": label}) for q, c, label in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    (folder / "ours.yaml").write_text(CHOICES.format(name="ours_plain", file=folder / "rows.jsonl"), "utf-8")
    away = CHOICES.format(name="ours_away", file=folder / "none.jsonl")
    (folder / "away.yaml").write_text(away, "utf-8")
    return folder


def test_metrics_of_the_harness_are_read_with_their_errors() -> None:
    row = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    assert _metrics(row) == {"acc": {"value": 0.5, "stderr": 0.1}, "em,strict": {"value": 1.0, "stderr": None}}


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.cli.harness.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--lm-eval: needs the package lm-eval: pip install 'omni-thinker\[lm-eval\]'"):
        check_harness(Wanted(["arc_easy"]))


@pytest.mark.extras
@needs_harness
def test_harness_scores_a_model_as_the_model_itself_does(tiny_model: Path, tasks: Path) -> None:
    """Accuracy by hand: the choice with the higher sum of log-probs of its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    right = 0
    for question, choices, label in ROWS:
        sums = []
        for choice in choices:
            start = tokenizer(question, add_special_tokens=False).input_ids
            whole = tokenizer(question + choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            sums.append(sum(float(logprobs[place - 1, whole[place]]) for place in range(len(start), len(whole))))
        right += sums.index(max(sums)) == label
    found = run_harness(str(tiny_model), Wanted(["ours_plain"], include=tasks, chat=False))
    assert found["tasks"]["ours_plain"]["n"] == len(ROWS)
    assert found["tasks"]["ours_plain"]["metrics"]["acc"]["value"] == pytest.approx(right / len(ROWS))


@pytest.mark.extras
@needs_harness
def test_eval_prints_the_harness_beside_our_numbers(
    tiny_model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set", "evaluation.test_problems=2", "--lm-eval-include", str(tasks), "--lm-eval-limit", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["omni-thinker", "eval", str(tiny_model), "--lm-eval", "ours_plain", *few])
    main()
    said = capsys.readouterr().out.splitlines()
    table = json.loads(said[-1])
    assert set(table["tasks"]) == {"math", "coding", "qa", "writing"}
    assert table["lm_eval"]["chat"] is True
    assert table["lm_eval"]["tasks"]["ours_plain"]["n"] == 2
    assert any(line.startswith("ours_plain acc: ") for line in said)


@pytest.mark.extras
@needs_harness
def test_unknown_tasks_and_absent_data_are_named(tiny_model: Path, tasks: Path) -> None:
    with pytest.raises(UserError, match="knows no task 'ours_plane'; did you mean 'ours_plain'"):
        check_harness(Wanted(["ours_plane"], include=tasks))
    with pytest.raises(UserError, match="--lm-eval-include: no such folder"):
        check_harness(Wanted(["ours_plain"], include=tasks / "none"))
    with pytest.raises(UserError, match="the data of ours_away can't be had"):
        run_harness(str(tiny_model), Wanted(["ours_away"], include=tasks))


@pytest.mark.extras
@needs_harness
def test_tasks_that_run_programs_or_fail_are_refused_in_a_line(tiny_model: Path, tasks: Path) -> None:
    text = CHOICES.format(name="ours_unsafe", file=tasks / "rows.jsonl") + "unsafe_code: true\n"
    (tasks / "unsafe.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match="ours_unsafe runs programs that the model writes, and lm-eval does so without"):
        run_harness(str(tiny_model), Wanted(["ours_unsafe"], include=tasks))
    text = CHOICES.format(name="ours_broken", file=tasks / "rows.jsonl").replace("{{question}}", "{{nothing}}")
    (tasks / "broken.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match="ours_broken can't be asked: UndefinedError: 'nothing' is undefined"):
        run_harness(str(tiny_model), Wanted(["ours_broken"], include=tasks))
