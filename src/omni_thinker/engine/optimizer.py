"""fp32 copies of a model's weights, which take the updates: one of 1e-6 is lost to rounding in bf16.

Where weights are in bf16 on a CPU, the kernels in C add up gradients and make a step in one pass over memory each; what
they know of the optimiser's state is torch's own."""

from collections.abc import Sequence
from typing import Any

import torch

from omni_thinker.engine.native import kernels
from omni_thinker.protocol import OptimParams, OptimReport

BETAS = (0.9, 0.95)
EPS = 1e-8
_NORM_BLOCK = 1 << 14
"""Numbers whose squares are added up in fp32; the sums of blocks are added up in fp64."""


class Updates:
    """AdamW (arXiv 1711.05101) on fp32 tensors whose `grad` somebody else fills."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        self.values = list(values)
        self.reset()

    def reset(self) -> None:
        """Forget moments and gradients."""
        self.clear()
        fused = self.values[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self.values, lr=0.0, betas=BETAS, eps=EPS, fused=fused)

    def clear(self) -> None:
        """Forget gradients."""
        for master in self.values:
            master.grad = None

    def gradients(self) -> list[torch.Tensor | None]:
        """What was added up so far, of each."""
        return [master.grad for master in self.values]

    def step(self, optim: OptimParams) -> OptimReport:
        """Clip the gradient's norm, make a step unless it isn't finite, and clear it."""
        norm = self._norm()
        applied = norm == norm and norm != float("inf")
        if applied:
            self._apply(optim, norm)
        self.clear()
        return OptimReport(norm, applied)

    def _norm(self) -> float:
        return float(torch.nn.utils.get_total_norm([v.grad for v in self.values if v.grad is not None]))

    def _apply(self, optim: OptimParams, norm: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(self.values, optim.max_grad_norm, torch.tensor(norm))
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = optim.lr, optim.weight_decay
        self.optimizer.step()


class Masters(Updates):
    """Trains `params` through their masters. Gradients of the params are added up in their masters' `grad` as they
    come, and freed. With the kernels in C, what comes first is kept as it is, since most steps are one micro-batch: it
    takes half of the memory."""

    def __init__(self, params: Sequence[torch.nn.Parameter]) -> None:
        self.params = list(params)
        native = all(p.dtype == torch.bfloat16 and p.device.type == "cpu" and p.is_contiguous() for p in self.params)
        self._native = kernels() if native else None
        self._first: list[list[torch.Tensor]] = [[] for _ in self.params]
        """The only gradient so far, of the params that have one in bf16; theirs, and no master's, yet."""
        self._moments: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Of all masters, once there are any. A reset keeps them: to get a gigabyte of fresh memory takes longer than a
        step."""
        super().__init__([param.detach().float().clone().requires_grad_(True) for param in self.params])
        for param, master, first in zip(self.params, self.values, self._first, strict=True):
            param.register_post_accumulate_grad_hook(_adds_to(master, first, self._native))

    def clear(self) -> None:
        super().clear()
        for first in self._first:
            first.clear()

    def gradients(self) -> list[torch.Tensor | None]:
        """In bf16 where no second one was added."""
        return [first[0] if first else grad for first, grad in zip(self._first, super().gradients(), strict=True)]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters to the params."""
        for param, master in zip(self.params, self.values, strict=True):
            param.copy_(master)

    def _norm(self) -> float:
        if self._native is None:
            for master, first in zip(self.values, self._first, strict=True):
                _widen(master, first)
            return super()._norm()
        grads = [grad for grad in self.gradients() if grad is not None]
        sums = [grad.new_empty(-(-grad.numel() // _NORM_BLOCK), dtype=torch.float32) for grad in grads]
        for grad, block_sums in zip(grads, sums, strict=True):
            self._native.squares(*_addresses(grad), block_sums.data_ptr(), grad.numel(), _NORM_BLOCK)
        return float(torch.cat(sums).sum(dtype=torch.float64).sqrt()) if sums else 0.0

    def _apply(self, optim: OptimParams, norm: float) -> None:
        if self._native is not None:
            self._native_step(self._native, optim, norm)
            return
        super()._apply(optim, norm)
        self.publish()

    @torch.no_grad()
    def _native_step(self, c: Any, optim: OptimParams, norm: float) -> None:
        self._begin_moments()
        scale, keep = min(1.0, optim.max_grad_norm / (norm + 1e-6)), 1 - optim.lr * optim.weight_decay
        for param, master, grad in zip(self.params, self.values, self.gradients(), strict=True):
            if grad is None:
                continue
            state = self.optimizer.state[master]
            state["step"] += 1
            first, second = (1 - beta ** float(state["step"]) for beta in BETAS)
            others = (tensor.data_ptr() for tensor in (state["exp_avg"], state["exp_avg_sq"], param))
            rates = (scale, optim.lr / first, keep, *BETAS, second**0.5, EPS)
            c.adamw(master.data_ptr(), *_addresses(grad), *others, master.numel(), *rates)
            torch.autograd.graph.increment_version((master, param))  # what is laid out of the weights is old

    def _begin_moments(self) -> None:
        """As torch.optim.AdamW begins, for those that have a gradient for the first time since the last reset."""
        if not self._moments:
            self._moments = [(torch.zeros_like(master), torch.zeros_like(master)) for master in self.values]
        state = self.optimizer.state
        for master, grad, moments in zip(self.values, self.gradients(), self._moments, strict=True):
            if grad is not None and not state[master]:
                first, second = (moment.zero_() for moment in moments)
                step = torch.zeros((), dtype=torch.float32, device="cpu")
                state[master] = {"step": step, "exp_avg": first, "exp_avg_sq": second}


def _addresses(grad: torch.Tensor) -> tuple[int | None, int | None]:
    """As the kernels take a gradient: in fp32, or in bf16."""
    return (grad.data_ptr(), None) if grad.dtype == torch.float32 else (None, grad.data_ptr())


def _widen(master: torch.Tensor, first: list[torch.Tensor]) -> None:
    """Make the only gradient so far the master's."""
    if first:
        master.grad = first.pop().float()


def _adds_to(master: torch.Tensor, first: list[torch.Tensor], native: Any) -> Any:
    """A hook that adds up micro-batches in fp32, where bf16 sums would lose the small ones.

    It must not refer to what holds the param: torch keeps hooks where Python's collector of cycles can't see them, and
    the weights of a model that nobody uses any more would stay."""

    def hook(param: torch.Tensor) -> None:
        grad, param.grad = param.grad, None
        if grad is None:
            return
        narrow = native is not None and grad.is_contiguous() and grad.dtype == torch.bfloat16
        _widen(master, first)
        sums = master.grad
        if sums is None and narrow:
            first.append(grad)
        elif sums is None:
            master.grad = grad.float().contiguous()
        elif narrow:
            native.add_up(sums.data_ptr(), grad.data_ptr(), grad.numel())
        else:
            sums.add_(grad)

    return hook
