"""Logits less a number of their row's own, which is taken off before they are rounded.

The logits that matter are around 27 in the built-in model, and bf16 knows only multiples of 1/8 there; near 0 it knows
multiples of 1/512 and less. Softmax sees differences alone, so that any number may be taken off a whole row, as long as
it happens while sums are still in fp32: inside the product. Logits rounded as they are were 40 % of what sampler and
trainer disagreed by."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]
_MULTIPLE = 32
"""Inputs that a core's matrix unit takes at once."""


def relative_logits(states_N_C: torch.Tensor, weight_V_C: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """[N, V], of which each target's is next to 0: its own logit is what is taken off."""
    if states_N_C.dtype == torch.float32 or states_N_C.dtype == torch.float64:
        return states_N_C @ weight_V_C.t()
    own_N = torch.linalg.vecdot(states_N_C.float(), weight_V_C[target_N].float())
    return shifted_product(states_N_C, weight_V_C, own_N)


def shifted_product(states_N_C: torch.Tensor, weight_V_C: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """states x weight - shift, [N, V], in the states' type and rounded once."""
    less = -shift_N.to(states_N_C.dtype)[:, None]
    return torch.addmm(less.expand(-1, len(weight_V_C)), states_N_C, weight_V_C.t())


class ShiftedHead:
    """The same for the same weights many times: a column of ones more, which is multiplied by what is taken off."""

    def __init__(self, weight_V_C: torch.Tensor, make_product: Callable[[torch.Tensor], Linear]) -> None:
        """`make_product` lays weights [V, inputs] out for products with [rows, inputs]."""
        count, width = weight_V_C.shape
        self._filling = -width % _MULTIPLE or _MULTIPLE
        wide = weight_V_C.new_zeros(count, width + self._filling)  # one copy: a head may be a fifth of a model
        wide[:, :width], wide[:, width] = weight_V_C, 1
        self._product = make_product(wide)

    def __call__(self, x_N_C: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
        less_N_1 = -shift_N.to(x_N_C.dtype)[:, None]
        return self._product(F.pad(torch.cat([x_N_C, less_N_1], dim=1), (0, self._filling - 1)))
