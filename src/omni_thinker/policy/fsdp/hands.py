"""One rank's workers, by number: what rank 0 and its followers have in common."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from omni_thinker.models.memory import bound_kernel_caches, keep_freed_memory
from omni_thinker.policy.fsdp.place import Place
from omni_thinker.policy.fsdp.worker import Worker


class Hands:
    """Does what rank 0 says. Every rank has the same workers, and is told the same in the same order."""

    def __init__(self, place: Place, store: Any) -> None:
        self._place, self._store = place, store
        self.workers: dict[int, Worker] = {}

    def begin(self, device: str, timeout_s: float) -> None:
        """Join the group of processes that compute together; gloo for what is on a CPU, nccl for GPUs."""
        bound_kernel_caches()
        keep_freed_memory()
        if device == "cuda":
            torch.cuda.set_device(self._place.local)
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=dist.PrefixStore("ranks", self._store),  # type: ignore[attr-defined]
            rank=self._place.rank,
            world_size=self._place.world,
            timeout=timedelta(seconds=timeout_s),
        )

    def make(self, number: int, *args: Any, **own: Any) -> None:
        self.workers[number] = Worker(*args, **own)

    def drop(self, number: int) -> None:
        self.workers.pop(number, None)

    def do(self, number: int, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self.workers[number], method)(*args)

    def end(self) -> None:
        self.workers.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def store_of(place: Place, *, timeout_s: float = 300.0) -> Any:
    """The store that torchrun's agent, or rank 0, holds for all processes. Raises RuntimeError where there is none."""
    wait = timedelta(seconds=timeout_s)
    return dist.TCPStore(place.host, place.port, is_master=False, timeout=wait)  # type: ignore[attr-defined]
