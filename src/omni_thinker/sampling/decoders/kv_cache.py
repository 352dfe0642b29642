"""Keys and values of groups: what decoders differ by is how these are laid out, stored and attended to."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from omni_thinker.sampling.decoders.base import MULTIPLE, filled
from omni_thinker.sampling.decoders.weights import FusedWeights

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FP32_CACHE_MAX_TOKENS = 64
"""Answers up to this long keep their keys and values in fp32: torch's attention over so few is twice as fast in it as
in bf16. Longer ones are kept as they are and attended to by two matrix products, which then are the fastest."""
FIRST_SLOTS = 16
"""Tokens of an answer that there is room for at first."""
MATMUL_ATTENTION_MIN_HEADS = 64
"""Heads of all groups, from which on two products attend faster than torch's one call."""


class KVCache:
    """The cache of P groups of G columns: each prompt's keys and values once, and those of each column's answer so far.

    prompt: [layers, 2, P, kv heads, T, width], with prompts filled up at the right to a `multiple`; whoever computes
    them writes all of it.
    mask: [P, 1, 1, T], added to scores: 0 where a prompt has a token, else -inf.
    answers: [layers, 2, P, G, kv heads, slots, width], of which the first `used` slots are written. There are twice as
    many as soon as they are needed: most answers are shorter than they may be.
    length_P, position_P: tokens of a prompt, and the position of the next token. shift_P: what the head takes off."""

    def __init__(
        self,
        weights: FusedWeights,
        lengths: Sequence[int],
        group_size: int,
        steps: int,
        *,
        prompt_dtype: torch.dtype,
        answer_dtype: torch.dtype,
        multiple: int = MULTIPLE,
        fixed: bool = False,
    ) -> None:
        """`fixed`: all slots are there from the beginning, and hold numbers."""
        device = weights.embed.weight.device
        self.dtype, self.kv_heads, self.steps = weights.embed.weight.dtype, weights.kv_heads, steps
        self.used = 0
        self.length_P = torch.tensor(lengths, device=device)
        self.position_P = self.length_P
        self.shift_P = torch.zeros(len(lengths), device=device)
        longest = filled(max(lengths), multiple)
        shape = (len(weights.layers), 2, len(lengths), weights.kv_heads, longest, weights.width)
        self.prompt = torch.empty(shape, dtype=prompt_dtype, device=device)
        missing = torch.arange(longest, device=device) >= self.length_P[:, None]
        mask = torch.zeros(missing.shape, dtype=torch.promote_types(prompt_dtype, torch.float32), device=device)
        self.mask = mask.masked_fill_(missing, -torch.inf)[:, None, None]
        self._new = torch.zeros if fixed else torch.empty
        slots = steps if fixed else min(steps, FIRST_SLOTS)
        own_shape = (len(weights.layers), 2, len(lengths), group_size, weights.kv_heads, slots, weights.width)
        self.answers = self._new(own_shape, dtype=answer_dtype, device=device)

    def make_room(self) -> None:
        """Have a slot for the next token. Raises IndexError beyond the last step."""
        if self.used == self.steps:
            raise IndexError(f"no room for token {self.used + 1} of {tuple(self.answers.shape[2:4])} samples")
        if self.used == self.answers.shape[5]:
            self._move(self.answers.shape[2:4], min(self.steps, 2 * self.used), (slice(None), slice(None)))

    def advance(self, going_P: torch.Tensor) -> None:
        """A token of every column is stored. Groups that are not `going_P` may be at their last position."""
        self.used += 1
        self.position_P = self.position_P + going_P

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        """See Decoder."""
        if len(groups) < len(self.position_P):
            self.length_P, self.position_P = self.length_P[groups], self.position_P[groups]
            self.mask, self.shift_P = self.mask[groups], self.shift_P[groups]
            self.prompt = self.prompt.index_select(2, groups)
        self._move(columns_P_G.shape, self.answers.shape[5], (groups[:, None], columns_P_G))

    def _move(self, columns: Sequence[int], slots: int, picked: tuple[Any, Any]) -> None:
        """Answers in a new tensor, layer by layer, so that little is there twice; only what is written so far."""
        old = self.answers
        shape = (*old.shape[:2], *columns, old.shape[4], slots, old.shape[6])
        self.answers = self._new(shape, dtype=old.dtype, device=old.device)
        for new_layer, old_layer in zip(self.answers, old, strict=True):
            new_layer[..., : self.used, :] = old_layer[:, picked[0], picked[1], :, : self.used]


