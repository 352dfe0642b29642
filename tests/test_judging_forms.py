"""Group ranking, rubrics, log-prob verdicts and guards: hand-computed values, and a server that answers for real."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_server import JudgeServer
from omni_thinker.errors import UserError
from omni_thinker.judging import Criterion, Judge, Ranker, Rater, Verdict
from omni_thinker.judging.guards import LengthGuard
from omni_thinker.judging.listwise import agreed_points, both_orders, tournament
from omni_thinker.judging.make import make_endpoint_judge
from omni_thinker.judging.pairwise import EndpointJudge, strip_markdown
from omni_thinker.judging.prompts import known_prompts, load_prompt
from omni_thinker.judging.rubric import agreed_rating, describe, read_rubric
from omni_thinker.judging.tally import Tally
from omni_thinker.recipe import EndpointSpec, RewardSpec
from omni_thinker.rewards import make_reward
from omni_thinker.rewards.registry import measuring
from omni_thinker.types import Group, Problem, Sample, Score

Make = Callable[..., EndpointJudge]


@pytest.fixture
def make() -> Iterator[Make]:
    """A judge behind a server of its own; `judge.server` isn't kept by the judge, so it is returned by `of`."""
    made: list[tuple[EndpointJudge, JudgeServer]] = []

    def judge(plan: Callable[..., str] = lambda number, body: "ok", **keys: Any) -> EndpointJudge:
        server = JudgeServer(plan)
        spec = EndpointSpec(**{"base_url": server.url, "model": "long", "cache": "none", **keys})
        made.append((make_endpoint_judge(spec), server))
        return made[-1][0]

    yield judge
    for own, server in made:
        own.close()
        server.close()


class Longer:
    """The longer text wins, by a table of exceptions where a test has them."""

    name, caveat, local = "longer", "For tests.", False

    def __init__(self, verdicts: dict[tuple[str, str], Verdict] | None = None) -> None:
        self.table, self.asked = verdicts or {}, 0

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        self.asked += len(responses)
        return [self.table.get((text, reference)) or self._one(text, reference) for text in responses]

    def metrics(self) -> dict[str, float]:
        return {"judge/verdicts": float(self.asked)}

    def _one(self, text: str, other: str) -> Verdict:
        lead = len(text) - len(other)
        return Verdict("win" if lead > 0 else "lose" if lead < 0 else "tie", float(lead))


def group(*texts: str) -> Group:
    return Group((1,), tuple(Sample((1,), (0.0,), text, "stop") for text in texts))


# -- rankings -----------------------------------------------------------------------------------------------------


def test_agreed_points_of_two_rankings_equal_values_by_hand() -> None:
    # 0 before 1 before 2, and 1 before 0 before 2: 0 and 1 tie, both beat 2.
    shares, pairs = agreed_points([[0, 1, 2], [1, 0, 2]], weight=[1, 1, 1])
    assert shares == [0.75, 0.75, 0.0]
    assert pairs == [(0, 1, 0), (0, 2, 1), (1, 2, 1)]
    # The first text occurs twice: four responses, and its two tie with each other.
    shares, _ = agreed_points([[0, 1, 2]], weight=[2, 1, 1])
    assert shares == pytest.approx([(0.5 + 2) / 3, 1 / 3, 0.0])


