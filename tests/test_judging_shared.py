"""One judge for several processes: its limits, budget, cache and counts hold for all of them together."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from judge_server import FAULTS, JudgeServer
from judge_worker import Worker
from omni_thinker.judging import Verdict
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.guards import LengthGuard
from omni_thinker.judging.make import make_endpoint_judge
from omni_thinker.judging.pairwise import EndpointJudge
from omni_thinker.judging.shared.counts import Counts
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.judging.shared.share import Share
from omni_thinker.judging.tally import TalliedJudge, Tally
from omni_thinker.recipe import EndpointSpec, JudgeSpec

REFERENCE = "five letters here"
LONGER = "longer than the reference"
Serve = Callable[..., JudgeServer]
Own = Callable[..., tuple[JudgeOwner, dict[str, Any]]]
Plan = Callable[[int, dict[str, Any]], str]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    """(the owner, the keys of its endpoint)."""
    owners: list[JudgeOwner] = []

    def make(server: JudgeServer, **keys: Any) -> tuple[JudgeOwner, dict[str, Any]]:
        spec: dict[str, Any] = {
            "base_url": server.url,
            "model": "long",
            "cache": str(tmp_path / "cache.sqlite"),
            "both_seats": False,
        }
        spec |= {"structured": "text", **keys}
        owners.append(JudgeOwner(JudgeSpec(kind="endpoint", endpoint=EndpointSpec(**spec))))
        return owners[-1], spec

    yield make
    for owner in owners:
        owner.close()


def texts_of(numbers: range) -> list[str]:
    return [f"{LONGER if n % 2 else 'x'} {n}" for n in numbers]


def expected(numbers: range) -> list[str]:
    return ["win" if n % 2 else "lose" for n in numbers]


def until(true: Callable[[], object]) -> None:
    """Wait for that, a minute at most."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def most_within(times: list[float], seconds: float) -> int:
    """The most requests in any such span."""
    first, most = 0, 0
    for last, moment in enumerate(times):
        while moment - times[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.timeout(280)
def test_two_thousand_judgements_of_two_processes_are_right_and_paid_once(serve: Serve, own: Own) -> None:
    """400 of the questions are both processes' own."""
    rng = random.Random(3)
    faults = [fault for fault in FAULTS if fault != "prose"]

    def plan(number: int, body: dict[str, Any]) -> str:
        if 400 <= number < 440:
            return "429"
        return rng.choice(faults) if rng.random() < 0.12 else "ok"

    server, rate = serve(plan), 6000
    owner, spec = own(
        server, concurrency=32, attempts=14, timeout_s=3.0, price={"input": 2.0, "output": 8.0},
        requests_per_minute=rate, budget={"requests": 4000},
    )  # fmt: skip
    numbers = {"a": range(1200), "b": range(800, 2000)}
    workers = {
        name: Worker(owner, name, {"spec": spec, "texts": texts_of(of), "reference": REFERENCE})
        for name, of in numbers.items()
    }
    for name, worker in workers.items():
        assert worker.wait(240)["outcomes"] == expected(numbers[name])
        owner.keep(name, worker.result["mark"])
    assert server.most_at_once <= 32 + 40, "a hang is given up by the client before the server notices"
    found, usage = owner.metrics(), owner.state()["usage"]
    assert usage["requests"] == found["judge/requests"] == len(server.times)
    assert (usage["input_tokens"], usage["output_tokens"]) == tuple(server.tokens)
    assert usage["money"] == pytest.approx((2.0 * server.tokens[0] + 8.0 * server.tokens[1]) / 1e6)
    assert len(server.questions) == 2000
    assert max(server.questions.values()) <= 2, "asked again only where a reply was lost"
    assert found["judge/verdicts"] == 2400
    assert found["judge/error_rate"] == 0.0
    bucket, leak = rate / 60, (rate - rate / 60) / 61
    for seconds in (0.5, 2.0, 5.0):  # what is on its way, up to a second, may bunch; 60 s hold no more than the rate
        assert most_within(server.times, seconds) <= bucket + leak * (seconds + 1.0) + 5
    assert len(server.times) > 2200, "so the limit was met"
    assert server.times[-1] - server.times[0] > (len(server.times) - bucket) / leak - 1.0


def test_two_processes_share_one_budget(serve: Serve, own: Own) -> None:
    server = serve()
    owner, spec = own(server, budget={"requests": 150})
    workers = [
        Worker(owner, str(n), {"spec": spec, "texts": texts_of(range(200 * n, 200 * n + 200)), "reference": REFERENCE})
        for n in range(2)
    ]
    results = [worker.wait(120) for worker in workers]
    assert len(server.times) == 150
    decided = [outcome for result in results for outcome in result["outcomes"] if outcome != "abstain"]
    assert len(decided) == 150
    assert all(result["exhausted"] for result in results if "abstain" in result["outcomes"])
    assert owner.exhausted
    assert owner.metrics()["judge/requests"] == 150


def test_killed_process_gives_its_slots_and_questions_back(serve: Serve, own: Own, tmp_path: Path) -> None:
    server = serve(lambda number, body: "ok" if number < 6 or number >= 10 else "hang")
    owner, spec = own(server, concurrency=4, budget={"tokens": 1_000_000}, price={"input": 1.0})
    texts = texts_of(range(30))
    first = Worker(owner, "unit 1", {"spec": spec, "texts": texts, "reference": REFERENCE, "group": 1})
    until(lambda: len(server.times) == 10)
    second = Worker(owner, "unit 2", {"spec": spec, "texts": texts, "reference": REFERENCE})
    until(lambda: second.messages >= 30)  # it waits for what the first one asks
    time.sleep(0.5)
    assert len(server.times) == 10, "all four slots are taken"
    first.kill()
    assert second.wait(60)["outcomes"] == expected(range(30))
    assert sum(server.questions.values()) == 30, "replies of the first one are in the cache"
    assert owner.state()["tally"]["counts"][0] == 0, "its checkpoint isn't written yet"
    owner.keep("unit 2", second.result["mark"])
    found = owner.metrics()
    assert found["judge/verdicts"] == 30, "what the first one counted is taken back"
    assert found["judge/requests"] == len(server.times) == 34
    assert owner.metrics()["judge/money"] == pytest.approx(server.tokens[0] / 1e6)
    late = owner.submit("unit 1", "begin", {"ticket": "late", "key": "k", "most": 20, "unread": False}).result(10)
    assert late == {"failed": "this process was given up"}


def test_reservations_of_the_dead_count_against_the_budget(serve: Serve, own: Own) -> None:
    owner, _ = own(serve(), budget={"tokens": 1000}, max_tokens=300)
    ask = {"key": "k", "most": 300, "unread": False}
    assert owner.submit("a", "begin", {"ticket": "1", **ask}).result(10)["number"] == 1
    assert "spent" in owner.submit("b", "begin", {"ticket": "2", **ask, "key": "other"}).result(10)
    again = owner.submit("b", "begin", {"ticket": "3", **ask})  # waits for what `a` asks
    time.sleep(0.1)
    assert not again.done()
    owner.gone("a")
    owner.gone("a")
    assert "spent" in again.result(10)
    smaller = owner.submit("b", "begin", {"ticket": "4", **ask, "most": 90}).result(10)
    assert smaller["number"] == 2, "600 of 1,000 tokens are lost, 390 are asked for"


# -- within one process, over the same door ---------------------------------------------------------------------------


class Door:
    """A `Call` to an owner in this process that takes nothing but JSON, and counts."""

    def __init__(self, owner: JudgeOwner, caller: str) -> None:
        self.owner, self.caller, self.methods, self.late_s = owner, caller, list[str](), 0.0

    def __call__(self, method: str, arguments: dict[str, Any]) -> Future[Any]:
        self.methods.append(method)
        answer: Future[Any] = Future()

        def fill(done: Future[Any]) -> None:
            threading.Timer(self.late_s, lambda: answer.set_result(json.loads(json.dumps(done.result())))).start()

        self.owner.submit(self.caller, method, json.loads(json.dumps(arguments))).add_done_callback(fill)
        return answer


@pytest.fixture
def through(own: Own) -> Iterator[Callable[..., tuple[EndpointJudge, Door]]]:
    judges: list[EndpointJudge] = []

    def make(owner: JudgeOwner, spec: dict[str, Any], caller: str = "me") -> tuple[EndpointJudge, Door]:
        door = Door(owner, caller)
        judges.append(make_endpoint_judge(EndpointSpec(**spec), Share(door)))
        return judges[-1], door

    yield make
    for judge in judges:
        judge.close()


Through = Callable[..., tuple[EndpointJudge, Door]]


def ask(judge: EndpointJudge, texts: list[str]) -> list[Verdict]:
    return asyncio.run(judge.compare("Write.", texts, REFERENCE))


def test_fresh_question_takes_two_messages_and_a_known_one_takes_one(serve: Serve, own: Own, through: Through) -> None:
    server = serve()
    judge, door = through(*own(server))
    assert [v.outcome for v in ask(judge, texts_of(range(40)))] == expected(range(40))
    assert (door.methods.count("begin"), door.methods.count("end")) == (40, 40)
    assert set(door.methods) <= {"begin", "end", "tell"}
    del door.methods[:]
    ask(judge, texts_of(range(40)))
    assert door.methods.count("begin") == 40
    assert set(door.methods) <= {"begin", "tell"}
    assert len(server.times) == 40
    assert judge.metrics()["judge/cache_hits"] == 0.5
    assert judge.metrics()["judge/verdicts"] == 80


@pytest.mark.parametrize("fault", [*FAULTS, "401"])
def test_fault_through_an_owner_gives_what_it_gives_without(
    serve: Serve, own: Own, through: Through, fault: str
) -> None:
    keys = {"attempts": 2, "timeout_s": 0.3, "cache": "none", "price": {"input": 1.0, "output": 2.0}}
    server = serve(lambda number, body: fault)
    owner, spec = own(server, **keys)
    shared, _ = through(owner, spec)
    alone = make_endpoint_judge(EndpointSpec(**spec))
    found = [ask(judge, [f"{LONGER} 1", "x 2"]) for judge in (shared, alone)]
    alone.close()
    assert found[0] == found[1]
    assert owner.state()["tally"] == Tally().state()
    owner.keep("me", shared.state()["tally"])
    assert owner.state()["tally"] == alone.state()["tally"]
    assert shared.metrics() == owner.metrics() == pytest.approx(alone.metrics())


def test_unreadable_reply_in_the_cache_is_asked_for_again(
    serve: Serve, own: Own, through: Through, tmp_path: Path
) -> None:
    server = serve()
    judge, _ = through(*own(server))
    ask(judge, ["x"])
    cache = JudgeCache(tmp_path / "cache.sqlite")
    [row] = cache.rows()
    cache.clear()
    cache.put(row["key"], Reply("nothing", 1, 1), model="long", prompt_version="v")
    assert ask(judge, ["x"])[0].outcome == "lose"
    assert len(server.times) == 2
    assert judge.client.desk.metrics()["judge/cache_hits"] == 0.0


def test_question_given_up_frees_its_slot_and_the_next_has_the_turn(serve: Serve, own: Own, through: Through) -> None:
    server = serve(lambda number, body: "hang" if number == 0 else "ok")
    owner, spec = own(server, concurrency=1, timeout_s=20.0, deadline_s=20.0)
    impatient, _ = through(owner, spec | {"deadline_s": 1.0}, "impatient")
    patient, _ = through(owner, spec, "patient")

    async def both() -> list[list[Verdict]]:
        first = asyncio.ensure_future(impatient.compare("Write.", ["x 1"], REFERENCE))
        await asyncio.to_thread(until, lambda: server.times)
        return [await patient.compare("Write.", ["x 2"], REFERENCE), await first]

    began = time.monotonic()
    found, given_up = asyncio.run(both())
    assert found[0].outcome == "lose"
    assert given_up[0] == Verdict("error", None, "no reply within 1 s")
    assert 0.8 < time.monotonic() - began < 10
    assert owner.metrics()["judge/requests"] == 2


def test_client_that_closes_leaves_its_turn_to_others(serve: Serve, own: Own, through: Through) -> None:
    server = serve(lambda number, body: "hang" if number == 0 else "ok")
    owner, spec = own(server, concurrency=1)
    closing, _ = through(owner, spec, "closing")
    other, _ = through(owner, spec, "other")

    async def both() -> list[Verdict]:
        given_up = asyncio.ensure_future(closing.compare("Write.", ["x 1", "x 2"], REFERENCE))
        await asyncio.to_thread(until, lambda: server.times)
        found = asyncio.ensure_future(other.compare("Write.", ["x 1"], REFERENCE))
        await asyncio.sleep(0.2)
        assert not found.done(), "the other one asks that already"
        await asyncio.to_thread(closing.close)
        await asyncio.gather(given_up, return_exceptions=True)
        return await found

    assert asyncio.run(both())[0].outcome == "lose"


@pytest.mark.parametrize("late", [0.0, 1.3])
def test_reservation_that_arrives_late_is_given_back(serve: Serve, own: Own, through: Through, late: float) -> None:
    server = serve()
    judge, door = through(*own(server, requests_per_minute=6000))
    ask(judge, ["x 0"])
    del door.methods[:]
    door.late_s = late
    assert ask(judge, ["x 1"])[0].outcome == "lose"
    again = ["release", "reserve"] if late else []
    assert [method for method in door.methods if method != "tell"] == ["begin", *again, "end"]
    door.late_s = 0.0
    assert judge.metrics()["judge/requests"] == len(server.times) == 2


def test_server_that_is_away_is_waited_for(serve: Serve, own: Own, through: Through) -> None:
    server = serve()
    owner, spec = own(server, attempts=2, concurrency=4, requests_per_minute=600)
    judge, _ = through(owner, spec)
    ask(judge, ["x 0"])
    server.close()

    async def meanwhile() -> list[Verdict]:
        waiting = asyncio.ensure_future(judge.compare("Write.", texts_of(range(1, 20)), REFERENCE))
        await asyncio.sleep(2.0)
        back.append(await asyncio.to_thread(partial(serve, port=server.port)))
        return await waiting

    back: list[JudgeServer] = []
    assert [v.outcome for v in asyncio.run(meanwhile())] == expected(range(1, 20))
    assert most_within(back[0].times, 0.5) <= 10 + 5 + 2, "what was reserved before doesn't come all at once"
    assert owner.metrics()["judge/requests"] == len(server.times) + len(back[0].times), "what never got there is free"


# -- counts -----------------------------------------------------------------------------------------------------------


def counted(*outcomes: str) -> dict[str, Any]:
    tally = Tally()
    for outcome in outcomes:
        tally.verdict(Verdict(outcome), "x" * 5, "y" * 3)  # type: ignore[arg-type]
    tally.guard(guarded=True)
    return tally.take()


def test_counts_since_the_last_kept_mark_are_taken_back() -> None:
    counts = Counts()
    counts.add("a", counted("win", "tie"))
    first = counts.mark("a")
    counts.add("a", counted("lose"))
    counts.add("b", counted("error"))
    second = counts.mark("a")
    counts.add("a", counted("lose", "lose"))
    assert counts.all.metrics()["judge/verdicts"] == 5
    assert counts.kept.metrics()["judge/verdicts"] == 0
    counts.keep("a", first)
    counts.keep("a", first)
    assert counts.kept.metrics()["judge/verdicts"] == 2
    counts.keep("a", second)
    assert counts.kept.all_counts()["counts"] == [3, 1, 3, 0]
    counts.gone("a")
    counts.gone("nobody")
    assert counts.all.all_counts()["counts"] == [3, 1, 3, 1]
    assert counts.all.guards == (3, 3)
    counts.keep("b", None)
    counts.gone("b")
    assert counts.all.all_counts() == counts.kept.all_counts()


def test_checkpoint_that_arrives_after_its_process_died_is_counted() -> None:
    counts = Counts()
    counts.add("a", counted("win"))
    mark = counts.mark("a")
    counts.add("a", counted("lose"))
    counts.gone("a")
    assert counts.all.all_counts() == Tally().all_counts()
    for _ in range(2):
        counts.keep("a", mark)
        counts.keep("a", None)
        assert counts.all.all_counts() == counts.kept.all_counts() == counted("win")


@pytest.mark.parametrize("ratio", [None, 1.5])
def test_judges_that_compute_here_count_for_the_whole(ratio: float | None) -> None:
    owner = JudgeOwner(JudgeSpec(kind="likelihood", longest_win=ratio))
    shares = [Share(Door(owner, name)) for name in "ab"]
    alone = LengthTold(Tally())
    judges: list[Any] = [*(LengthTold(share.tally) for share in shares), alone]
    if ratio is not None:
        judges = [LengthGuard(judge, ratio, tally) for judge, tally in zip(
            judges, [*(share.tally for share in shares), None], strict=True
        )]  # fmt: skip
    for n in range(150):
        text = "x" * (10 + n % 30)
        for judge in (judges[n % 2], judges[2]):
            asyncio.run(judge.compare("p", [text], "y" * 20))
    marks = [share.state() for share in shares]
    assert judges[0].metrics() == judges[2].metrics() == owner.metrics() != {}
    for name, mark in zip("ab", marks, strict=True):
        owner.keep(name, mark)
    assert owner.state() == judges[2].state()
    assert len(shares[0]._call.methods) <= 8, "verdicts are told in batches"  # type: ignore[attr-defined]
    later = JudgeOwner(JudgeSpec(kind="likelihood", longest_win=ratio))
    later.restore(json.loads(json.dumps(owner.state())))
    assert (later.state(), later.metrics()) == (owner.state(), owner.metrics())
    assert not later.exhausted
    for made in (owner, later):
        made.close()


class LengthTold(TalliedJudge):
    """The longer text wins."""

    name, caveat = "longer", "No judge."

    async def compare(self, prompt: str, responses: list[str], reference: str) -> list[Verdict]:
        return self.counted(
            [
                Verdict("win" if len(r) > len(reference) else "tie" if len(r) == len(reference) else "lose")
                for r in responses
            ],
            responses,
            reference,
        )


def test_state_goes_from_a_judge_of_one_process_to_an_owner_and_back(serve: Serve, own: Own) -> None:
    server = serve()
    owner, spec = own(server)
    before = make_endpoint_judge(EndpointSpec(**spec))
    ask(before, texts_of(range(5)))
    owner.restore(json.loads(json.dumps(before.state())))
    assert owner.state() == before.state()
    assert owner.metrics() == before.metrics()
    after = make_endpoint_judge(EndpointSpec(**spec))
    after.restore(owner.state())
    assert after.metrics() == before.metrics()
    for judge in (before, after):
        judge.close()
