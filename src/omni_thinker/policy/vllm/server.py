"""vLLM on a server that others started, by its OpenAI interface with token ids and its doors for developers.

One thread reads the stream of one answer. Whoever drops an ask closes its connection, and the server stops drawing."""

import json
import os
import queue
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.engine import ADAPTER, EngineGone, draw_options
from omni_thinker.policy.vllm.streams import Ask, Piece
from omni_thinker.policy.vllm.worker import EXTENSION
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.types import SamplingParams

KEY = "engine.vllm.url"
_DONE = "[DONE]"
_MOST_BYTES, _LONGEST_LINE = 1 << 26, 1 << 22
"""Of an answer, and of a line of a stream: whoever sends more is no vLLM."""
_ABOVE_ZERO = 1e-3
"""Rounding by which a log-prob may be above 0."""
_TRIES, _PAUSE_S = 50, 0.2
"""How often, and how long apart, a server is asked to forget."""


@cache
def server_engine(spec: VllmSpec) -> "ServerEngine":
    """The server of a recipe: all policies of a process share one."""
    return ServerEngine(spec)


class ServerEngine:
    """Implements the Engine protocol."""

    def __init__(self, spec: VllmSpec) -> None:
        """Raises UserError where the server can't be reached, or was started without what is needed."""
        self._spec, self._place = spec, urlsplit(spec.url)
        self._pieces: queue.Queue[Piece | UserError] = queue.Queue()
        self._wanted: set[str] = set()
        self._open: dict[str, HTTPConnection] = {}
        """Connections of the answers that are being drawn."""
        self._pool = ThreadPoolExecutor(spec.max_num_seqs, thread_name_prefix="omni-vllm")
        self._adapter = ""
        self.described = self._describe()
        self.longest = int(self.described["longest"])
        try:
            self._model = str(self._ask("GET", "/v1/models")["data"][0]["id"])
        except EngineGone as exc:
            raise UserError(f"{exc.why}; {_remedy()}", key=KEY) from None
        except (LookupError, TypeError):
            raise UserError(f"the server lists no model; {_remedy()}", key=KEY) from None

    def begin(self, asks: Sequence[Ask], params: SamplingParams, stop_ids: frozenset[int], adapter: int) -> None:
        model = self._adapter if adapter else self._model
        for ask in asks:
            body = {
                **draw_options(ask, params, stop_ids),
                "model": model,
                "prompt": list(ask.prompt),
                "stream": True,
                "return_token_ids": True,
            }
            self._wanted.add(ask.key)
            self._pool.submit(self._draw, ask.key, body)

    def poll(self) -> list[Piece]:
        found: list[Piece | UserError] = []
        try:
            found.append(self._pieces.get(timeout=self._spec.timeout_s))
            while True:
                found.append(self._pieces.get_nowait())
        except queue.Empty:
            if not found:
                raise EngineGone(f"no sign of life for {self._spec.timeout_s:g} s from {self._spec.url}") from None
        for one in found:
            if isinstance(one, UserError):
                raise one
        return [one for one in found if isinstance(one, Piece)]

    def drop(self, keys: Sequence[str]) -> None:
        self._wanted.difference_update(keys)
        for key in keys:
            if (connection := self._open.get(key)) is not None and connection.sock is not None:
                with suppress(OSError):  # its thread would read on, and the end of this process wait for it
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def call(self, method: str, *arguments: object) -> list[Any]:
        answer = self._ask("POST", "/collective_rpc", {"method": method, "args": arguments})
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not results:
            raise EngineGone(f"{self._spec.url}/collective_rpc has no results of {method}")
        return results

    def add_adapter(self, folder: Path, version: int) -> int:
        if self._adapter:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
            self._adapter = ""
        name = ADAPTER.format(version=f"{os.getpid()}-{version}")
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self._adapter = name
        try:
            return max(map(int, self.call("omni_adapters")[0]))  # the server counts them
        except (ValueError, TypeError):
            raise EngineGone(f"{self._spec.url} has no adapter after one was loaded") from None

    def forget(self) -> None:
        for _ in range(_TRIES):
            answer = self._ask("POST", "/reset_prefix_cache")
            if isinstance(answer, dict) and answer.get("success"):
                return
            time.sleep(_PAUSE_S)  # an answer that was dropped a moment ago may still hold its part
        raise EngineGone(f"{self._spec.url} draws for others too: its prefix cache is in use")

    def close(self) -> None:
        self.drop([*self._wanted])
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _describe(self) -> dict[str, Any]:
        try:
            described: dict[str, Any] = self.call("omni_describe")[0]
        except EngineGone as exc:
            raise UserError(f"{exc.why}; {_remedy()}", key=KEY) from None
        whole = ("longest", "vocabulary", "lora_rank")
        if not isinstance(described, dict) or not all(type(described.get(name)) is int for name in whole):
            raise UserError(f"its workers don't say what they are; {_remedy()}", key=KEY)
        if described.get("logprobs") != "processed_logprobs":
            raise UserError(
                f"its log-probs are {described.get('logprobs')!s:.40}, not of what it draws from; {_remedy()}", key=KEY
            )
        return described

    def _draw(self, key: str, body: Mapping[str, Any]) -> None:
        """Read one answer as it is drawn."""
        if key not in self._wanted:
            return
        try:
            with self._connection() as connection:
                self._open[key] = connection
                for event in _events(self._send(connection, "POST", "/v1/completions", body)):
                    if key not in self._wanted:
                        return
                    piece = read_event(key, event, self.described["vocabulary"])
                    self._pieces.put(piece)
                    if piece.ended:
                        return
            raise HTTPException("an answer broke off")
        except Exception as exc:  # in a thread: whoever polls is to hear of it, unless nobody waits for this answer
            if key in self._wanted:
                why = exc.why if isinstance(exc, EngineGone) else f"{self._spec.url}: {type(exc).__name__}: {exc}"
                self._pieces.put(EngineGone(self._without_key(why)))
        finally:
            self._open.pop(key, None)
            self._wanted.discard(key)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            with self._connection() as connection:
                text = self._send(connection, method, path, body).read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError("an answer without an end")
            return json.loads(text) if text[:1] in (b"{", b"[") else None
        except (OSError, HTTPException, ValueError, RecursionError) as exc:
            why = self._without_key(f"{self._spec.url}{path}: {type(exc).__name__}: {exc}")
            raise EngineGone(why) from None

    def _connection(self) -> "_Closing":
        make = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
        return _Closing(make(self._place.hostname or "", self._place.port, timeout=self._spec.timeout_s))

    def _send(self, connection: HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None) -> HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if secret := self._key():
            headers["Authorization"] = f"Bearer {secret}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = self._without_key(response.read(_LONGEST_LINE).decode("utf-8", "replace"))
            raise EngineGone(f"{self._spec.url}{path} answered {response.status}: {said:.200}")
        return response

    def _key(self) -> str:
        """The server's key, "" where it has none. Raises UserError for one that no header can hold: an error of the
        library would name it."""
        secret = os.environ.get(self._spec.key_env, "").strip()
        if not (secret.isascii() and secret.isprintable()):
            raise UserError(f"the environment variable {self._spec.key_env} holds no key: it isn't plain text", key=KEY)
        return secret

    def _without_key(self, text: str) -> str:
        return text.replace(self._key() or "\0", "...")