@given(st.permutations(range(5)), st.permutations(range(5)), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_weighted_mean_of_ranking_shares_is_one_half(first: list[int], second: list[int], weight: list[int]) -> None:
    shares, _ = agreed_points([first, second], weight)
    assert sum(s * w for s, w in zip(shares, weight, strict=True)) / sum(weight) == pytest.approx(0.5)
    assert all(0 <= share <= 1 for share in shares)


def test_orders_shown_depend_on_the_texts_and_not_on_their_sequence() -> None:
    texts = [f"text {n}" for n in range(8)]
    first, second = both_orders(texts, "prompt")
    assert second == first[::-1]
    assert sorted(first) == list(range(8))
    again, _ = both_orders(texts[::-1], "prompt")
    assert [texts[::-1][place] for place in again] == [texts[place] for place in first]
    assert first != list(range(8)), "shuffled"


def test_ranking_a_group_takes_two_requests_and_gives_shares_by_hand(make: Make) -> None:
    judge = make()
    assert isinstance(judge, Ranker)
    texts = ["bb", "a", "cccc", "", "bb", "ccc"]
    scores = asyncio.run(judge.rank("Write.", texts))
    # Best first: cccc, ccc, bb (twice), a, and the empty text, which loses to all and isn't shown; five others each.
    assert [score.value for score in scores] == pytest.approx([2.5 / 5, 1 / 5, 1.0, 0.0, 2.5 / 5, 4 / 5])
    assert judge.metrics()["judge/requests"] == 2
    assert judge.metrics()["judge/consistent"] == 1.0
    assert judge.metrics()["judge/length_correlation"] > 0.8


def test_judge_that_ranks_by_position_gives_ties(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judge_server.decide", lambda text: {"ranking": [1, 2, 3]})
    judge = make()
    assert [score.value for score in asyncio.run(judge.rank("p", ["a", "bb", "ccc"]))] == [0.5, 0.5, 0.5]
    assert judge.metrics()["judge/consistent"] == 0.0
    assert judge.metrics()["judge/tie_rate"] == 1.0


@pytest.mark.parametrize(
    "ranking", [[1, 2], [1, 2, 2], [0, 1, 2], "123", [1, 2, 3, 4], None, [1.0, 2, 3], [True, 2, 3]]
)
def test_malformed_ranking_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch, ranking: Any) -> None:
    monkeypatch.setattr("judge_server.decide", lambda text: {"ranking": ranking})
    scores = asyncio.run(make().rank("p", ["a", "bb", "ccc"]))
    assert [score.status for score in scores] == ["error"] * 3


def test_group_with_one_distinct_text_gets_one_half_without_requests(make: Make) -> None:
    judge = make()
    assert [s.value for s in asyncio.run(judge.rank("p", ["a", "a"]))] == [0.5, 0.5]
    assert [s.value for s in asyncio.run(judge.rank("p", ["", " "]))] == [0.5, 0.5]
    assert [s.value for s in asyncio.run(judge.rank("p", ["", "a"]))] == [0.0, 1.0]
    assert judge.metrics()["judge/requests"] == 0


def test_a_tournament_with_every_pair_equals_the_ranking() -> None:
    texts = ["bb", "a", "cccc", "bb", "ccc"]
    judge = Longer()
    scores = asyncio.run(tournament(judge, "p", texts, rounds=4))
    assert [score.value for score in scores] == pytest.approx([1.5 / 4, 0.0, 1.0, 1.5 / 4, 3 / 4])
    assert judge.asked == 6, "every pair of the four distinct texts once"


@pytest.mark.parametrize(("rounds", "played"), [(1, 2), (2, 2), (3, 4), (4, 4)])
def test_tournament_of_n_rounds_plays_that_many_pairs(rounds: int, played: int) -> None:
    judge = Longer()
    texts = ["x" * n for n in range(1, 17)]
    scores = asyncio.run(tournament(judge, "p", texts, rounds))
    assert judge.asked == 16 * played // 2
    assert scores[0].value == 0.0
    assert scores[-1].value == 1.0


def test_failed_pair_is_left_out_of_a_tournament() -> None:
    texts = ["a", "bb", "ccc"]
    pairs = [("a", "bb"), ("bb", "a")]
    failed = Longer(dict.fromkeys(pairs, Verdict("error", None, "no reply")))
    scores = asyncio.run(tournament(failed, "p", texts, rounds=2))
    assert [score.value for score in scores] == [0.0, 0.0, 1.0]
    every = {(a, b): Verdict("abstain", None, "spent") for a in texts for b in texts}
    assert [s.status for s in asyncio.run(tournament(Longer(every), "p", texts, rounds=2))] == ["abstain"] * 3


@pytest.mark.parametrize(
    "texts", [["aaa", "b", "", ""], ["a", "a", ""], ["", "a", "bb", "ccc"], ["", ""], ["a", "a", "bb"]]
)
def test_ranking_and_tournament_shares_of_a_group_average_one_half(make: Make, texts: list[str]) -> None:
    ranked = asyncio.run(make().rank("p", texts))
    played = asyncio.run(tournament(Longer(), "p", texts, rounds=8))
    for scores in (ranked, played):
        assert sum(score.value or 0.0 for score in scores) / len(texts) == pytest.approx(0.5)
    assert [score.value for score in ranked] == pytest.approx([score.value for score in played])


# -- rubrics ------------------------------------------------------------------------------------------------------

RUBRIC = [Criterion("apt", "Says what was asked.", {"1-2": "no", "9-10": "yes"}), Criterion("zest", "", {})]


def test_rubric_points_are_averaged_over_both_orders() -> None:
    value, parts, steady = agreed_rating(RUBRIC, [[10, 4], [8, 1]])
    assert parts == {"rubric/apt": pytest.approx(8 / 9), "rubric/zest": pytest.approx(1.5 / 9)}
    assert value == pytest.approx((8 / 9 + 1.5 / 9) / 2)
    assert not steady, "3 points apart in the second criterion"
    assert agreed_rating(RUBRIC, [[1, 1]]) == (0.0, {"rubric/apt": 0.0, "rubric/zest": 0.0}, True)


def test_rating_an_answer_asks_both_orders_of_the_criteria(make: Make) -> None:
    judge = make()
    assert isinstance(judge, Rater)
    texts = ["aaa zz", "", "no"]
    scores = asyncio.run(judge.rate("Write.", texts, RUBRIC))
    assert [score.value for score in scores] == pytest.approx([(3 / 9 + 2 / 9) / 2, 0.0, 0.0])
    assert dict(scores[0].parts) == {"rubric/apt": pytest.approx(3 / 9), "rubric/zest": pytest.approx(2 / 9)}
    assert judge.metrics()["judge/requests"] == 4
    assert judge.metrics()["judge/consistent"] == 1.0


@pytest.mark.parametrize("scores", [[1], [1, 2, 3], [0, 5], [5, 11], [5, 5.5], ["5", "5"], [True, 5], 5])
def test_malformed_rubric_points_are_an_error(make: Make, monkeypatch: pytest.MonkeyPatch, scores: Any) -> None:
    monkeypatch.setattr("judge_server.decide", lambda text: {"scores": scores})
    [score] = asyncio.run(make().rate("p", ["text"], RUBRIC))
    assert score.status == "error"


@pytest.mark.parametrize(
    "bad", [None, [], "be nice", [{}], [{"name": ""}], [{"name": 1}], [[]], [{"name": "a", "1-2": 3}], ["a", "a"],
     [{"name": "a", "description": 5}]],
)  # fmt: skip
def test_malformed_rubric_of_a_row_is_refused_by_check(make: Make, bad: Any) -> None:
    reward = make_reward(RewardSpec(gate=(), sum={"rubric": 1.0}), judge=make())
    why = reward.check(Problem("1", "t", "p", None, {"rubric": bad}))
    assert why
    assert why.startswith("data.rubric: ")


def test_rubrics_of_writingbench_rows_are_parsed(shared_data: Path) -> None:
    packed = (shared_data / "writing" / "writingbench_short.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    assert len(rows) == 70
    for row in rows:
        rubric = read_rubric(row["rubric"])
        assert all(len(criterion.bands) == 5 for criterion in rubric)
        shown = describe(rubric)
        assert all(criterion.name in shown and criterion.bands["9-10"] in shown for criterion in rubric)


def test_plain_text_in_a_rubric_is_a_criterion() -> None:
    assert describe(read_rubric(["Short.", {"name": "kind", "bands": {"1-5": "no"}}])).splitlines() == [
        "1. Short.: Short.", "2. kind", "   1-5 points: no",
    ]  # fmt: skip


# -- log-probs ----------------------------------------------------------------------------------------------------


def test_logprob_verdict_margin_equals_the_value_by_hand(make: Make) -> None:
    judge = make(verdict="logprobs")
    longer, same = asyncio.run(judge.compare("p", ["a longer text", "12345"], "other"))
    assert longer.outcome == "win"
    # P(1) = 0.6 (two spellings), P(2) = 0.15 of what is left beside "The": lead (0.6 - 0.15) / 0.75, the same in both.
    assert longer.margin == pytest.approx(0.6)
    assert (same.outcome, same.margin) == ("tie", 0.0)


def test_server_without_logprobs_is_judged_by_its_digit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = make(lambda number, body: "no logprobs", verdict="logprobs")
    [verdict] = asyncio.run(judge.compare("p", ["a longer text"], "short"))
    assert (verdict.outcome, verdict.margin) == ("win", 1.0)


def test_ranking_by_a_logprob_judge_falls_back_to_text(make: Make) -> None:
    judge = make(verdict="logprobs")
    assert [score.value for score in asyncio.run(judge.rank("p", ["a", "bb"]))] == [0.0, 1.0]


def test_replies_without_usage_are_charged_against_the_budget(make: Make) -> None:
    judge = make(
        lambda number, body: "no usage", budget={"money": 0.002}, price={"input": 1.0, "output": 1.0}, max_tokens=100
    )
    outcomes = [asyncio.run(judge.compare("p", [f"text {n} is longer"], "short"))[0].outcome for n in range(20)]
    assert outcomes[0] == "win"
    assert outcomes[-1] == "abstain"
    assert 0 < judge.metrics()["judge/money"] <= 0.002


def test_api_key_echoed_by_a_server_is_masked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-4711")
    judge = make(lambda number, body: "echo key")
    [verdict] = asyncio.run(judge.compare("p", ["text"], "other"))
    assert verdict.outcome == "error"
    assert "sk-canary-4711" not in (verdict.reason or "")
    assert "***" in (verdict.reason or "")


def test_lone_surrogates_in_texts_and_replies_are_judged(make: Make) -> None:
    judge = make(lambda number, body: "surrogate")
    assert asyncio.run(judge.compare("p\ud800", ["a longer text \ud800"], "short"))[0].outcome == "win"


def test_failure_of_both_orders_leaves_no_unretrieved_exception(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    import gc

    judge = make(lambda number, body: "401")
    for n in range(5):
        assert asyncio.run(judge.compare("p", [f"text {n}"], "other"))[0].outcome == "error"
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err


# -- guards and tallies -------------------------------------------------------------------------------------------


def test_length_guard_turns_wins_by_length_into_ties() -> None:
    judge = LengthGuard(Longer(), 1.5)
    assert isinstance(judge, Judge)
    reference = "x" * 10
    texts = ["x" * 15, "x" * 16, "x" * 7, "x" * 6, "x" * 10]
    found = [verdict.outcome for verdict in asyncio.run(judge.compare("p", texts, reference))]
    assert found == ["win", "tie", "lose", "tie", "tie"]
    assert judge.metrics()["judge/guarded"] == pytest.approx(2 / 5)


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30), st.floats(1, 3))
def test_length_guard_is_symmetric_in_its_texts(first: str, second: str, ratio: float) -> None:
    judge = LengthGuard(Longer(), ratio)
    [one] = asyncio.run(judge.compare("p", [first], second))
    [other] = asyncio.run(judge.compare("p", [second], first))
    assert {"win": "lose", "lose": "win", "tie": "tie"}[one.outcome] == other.outcome


def test_length_correlation_equals_pearson_by_hand() -> None:
    tally = Tally()
    pairs = [("win", 20, 10), ("lose", 5, 10), ("win", 10, 10), ("tie", 30, 10)]
    for outcome, ours, theirs in pairs:
        tally.verdict(Verdict(outcome), "x" * ours, "y" * theirs)  # type: ignore[arg-type]
    tally.verdict(Verdict("error"), "x", "y")
    xs = [math.log(ours / theirs) for _, ours, theirs in pairs]
    ys = [1.0, 0.0, 1.0, 0.5]
    mx, my = sum(xs) / 4, sum(ys) / 4
    expected = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / math.sqrt(
        sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys)
    )
    found = tally.metrics()
    assert found["judge/length_correlation"] == pytest.approx(expected)
    assert found["judge/tie_rate"] == 0.25
    assert found["judge/error_rate"] == pytest.approx(1 / 5)
    assert "judge/length_correlation" not in Tally().metrics()


