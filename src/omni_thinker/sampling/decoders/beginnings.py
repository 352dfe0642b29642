"""Prompts in one row, in which what several begin with stands once.

A token's hidden state depends on the tokens before it alone. So the marks of a chat template and the words of a task,
which many prompts begin with, need one computation for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from omni_thinker.types import TokenIds


@dataclass(frozen=True, slots=True)
class PromptRow:
    """N tokens of a row, of which the last are filling, that P prompts of at most T tokens are made of."""

    tokens_N: torch.Tensor
    positions_N: torch.Tensor
    place_P_T: torch.Tensor
    """The place in the row of each prompt's tokens; 0 behind its end."""
    slot_N: torch.Tensor
    """Where a token of the row stands in `place_P_T`, laid flat; 0 for filling."""
    last_P: torch.Tensor
    """The place in the row of each prompt's last token."""
    end_P: torch.Tensor
    """Where each prompt's last token stands in `place_P_T`, laid flat."""

    def to(self, device: torch.device) -> "PromptRow":
        """The same on a device."""
        return PromptRow(*(getattr(self, field.name).to(device) for field in fields(self)))


def lay_out(prompts: Sequence[TokenIds], multiple: int) -> PromptRow:
    """The row of `prompts`, one or more tokens each, filled up to a multiple."""
    longest = max(map(len, prompts))
    place_P_T = torch.zeros(len(prompts), longest, dtype=torch.long)
    tokens, positions, slots = list[int](), list[int](), list[int]()
    above: TokenIds = ()
    place_T = torch.zeros(0, dtype=torch.long)
    for p in sorted(range(len(prompts)), key=lambda p: tuple(prompts[p])):  # neighbours share the most
        prompt = prompts[p]
        shared = shared_tokens(above, prompt)
        place_T = torch.cat([place_T[:shared], torch.arange(len(tokens), len(tokens) + len(prompt) - shared)])
        place_P_T[p, : len(prompt)] = place_T
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        slots += range(p * longest + shared, p * longest + len(prompt))
        above = prompt
    filling = [0] * (-len(tokens) % multiple)
    end_P = torch.arange(len(prompts)) * longest + torch.tensor(list(map(len, prompts))) - 1
    return PromptRow(
        tokens_N=torch.tensor([*tokens, *filling]),
        positions_N=torch.tensor([*positions, *filling]),
        place_P_T=place_P_T,
        slot_N=torch.tensor([*slots, *filling]),
        last_P=place_P_T.flatten()[end_P],
        end_P=end_P,
    )


def shared_tokens(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
