"""Large tensors in pages of their own, which the system has back as soon as nobody needs them.

The heap keeps what was freed (`models.memory`), which is right for what every step allocates, and wrong for hundreds of
megabytes that come and go with a stage or an evaluation. Pages are asked for as large ones (2 MB): touching a gigabyte
of small ones for the first time takes over a second here, of large ones a tenth of that."""

import mmap
from collections.abc import Sequence
from math import prod

import torch

LARGE = 2**24
"""Bytes from which on a tensor gets pages of its own."""
_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros. On a CPU a large one takes no memory before it is written to."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE or not _FLAGS:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=_FLAGS)
    if _HUGE is not None:
        try:
            pages.madvise(_HUGE)
        except OSError:  # a kernel without large pages
            pass
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


def zeros_like_each(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A tensor of zeros for each of some of one type on one device, all in one block."""
    flat = zeros([sum(t.numel() for t in tensors)], tensors[0].dtype, tensors[0].device)
    return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