def test_strip_markdown_leaves_plain_words_and_ends_within_5_seconds() -> None:
    assert strip_markdown("use my_var_name and 2*3*4 = 24") == "use my_var_name and 2*3*4 = 24"
    assert strip_markdown("**bold** _it_ `code` [link](http://x)").split() == ["bold", "it", "code", "link"]
    began = time.perf_counter()
    for text in ("\n" * 50_000, "[" * 60_000, "*" * 60_000, "[a](" * 20_000, "- " * 40_000):
        strip_markdown(text)
    assert time.perf_counter() - began < 5


# -- prompts ------------------------------------------------------------------------------------------------------


def test_every_prompt_loads_and_unknown_names_list_the_known() -> None:
    assert {"pairwise-v1", "pairwise-digit-v1", "ranking-v1", "rubric-v1"} == set(known_prompts())
    assert len({load_prompt(name).version for name in known_prompts()}) == 4
    for bad in ("none", "../prompts", "", "pairwise-v1.txt"):
        with pytest.raises(UserError, match="there are pairwise"):
            load_prompt(bad)


# -- as parts of a reward -----------------------------------------------------------------------------------------


def test_ranking_reward_is_a_preference_in_evaluation(make: Make) -> None:
    spec = RewardSpec(gate=(), sum={"ranking": 2.0, "brevity": 1.0})
    assert measuring(spec).sum == {"preference": 2.0, "brevity": 1.0}
    assert measuring(RewardSpec(sum={"math": 1.0})).sum == {"math": 1.0}
    reward = make_reward(RewardSpec(gate=(), sum={"ranking": 1.0}), judge=make())
    assert reward.judged
    assert reward.compares
    scores = asyncio.run(reward.score(group("a", "bbb", "cc"), Problem("1", "t", "p")))
    assert [score.value for score in scores] == [0.0, 1.0, 0.5]


