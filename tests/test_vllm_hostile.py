"""A vLLM server that answers nonsense, late, or with somebody's key: one clear line, and nothing is left behind."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.engine import EngineGone
from omni_thinker.policy.vllm.local import LocalEngine, _Worker
from omni_thinker.policy.vllm.make import check_vllm
from omni_thinker.policy.vllm.server import ServerEngine, read_event
from omni_thinker.policy.vllm.streams import Ask
from omni_thinker.recipe import parse_recipe
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.types import SamplingParams

KEY = "sk-of-nobody-else"
DESCRIBED = {"model": "m", "logprobs": "processed_logprobs", "longest": 64, "vocabulary": 10, "lora_rank": 0}
PLAIN: dict[str, Any] = {
    "/collective_rpc": json.dumps({"results": [DESCRIBED]}),
    "/v1/models": json.dumps({"data": [{"id": "m"}]}),
}


class _Server(http.server.ThreadingHTTPServer):
    """Answers each path with its text, or (status, text); None: never, and without an end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: dict[str, Any] = dict(PLAIN)
        self.over = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Who hangs up is expected here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = server.says.get(self.path, (404, "no such door"))
        if said is None:
            server.over.wait(30)
            return
        status, text = said if isinstance(said, tuple) else (200, said)
        if status == 0:
            self.wfile.write(text.encode())
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    made = _Server()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()


def spec(server: _Server, timeout_s: float = 20.0) -> VllmSpec:
    return VllmSpec(url=f"http://127.0.0.1:{server.server_address[1]}", timeout_s=timeout_s, max_num_seqs=2)


@pytest.mark.parametrize(
    "said",
    [
        "[]", "{}", "null", "<html>", '{"results": []}', '{"results": 3}', '{"results": [null]}', '{"results": [{}]}',
        json.dumps({"results": [DESCRIBED | {"longest": "64"}]}),
        json.dumps({"results": [DESCRIBED | {"logprobs": 1}]}),
        '{"results": ' + "[" * 100_000, "{", (500, f"you sent {KEY}"), (302, ""), (0, "no http at all\r\n"), (0, ""),
    ],
)  # fmt: skip
def test_server_that_describes_itself_by_nonsense_is_one_line(server: _Server, said: Any) -> None:
    server.says["/collective_rpc"] = said
    with pytest.raises(UserError, match=r"engine\.vllm\.url: .*start it with") as error:
        ServerEngine(spec(server))
    assert KEY not in str(error.value)


@pytest.mark.parametrize("said", ["{}", '{"data": []}', '{"data": [3]}', (401, KEY)])
def test_server_that_lists_no_model_is_one_line(server: _Server, said: Any) -> None:
    server.says["/v1/models"] = said
    with pytest.raises(UserError, match=r"engine\.vllm\.url") as error:
        ServerEngine(spec(server))
    assert KEY not in str(error.value)


def _event(tokens: Any, logprobs: Any) -> dict[str, Any]:
    return {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("tokens", "logprobs"),
    [
        ([1], [float("nan")]), ([1], [float("-inf")]), ([1], [0.5]), ([1], ["-1"]), ([1], [None]), ([1, 2], [-1.0]),
        ([1], []), ([10], [-1.0]), ([-1], [-1.0]), ([1.5], [-1.0]), (["1"], [-1.0]), ([True], [-1.0]), (5, [-1.0]),
    ],
)  # fmt: skip
def test_tokens_and_logprobs_that_make_no_sense_are_an_error(tokens: Any, logprobs: Any) -> None:
    with pytest.raises(EngineGone, match="the server"):
        read_event("k", _event(tokens, logprobs), 10)


@pytest.mark.parametrize(
    "event", [None, 3, [], "x", {}, {"choices": {}}, {"choices": [3]}, {"choices": [{"logprobs": 3}]}]
)
def test_events_of_another_form_are_an_error(event: Any) -> None:
    with pytest.raises(EngineGone, match="the server says"):
        read_event("k", event, 10)


def _begin(engine: ServerEngine) -> None:
    engine.begin([Ask("k", (1, 2), 4, 0)], SamplingParams(1), frozenset({0}), 0)


def _poll_all(engine: ServerEngine) -> None:
    for _ in range(3):
        engine.poll()


@pytest.mark.parametrize(
    "said",
    [
        "data: {", "", "data: [DONE]\n\n", f"data: {json.dumps(_event([1], [-1.0]))}\n", (500, KEY), (0, ""),
        f'data: {{"error": "{KEY}"}}\n', "data: " + "1" * (1 << 23),
    ],
)  # fmt: skip
def test_answer_that_breaks_off_ends_the_run_with_a_line(server: _Server, said: Any) -> None:
    engine = ServerEngine(spec(server))
    server.says["/v1/completions"] = said
    _begin(engine)
    with pytest.raises(EngineGone, match="--resume") as error:
        _poll_all(engine)
    assert KEY not in str(error.value)


def test_answers_that_nobody_waits_for_hold_nothing_up_and_say_nothing(server: _Server) -> None:
    """A thread that reads on from a server which never answers would keep the process from ending."""
    engine = ServerEngine(spec(server, timeout_s=1.5))
    server.says["/v1/completions"] = None
    _begin(engine)
    while not engine._open:
        time.sleep(0.01)
    time.sleep(0.1)
    engine.drop(["k"])
    began = time.monotonic()
    engine._pool.shutdown(wait=True)
    assert time.monotonic() - began < 1
    assert engine._pieces.empty()


def test_key_that_no_header_can_hold_is_not_named(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in (f"{KEY}\nX: 1", f"{KEY}\x7f", f"{KEY}é"):
        monkeypatch.setenv("VLLM_API_KEY", bad)
        with pytest.raises(UserError, match="VLLM_API_KEY holds no key") as error:
            ServerEngine(spec(server))
        assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://me:hidden@127.0.0.1:1", "must not contain a password"),
        ("http://127.0.0.1:1/v1", r"must be a server alone, such as http://127\.0\.0\.1:1,"),
        ("ftp://me:hidden@host", "must not contain a password"),
        ("me:hidden@host:80", "must not contain a password"),
        ("http://127.0.0.1:x", "isn't an address"),
        ("http://127.0.0.1:99999", "isn't an address"),
        ("http://192.0.2.1:8000", r"use https, or set engine\.vllm\.allow_http"),
    ],
)
def test_addresses_that_must_not_be_asked_are_one_line(url: str, line: str) -> None:
    engine = {"sampler": "vllm", "vllm": {"url": url}}
    recipe = parse_recipe({"tasks": {"math": {"source": "builtin:math"}}, "engine": engine}, "here")
    with pytest.raises(UserError, match=line) as error:
        check_vllm(recipe)
    assert "hidden" not in str(error.value)


def test_a_killed_process_is_named_before_what_vllm_says_of_it(tmp_path: Path) -> None:
    engine: Any = LocalEngine.__new__(LocalEngine)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    engine.alive, engine.log, engine._timeout_s = True, tmp_path / "log", 30.0
    engine._worker, engine._engine, engine._processes = _Worker(), None, {process}
    engine.log.write_text("EngineDeadError: see the trace above\n")

    def step() -> None:
        process.kill()
        raise RuntimeError("see the trace above")

    with pytest.raises(EngineGone, match="vLLM is gone: its process ended, by signal 9; its log is"):
        engine._do(step)
    with pytest.raises(EngineGone, match="it has ended"):
        engine._do(step)
