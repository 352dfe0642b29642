"""AdamW on the shards of one rank."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from omni_thinker.engine.optimizer import Updates
from omni_thinker.protocol import OptimParams, OptimReport


class ShardUpdates(Updates):
    """The shards are the masters. All ranks step together, by the norm of the whole gradient."""

    def __init__(self, params: Sequence[Any]) -> None:
        self.params = list(params)
        super().__init__([_local(param).detach().requires_grad_(True) for param in self.params])

    def clear(self) -> None:
        super().clear()
        for param in self.params:
            param.grad = None

    def step(self, optim: OptimParams) -> OptimReport:
        for value, param in zip(self.values, self.params, strict=True):
            value.data = _local(param)  # FSDP may have laid it out anew
            value.grad = None if param.grad is None else _local(param.grad)
        return super().step(optim)

    def _norm(self) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.values[0].device)
        for value in self.values:
            if value.grad is not None:
                total += torch.linalg.vector_norm(value.grad, dtype=torch.float64).square()
        dist.all_reduce(total)
        return float(total.sqrt())

    def full_gradients(self) -> Iterator[torch.Tensor | None]:
        """Each whole gradient, on every rank, one after another: all ranks must take all."""
        for param in self.params:
            yield None if param.grad is None else param.grad.full_tensor()

    def moments(self, place: int) -> Mapping[str, torch.Tensor]:
        """What AdamW remembers of one of the params, as its shard; empty before its first step."""
        return dict(self.optimizer.state.get(self.values[place], {}))

    def remember(self, place: int, moments: Mapping[str, torch.Tensor]) -> None:
        self.optimizer.state[self.values[place]] = dict(moments)


@torch.no_grad()
def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local()
    return local
