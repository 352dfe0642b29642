"""pass@k, majority@k and greedy answers: values by hand, and against every subset."""

from __future__ import annotations

import asyncio
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations
from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.compare.at_k import majority_at, pass_at, with_measures, without_majority
from omni_thinker.errors import UserError
from omni_thinker.recipe import RewardSpec, parse_recipe
from omni_thinker.recipe.rl import EvalSpec
from omni_thinker.rewards import make_reward
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.types import Group, Problem, Sample, Score

ANSWERS = st.lists(st.tuples(st.sampled_from("abcd-"), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=6)


def first_majority(votes: list[str | None]) -> str | None:
    """The first of the votes that most agree with, as lm-eval's filter and verl take it."""
    said = [vote for vote in votes if vote is not None]
    return Counter(said).most_common(1)[0][0] if said else None


@given(ANSWERS, st.data())
def test_pass_at_k_is_the_mean_best_score_of_all_subsets(answers: list[tuple[str, float]], data: st.DataObject) -> None:
    scores = [score for _, score in answers]
    k = data.draw(st.integers(1, len(scores)))
    subsets = [max(subset) for subset in combinations(scores, k)]
    assert pass_at(scores, k) == pytest.approx(sum(subsets) / len(subsets))


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 2), (5, 2, 4), (200, 3, 100), (64, 0, 8), (64, 64, 8)])
def test_pass_at_k_of_right_and_wrong_is_the_published_estimator(n: int, right: int, k: int) -> None:
    scores = [1.0] * right + [0.0] * (n - right)
    assert pass_at(scores, k) == pytest.approx(1 - comb(n - right, k) / comb(n, k), abs=1e-12)


def test_pass_at_k_by_hand() -> None:
    # Of the six pairs of {1, 0, 0, 0}, three hold the 1.
    assert pass_at([0.0, 1.0, 0.0, 0.0], 2) == 0.5
    assert pass_at([1.0] * 7, 3) == 1.0


@given(ANSWERS, st.data())
def test_majority_at_k_is_the_mean_over_all_orders_of_taking_the_first(
    answers: list[tuple[str, float]], data: st.DataObject
) -> None:
    worth = dict(answers)  # one score for each answer, as right and wrong ones have
    votes = [None if vote == "-" else vote for vote, _ in answers]
    k = data.draw(st.integers(1, min(4, len(votes))))
    drawn = [first_majority(list(order)) for order in permutations(votes, k)]
    expected = sum(0.0 if vote is None else worth[vote] for vote in drawn) / len(drawn)
    assert majority_at(votes, [worth[vote or "-"] for vote in votes], k) == pytest.approx(expected)


def test_majority_at_k_by_hand() -> None:
    votes, scores = ["7", "7", "8", "9"], [1.0, 1.0, 0.0, 0.0]
    assert majority_at(votes, scores, 1) == 0.5
    # Pairs: 77 wins; four of 7 with 8 or 9 are ties; 89 loses.
    assert majority_at(votes, scores, 2) == pytest.approx((1 + 4 / 2) / 6)
    assert majority_at(votes, scores, 4) == 1.0
    assert majority_at(["7", "8", "8"], [1.0, 0.0, 0.0], 3) == 0.0
    # One without a vote neither wins nor ties.
    assert majority_at(["7", None, None], [1.0, 0.0, 0.0], 3) == 1.0
    assert majority_at([None, None], [0.0, 0.0], 2) == 0.0


def test_majority_of_many_answers_is_exact() -> None:
    votes = ["right"] * 24 + ["wrong"] * 20 + [str(n) for n in range(20)]
    scores = [1.0] * 24 + [0.0] * 40
    assert majority_at(votes, scores, 64) == 1.0
    assert majority_at(votes, scores, 1) == pytest.approx(24 / 64)
    assert 0.55 < majority_at(votes, scores, 32) < 0.8