class AttendingCache(KVCache, ABC):
    """One that stores and attends layer by layer."""

    @abstractmethod
    def store(self, layer: int, key_P_G_H_W: torch.Tensor, value_P_G_H_W: torch.Tensor) -> None:
        """The next token of each column."""

    @abstractmethod
    def attend(self, layer: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        """[rows, heads x width] from queries [rows, heads, width], a row for each column of each group."""


class TwoCallCache(AttendingCache):
    """Attends to prompts in fp32, as the training pass does, so that nothing is rounded here but where it is rounded
    there; prompt and answer are two calls, joined by their log-sum-exp."""

    def __init__(self, weights: FusedWeights, lengths: Sequence[int], group_size: int, steps: int) -> None:
        dtype = weights.embed.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        answer_dtype = torch.float32 if steps <= FP32_CACHE_MAX_TOKENS else dtype
        super().__init__(weights, lengths, group_size, steps, prompt_dtype=wide, answer_dtype=answer_dtype)

    def store(self, layer: int, key_P_G_H_W: torch.Tensor, value_P_G_H_W: torch.Tensor) -> None:
        keys, values = self.answers[layer]
        keys[:, :, :, self.used] = key_P_G_H_W
        values[:, :, :, self.used] = value_P_G_H_W

    def attend(self, layer: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        """Queries that share keys are stacked: [groups, kv heads, columns x queries] for the prompt, [groups x columns,
        kv heads, queries] for the answers."""
        rows, heads, width = query.shape
        kv_heads = self.kv_heads
        per = heads // kv_heads
        grid = query.view(groups, columns, kv_heads, per, width)
        over = grid.transpose(1, 2).reshape(groups, kv_heads, columns * per, width).to(self.prompt.dtype)
        keys, values = self.prompt[layer]
        if groups * kv_heads >= MATMUL_ATTENTION_MIN_HEADS:
            prompt, prompt_lse = _attend_by_products(over, keys, values, scale, self.mask)
        else:
            prompt, prompt_lse = _attend(over, keys, values, 0.0, False, attn_mask=self.mask, scale=scale)
        keys, values = (cached.flatten(0, 1)[:, :, : self.used + 1] for cached in self.answers[layer])
        answer, answer_lse = _attend_to_own(query.view(rows, kv_heads, per, width), keys, values, scale)
        prompt = prompt.view(groups, kv_heads, columns, per, width).transpose(1, 2)
        prompt_lse = prompt_lse.view(groups, kv_heads, columns, per).transpose(1, 2)
        share = torch.sigmoid(prompt_lse - answer_lse.view(groups, columns, kv_heads, per))[..., None]
        joined = torch.lerp(answer.view(groups, columns, kv_heads, per, width).float(), prompt.float(), share)
        return joined.to(self.dtype).view(rows, heads * width)


def _attend_to_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and their log-sum-exp; keys and values [rows, kv heads, T, width] in fp32 or as the queries are."""
    if keys.dtype == torch.float32:
        out, lse = _attend(query.float(), keys, values, 0.0, False, scale=scale)
        return out, lse
    return _attend_by_products(query.to(keys.dtype), keys, values, scale)


def _attend_by_products(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for few queries of many heads, where torch's one call for it takes twice as long in bf16."""
    score = torch.matmul(query, keys.transpose(2, 3)).float().mul_(scale)
    if mask is not None:
        score.add_(mask)
    lse = score.logsumexp(-1)
    return torch.matmul(score.sub_(lse[..., None]).exp_().to(values.dtype), values), lse
