"""How an answer is given: brevity, length, repetition; short answers' numbers; wrong options."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards.parts import Part
from omni_thinker.rewards.registry import make_reward
from omni_thinker.rewards.shape import Brevity, NotOverlong, NotRepetitive
from omni_thinker.rewards.text import ShortAnswer, normalise
from omni_thinker.rewards.validate import group_of
from omni_thinker.tasks.distractors import OtherAnswers
from omni_thinker.types import Group, Problem, Sample


def _values(part: Part, texts: Sequence[str], **data: object) -> list[float | None]:
    problem = Problem("p", "t", "", None, data)
    return [score.value for score in asyncio.run(part.score(group_of(texts), problem))]


def test_brevity_equals_values_by_hand() -> None:
    assert _values(Brevity(), ["a", "a b c", "a b c d e"]) == [1.0, 0.5, 0.0]
    assert _values(Brevity(), ["a b", "c d"]) == [1.0, 1.0]
    tokens = Group((), tuple(Sample((1,) * n, (0.0,) * n, "same words", "stop") for n in (2, 6)))
    assert [s.value for s in asyncio.run(Brevity().score(tokens, Problem("p", "t", "", None)))] == [1.0, 0.0]


def test_not_overlong_equals_values_by_hand() -> None:
    texts = ["w " * n for n in (5, 8, 9, 10, 12)]
    assert _values(NotOverlong(), texts, length_limit=10) == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert _values(NotOverlong(), texts, length_limit=10, length_buffer=10) == pytest.approx([0.5, 0.2, 0.1, 0.0, 0.0])
    for data in ({}, {"length_limit": 0}, {"length_limit": 5, "length_buffer": 6}, {"length_limit": True}):
        assert NotOverlong().check(Problem("p", "t", "", None, data))


def test_not_repetitive_equals_values_by_hand() -> None:
    assert _values(NotRepetitive(), ["", "a b", "a b c", "a b c a b c", "x x x x x"]) == [1.0, 1.0, 1.0, 0.75, 1 / 3]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_brevity_and_not_repetitive_stay_within_0_and_1(texts: list[str]) -> None:
    for part in (Brevity(), NotRepetitive()):
        assert all(value is not None and 0.0 <= value <= 1.0 for value in _values(part, texts))


def test_brevity_counts_only_behind_an_open_gate() -> None:
    spec = RewardSpec(gate=("format",), sum={"short_answer": 0.9, "brevity": 0.1})
    problem = Problem("p", "t", "", "Paris", {"format": "[A-Za-z. ]+"})
    scores = asyncio.run(
        make_reward(spec, judge=None).score(group_of(["Paris", "The answer is Paris.", "Rome!"]), problem)
    )
    assert [score.value for score in scores] == pytest.approx([1.0, 0.9, 0.0])
    assert scores[1].parts == {"format": 1.0, "short_answer": 1.0, "brevity": 0.0}
    assert scores[2].parts == {"format": 0.0}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("twenty-one", "21"), ("Twenty One", "21"), ("one two", "1 2"), ("two hundred and five", "205"), ("1,000", "1000"),
        ("a thousand", "1000"), ("three million two hundred thousand and six", "3200006"), ("nineteen eighty-four", "1984"),
        ("zero", "0"), ("hundred and", "100 and"), ("one or two", "1 or 2"), ("forty-second street", "42nd street"),
        ("seven and eight", "7 and 8"), ("1,00", "1,00"), ("-1,234.5", "-1234.5"), ("none", "none"),
    ],
)  # fmt: skip
def test_normalise_turns_number_words_into_digits(text: str, plain: str) -> None:
    assert normalise(text) == plain


def test_number_word_matches_its_digits_and_a_list_does_not() -> None:
    problem = Problem("p", "qa", "", "12", {"choices": ["12", "20", "3"]})
    scores = asyncio.run(
        ShortAnswer().score(group_of(["twelve", "Twelve.", "twelve twenty", "twelve or twenty", "a"]), problem)
    )
    assert [score.value for score in scores] == [1.0, 1.0, 0.0, 0.0, 0.0]


@given(st.text(max_size=60) | st.text(alphabet="aeno twx-,.5(", max_size=30))
def test_normalise_is_idempotent_but_for_letters_of_options(text: str) -> None:
    """ "A)" is the letter of an option and stays; the bare "a" that it becomes would be an article."""
    once = normalise(text)
    assume("a" not in once.split())
    assert normalise(once) == once


# -- wrong options ----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 5))
def test_distractors_from_other_rows_never_equal_the_answer(answers: list[str], count: int, seed: int) -> None:
    options = OtherAnswers(answers, seed).options(answers[0], count)
    plain = [normalise(text) for text in options]
    assert plain.count(normalise(answers[0])) == options.count(answers[0]) == 1
    assert len(set(plain)) == len(plain) <= count + 1
    assert options == OtherAnswers(answers, seed).options(answers[0], count)


def test_distractors_for_a_number_are_numbers() -> None:
    answers = ["12", "a long sentence of words", "7", "105", "blue", "31", "8"]
    assert all(text.isdigit() for text in OtherAnswers(answers, 3).options("12", 1))


def test_place_of_the_answer_among_options_is_uniform() -> None:
    places = [OtherAnswers(["b", "c", "d", "A"], seed).options("a", 3).index("a") for seed in range(400)]
    assert all(60 < places.count(place) < 140 for place in range(4))
