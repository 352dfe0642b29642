"""Composition, the registry, validation, and the parts that don't run programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.isolation import WalledScorer, shutdown
from omni_thinker.judging import Verdict
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards import PARTS, HybridReward, Reward, is_verifiable, make_reward, score_texts, validate
from omni_thinker.rewards.parts import Part
from omni_thinker.rewards.walled import WalledPart
from omni_thinker.types import Group, Problem, Sample, Score


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()


@dataclass
class Fixed(Part):
    """Gives each sample what a table says of its text."""

    scores: dict[str, Score]
    asked: list[str] = field(default_factory=list)

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        self.asked += [sample.text for sample in group.samples]
        return [self.scores[sample.text] for sample in group.samples]


class Broken(Part):
    async def score(self, group: Group, problem: Problem) -> list[Score]:
        raise RuntimeError("out of order")


class TableJudge:
    """Longer is better; raises or errs on demand."""

    name = "table"
    caveat = "For tests."
    local = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def metrics(self) -> dict[str, float]:
        return {}

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        self.calls.append(tuple(responses))
        if "raise" in responses:
            raise ConnectionError("no judge")
        return [self._one(response, reference) for response in responses]

    def _one(self, response: str, reference: str) -> Verdict:
        if response == "garbled":
            return Verdict("error", None, "can't be read")
        if len(response) == len(reference):
            return Verdict("tie")
        return Verdict("win" if len(response) > len(reference) else "lose")


def problem(answer: str | None = None, **data: Any) -> Problem:
    return Problem("p1", "task", "prompt", answer, data)


def one(part: str, text: str, item: Problem) -> Score:
    reward = make_reward(RewardSpec(gate=(), sum={part: 1.0}), judge=TableJudge())
    return asyncio.run(score_texts(reward, item, [text]))[0]


def value(part: str, text: str, item: Problem) -> float | None:
    return one(part, text, item).value


# --- composition ---------------------------------------------------------------------------------------------------

YES, NO, HALF = Score.of(1.0), Score.of(0.0), Score.of(0.5)


def combine(gates: dict[str, Part], parts: dict[str, Part], weights: dict[str, float], texts: list[str]) -> list[Score]:
    return asyncio.run(score_texts(HybridReward(gates, parts, weights), problem(), texts))


def test_reward_is_the_gates_times_the_weighted_mean() -> None:
    gate = Fixed({"a": YES, "b": NO})
    first, second = Fixed({"a": HALF, "b": YES}), Fixed({"a": YES, "b": YES})
    a, b = combine({"g": gate}, {"x": first, "y": second}, {"x": 1.0, "y": 3.0}, ["a", "b"])
    assert a.value == pytest.approx((0.5 + 3 * 1.0) / 4)
    assert a.parts == {"g": 1.0, "x": 0.5, "y": 1.0}
    assert (b.value, b.parts) == (0.0, {"g": 0.0})
    assert first.asked == ["a"], "what a closed gate makes worthless isn't run"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 100)), min_size=1, max_size=5))
def test_weighted_mean_lies_within_its_parts(pairs: list[tuple[float, float]]) -> None:
    parts: dict[str, Part] = {str(i): Fixed({"t": Score.of(v)}) for i, (v, _) in enumerate(pairs)}
    [score] = combine({}, parts, {str(i): w for i, (_, w) in enumerate(pairs)}, ["t"])
    assert score.value is not None
    assert min(v for v, _ in pairs) - 1e-9 <= score.value <= max(v for v, _ in pairs) + 1e-9


@pytest.mark.parametrize("bad", [Score.error("lost"), Score.abstain("unsure")])
@pytest.mark.parametrize("place", ["gate", "sum"])
def test_error_or_abstention_of_a_part_never_becomes_a_value(bad: Score, place: str) -> None:
    good: Part = Fixed({"t": YES})
    gates, parts = (
        ({"g": Fixed({"t": bad})}, {"x": good}) if place == "gate" else ({"g": good}, {"x": Fixed({"t": bad})})
    )
    [score] = combine(dict(gates), dict(parts), {"x": 1.0}, ["t"])
    assert (score.status, score.value, score.reason) == (bad.status, None, bad.reason)


def test_an_error_outweighs_an_abstention() -> None:
    [score] = combine({}, {"x": Fixed({"t": Score.abstain("a")}), "y": Fixed({"t": Score.error("e")})},
                      {"x": 1.0, "y": 1.0}, ["t"])  # fmt: skip
    assert score.status == "error"


def test_part_that_raises_or_gives_too_few_scores_is_an_error() -> None:
    [score] = combine({}, {"x": Broken()}, {"x": 1.0}, ["t"])
    assert score.status == "error"
    assert "out of order" in (score.reason or "")

    class Short(Part):
        async def score(self, group: Group, problem: Problem) -> list[Score]:
            return []

    assert combine({}, {"x": Short()}, {"x": 1.0}, ["t"])[0].status == "error"


# --- registry ------------------------------------------------------------------------------------------------------


def test_every_registered_part_can_be_made() -> None:
    names = {"finished", "format", "math", "unit_tests", "unit_tests_partial", "short_answer", "exact", "constraints",
             "preference", "reasoning_gym", "brevity", "not_overlong", "not_repetitive"}  # fmt: skip
    assert names <= set(PARTS.names)
    for name in names:
        reward = make_reward(RewardSpec(gate=(), sum={name: 1.0}), judge=TableJudge())
        assert isinstance(reward, Reward)


def test_bad_reward_specs_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"'mth'.*known: .*math"):
        make_reward(RewardSpec(sum={"mth": 1.0}), judge=None)
    with pytest.raises(UserError, match="needs a judge"):
        make_reward(RewardSpec(sum={"preference": 1.0}), judge=None)
    with pytest.raises(UserError, match="twice"):
        make_reward(RewardSpec(gate=("math",), sum={"math": 1.0}), judge=None)
    with pytest.raises(UserError, match="gate"):
        make_reward(RewardSpec(gate=("preference",), sum={"math": 1.0}), judge=TableJudge())
    with pytest.raises(UserError, match="exists"):
        PARTS.add("math", "somewhere:Else")


def test_custom_part_is_loaded_and_unusable_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(
        "from omni_thinker.rewards import Part, SamplePart\n"
        "from omni_thinker.types import Score\n"
        "class Half(SamplePart):\n"
        "    async def score_sample(self, sample, problem):\n"
        "        return Score.of(0.5)\n"
        "class Judged(Half):\n"
        "    judged = True\n"
        "    def __init__(self, judge):\n"
        "        self.judge = judge\n"
        "class Other:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert value("python:own_parts:Half", "t", problem()) == 0.5
    own, judged = RewardSpec(sum={"python:own_parts:Half": 1.0}), RewardSpec(sum={"python:own_parts:Judged": 1.0})
    assert is_verifiable(own)
    assert not is_verifiable(judged)
    assert make_reward(judged, judge=TableJudge()).judged
    with pytest.raises(UserError, match="needs a judge"):
        make_reward(judged, judge=None)
    for wrong, words in (("Other", "must derive from"), ("None", "no class"), ("Part", "can't be made")):
        with pytest.raises(UserError, match=words):
            make_reward(RewardSpec(sum={f"python:own_parts:{wrong}": 1.0}), judge=None)


def test_walled_part_scores_in_the_sandbox_and_fails_as_an_error() -> None:
    class Walled(WalledPart):
        scorer = WalledScorer(Path(__file__).with_name("scorer_evaluating.py"))

        def request(self, text: str, problem: Problem) -> dict[str, Any]:
            return {"answer": text, "how": problem.data["how"], "gold": problem.answer}

    for how, text, status in (("compare", "x", "value"), ("exec", "x = 1", "error"), ("leave", "x", "error")):
        group = Group((), (Sample((), (), text, "stop"),))
        assert asyncio.run(Walled().score(group, problem("x", how=how)))[0].status == status


# --- gates ---------------------------------------------------------------------------------------------------------


def test_finished_is_1_for_stopped_and_0_for_truncated_samples() -> None:
    reward = make_reward(RewardSpec(gate=("finished",), sum={"exact": 1.0}), judge=None)
    samples = tuple(Sample((), (), "x", stop) for stop in ("stop", "length"))
    scores = asyncio.run(reward.score(Group((), samples), problem("x")))
    assert [score.value for score in scores] == [1.0, 0.0]
    assert scores[1].parts == {"finished": 0.0}


def test_format_scores_matches_of_the_regex_and_refuses_bad_ones() -> None:
    assert value("format", " \n", problem()) == 0.0
    assert value("format", "anything", problem()) == 1.0
    item = problem(format=r"Answer: \d+")
    assert [value("format", t, item) for t in ("Answer: 12", "Answer: x", "Answer: 12 or so")] == [1.0, 0.0, 0.0]
    reward = make_reward(RewardSpec(gate=("format",), sum={"exact": 1.0}), judge=None)
    for bad in ("(", "a{1,99999999999}", "(" * 5000 + ")" * 5000):
        assert "regular expression" in (reward.check(problem("x", format=bad)) or "")


def test_regex_with_catastrophic_backtracking_is_an_error() -> None:
    assert one("format", "a" * 60 + "!", problem(format=r"(a+)+")).status == "error"


# --- short answers and literals --------------------------------------------------------------------------------------

PARIS = problem("Paris", choices=["London", "Paris", "A Rome"])


@pytest.mark.parametrize(
    "text", ["Paris", " paris.", "The Paris", "**Paris**", "“Paris”", "The answer is Paris.", "ＰＡＲＩＳ"]
)
def test_short_answer_accepts_equivalent_texts(text: str) -> None:
    assert value("short_answer", text, PARIS) == 1.0


@pytest.mark.parametrize("text", ["", "B", "(B)", "B) Paris", "London", "Paris or London", "London, Paris", "Not Paris",
                                  "Paris Paris", "Paris is the capital of France", "Answer:"])  # fmt: skip
def test_short_answer_refuses_other_texts(text: str) -> None:
    assert value("short_answer", text, PARIS) == 0.0


def test_short_answer_accepts_letters_only_with_letters_ok() -> None:
    item = problem("Paris", choices=["London", "Paris"], letters_ok=True)
    assert [value("short_answer", t, item) for t in ("B", "(b)", "B) Paris", "A", "A) Paris", "B) London", "A B")] == [
        1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0
    ]  # fmt: skip
    assert value("short_answer", "A) Paris", problem("Paris")) == 0.0, "the letter A is no article"


def test_short_answer_tells_signs_apart() -> None:
    for gold, given_text in [("C++", "C"), ("-5", "5"), ("1.5", "15"), ("C#", "C")]:
        assert value("short_answer", given_text, problem(gold)) == 0.0
        assert value("short_answer", gold, problem(gold)) == 1.0


def test_short_answer_accepts_aliases() -> None:
    assert value("short_answer", "UK", problem("United Kingdom", aliases=["UK"])) == 1.0


@pytest.mark.parametrize(
    ("gold", "text", "want"),
    [
        ("[1, 2]", "[1,2]", 1.0), ("'a'", '"a"', 1.0), ("1", "True", 0.0), ("1", "1.0", 0.0), ("[1]", "[True]", 0.0),
        ("{'a': 1}", "{'a': True}", 0.0), ("{1, 2}", "{2, 1}", 1.0), ("'a  b'", "'a b'", 0.0), ("'a'", "a", 0.0),
        ("some text", "some  text ", 1.0), ("some text", "Some text", 0.0), ("[1]", "`[1]`", 1.0),
        ("[1]", "```python\n[1]\n```", 1.0), ("'a'", "__import__('os').getcwd()", 0.0), ("5", "[" * 900, 0.0),
        ("5", "-" * 1900 + "5", 0.0),
    ],
)  # fmt: skip
def test_exact_compares_literals_by_type_and_value(gold: str, text: str, want: float) -> None:
    assert value("exact", text, problem(gold)) == want


# --- constraints -----------------------------------------------------------------------------------------------------

LAKE = problem(
    constraints={"include": ["lake", "boat"], "avoid": ["sea"], "sentences": 2, "max_words": 20, "min_words": 6}
)


def test_text_that_meets_all_constraints_scores_1() -> None:
    score = one("constraints", "The lake is calm. Our boat drifts slowly home.", LAKE)
    assert score.value == 1.0
    assert {"constraints.include", "constraints.avoid", "constraints.sentences", "constraints.max_words",
            "constraints.min_words", "constraints.prose"} <= set(score.parts)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("The lake is calm. We drift slowly home.", "include"),
        ("The lake is no sea. Our boat drifts slowly home.", "avoid"),
        ("The lake is calm, and our boat drifts slowly home.", "sentences"),
        ("The lake. A boat came.", "min_words"),
        ("The lakeside is calm. Our boating friends drift slowly home.", "include"),
    ],
)
def test_text_that_misses_a_constraint_scores_below_1(text: str, missed: str) -> None:
    score = one("constraints", text, LAKE)
    assert score.value is not None
    assert 0.0 < score.value < 1.0
    assert score.parts[f"constraints.{missed}"] < 1.0


@pytest.mark.parametrize(
    "text",
    ["", "lake lake lake boat", "Lake lake boat. Lake boat.", "Lake boat. Boat lake.",
    "The lake boat the lake boat. Yes.",
     "the lake is calm. our boat drifts home.", "The lake is calm. Our boat drifts home",
     "12 34 56 78 9. Lake boat 1 2 3 4 5 6.",
     "The lake is calm and the lake is calm but the lake is calm. A boat."],
)  # fmt: skip
def test_text_that_is_not_prose_scores_0(text: str) -> None:
    assert value("constraints", text, LAKE) == 0.0


def test_constraints_as_a_gate_give_0_unless_all_are_met() -> None:
    reward = make_reward(RewardSpec(gate=("constraints",), sum={"preference": 1.0}), judge=TableJudge())
    item = problem("The lake is calm. Our boat drifts slowly home.", **LAKE.data, reference="x")
    good, bad = asyncio.run(score_texts(reward, item, [item.answer or "", "The lake is calm. We go home now."]))
    assert (good.value, bad.value) == (1.0, 0.0)
    assert bad.parts["constraints.include"] == 0.5


@pytest.mark.parametrize("bad", [{}, {"colour": 1}, {"include": "lake"}, {"sentences": 0}, {"sentences": True},
                                 {"min_words": 9, "max_words": 3}, {"include": ["a"], "avoid": ["A"]}])  # fmt: skip
def test_malformed_constraints_are_found_by_check(bad: dict[str, Any]) -> None:
    reward = make_reward(RewardSpec(gate=("constraints",), sum={"exact": 1.0}), judge=None)
    assert reward.check(problem("x", constraints=bad))


# --- preference ------------------------------------------------------------------------------------------------------


def test_preference_gives_values_errors_and_asks_each_text_once() -> None:
    judge = TableJudge()
    reward = make_reward(RewardSpec(gate=(), sum={"preference": 1.0}), judge=judge)
    item = problem(reference="12345")
    scores = asyncio.run(
        score_texts(reward, item, ["longer text", "short"[:3], "54321", "12345", "garbled", "longer text"])
    )
    assert [s.value for s in scores] == [1.0, 0.0, 0.5, 0.5, None, 1.0]
    assert scores[4].status == "error"
    assert judge.calls == [("longer text", "sho", "54321", "garbled")], "each text once, the reference's own never"


def test_preference_with_a_failing_judge_or_no_reference_is_an_error() -> None:
    assert one("preference", "raise", problem(reference="r")).status == "error"
    assert one("preference", "x", problem()).status == "error"


# --- validation and determinism --------------------------------------------------------------------------------------


def test_validate_lists_problems_whose_gold_answer_fails() -> None:
    reward = make_reward(RewardSpec(gate=("finished", "format"), sum={"short_answer": 1.0}), judge=None)
    rows = [
        Problem("ok", "t", "q", "Paris", {"choices": ["Paris", "Rome"]}),
        Problem("not-a-choice", "t", "q", "Oslo", {"choices": ["Paris", "Rome"]}),
        Problem("bad-format", "t", "q", "Paris", {"format": r"\d+"}),
        Problem("no-gold", "t", "q"),
    ]
    failures = asyncio.run(validate(rows, reward))
    assert [failure.problem for failure in failures] == ["not-a-choice", "bad-format", "no-gold"]
    assert "among the choices" in failures[0].reason
    assert "gold answer" in failures[1].reason


def test_validate_checks_the_gates_of_judged_tasks() -> None:
    reward = make_reward(RewardSpec(gate=("finished", "constraints"), sum={"preference": 1.0}), judge=TableJudge())
    good = Problem("good", "t", "q", "The lake is calm. Our boat drifts slowly home.", LAKE.data)
    bad = Problem("bad", "t", "q", "No lake here.", LAKE.data)
    assert [f.problem for f in asyncio.run(validate([good, bad], reward))] == ["bad"]
    plain = make_reward(RewardSpec(sum={"preference": 1.0}), judge=TableJudge())
    assert asyncio.run(validate([Problem("any", "t", "q", "text")], plain)) == []


def test_scores_are_the_same_in_any_order_and_concurrency() -> None:
    reward = make_reward(RewardSpec(gate=("format",), sum={"math": 0.7, "short_answer": 0.3}), judge=None)
    texts = ["12", "twelve", "", "The answer is 12.", "12", "11 12"]
    item = problem("12")

    async def run() -> list[list[Score]]:
        return list(await asyncio.gather(*(score_texts(reward, item, texts) for _ in range(20))))

    alone = [asyncio.run(score_texts(reward, item, [text]))[0] for text in texts]
    assert all(scores == alone for scores in asyncio.run(run()))
    assert asyncio.run(score_texts(reward, item, texts[::-1]))[::-1] == alone


@given(st.text(max_size=300))
def test_text_parts_give_a_value_for_any_text(text: str) -> None:
    item = problem("12", choices=["12", "13"], letters_ok=True, constraints={"include": ["lake"], "sentences": 1})
    reward = make_reward(
        RewardSpec(gate=("finished",), sum=dict.fromkeys(("math", "short_answer", "exact", "constraints"), 1.0)),
        judge=None,
    )
    [score] = asyncio.run(score_texts(reward, item, [text]))
    assert score.status == "value"


@pytest.mark.parametrize("text", [" " * 50_000 + "x", "!" * 50_000 + "x", "\n" * 50_000, "\\boxed{" * 8_000,
"1 " * 25_000,
                                  "5" + " " * 50_000 + "x 6 words", "9" * 50_000, "1e999 words", "answer is " * 5_000,
                                  "```\n" + " " * 50_000, "- " * 20_000 + "7"], ids=lambda text: text[:6])  # fmt: skip
def test_text_parts_end_within_2_seconds_on_hostile_texts(text: str) -> None:
    from omni_thinker.rewards.programs.solution import find_solution

    item = problem("12", constraints={"include": ["lake"], "sentences": 1})
    begin = time.monotonic()
    for part in ("math", "short_answer", "exact", "constraints"):
        assert one(part, text, item).value == 0.0
    find_solution(text)
    assert time.monotonic() - begin < 2.0
