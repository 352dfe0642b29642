"""What servers send instead of a verdict: each cause is named, retried where that helps, never cached, never a loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judge_replies import OTHER_BODIES, READABLE, REFUSALS, UNREADABLE
from judge_server import JudgeServer
from omni_thinker.judging import Verdict
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.make import make_endpoint_judge
from omni_thinker.judging.pairwise import EndpointJudge
from omni_thinker.recipe import EndpointSpec

Make = Callable[..., tuple[EndpointJudge, JudgeServer]]
REFERENCE = "five letters here"
LONGER = "a text that is longer than that"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[tuple[EndpointJudge, JudgeServer]] = []

    def judge(plan: Callable[[int, dict[str, Any]], str], **keys: Any) -> tuple[EndpointJudge, JudgeServer]:
        server = made[0][1] if made else JudgeServer(plan)
        server.plan = plan
        keys = {"cache": str(tmp_path / "cache.sqlite"), "both_seats": False, "attempts": 4, **keys}
        made.append((make_endpoint_judge(EndpointSpec(base_url=server.url, model="long", **keys)), server))
        return made[-1]

    yield judge
    for own, server in made:
        own.close()
        server.close()


def ask(judge: EndpointJudge, text: str = LONGER) -> Verdict:
    return asyncio.run(judge.compare("Write.", [text], REFERENCE))[0]


@pytest.mark.parametrize("fault", READABLE)
def test_verdict_in_any_layout_is_read(make: Make, fault: str) -> None:
    judge, server = make(lambda number, body: fault)
    assert [ask(judge).outcome, ask(judge, "short").outcome] == ["win", "lose"]
    assert len(server.bodies) == 2


@pytest.mark.parametrize("fault", UNREADABLE)
def test_reply_without_a_verdict_is_a_named_error_and_never_cached(make: Make, fault: str, tmp_path: Path) -> None:
    _, words, again = UNREADABLE[fault]
    judge, server = make(lambda number, body: fault)
    found = ask(judge)
    asked = len(server.bodies)
    assert found.outcome == "error"
    assert words in (found.reason or "")
    assert (found.reason or "").endswith(f", {asked} times") == again
    assert (asked > 1) == again
    assert asked <= 4
    assert list(JudgeCache(tmp_path / "cache.sqlite").rows()) == []
    assert judge.metrics()["judge/error_rate"] == 1.0
    # One more bad reply, and then the server is mended.
    server.plan = lambda number, body: fault if number == asked else "ok"
    assert ask(judge).outcome == ("win" if again else "error")
    assert ask(judge).outcome == "win"
    assert len(server.bodies) == asked + 2, "a verdict is cached"


@pytest.mark.parametrize("fault", OTHER_BODIES)
def test_body_that_is_no_json_is_named(make: Make, fault: str) -> None:
    _, _, words, again = OTHER_BODIES[fault]
    judge, server = make(lambda number, body: fault)
    found = ask(judge)
    assert (found.outcome, words in (found.reason or "")) == ("error", True)
    assert len(server.bodies) == (4 if again else 1)


def test_cached_reply_that_cannot_be_read_is_asked_for_again(make: Make, tmp_path: Path) -> None:
    judge, server = make(lambda number, body: "ok")
    assert ask(judge).outcome == "win"
    cache = JudgeCache(tmp_path / "cache.sqlite")
    [row] = list(cache.rows())
    cache.clear()
    cache.put(row["key"], Reply('<think>\n{"better": 2}', 1, 1), model="long", prompt_version="v")
    assert ask(judge).outcome == "win"
    assert len(server.bodies) == 2
    assert [row["reply"] for row in cache.rows()] == [row["reply"]]
    assert judge.metrics()["judge/cache_hits"] == 0.0, "what couldn't be read was a miss"


def test_ranking_and_points_that_cannot_be_read_are_asked_for_again(make: Make) -> None:
    from omni_thinker.judging import Criterion

    judge, server = make(lambda number, body: "no verdict" if number % 2 == 0 else "ok")
    assert [score.value for score in asyncio.run(judge.rank("p", ["a", "bb"]))] == [0.0, 1.0]
    [score] = asyncio.run(judge.rate("p", ["aa"], [Criterion("apt", "", {})]))
    assert score.value == pytest.approx(2 / 9)
    assert len(server.bodies) == 4
    server.plan = lambda number, body: "no verdict"
    [score] = asyncio.run(judge.rate("p", ["aaa"], [Criterion("apt", "", {})]))
    assert (score.status, "no verdict" in (score.reason or "")) == ("error", True)


def test_reply_of_a_digit_judge_may_be_cut_but_not_before_its_digit(make: Make) -> None:
    judge, server = make(lambda number, body: "no logprobs", verdict="logprobs")
    assert ask(judge).outcome == "win", "its digit is in a JSON object"
    server.plan = lambda number, body: "cut at once"
    found = ask(judge, "other")
    assert found.outcome == "error"
    assert "no digit before the limit" in (found.reason or "")


# -- what servers take ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [name for name in REFUSALS if name != "too long"])
def test_parameter_that_a_server_refuses_is_left_out_from_then_on(
    make: Make, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    digit = fault == "no log-probs"
    judge, server = make(lambda number, body: fault, attempts=1, **({"verdict": "logprobs"} if digit else {}))
    with caplog.at_level(logging.WARNING):
        assert ask(judge).outcome == "win"
    asked = len(server.bodies)
    assert 1 < asked <= 4
    assert ask(judge, "short").outcome == "lose"
    assert len(server.bodies) == asked + 1, "what it refuses is learned once"
    assert len(caplog.records) == asked - 1, "one line for each"
    last = server.bodies[-1]
    assert not REFUSALS[fault][0](last)
    limit = 4 if digit else 256
    assert last.get("max_tokens", last.get("max_completion_tokens")) == limit
    assert judge.metrics()["judge/requests"] == asked + 1


def test_questions_at_once_all_learn_what_a_server_takes(make: Make) -> None:
    judge, server = make(lambda number, body: "a new model", attempts=1)

    async def many() -> list[Verdict]:
        return await judge.compare("Write.", [f"{LONGER} {n}" for n in range(12)], REFERENCE)

    assert [verdict.outcome for verdict in asyncio.run(many())] == ["win"] * 12
    assert len(server.bodies) <= 12 * 4


def test_schema_that_works_stays_after_a_bad_reply(make: Make) -> None:
    judge, server = make(lambda number, body: "empty" if number == 1 else "ok")
    for text in (LONGER, LONGER + "!", LONGER + "!!"):
        assert ask(judge, text).outcome == "win"
    assert ["response_format" in body for body in server.bodies] == [True, True, False, True]


def test_schema_that_only_gives_empty_replies_is_given_up(make: Make) -> None:
    judge, server = make(lambda number, body: "empty" if "response_format" in body else "ok")
    for text in (LONGER, LONGER + "!"):
        assert ask(judge, text).outcome == "win"
    assert ["response_format" in body for body in server.bodies] == [True, False, False]
    judge, server = make(server.plan, structured="schema", cache="none")
    assert ask(judge).outcome == "error", "the recipe insists on it"


def test_refusal_that_nothing_can_mend_names_its_cause_after_one_request(make: Make) -> None:
    judge, server = make(lambda number, body: "too long")
    found = ask(judge)
    assert (found.outcome, found.reason) == ("error", "status 400: This model's maximum context length is 8192 tokens.")
    assert len(server.bodies) == 1


def test_error_in_a_reply_of_status_200_is_not_charged(make: Make) -> None:
    budget = {"tokens": 100_000, "when_reached": "abstain"}
    judge, _ = make(
        lambda number, body: "error" if number < 200 else "ok", budget=budget, attempts=1, max_tokens=20_000
    )
    outcomes = [ask(judge, f"{LONGER} {n}").outcome for n in range(8)]
    assert outcomes == ["error"] * 8, "never an abstention: nothing was worked on"
