"""Tokens of a packed row that follow the same tokens, computed once.

What a layer makes of a token depends on the tokens before it alone. Samples of a group mostly begin alike, short ones
are often the same, and prompts of a task share their first words. So everything but attention runs over the nodes of
the tree that a task's sequences make, and attention over the row, laid out as it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from omni_thinker.engine.packing import MULTIPLE, PackedRow

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Queries [T, heads, width], keys and values [T, kv heads, width] of a row and a scale, to [T, heads, width]."""
_WORTH = 0.9
"""Nodes above this share of a row aren't worth the copies."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """U nodes, of which the first R are real and the rest filling, that the T tokens of a row are made of."""

    tokens_U: torch.Tensor
    positions_U: torch.Tensor
    node_T: torch.Tensor
    """The node of each token; of one that fills the row up, any."""
    first_R: torch.Tensor
    """The first token that is of a node."""
    again_D: torch.Tensor
    """All other tokens of the row's groups."""
    new: tuple[int, ...]
    """How many nodes each group brings, in order. A node that it shares is of a group of the same task."""

    def around(self, attend: Attend) -> Attend:
        """Attention over nodes, by attention over the row."""

        def over_nodes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
            row = (_Spread.apply(tensor, self) for tensor in (query, key, value))  # type: ignore[no-untyped-call]
            out: torch.Tensor = _Pick.apply(attend(*row, scale), self)  # type: ignore[no-untyped-call]
            return out

        return over_nodes


def nodes_of(row: PackedRow) -> Nodes | None:
    """The nodes of a row; None where they aren't worth it."""
    number: dict[tuple[int, int], int] = {}
    roots: dict[str, int] = {}
    tokens, positions = row.tokens_T.tolist(), row.positions_T.tolist()
    node_T, first, again, new = [0] * len(tokens), list[int](), list[int](), list[int]()
    at = 0

    def walk(node: int, count: int) -> int:
        """The node of the last of the next tokens, which follow `node`."""
        nonlocal at
        for place in range(at, at + count):
            fresh = len(first)
            node = node_T[place] = number.setdefault((node, tokens[place]), fresh)
            first.append(place) if node == fresh else again.append(place)
        at += count
        return node

    for task, (prompt, samples) in zip(row.tasks, row.shapes, strict=True):
        before = len(first)
        end = walk(roots.setdefault(task, -1 - len(roots)), prompt)
        for length in samples:
            walk(end, length)
        new.append(len(first) - before)
    if len(first) > _WORTH * at:
        return None
    filling = [0] * (-len(first) % MULTIPLE)
    return Nodes(
        tokens_U=torch.tensor([*(tokens[place] for place in first), *filling]),
        positions_U=torch.tensor([*(positions[place] for place in first), *filling]),
        node_T=torch.tensor(node_T),
        first_R=torch.tensor(first),
        again_D=torch.tensor(again, dtype=torch.long),
        new=tuple(new),
    )


def distinct_answers(row: PackedRow, nodes: Nodes) -> tuple[PackedRow, torch.Tensor]:
    """The row with each target that follows a node once, filled up, and which of these every answer token is."""
    real = slice(row.answers)
    node_N, target_N = nodes.node_T[row.source_N[real]], row.target_N[real]
    pairs_2_M, pair_N = torch.unique(torch.stack([node_N, target_N]), dim=1, return_inverse=True)
    node_M, target_M = torch.nn.functional.pad(pairs_2_M, (0, -pairs_2_M.shape[1] % MULTIPLE))
    return replace(row, source_N=nodes.first_R[node_M], target_N=target_M), pair_N


class _Spread(torch.autograd.Function):
    """[T, ...] from [U, ...]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, nodes: Nodes) -> torch.Tensor:
        ctx.nodes, ctx.count = nodes, len(x)
        return x.index_select(0, nodes.node_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        nodes, grad = ctx.nodes, grads[0]
        wide = torch.promote_types(grad.dtype, torch.float32)  # sums are rounded once
        flat_T = grad.flatten(1).to(wide)
        out = flat_T.new_zeros(ctx.count, flat_T.shape[1])
        torch.index_select(flat_T, 0, nodes.first_R, out=out[: len(nodes.first_R)])
        # Not index_add_, which takes a call for each row.
        more = flat_T.index_select(0, nodes.again_D)
        out.scatter_add_(0, nodes.node_T[nodes.again_D, None].expand_as(more), more)
        return out.to(grad.dtype).view(-1, *grad.shape[1:]), None


class _Pick(torch.autograd.Function):
    """[U, ...] from [T, ...]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, nodes: Nodes) -> torch.Tensor:
        ctx.nodes, ctx.count = nodes, len(x)
        out = x.new_empty(len(nodes.tokens_U), *x.shape[1:])
        real = len(nodes.first_R)
        torch.index_select(x, 0, nodes.first_R, out=out[:real])
        out[real:] = 0
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        nodes, grad = ctx.nodes, grads[0]
        out = grad.new_zeros(ctx.count, *grad.shape[1:])
        return out.index_copy_(0, nodes.first_R, grad[: len(nodes.first_R)]), None
