"""A task whose problems lie in pools of different difficulty: most are drawn where most is learnt.

The bandit of SEC (arXiv 2505.14970) inside a task, its pools in place of tasks: Q <- rate x learnability +
(1 - rate) x Q of each pool that was sampled, shares softmax(Q / T), learnability the mean absolute advantage.
Schedulers above see one task."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.rl.shares import softmax
from omni_thinker.rl.stream import ProblemStream, stable_seed
from omni_thinker.types import POOL, Problem, TaskName

RATE, TEMPERATURE = 0.5, 0.2


class PooledStream(ProblemStream):
    """Deals each problem to the pool that is owed most, so that counts follow the shares exactly; each pool's problems
    come in an order of their own."""

    def __init__(self, task: TaskName, pool: Sequence[Problem], seed: int) -> None:
        super().__init__(task, pool, seed)
        by_pool: dict[str, list[Problem]] = {}
        for problem in pool:
            by_pool.setdefault(pool_of(problem), []).append(problem)
        self.parts = {
            name: ProblemStream(task, problems, stable_seed(seed, POOL, name))
            for name, problems in sorted(by_pool.items())
        }
        self.values = dict.fromkeys(self.parts, 0.0)
        self._owed = dict.fromkeys(self.parts, 0.0)

    def shares(self) -> dict[str, float]:
        return softmax(self.values, TEMPERATURE)

    def take(self, count: int) -> list[tuple[Problem, int]]:
        shares, taken = self.shares(), []
        for _ in range(count):
            for name, share in shares.items():
                self._owed[name] += share
            chosen = max(self.parts, key=lambda name: round(self._owed[name], 9))  # ties go to the first
            self._owed[chosen] -= 1
            taken += self.parts[chosen].take(1)
        self.taken += count
        return taken

    def observe(self, learnability: Mapping[str, float]) -> None:
        for name, value in learnability.items():
            self.values[name] += RATE * (value - self.values[name])

    def state(self) -> Any:
        return {
            "taken": self.taken,
            "parts": {name: stream.state() for name, stream in self.parts.items()},
            "values": dict(self.values),
            "owed": dict(self._owed),
        }

    def restore(self, state: Any) -> None:
        self.taken = state["taken"]
        for name, stream_state in state["parts"].items():
            self.parts[name].restore(stream_state)
        self.values, self._owed = dict(state["values"]), dict(state["owed"])


def pool_of(problem: Problem) -> str:
    """The difficulty pool that a problem is in; "" where it names none."""
    return str(problem.data.get(POOL, ""))


def training_streams(pools: Mapping[TaskName, Sequence[Problem]], seed: int) -> dict[TaskName, ProblemStream]:
    """One stream per task, from its beginning; of tasks with difficulty pools, one that chooses among them."""
    return {
        task: (PooledStream if len({pool_of(problem) for problem in problems}) > 1 else ProblemStream)(
            task, problems, seed
        )
        for task, problems in pools.items()
    }
