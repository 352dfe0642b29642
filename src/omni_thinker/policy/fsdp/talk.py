"""Messages between the processes of one run, which know each other by a key. Imports no torch."""

import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from multiprocessing.reduction import ForkingPickler
from typing import Any

_LOOK_S = 1.0


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
    """A connection to each of `count` ranks, by rank. Whoever doesn't know the key isn't heard. `look` is called about
    every second, and may raise. Raises TimeoutError where not all come in time."""
    listener._listener._socket.settimeout(_LOOK_S)  # type: ignore[attr-defined]
    found: dict[int, Any] = {}
    until = time.monotonic() + timeout_s
    while len(found) < count:
        try:
            connection = listener.accept()
            _, rank = connection.recv()
            found[rank] = connection
        except TimeoutError:
            look()
        except (OSError, EOFError, AuthenticationError):
            continue
        if time.monotonic() > until:
            raise TimeoutError(f"{len(found) + 1} of {count + 1} ranks have come")
    return found
