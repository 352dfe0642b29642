"""Drawing tokens from logits: exact inverse-CDF draws, with the filters that users know.

Filters in transformers' order: temperature, top-k, top-p, min-p, each on what the one before left over. Log-probs are
under the distribution that was drawn from, filters included."""

import torch

from omni_thinker.engine.native import kernels
from omni_thinker.types import SamplingParams

_ROWS_AT_ONCE = 16
"""Rows handled at once: their fp32 copies stay in the processor's cache, which is half the time on two cores."""
_SUM_BLOCK = 256
"""Tokens whose probabilities are summed first: a running sum over the whole vocabulary costs more than the rest."""
_BELOW_ONE = 1 - 2.0**-24
_NUCLEUS = 512
"""Most probable tokens that are sorted first; they nearly always hold the nucleus, and where not all are sorted."""


def draw(
    logits_R_V: torch.Tensor, uniform_N: torch.Tensor, params: SamplingParams, row_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """N tokens and their log-probs, from N uniform numbers in [0, 1). Temperature 0 takes the most probable.

    R rows of V logits, any dtype; computed in fp32. row_N: whose row each token is drawn from; None: one from each."""
    if (drawn := _drawn_in_c(logits_R_V, uniform_N, params, row_N)) is not None:
        return drawn
    count = len(uniform_N)
    token_N = torch.empty(count, dtype=torch.long, device=logits_R_V.device)
    logprob_N = torch.empty(count, dtype=torch.float32, device=logits_R_V.device)
    rows = _ROWS_AT_ONCE if logits_R_V.device.type == "cpu" else max(1, count)
    for begin in range(0, count, rows):
        block = slice(begin, begin + rows)
        logits, uniform = logits_R_V[block if row_N is None else row_N[block]], uniform_N[block]
        one = _greedy(logits) if params.temperature == 0 else _draw(logits, uniform, params)
        token_N[block], logprob_N[block] = one
    return token_N, logprob_N


def _drawn_in_c(
    logits_R_V: torch.Tensor, uniform_N: torch.Tensor, params: SamplingParams, row_N: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same where the kernel in C knows it: logits in bf16 on a CPU, drawn from without a filter."""
    filters = 0 < params.top_k < logits_R_V.shape[1] or params.top_p < 1 or params.min_p > 0
    if params.temperature == 0 or filters or logits_R_V.dtype != torch.bfloat16 or logits_R_V.device.type != "cpu":
        return None
    if (c := kernels()) is None:
        return None
    logits_R_V, uniform_N = logits_R_V.contiguous(), uniform_N.to(torch.float64).contiguous()
    row_N = torch.arange(len(uniform_N)) if row_N is None else row_N.contiguous()
    count, vocabulary = len(uniform_N), logits_R_V.shape[1]
    token_N = torch.empty(count, dtype=torch.long)
    logprob_N = torch.empty(count, dtype=torch.float32)
    sums = torch.empty(count, -(-vocabulary // _SUM_BLOCK), dtype=torch.float32)
    tensors = (logits_R_V, row_N, uniform_N, sums, token_N, logprob_N)
    c.draw(*(tensor.data_ptr() for tensor in tensors), 1 / params.temperature, count, vocabulary)
    return token_N, logprob_N


def _greedy(logits_N_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits_N_V = logits_N_V.float()
    token_N = logits_N_V.argmax(-1)
    return token_N, logits_N_V.log_softmax(-1).gather(-1, token_N[:, None])[:, 0]


def _draw(
    logits_N_V: torch.Tensor, uniform_N: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    count, vocabulary = logits_N_V.shape
    blocks = -(-vocabulary // _SUM_BLOCK)
    weight_N_V = torch.zeros(count, blocks * _SUM_BLOCK, device=logits_N_V.device)
    real_N_V = weight_N_V[:, :vocabulary]
    real_N_V.copy_(logits_N_V)
    if params.temperature != 1:
        real_N_V.div_(params.temperature)
    real_N_V.sub_(real_N_V.amax(-1, keepdim=True)).exp_()
    _filter(real_N_V, params)
    # First the block, then the token in it. Both sums end above the target, so that a token without weight, where
    # neither rises, is never drawn.
    block_N_B_K = weight_N_V.view(count, blocks, _SUM_BLOCK)
    sums_N_B = block_N_B_K.sum(-1).cumsum(-1)
    total_N = sums_N_B[:, -1:]
    target_N = uniform_N[:, None].to(sums_N_B.dtype).clamp(max=_BELOW_ONE) * total_N
    # Of logits that aren't finite no sum rises above anything: kept inside, the token's log-prob tells.
    chosen_N = torch.searchsorted(sums_N_B, target_N, right=True).clamp_(max=blocks - 1)
    before_N = torch.where(chosen_N > 0, sums_N_B.gather(-1, (chosen_N - 1).clamp(min=0)), 0.0)
    inner_N_K = block_N_B_K.gather(1, chosen_N[..., None].expand(-1, 1, _SUM_BLOCK))[:, 0].cumsum(-1)
    rest_N = torch.minimum((target_N - before_N).clamp(min=0), inner_N_K[:, -1:] * _BELOW_ONE)
    place_N = torch.searchsorted(inner_N_K, rest_N, right=True)
    token_N = (chosen_N * _SUM_BLOCK + place_N).clamp_(max=vocabulary - 1)
    logprob_N = (weight_N_V.gather(-1, token_N) / total_N).log()
    return token_N[:, 0], logprob_N[:, 0]


def _filter(weight_N_V: torch.Tensor, params: SamplingParams) -> None:
    """Set to 0 what the filters leave out. Weights are probabilities up to a factor a row; the largest is 1."""
    vocabulary = weight_N_V.shape[1]
    if 0 < params.top_k < vocabulary:
        least_N = weight_N_V.topk(params.top_k, dim=-1).values[:, -1:]
        weight_N_V.masked_fill_(weight_N_V < least_N, 0.0)
    if params.top_p < 1:
        _nucleus(weight_N_V, params.top_p)
    if params.min_p > 0:
        weight_N_V.masked_fill_(weight_N_V < params.min_p * weight_N_V.amax(-1, keepdim=True), 0.0)


def _nucleus(weight_N_V: torch.Tensor, share: float) -> None:
    """Keep the fewest most probable tokens that hold at least `share`."""
    wanted_N = share * weight_N_V.sum(-1, keepdim=True, dtype=torch.float64)
    weight_N_K, place_N_K = weight_N_V.topk(min(_NUCLEUS, weight_N_V.shape[1]), dim=-1)
    if bool((weight_N_K.sum(-1, keepdim=True, dtype=torch.float64) < wanted_N).any()):
        weight_N_K, place_N_K = weight_N_V.sort(dim=-1, descending=True)
    before_N_K = weight_N_K.cumsum(-1, dtype=torch.float64) - weight_N_K
    kept_N_K = torch.where(before_N_K < wanted_N, weight_N_K, 0.0)
    weight_N_V.zero_().scatter_(-1, place_N_K, kept_N_K)
