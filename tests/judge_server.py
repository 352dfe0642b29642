"""A judge behind HTTP that prefers the longer answer, and misbehaves on request. Real sockets, real faults."""

from __future__ import annotations

import asyncio
import json
import math
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from judge_replies import OTHER_BODIES, READABLE, REFUSALS, UNREADABLE

FAULTS = ("429", "500", "503", "hang", "half", "schema", "choices", "utf8", "reset", "prose", "slow")
_ANSWERS = re.compile(
    r"\[(\w+) answer 1\]\n(.*?)\n\[\1 end of answer 1\]\s+\[\1 answer 2\]\n(.*?)\n\[\1 end of answer 2\]", re.S
)
_ANSWER = re.compile(r"\[(\w+) answer (\d+)\]\n(.*?)\n\[\1 end of answer \2\]", re.S)
_CRITERION = re.compile(r"^\d+\. (\w+)", re.M)
Plan = Callable[[int, dict[str, Any]], str]


def verdict(text: str) -> int:
    """What this judge thinks: the longer answer is better. Finds the answers by the marks around them."""
    found = _ANSWERS.search(text)
    if found is None:
        raise ValueError("the answers can't be told apart")
    first, second = len(found[2]), len(found[3])
    return 0 if first == second else 1 if first > second else 2


def decide(text: str) -> dict[str, Any]:
    """The longer answer is better; a criterion gives as many points as the answer has its name's first letter."""
    answers = [found[3] for found in _ANSWER.finditer(text)]
    if '{"ranking"' in text:
        return {"ranking": sorted(range(1, len(answers) + 1), key=lambda n: -len(answers[n - 1]))}
    if '{"scores"' in text:
        criteria = _CRITERION.findall(text[text.index("\nCriteria:") :])
        return {"scores": [min(10, 1 + answers[0].count(name[0])) for name in criteria]}
    return {"better": verdict(text)}


def chances(text: str) -> list[dict[str, Any]]:
    """Log-probs of a digit, as servers spell them: the longer answer is four times as likely to be better."""
    better = verdict(text)
    odds = {"1": 0.5, "2": 0.5} if better == 0 else {str(better): 0.8, str(3 - better): 0.2}
    tokens = [("1", 0.5 * odds["1"]), (" 1", 0.25 * odds["1"]), ("2", 0.75 * odds["2"]), ("The", 0.25)]
    top = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in tokens]
    return [{**top[0], "top_logprobs": top}]


class JudgeServer:
    """`plan(number, body)` names what happens to a request: "ok", one of FAULTS, or a name of judge_replies."""

    def __init__(
        self,
        plan: Plan = lambda number, body: "ok",
        *,
        delay: float = 0.0,
        certificate: Path | None = None,
        port: int = 0,
    ) -> None:
        self.plan, self.delay = plan, delay
        self.times: list[float] = []
        self.questions: Counter[str] = Counter()
        """Good replies by question."""
        self.headers: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens = [0, 0]
        self.at_once = self.most_at_once = 0
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(port), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        """May be called twice."""
        if not self.thread.is_alive():
            return

        async def stop() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join()

    async def _start(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(re.search(r"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
                body = json.loads(await reader.readexactly(size))
                self.headers.append(head)
                self.bodies.append(body)
                self.times.append(time.monotonic())
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    if not await self._reply(writer, self.plan(len(self.times) - 1, body), body):
                        return
                finally:
                    self.at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has gone, or the server is to
        finally:
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, fault: str, body: dict[str, Any]) -> bool:
        """Whether the connection stays."""
        await asyncio.sleep(self.delay)
        if fault in ("429", "500", "503"):
            extra = "retry-after-ms: 20\r\n" if fault == "429" else ""
            return await self._send(writer, json.dumps({"error": {"message": fault}}).encode(), int(fault), extra)
        if fault == "no schema":
            return await self._send(writer, b'{"error": {"message": "response_format is not supported"}}', 400)
        if fault == "echo key":
            said = re.search(r"(?i)authorization: (.*)", self.headers[-1])
            words = f"Incorrect key: {said[1].strip() if said else ''}"
            return await self._send(writer, json.dumps({"error": {"message": words}}).encode(), 401)
        if fault == "401":
            return await self._send(writer, b'{"error": {"message": "no such key"}}', 401)
        if fault == "hang":
            await asyncio.sleep(30)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "slow":
            await asyncio.sleep(0.05)
        if fault in OTHER_BODIES:
            return await self._send(writer, OTHER_BODIES[fault][1], kind=OTHER_BODIES[fault][0])
        if fault in REFUSALS and REFUSALS[fault][0](body):
            _, status, words = REFUSALS[fault]
            return await self._send(writer, json.dumps({"error": {"message": words}}).encode(), status)
        question = body["messages"][0]["content"]
        content = f'The answers differ. {{"better": 2}} is what one might think.\n{json.dumps(decide(question))}'
        if fault == "surrogate":
            content = f"half \ud800\n{json.dumps(decide(question))}"
        if fault == "prose":
            content = "I would rather not say."
        used = (len(question) // 4, len(content) // 4)
        table: dict[str, Any] = {
            "id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)},
        }  # fmt: skip
        if body.get("logprobs") and fault != "no logprobs" and fault not in UNREADABLE:
            table["choices"][0]["logprobs"] = {"content": chances(question), "refusal": None}
        if fault in READABLE or fault in UNREADABLE:
            change = READABLE[fault] if fault in READABLE else UNREADABLE[fault][0]
            table = change(table, json.dumps(decide(question)))
        if fault == "no usage":
            del table["usage"]
        if fault == "choices":
            table["choices"] = []
        if fault == "schema":
            table = {"answer": content}
        data = json.dumps(table).encode()
        if fault == "utf8":
            data = b"\xff\xfe" + data
        if fault == "half":
            writer.write(
                f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode()
            )
            writer.write(data[: len(data) // 2])
            await writer.drain()
            return False
        if fault in ("ok", "slow", "prose", "choices", "no logprobs"):
            self.tokens = [a + b for a, b in zip(self.tokens, used, strict=True)]
        if fault in ("ok", "slow"):
            self.questions[question] += 1
        return await self._send(writer, data)

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        data: bytes,
        status: int = 200,
        extra: str = "",
        kind: str = "application/json",
    ) -> bool:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{extra}content-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return True