@pytest.mark.parametrize("k", [0, 3])
def test_more_answers_than_there_are_raise(k: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        pass_at([0.0, 1.0], k)
    with pytest.raises(ValueError, match="1 to 2"):
        majority_at(["a", "b"], [0.0, 1.0], k)


def sample(text: str, stop: str = "stop") -> Sample:
    return Sample((1,), (0.0,), text, "length" if stop == "length" else "stop")


def scored(part: str, answer: str, *texts: str, **data: object) -> tuple[HybridReward, ScoredGroup]:
    reward = make_reward(RewardSpec(sum={part: 1.0}), judge=None)
    problem = Problem("p", "t", "", answer, data)
    group = Group(
        (1,), tuple(sample(text.removesuffix("..."), "length" if text.endswith("...") else "stop") for text in texts)
    )
    return reward, ScoredGroup(problem, group, tuple(asyncio.run(reward.score(group, problem))))


def kinds(part: str, answer: str, *texts: str, **data: object) -> list[int | None]:
    """Which answers say the same: numbers in order of first appearance, None without a vote."""
    reward, group = scored(part, answer, *texts, **data)
    votes = [
        reward.vote(one, score, group.problem) for one, score in zip(group.group.samples, group.scores, strict=True)
    ]
    known: dict[object, int] = {}
    return [None if vote is None else known.setdefault(vote, len(known)) for vote in votes]


def test_equal_numbers_are_one_vote_however_written() -> None:
    texts = [
        "The answer is 0.5",
        "\\boxed{\\frac{1}{2}}",
        "1/2",
        "50%",
        "#### 7",
        "7.0",
        "the answer is 7 apples",
        "?",
        "5...",
    ]
    assert kinds("math", "0.5", *texts) == [0, 0, 0, 0, 1, 1, 1, None, None]


def test_letters_times_and_expressions_are_compared_as_the_reward_reads_them() -> None:
    assert kinds("math", "B", "(B)", "The answer is C", "C.", "B or C") == [0, 1, 1, None]
    assert kinds("math", "3:30", "4:15", "the answer is 4:15", "3:30") == [0, 0, 1]
    texts = [
        "\\boxed{\\sqrt{2}}",
        "\\boxed{\\dfrac{\\sqrt{3}}{2}}",
        "\\boxed{ \\frac{\\sqrt{3}}{2} }",
        "\\boxed{4}",
        "\\boxed{4.0}",
    ]
    assert kinds("math", "\\sqrt{2}", *texts) == [0, 1, 1, 2, 2]


def test_short_answers_are_compared_in_normal_form() -> None:
    assert kinds("short_answer", "Paris", "The answer is Paris.", "paris", "Lyon", "**lyon**", "") == [0, 0, 1, 1, None]
    assert kinds("short_answer", "Paris", "Paname", "Paris", aliases=["Paname"]) == [0, 0]
    choices = {"choices": ["Lyon", "Paris", "Nice"], "letters_ok": True}
    assert kinds("short_answer", "Paris", "B", "Paris", "A", "(a) Lyon", "Lyon", "Nice", **choices) == [
        0,
        0,
        1,
        1,
        1,
        2,
    ]


def test_exact_answers_are_compared_by_value() -> None:
    assert kinds("exact", "[1, 2]", "[1,2]", "[2, 1]", "[2,1]", "two, one") == [0, 1, 1, 2]
    assert kinds("exact", "a b", "a  b", "A b", "A  b") == [0, 1, 1]


@pytest.mark.parametrize("part", ["unit_tests", "constraints", "brevity"])
def test_rewards_that_read_no_answer_know_no_votes(part: str) -> None:
    reward = make_reward(RewardSpec(sum={part: 1.0}), judge=None)
    assert not reward.votes
    assert "isn't defined for t:" in without_majority(EvalSpec(majority_at=(2,)), {"t": reward})
    assert without_majority(EvalSpec(), {"t": reward}) == ""


def evaluated(*groups: ScoredGroup) -> Evaluation:
    means = {group.problem.id: sum(group.values) / len(group.values) for group in groups if group.values}
    return Evaluation({"t": means}, {"reward_mean/t": 0.5}, 10, groups)


def test_measures_are_means_over_problems_with_errors_of_problems() -> None:
    reward, first = scored("math", "7", "7", "7", "8", "9")
    _, second = scored("math", "7", "8", "8", "7", "9")
    spec = EvalSpec(samples=4, pass_at=(1, 2), majority_at=(4,), greedy=True)
    greedy = Evaluation({"t": {"p": 1.0, "q": 0.0}}, {}, 3)
    second = ScoredGroup(Problem("q", "t", "", "7"), second.group, second.scores)
    result = with_measures(evaluated(first, second), spec, {"t": reward}, greedy)
    assert result.measures["t"] == {
        "pass@1": {"p": 0.5, "q": 0.25},
        "pass@2": {"p": pytest.approx(5 / 6), "q": 0.5},
        "majority@4": {"p": 1.0, "q": 0.0},
        "greedy": {"p": 1.0, "q": 0.0},
    }
    assert result.tokens == 13
    assert result.metrics == {
        "reward_mean/t": 0.5,
        "pass@1/t": 0.375,
        "pass@2/t": pytest.approx(2 / 3),
        "majority@4/t": 0.5,
        "greedy/t": 0.5,
    }
    found = result.measured()["t"]["pass@1"]
    # Clustered by problem: the deviation of two means over the root of two problems.
    assert (found.mean, found.n) == (0.375, 2)
    assert found.stderr == pytest.approx(sqrt(2 * 0.125**2) / sqrt(2))


def test_answers_without_a_score_are_none_and_problems_with_too_few_are_left_out() -> None:
    reward, group = scored("math", "7", "7", "8", "9")
    group = ScoredGroup(group.problem, group.group, (*group.scores[:2], Score.abstain("why")))
    spec = EvalSpec(samples=3, pass_at=(2, 3), majority_at=(2, 3))
    result = with_measures(evaluated(group), spec, {"t": reward})
    assert result.measures["t"] == {"pass@2": {"p": 1.0}, "majority@2": {"p": 0.5}}


def test_nothing_is_measured_unless_asked_for() -> None:
    reward, group = scored("math", "7", "7", "8")
    before = evaluated(group)
    assert with_measures(before, EvalSpec(), {"t": reward}) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pass_at": [4]}, "evaluation.pass_at: asks for 4 answers to a problem, but evaluation.samples is 2"),
        ({"majority_at": [1, 8], "samples": 4}, "evaluation.majority_at: asks for 8 answers"),
        ({"pass_at": [1, 1]}, "evaluation.pass_at: names one of them twice"),
    ],
)
def test_measures_of_more_answers_than_are_sampled_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_recipe({"tasks": {"t": {"source": "builtin:math"}}, "evaluation": settings}, "r.toml")


def test_fractions_are_votes_of_their_own() -> None:
    """True, 1 and Fraction(1) are equal keys to Python; a wrong answer 1 must not vote with the right ones."""
    reward, group = scored("math", "7", "7", "1")
    votes = [
        reward.vote(one, score, group.problem) for one, score in zip(group.group.samples, group.scores, strict=True)
    ]
    assert votes == [(True, None), (False, Fraction(1))]