def test_judge_without_rank_scores_a_ranking_by_tournament() -> None:
    reward = make_reward(RewardSpec(gate=(), sum={"ranking": 1.0}), judge=Longer())
    scores = asyncio.run(reward.score(group("a", "bbb", "cc"), Problem("1", "t", "p")))
    assert [score.value for score in scores] == [0.0, 1.0, 0.5]


def test_reward_parts_that_the_judge_cannot_score_are_refused() -> None:
    with pytest.raises(UserError, match="'rubric' needs a judge behind an API, not longer"):
        make_reward(RewardSpec(gate=(), sum={"rubric": 1.0}), judge=Longer())
    with pytest.raises(UserError, match="choose one"):
        make_reward(RewardSpec(gate=(), sum={"ranking": 1.0, "preference": 1.0}), judge=Longer())
    with pytest.raises(UserError, match="can't be a gate"):
        make_reward(RewardSpec(gate=("ranking",), sum={"brevity": 1.0}), judge=Longer())


def test_failing_judge_gives_errors_that_name_the_part() -> None:
    every = {(a, b): Verdict("error", None, "gone") for a in ("a", "b") for b in ("a", "b")}
    reward = make_reward(RewardSpec(gate=(), sum={"tournament": 1.0}), judge=Longer(every))
    scores = asyncio.run(reward.score(group("a", "b"), Problem("1", "t", "p")))
    assert [(score.status, score.reason) for score in scores] == [("error", "ranking: gone")] * 2
    assert isinstance(scores[0], Score)
