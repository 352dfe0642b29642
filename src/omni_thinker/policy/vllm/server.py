"""vLLM on a server that others started, by its OpenAI interface with token ids and its doors for developers.

One thread reads the stream of one answer. Whoever drops an ask closes its connection, and the server stops drawing."""

import json
import os
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
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
        self._pool = ThreadPoolExecutor(spec.max_num_seqs, thread_name_prefix="omni-vllm")
        self._adapter = ""
        self.described = self._describe()
        self.longest = int(self.described["longest"])
        self._model = str(self._ask("GET", "/v1/models")["data"][0]["id"])

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

    def call(self, method: str, *arguments: object) -> list[Any]:
        results: list[Any] = self._ask("POST", "/collective_rpc", {"method": method, "args": arguments})["results"]
        return results

    def add_adapter(self, folder: Path, version: int) -> int:
        if self._adapter:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
            self._adapter = ""
        name = ADAPTER.format(version=f"{os.getpid()}-{version}")
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self._adapter = name
        return max(map(int, self.call("omni_adapters")[0]))  # the server counts them

    def forget(self) -> None:
        for _ in range(_TRIES):
            if self._ask("POST", "/reset_prefix_cache")["success"]:
                return
            time.sleep(_PAUSE_S)  # an answer that was dropped a moment ago may still hold its part
        raise EngineGone(f"{self._spec.url} draws for others too: its prefix cache is in use")

    def close(self) -> None:
        self._wanted.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _describe(self) -> dict[str, Any]:
        try:
            described: dict[str, Any] = self.call("omni_describe")[0]
        except EngineGone as exc:
            raise UserError(f"{exc.why}; {_remedy()}", key=KEY) from None
        if described["logprobs"] != "processed_logprobs":
            raise UserError(
                f"its log-probs are {described['logprobs']}, not of what it draws from; {_remedy()}", key=KEY
            )
        return described

    def _draw(self, key: str, body: Mapping[str, Any]) -> None:
        """Read one answer as it is drawn."""
        if key not in self._wanted:
            return
        try:
            with self._connection() as connection:
                for piece in _pieces(key, self._send(connection, "POST", "/v1/completions", body)):
                    if key not in self._wanted:
                        return
                    self._pieces.put(piece)
                    if piece.ended:
                        return
            raise HTTPException("an answer broke off")
        except EngineGone as exc:
            self._pieces.put(exc)
        except Exception as exc:  # in a thread: whoever polls is to hear of it
            self._pieces.put(EngineGone(f"{self._spec.url}: {type(exc).__name__}: {exc}"))
        finally:
            self._wanted.discard(key)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            with self._connection() as connection:
                text = self._send(connection, method, path, body).read()
            return json.loads(text) if text[:1] in (b"{", b"[") else None
        except (OSError, HTTPException, ValueError) as exc:
            raise EngineGone(f"{self._spec.url}{path}: {type(exc).__name__}: {exc}") from None

    def _connection(self) -> "_Closing":
        make = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
        return _Closing(make(self._place.hostname or "", self._place.port, timeout=self._spec.timeout_s))

    def _send(self, connection: HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None) -> HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self._spec.key_env):
            headers["Authorization"] = f"Bearer {secret}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = response.read().decode("utf-8", "replace").replace(secret or "\0", "...")
            raise EngineGone(f"{self._spec.url}{path} answered {response.status}: {said:.200}")
        return response


class _Closing:
    """A connection that is closed at the end."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection

    def __enter__(self) -> HTTPConnection:
        return self._connection

    def __exit__(self, *exc: object) -> None:
        self._connection.close()


def _pieces(key: str, lines: HTTPResponse) -> Iterator[Piece]:
    """What a stream of server-sent events holds."""
    for line in lines:
        text = line.decode("utf-8").strip()
        if not text.startswith("data:") or (data := text.removeprefix("data:").strip()) == _DONE:
            continue
        yield read_event(key, json.loads(data))


def read_event(key: str, event: Mapping[str, Any]) -> Piece:
    """One event of a stream. Raises EngineGone where it is an error."""
    if not event.get("choices"):
        raise EngineGone(f"the server says {json.dumps(event.get('error', event)):.200}")
    choice = event["choices"][0]
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return Piece(key, choice.get("token_ids") or [], logprobs, choice.get("finish_reason") is not None)


def _remedy() -> str:
    return (
        "start it with VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model ... "
        f"--logprobs-mode processed_logprobs --generation-config vllm --worker-extension-cls {EXTENSION}"
    )
