"""The likelihood judge: symmetric, cached, and never a loss for a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_thinker.cli.judge_agreement import agreement
from omni_thinker.errors import UserError
from omni_thinker.judging import Judge, Verdict
from omni_thinker.judging.agreement import read_pairs, summarise, wilson
from omni_thinker.judging.likelihood import LikelihoodJudge


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def judge(parts: tuple[Any, Any]) -> LikelihoodJudge:
    return LikelihoodJudge(*parts, margin=0.0, system="Answer briefly.")


def _compare(judge: Judge, responses: list[str], reference: str) -> list[Verdict]:
    return asyncio.run(judge.compare("Name a fruit.", responses, reference))


def test_likelihood_judge_meets_the_protocol_and_has_a_caveat(judge: LikelihoodJudge) -> None:
    assert isinstance(judge, Judge)
    assert judge.caveat.endswith(".")


def test_mean_logprob_equals_a_plain_forward_pass(judge: LikelihoodJudge, parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    texts = ["An apple.", "Pear", "A very long list of fruit: plum, fig, lime."]
    prefix = judge._prompt_ids("Name a fruit.")
    for text, mean in zip(texts, judge.mean_logprobs("Name a fruit.", texts), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([prefix + ids])).logits[0].log_softmax(-1)
        want = sum(float(logprobs[len(prefix) - 1 + t, token]) for t, token in enumerate(ids)) / len(ids)
        assert mean == pytest.approx(want, abs=1e-5)


def test_swapping_the_texts_swaps_the_verdict(judge: LikelihoodJudge) -> None:
    first, second = "An apple.", "Bananas grow in bunches."
    [one], [other] = _compare(judge, [first], second), _compare(judge, [second], first)
    assert {one.outcome, other.outcome} == {"win", "lose"}
    assert one.margin == pytest.approx(-(other.margin or 0.0), abs=1e-6)


def test_difference_below_the_margin_is_a_tie(parts: tuple[Any, Any]) -> None:
    wide = LikelihoodJudge(*parts, margin=100.0)
    assert [v.outcome for v in _compare(wide, ["a", "some other words"], "text")] == ["tie", "tie"]
    with pytest.raises(ValueError, match="margin"):
        LikelihoodJudge(*parts, margin=-1.0)


def test_identical_texts_tie_and_empty_text_loses(judge: LikelihoodJudge) -> None:
    assert [v.outcome for v in _compare(judge, ["Apple.", "", "  "], "Apple.")] == ["tie", "lose", "lose"]
    assert [v.outcome for v in _compare(judge, ["Apple.", ""], "")] == ["win", "tie"]


def test_text_longer_than_the_context_is_an_error(judge: LikelihoodJudge, parts: tuple[Any, Any]) -> None:
    longest = parts[0].config.max_position_embeddings
    assert _compare(judge, ["word " * (longest + 10)], "Apple.")[0].outcome == "error"


def test_verdicts_are_the_same_in_any_batching_and_order(
    judge: LikelihoodJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Apple.", "Pears are good.", "Fig", "Apple.", "A long answer with many words in it."]
    together = _compare(judge, texts, "Plum.")
    backwards = _compare(judge, texts[::-1], "Plum.")[::-1]
    monkeypatch.setattr("omni_thinker.judging.likelihood._MAX_LOGITS", 1)
    alone = _compare(judge, texts, "Plum.")
    for a, b, c in zip(together, backwards, alone, strict=True):
        assert a.outcome == b.outcome == c.outcome
        assert a.margin == pytest.approx(b.margin, abs=1e-5) == pytest.approx(c.margin, abs=1e-5)


def test_reference_of_several_comparisons_is_scored_once(
    judge: LikelihoodJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    real = judge.mean_logprobs

    def noted(prompt: str, texts: list[str]) -> list[float | None]:
        scored.extend(texts)
        return real(prompt, texts)

    monkeypatch.setattr(judge, "mean_logprobs", noted)
    for text in ("one", "two", "three"):
        _compare(judge, [text], "the reference")
    assert scored.count("the reference") == 1


def test_agreement_summary_equals_counts_by_hand() -> None:
    rows = [
        {"label": 1, "response_1": "long text", "response_2": "short", "votes": [1, 1, 2]},
        {"label": 0, "response_1": "a", "response_2": "b", "votes": [0, 0]},
        {"label": 2, "response_1": "long text", "response_2": "short"},
        {"label": 2, "response_1": "a", "response_2": "bb"},
        {"label": 1, "response_1": "a", "response_2": "bb"},
        {"label": 1, "response_1": "a", "response_2": "b"},
    ]
    outcomes = ["win", "win", "win", "lose", "tie", "error"]
    result = summarise(rows, [Verdict(outcome) for outcome in outcomes])  # type: ignore[arg-type]
    assert (result["pairs"], result["errors"], result["people_undecided"]) == (4, 1, 1)
    assert result["tie_rate"] == 0.25
    assert result["ceiling"] == pytest.approx(2 / 4)
    assert result["agreement"] == pytest.approx(2.5 / 4)
    assert (result["longer_preferred"], result["shorter_preferred"]) == (1.0, 0.25)
    assert result["balanced"] == pytest.approx(0.625)
    low, high = wilson(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_agreement_on_published_pairs_counts_every_pair(shared_data: Path, tiny_model: Path) -> None:
    for name in ("pandalm_human_pairs", "llmbar", "mtbench_human_pairs"):
        found = agreement(
            shared_data / "judge" / f"{name}.jsonl.gz", base_url="", model=str(tiny_model), limit=4, settings=[]
        )
        assert found["pairs"] + found["errors"] + found["people_undecided"] == 4
        assert (found["ceiling"] is not None) == (name == "pandalm_human_pairs")


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "p", "response_1": "a", "label": 1}', "", '{"label": 3}'])
def test_bad_pairs_are_refused_by_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n", "utf-8")
    with pytest.raises(UserError, match=r"pairs.jsonl.*(line 1|no rows)"):
        read_pairs(path)
