"""A process that judges through the judge of another: JSON lines by its standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from omni_thinker.judging.shared.owner import JudgeOwner


class Worker:
    """The driver's side of one process: passes its messages to the owner under the name `caller`."""

    def __init__(self, owner: JudgeOwner, caller: str, job: dict[str, Any]) -> None:
        self.owner, self.caller, self.messages = owner, caller, 0
        self.result: dict[str, Any] = {}
        command = [sys.executable, str(Path(__file__))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()
        self._write(job)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> dict[str, Any]:
        """What it found."""
        self._reader.join(seconds)
        assert not self._reader.is_alive(), f"{self.caller} isn't done"
        assert self.process.wait(seconds) == 0
        return self.result

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "result" in message:
                self.result = message["result"]
                continue
            self.messages += 1
            answer = self.owner.submit(self.caller, message["method"], message["arguments"])
            answer.add_done_callback(partial(self._answer, message["id"]))
        self.owner.gone(self.caller)

    def _answer(self, number: int, done: Future[Any]) -> None:
        self._write({"id": number, "answer": done.result()})

    def _write(self, table: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            with self._lock:
                self.process.stdin.write(json.dumps(table).encode() + b"\n")
                self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has gone


def main() -> None:
    """Judge the texts of a job, in groups at once, and say what was found."""
    from omni_thinker.judging.endpoint.client import ChatClient
    from omni_thinker.judging.pairwise import EndpointJudge
    from omni_thinker.judging.shared.share import Share
    from omni_thinker.recipe import EndpointSpec

    waiting: dict[int, Future[Any]] = {}
    lock = threading.Lock()
    job = json.loads(sys.stdin.buffer.readline())

    def say(table: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps(table).encode() + b"\n")
        sys.stdout.buffer.flush()

    def call(method: str, arguments: dict[str, Any]) -> Future[Any]:
        answer: Future[Any] = Future()
        with lock:
            number = len(waiting)
            waiting[number] = answer
            say({"id": number, "method": method, "arguments": arguments})
        return answer

    def listen() -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            waiting[message["id"]].set_result(message["answer"])

    threading.Thread(target=listen, daemon=True).start()
    share = Share(call)
    judge = EndpointJudge(ChatClient(EndpointSpec(**job["spec"]), share.desk), share.tally)

    async def everything() -> list[str]:
        texts, size = job["texts"], job.get("group", 8)
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        found = await asyncio.gather(*(judge.compare("Write.", group, job["reference"]) for group in groups))
        return [verdict.outcome for group in found for verdict in group]

    outcomes = asyncio.run(everything())
    result = {"outcomes": outcomes, "mark": share.state(), "metrics": judge.metrics(), "exhausted": judge.exhausted}
    judge.close()
    with lock:
        say({"result": result})
    os._exit(0)  # the listening thread holds the standard input


if __name__ == "__main__":
    main()
