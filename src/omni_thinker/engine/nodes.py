"""Tokens of a packed row that follow the same tokens, computed once.

What a layer makes of a token depends on the tokens before it alone. Samples of a group mostly begin alike, short ones
are often the same, and prompts of a task share their first words. So everything but attention runs over the nodes of
the tree that a task's sequences make. Attention is over sequences, laid out in a row; a sample that another one begins
with isn't among them."""

from collections.abc import Callable, Sequence, Set
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
    """U nodes, of which the first R are real and the rest filling, that the T tokens of a row are made of.

    Attention is over K of these tokens: all prompts, and the samples that no other one begins with."""

    tokens_U: torch.Tensor
    positions_U: torch.Tensor
    node_T: torch.Tensor
    """The node of each token of the row; of one that fills it up, any."""
    token_R: torch.Tensor
    """The first token of the row that is of a node."""
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    """As the row's, of what attention is over."""
    node_K: torch.Tensor
    """The node of each token that attention is over."""
    first_R: torch.Tensor
    """The first of these that is of a node."""
    again_D: torch.Tensor
    """All others of these."""
    new: tuple[int, ...]
    """How many nodes each group brings, in order. A node that it shares is of a group of the same task."""

    def around(self, attend: Attend) -> Attend:
        """Attention over nodes, by attention over the row."""

        def over_nodes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
            queries, keys, values = (_Spread.apply(tensor, self) for tensor in (query, key, value))  # type: ignore[no-untyped-call]
            out: torch.Tensor = _Pick.apply(attend(queries, keys, values, scale), self)  # type: ignore[no-untyped-call]
            return out

        return over_nodes


def nodes_of(row: PackedRow) -> Nodes | None:
    """The nodes of a row; None where they aren't worth it."""
    number: dict[tuple[int, int], int] = {}
    roots: dict[str, int] = {}
    tokens, positions = row.tokens_T.tolist(), row.positions_T.tolist()
    node_T, token_R, new = [0] * len(tokens), list[int](), list[int]()
    at = 0

    def walk(node: int, count: int) -> int:
        """The node of the last of the next tokens, which follow `node`."""
        nonlocal at
        for place in range(at, at + count):
            fresh = len(token_R)
            node = node_T[place] = number.setdefault((node, tokens[place]), fresh)
            if node == fresh:
                token_R.append(place)
        at += count
        return node

    for task, (prompt, samples) in zip(row.tasks, row.shapes, strict=True):
        before = len(token_R)
        end = walk(roots.setdefault(task, -1 - len(roots)), prompt)
        for length in samples:
            walk(end, length)
        new.append(len(token_R) - before)
    if len(token_R) > _WORTH * at:
        return None
    shapes, node_K = _attended(row, node_T, {parent for parent, _ in number})
    first: dict[int, int] = {}
    for place, node in enumerate(node_K):
        first.setdefault(node, place)
    first_R = torch.tensor([first[node] for node in range(len(token_R))])
    again_K = torch.ones(len(node_K), dtype=torch.bool).index_fill_(0, first_R, value=False)
    filling = [0] * (-len(token_R) % MULTIPLE)
    return Nodes(
        tokens_U=torch.tensor([*(tokens[place] for place in token_R), *filling]),
        positions_U=torch.tensor([*(positions[place] for place in token_R), *filling]),
        node_T=torch.tensor(node_T),
        token_R=torch.tensor(token_R),
        shapes=shapes,
        node_K=torch.tensor(node_K),
        first_R=first_R,
        again_D=again_K.nonzero()[:, 0],
        new=tuple(new),
    )


def _attended(
    row: PackedRow, node_T: Sequence[int], parents: Set[int]
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], list[int]]:
    """Shapes and nodes of all prompts and of the first sample that ends in each node without another behind it."""
    shapes: list[tuple[int, tuple[int, ...]]] = []
    node_K: list[int] = []
    at, ended = 0, set[int]()
    for prompt, samples in row.shapes:
        node_K += node_T[at : at + prompt]
        at += prompt
        kept = list[int]()
        for length in samples:
            if length and (end := node_T[at + length - 1]) not in parents and end not in ended:
                ended.add(end)
                kept.append(length)
                node_K += node_T[at : at + length]
            at += length
        shapes.append((prompt, tuple(kept)))
    return tuple(shapes), node_K


def distinct_answers(row: PackedRow, nodes: Nodes) -> tuple[PackedRow, torch.Tensor]:
    """The row with each target that follows a node once, filled up, and which of these every answer token is."""
    real = slice(row.answers)
    node_N, target_N = nodes.node_T[row.source_N[real]], row.target_N[real]
    pairs_2_M, pair_N = torch.unique(torch.stack([node_N, target_N]), dim=1, return_inverse=True)
    node_M, target_M = torch.nn.functional.pad(pairs_2_M, (0, -pairs_2_M.shape[1] % MULTIPLE))
    return replace(row, source_N=nodes.token_R[node_M], target_N=target_M), pair_N


class _Spread(torch.autograd.Function):
    """[K, ...] from [U, ...]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, nodes: Nodes) -> torch.Tensor:
        ctx.nodes, ctx.count = nodes, len(x)
        return x.index_select(0, nodes.node_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        nodes, grad = ctx.nodes, grads[0]
        wide = torch.promote_types(grad.dtype, torch.float32)  # sums are rounded once
        flat_K = grad.flatten(1).to(wide)
        out = flat_K.new_zeros(ctx.count, flat_K.shape[1])
        torch.index_select(flat_K, 0, nodes.first_R, out=out[: len(nodes.first_R)])
        # Not index_add_, which takes a call for each row.
        more = flat_K.index_select(0, nodes.again_D)
        out.scatter_add_(0, nodes.node_K[nodes.again_D, None].expand_as(more), more)
        return out.to(grad.dtype).view(-1, *grad.shape[1:]), None


class _Pick(torch.autograd.Function):
    """[U, ...] from [K, ...]."""

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
