"""A process of rank 1 or higher: it computes what rank 0 says until that ends.

Messages of rank 0: (method of Hands, arguments), ("end",) and ("leave",). Messages to it: ("group", place, group) while
a request is sampled, ("done", result), ("failed", words), and ("alive",) in between."""

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Client
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.policy.fsdp.place import KEY_VARIABLE, PARENT_VARIABLE, Place, given_place
from omni_thinker.policy.fsdp.talk import send

ADDRESS = "omni-thinker/rank-0"
"""Key of the store that says where rank 0 listens."""
ALIVE_S = 5.0
PARENT_S = 1.0
NEWS_S = 2.0
"""Time in which a rank whose work failed hears whether that is because rank 0 has ended."""


def follow(place: Place) -> int:
    """Serve rank 0 until it ends; the exit code. Its connection is this process's life line: no signal of a terminal or
    of torchrun ends it before rank 0 has written what it has to."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    begun = threading.Event()
    threading.Thread(target=_watch_parent, args=(begun,), name="omni-parent", daemon=True).start()
    logging.disable(logging.WARNING)  # rank 0 says it
    from omni_thinker.policy.fsdp.hands import Hands, store_of

    try:
        store = store_of(place)
        told = json.loads(store.get(ADDRESS))
        key = bytes.fromhex(os.environ.get(KEY_VARIABLE) or told["key"])
        connection = Client((told["host"], told["port"]), authkey=key)
    except (OSError, EOFError, RuntimeError):
        return 1  # rank 0 has ended before it began, and said why
    begun.set()
    talk = _Talk(connection, place)
    hands = Hands(place, store)
    while (message := talk.hear()) is not None:
        method, args = message
        if method == "end":
            hands.end()
            return 0
        if method == "leave":  # rank 0 has said why
            os._exit(1)
        try:
            if method == "do":
                hands.workers[args[0]].tell = talk.group
            result = getattr(hands, method)(*args)
        except Exception as exc:
            talk.say("failed", _words(exc))
            if not talk.pending(NEWS_S):
                os._exit(1)  # others may wait for this rank in torch, and go on only once it is gone
            break
        talk.say("done", result)
    talk.leave()
    raise AssertionError("the process has ended")


def _watch_parent(begun: threading.Event) -> None:
    """End with a rank 0 that ends before there is a connection to it: its store would be asked for minutes."""
    parent = os.environ.get(PARENT_VARIABLE)
    while parent is not None and not begun.wait(PARENT_S):
        if str(os.getppid()) != parent:
            os._exit(1)


class _Talk:
    """The connection to rank 0, with a sign of life every few seconds."""

    def __init__(self, connection: Any, place: Place) -> None:
        self._connection, self._place, self._lock = connection, place, threading.Lock()
        self.say("rank", place.rank)
        threading.Thread(target=self._live, name="omni-alive", daemon=True).start()

    def leave(self) -> None:
        """End this process. Rank 1 says so, unless rank 0 had a last word."""
        if self.hear() is None and self._place.rank == 1:
            sys.stderr.write(f"omni-thinker: rank 0 of {self._place.world} ended early; resume the run with --resume\n")
            sys.stderr.flush()
        os._exit(1)

    def say(self, *message: Any) -> bool:
        """False where rank 0 has ended; `hear` says it too, to who isn't at work."""
        with self._lock, suppress(OSError):
            send(self._connection, *message)
            return True
        return False

    def group(self, place: int, group: object) -> None:
        self.say("group", place, group)

    def hear(self) -> Any:
        """The next message; None where rank 0 has ended without a word."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def pending(self, seconds: float) -> bool:
        """Whether there is something to hear within that time."""
        try:
            return bool(self._connection.poll(seconds))
        except OSError:
            return True

    def _live(self) -> None:
        quiet = threading.Event()
        while not quiet.wait(ALIVE_S):
            if not self.say("alive"):
                quiet.wait(NEWS_S)  # the main thread ends the process, unless it is at work
                self.leave()


def _words(exc: Exception) -> str:
    if isinstance(exc, UserError):
        return str(exc)
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:500]


if __name__ == "__main__":
    given = given_place()
    sys.exit(2 if given is None else follow(given))
