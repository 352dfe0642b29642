"""Gradients of millions of weights in a few thousand numbers that keep inner products.

A signed sum into buckets (count sketch; Charikar et al. 2002, Weinberger et al., arXiv 0902.2206): the inner product of
two sketches with the same seed is that of the vectors, with a standard error of about their lengths' product over the
root of the number of buckets."""

from collections.abc import Iterable, Iterator

import torch

DIMENSIONS = 4093
"""A prime, so that no column of a weight falls into few buckets."""
_CHUNK_ROWS = 1024


def sketch(gradients: Iterable[torch.Tensor | None], seed: int, dimensions: int = DIMENSIONS) -> torch.Tensor:
    """[2, dimensions]: of the gradient, and of the direction that an adaptive optimiser makes of it.

    Adam divides each weight's gradient by its usual size; here each row's by its root mean square, as far as one batch
    can tell (arXiv 1804.04235). None is a gradient of zeros."""
    sums = torch.zeros(2, dimensions, dtype=torch.float64)
    for place, gradient in enumerate(gradients):
        if gradient is None:
            continue
        generator = torch.Generator().manual_seed((seed * 1_000_003 + place) % 2**63)
        for raw_M, even_M in _chunks(gradient, dimensions * _CHUNK_ROWS):
            signs_M = torch.empty(len(raw_M), dtype=torch.int8).random_(0, 2, generator=generator).mul_(2).sub_(1)
            for row, values_M in enumerate((raw_M, even_M)):
                signed_M = torch.nn.functional.pad(values_M * signs_M, (0, -len(values_M) % dimensions))
                sums[row] += signed_M.view(-1, dimensions).sum(dim=0, dtype=torch.float64)
    return sums


def _chunks(gradient: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Flat pieces of at most about `size` numbers: as they are, and with every row brought to a mean square of 1."""
    rows = gradient.detach().reshape(-1, gradient.shape[-1]) if gradient.dim() > 1 else gradient.detach()[None]
    count = max(1, size // rows.shape[1])
    for begin in range(0, len(rows), count):
        values = rows[begin : begin + count].float().cpu()
        scale = values.square().mean(dim=1, keepdim=True).sqrt()
        even = torch.where(scale > 0, values / scale.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
        yield values.reshape(-1), even.reshape(-1)
