"""What is written out here of a model's forward pass, by way of the model's own modules."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def through(module: torch.nn.Module, body: Callable[..., T], *args: Any) -> T:
    """body(module, *args). Where something hangs on the module's forward pass, it happens before and after `body`.

    A sharded module gathers its weights before, and lets go of them after; so `body` returns tensors, or tuples of
    them, which it can hang its backward pass on."""
    if not module._forward_pre_hooks:
        return body(module, *args)
    own = vars(module).get("forward")
    module.forward = partial(body, module)
    try:
        result: T = module(*args)
        return result
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
