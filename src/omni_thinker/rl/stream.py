"""The order in which a task's training problems come: a pure function of seed, task and number.

Two arms with one seed see the same problems of a task in the same order and draw with the same random numbers,
so that their difference owes nothing to luck of the draw, and resuming is arithmetic."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omni_thinker.types import Problem, TaskName


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the text of `parts`, the same in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ProblemStream:
    """Endless training problems of one task: each pass over the pool is freshly shuffled."""

    def __init__(self, task: TaskName, pool: Sequence[Problem], seed: int) -> None:
        self.task, self.pool, self.seed = task, pool, seed
        self.taken = 0

    def take(self, count: int) -> list[tuple[Problem, int]]:
        """The next `count` problems, each with the seed of its draws."""
        taken = [self.at(number) for number in range(self.taken, self.taken + count)]
        self.taken += count
        return taken

    def ahead(self, count: int) -> list[tuple[Problem, int]]:
        """What `take` would return now."""
        state = self.state()
        taken = self.take(count)
        self.restore(state)
        return taken

    def at(self, number: int) -> tuple[Problem, int]:
        epoch, place = divmod(number, len(self.pool))
        order = np.random.default_rng(stable_seed(self.seed, self.task, "epoch", epoch)).permutation(len(self.pool))
        return self.pool[int(order[place])], stable_seed(self.seed, self.task, "draw", number)

    def state(self) -> Any:
        """The position as plain JSON, for `restore`."""
        return self.taken

    def restore(self, state: Any) -> None:
        self.taken = int(state)

    def observe(self, learnability: Mapping[str, float]) -> None:
        """Nothing to learn from how much the problems taught."""


def make_streams(pools: Mapping[TaskName, Sequence[Problem]], seed: int) -> dict[TaskName, ProblemStream]:
    """One stream per task, from its beginning."""
    return {task: ProblemStream(task, pool, seed) for task, pool in pools.items()}
