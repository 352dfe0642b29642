"""Memory that is free but not returned."""

from __future__ import annotations

import ctypes
from functools import cache


def return_free_memory() -> None:
    """Give the pages of freed tensors back to the system, where the C library is glibc.

    Every step allocates tensors of other shapes; glibc keeps what was freed, and the heap of a study on the 135M
    model grew by 2 GB of holes.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
