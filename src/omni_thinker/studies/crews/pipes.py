"""A worker process on this machine, which talks to the driver through its standard input and output, a line of JSON a
message. It ends when the driver is gone, however that went. Its one argument is its name."""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Any, BinaryIO


class PipeMail:
    """The worker's end of the pipe."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._lock, self._numbers = out, threading.Lock(), count(1)
        self._waiting: dict[int, Future[Any]] = {}

    def send(self, table: Mapping[str, Any]) -> None:
        """See Mail."""
        line = json.dumps(table).encode() + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()

    def ask(self, table: Mapping[str, Any]) -> "Future[Any]":
        """See Mail."""
        number, answer = next(self._numbers), Future[Any]()
        self._waiting[number] = answer
        self.send({**table, "id": number})
        return answer

    def replied(self, number: int, value: Any) -> None:
        """The driver has replied to a question."""
        self._waiting.pop(number).set_result(value)


def main() -> None:
    """Work on orders until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints goes to the log
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver hears it, and says what is to be done
    mail, orders = PipeMail(out), SimpleQueue[Any]()
    hello = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_listen, args=(mail, orders), name="omni-driver", daemon=True).start()
    code = 1
    try:
        from omni_thinker.isolation import shutdown
        from omni_thinker.studies.crews.worker import Worker

        worker = Worker(hello, sys.argv[1])
        while (order := orders.get()) is not None:
            worker.work(order, mail)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            shutdown()
        sys.stderr.flush()
        os._exit(code)  # a usual end takes seconds for threads of libraries, and aborts for the one that reads stdin


def _listen(mail: PipeMail, orders: "SimpleQueue[Any]") -> None:
    while line := sys.stdin.buffer.readline():
        table = json.loads(line)
        if "reply" in table:
            mail.replied(table["id"], table["reply"])
        else:
            orders.put(table["order"])
    os._exit(1)  # the driver is gone: nothing that is computed from here on could be kept


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)
