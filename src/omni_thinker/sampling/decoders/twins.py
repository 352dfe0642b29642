"""Samples of a group that have drawn the same so far: a decoding step computes one row for all of them.

What comes next depends on the tokens before it alone, and short answers mostly begin alike. Everything between products
of matrices and attention knows rows; keys and values are still stored for each column, so that samples part freely."""

from dataclasses import dataclass

import torch

from omni_thinker.sampling.decoders.base import MULTIPLE, filled

_WORTH = 0.9
"""Rows above this share of the columns aren't worth the copies."""
_FINE = 4
"""Rows are filled up to a multiple of about this part of them: 16 sizes up to 256, since oneDNN compiles each."""


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows that stand for the N columns of all groups, laid flat. None: each column is a row."""

    row_N: torch.Tensor | None = None
    """The row of each column."""
    column_R: torch.Tensor | None = None
    """A column of each row."""
    wanted_N: torch.Tensor | None = None
    """Whether a column stands for a row: the first of its twins."""

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] from [R, ...]."""
        return x if self.row_N is None else x.index_select(0, self.row_N)

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        """[R, ...] from [N, ...]."""
        return x if self.column_R is None else x.index_select(0, self.column_R)


class Twins:
    """Follows which columns of P groups of G have drawn the same since the prompt."""

    def __init__(self, groups: int, columns: int, device: torch.device) -> None:
        self._kind_P_G = torch.zeros(groups, columns, dtype=torch.long, device=device)
        """Columns of a group are twins where it is the same."""

    def feed(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> Rows:
        """The rows of a step that feeds these tokens; see Decoder. Columns without a sample get any row."""
        groups, columns = token_P_G.shape
        live_P_G = sample_P_G >= 0
        kind, token = self._kind_P_G, token_P_G
        twins_P_G_G = (kind[:, :, None] == kind[:, None]) & (token[:, :, None] == token[:, None]) & live_P_G[:, None]
        first_P_G = twins_P_G_G.byte().argmax(-1)
        first_P_G = torch.where(live_P_G, first_P_G, live_P_G.byte().argmax(-1, keepdim=True))
        self._kind_P_G = first_P_G
        own_P_G = first_P_G == torch.arange(columns, device=first_P_G.device)
        own_N = (own_P_G & live_P_G.any(1, keepdim=True)).flatten()
        column_R = own_N.nonzero()[:, 0]
        count = filled(len(column_R), max(MULTIPLE, 1 << (len(column_R) // _FINE).bit_length() >> 1))
        if not len(column_R) or count > _WORTH * groups * columns:
            return Rows()
        begin_P_1 = torch.arange(groups, device=first_P_G.device)[:, None] * columns
        row_N = (own_N.cumsum(0) - 1).clamp_(min=0)[(first_P_G + begin_P_1).flatten()]
        return Rows(row_N, torch.cat([column_R, column_R[:1].expand(count - len(column_R))]), own_N)

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        """See Decoder."""
        self._kind_P_G = self._kind_P_G[groups].gather(1, columns_P_G)