class _Closing:
    """A connection that is closed at the end."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def __enter__(self) -> HTTPConnection:
        return self._connection

    def __exit__(self, *exc: object) -> None:
        self._connection.close()


def _events(lines: HTTPResponse) -> Iterator[Any]:
    """What a stream of server-sent events holds."""
    while line := lines.readline(_LONGEST_LINE):
        text = line.decode("utf-8").strip()
        if not text.startswith("data:") or (data := text.removeprefix("data:").strip()) == _DONE:
            continue
        yield json.loads(data)


def read_event(key: str, event: Any, vocabulary: int) -> Piece:
    """One event of a stream. Raises EngineGone where it is an error, or gives something else than tokens of a
    `vocabulary` of so many and a log-prob of each."""
    if not isinstance(event, dict) or not event.get("choices"):
        said = event.get("error", event) if isinstance(event, dict) else event
        raise EngineGone(f"the server says {json.dumps(said):.200}")
    try:
        choice = event["choices"][0]
        tokens = choice.get("token_ids") or []
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        known = all(type(token) is int and 0 <= token < vocabulary for token in tokens)
        numbers = all(isfinite(logprob) and logprob <= _ABOVE_ZERO for logprob in logprobs)
    except (LookupError, AttributeError, TypeError):
        raise EngineGone(f"the server says {json.dumps(event):.200}") from None
    if not known or not numbers or len(tokens) != len(logprobs):
        raise EngineGone(f"the server's tokens or log-probs make no sense: {json.dumps(choice):.200}")
    return Piece(key, tokens, logprobs, choice.get("finish_reason") is not None)


def _remedy() -> str:
    return (
        "start it with VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model ... "
        f"--logprobs-mode processed_logprobs --generation-config vllm --worker-extension-cls {EXTENSION}"
    )
