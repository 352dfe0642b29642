"""Which layout a model may be given: whole groups in a row, or a row per sample."""

from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

_WORST = 0.5
"""Nats per token. bf16 kernels of other shapes differ by a few hundredths, a sample that sees its siblings by more
than 1."""
_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def supports_group_rows(model: PreTrainedModel, longest: int) -> bool:
    """Whether several samples of up to `longest` tokens, prompt included, may share a row of `model`.

    Needs attention that obeys a free mask in every layer. No flag of transformers says so (convolution and
    state-space layers ignore the mask, some attention reads it as additive), so it is tried out once."""
    config = model.config.get_text_config()
    for window in ("sliding_window", "attention_chunk_size"):
        size = getattr(config, window, None)
        if size is not None and longest > size:
            return False
    if model not in _known:
        _known[model] = _obeys_mask(model)
    return _known[model]


@torch.no_grad()
def _obeys_mask(model: PreTrainedModel) -> bool:
    """Compare the log-probs of a few made-up answers in the packed and in the padded layout."""
    vocabulary = model.config.get_text_config().vocab_size
    groups = [_made_up(g, vocabulary) for g in range(2)]
    padded = answer_logprobs(model, groups, temperature=1.0, packed=False).logprobs_N
    try:
        packed = answer_logprobs(model, groups, temperature=1.0, packed=True).logprobs_N
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # the model's layers refuse the mask
    return bool((packed - padded).abs().max() < _WORST)


def _made_up(g: int, vocabulary: int) -> TrainGroup:
    def tokens(count: int, salt: int) -> tuple[int, ...]:
        return tuple((7919 * (salt + i) + 31 * g) % vocabulary for i in range(count))

    samples = tuple(Sample(tokens(3 + n, 50 * n + 5), (0.0,) * (3 + n), "", "stop") for n in range(3))
    return TrainGroup("", tokens(5 + g, 1), samples, (0.0,) * 3, (0.0,) * 3)
