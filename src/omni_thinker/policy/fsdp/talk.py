"""Messages between the processes of one run, which know each other by a key. Imports no torch."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener, answer_challenge, deliver_challenge
from multiprocessing.reduction import ForkingPickler
from typing import Any

_LOOK_S = 0.1


class _ByValue(ForkingPickler):
    """Tensors as they are. torch would have multiprocessing send handles of shared memory, which only a process's own
    children can open."""

    _extra_reducers: dict[type, Any] = {}  # noqa: RUF012 - as its parent has it


def packed(*message: Any) -> Any:
    """A message for `send_bytes` of a connection. Raises what pickling raises where a part can't be imported there."""
    return _ByValue.dumps(message)


def send(connection: Any, *message: Any) -> None:
    """Raises OSError where the other side has ended."""
    connection.send_bytes(packed(*message))


def accept(listener: Listener, count: int, timeout_s: float, look: Callable[[], None] = lambda: None) -> dict[int, Any]:
    """A connection to each of `count` ranks, by rank. Who doesn't know the key isn't heard, and who says nothing
    isn't waited for. `look` is called now and then, and may raise. Raises TimeoutError where not all come in time."""
    door: Any = listener._listener  # type: ignore[attr-defined]
    door._socket.settimeout(_LOOK_S)
    found: dict[int, Any] = {}
    until = time.monotonic() + timeout_s
    while len(found) < count:
        try:
            greeting = (door.accept(), listener._authkey, found)  # type: ignore[attr-defined]
            threading.Thread(target=_greet, args=greeting, name="omni-greet", daemon=True).start()
        except TimeoutError:
            look()
        except OSError:
            continue
        if time.monotonic() > until:
            raise TimeoutError(f"{len(found) + 1} of {count + 1} ranks have come")
    return found


def _greet(connection: Any, key: bytes, found: dict[int, Any]) -> None:
    """Both sides prove that they know the key; then the rank says which one it is."""
    with suppress(OSError, EOFError, AuthenticationError):
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        _, rank = connection.recv()
        found[rank] = connection
