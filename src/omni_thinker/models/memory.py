"""Memory that libraries keep although nobody needs it."""

from __future__ import annotations

import ctypes
import os
from functools import cache

KERNELS = 192
"""Kernels of matrix products that may be kept. A step uses about a hundred; each takes 1 to 2 MB."""


def bound_kernel_caches() -> None:
    """Keep no more than `KERNELS` compiled kernels; call before the first matrix product.

    oneDNN, and torch's layer above it, compile one for every shape they meet and keep 1,024: more than a gigabyte
    in a run where no two batches are of one size. A setting of the user's own stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


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
