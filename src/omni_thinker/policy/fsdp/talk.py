"""Messages between the processes of one run, which know each other by a key. Imports no torch."""

from multiprocessing.reduction import ForkingPickler
from typing import Any


class _ByValue(ForkingPickler):
    """Tensors as they are. torch would have multiprocessing send handles of shared memory, which only a process's own
    children can open."""

    _extra_reducers: dict[type, Any] = {}  # noqa: RUF012 - as its parent has it


def send(connection: Any, *message: Any) -> None:
    """Raises OSError where the other side has ended."""
    connection.send_bytes(_ByValue.dumps(message))
