"""Activation checkpointing (arXiv 1604.06174) of a model's own layers, without what else training mode turns on."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from omni_thinker.engine.attention.hf import computed_again

_again = partial(checkpoint, use_reentrant=False, context_fn=computed_again)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a forward pass keeps each layer's input alone, where the architecture knows how.

    transformers checkpoints in training mode only, which would also turn on routers' noise and jitter: the sampler,
    which draws in eval mode, would be another model. So the switch is set on the layers themselves, not inside them."""
    for layer in _layers(model):
        layer.gradient_checkpointing, layer._gradient_checkpointing_func, layer.training = True, _again, True
    try:
        yield
    finally:
        for layer in _layers(model):
            layer.gradient_checkpointing, layer.training = False, False


def can_checkpoint(model: PreTrainedModel) -> bool:
    """Whether the architecture knows how."""
    return bool(_layers(model))


def _layers(model: PreTrainedModel) -> list[Any]:
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    # Where no layer has the switch, the stack around the layers may.
    return layers or [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
