"""Memory that libraries keep although nobody needs it."""

import ctypes
import os
from functools import cache
from typing import Any

KERNELS = 192
"""Kernels of matrix products that may be kept. A step uses about a hundred; each takes 1 to 2 MB."""
MOST_FREE = 1.0
"""How much of the heap may be free, in multiples of what is in use: a step's own needs, and some holes."""
# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
LARGE = 2**25
"""Bytes from which on a block is a whole layer's: gathered, or on its way to the other ranks."""


def bound_kernel_caches() -> None:
    """Keep no more than `KERNELS` compiled kernels; call before the first matrix product.

    oneDNN, and torch's layer above it, compile one for every shape they meet and keep 1,024: more than a gigabyte
    in a run where no two batches are of one size. A setting of the user's own stands."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


@cache
def keep_freed_memory() -> None:
    """Let the heap keep the pages of freed tensors, where the C library is glibc.

    By itself it hands large blocks back at once, and a training pass then spends a third of its time on getting the
    same gigabytes again, page by page. `return_free_memory` gives them back where a stage ends."""
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**26)


def return_large_blocks() -> None:
    """From now on hand blocks of `LARGE` bytes back to the system at once, whatever `keep_freed_memory` said.

    A rank that shares a model out gets and frees each layer's weights and gradients at every pass. They are of several
    sizes, and between them a heap that keeps everything grew by 2 GB of holes for a model of 250M weights."""
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_MMAP_MAX, 65_536)


def return_free_memory() -> None:
    """Give the pages of freed tensors back to the system, where the C library is glibc.

    Every step allocates tensors of other shapes; glibc keeps what was freed, and the heap of a study on the 135M
    model grew by 2 GB of holes."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def bound_free_memory() -> None:
    """`return_free_memory` where the heap holds much more than is in use: holes that the next step won't fill."""
    if (mallinfo := _glibc("mallinfo2")) is not None:
        mallinfo.restype = _HeapSizes
        sizes = mallinfo()
        if sizes.fordblks > MOST_FREE * sizes.uordblks:
            return_free_memory()


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an allocation failed: torch says so by one type on a GPU, and in words alone on a CPU."""
    words = str(exc)
    return (
        type(exc).__name__ == "OutOfMemoryError"
        or isinstance(exc, MemoryError)
        or (
            isinstance(exc, RuntimeError)
            and any(phrase in words for phrase in ("can't allocate memory", "not enough memory", "bad_alloc"))
        )
    )


class _HeapSizes(ctypes.Structure):
    """glibc's struct mallinfo2; uordblks bytes are in use, fordblks free."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


@cache
def _glibc(name: str) -> Any:
    """A function of glibc, or None where the C library is another or doesn't have it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
