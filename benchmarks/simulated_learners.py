"""Made-up worlds in which the truth is known, to put forecasts and plans to the test.

Each world is drawn at random and says what any plan ends at; what is measured of it is noisy, as in a study. Worlds
differ in what later stages do: nothing but their own constant transfer, share what they bring, wear off what was
learnt, nothing at all, or gain less where earlier ones took entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import Entropies, TransferMatrix
from omni_thinker.transfer.forecast import Array
from omni_thinker.types import TaskName

WorldKind = Literal["constant", "saturating", "forgetting", "order-free", "entropy"]
WORLDS: tuple[WorldKind, ...] = get_args(WorldKind)


@dataclass(frozen=True, slots=True)
class World:
    """In log-odds: `start_K`, `shared_K` (what any run lifts a task by, once), `own_K` (the own run, beyond that),
    `specific_K_K[i, j]` (what i does to j beyond the shared part).

    constant: specific effects add up and stay. saturating: only the last stage's specific effect stays, and the shared
    part comes once. forgetting: each later stage leaves a share `kept` of the own gain, of which half comes back at the
    next stage on it. order-free: every order ends at the same. entropy: constant, but an own gain is multiplied by
    1 + `response` x what earlier stages did to the entropy of its answers (`nats_K_K[i, j]`)."""

    kind: WorldKind
    tasks: tuple[TaskName, ...]
    start_K: Array
    shared_K: Array
    own_K: Array
    specific_K_K: Array
    kept: float
    mixed: float
    luck: float
    """Spread, in log-odds, of what a run ends at beside all this."""
    nats_K_K: Array
    response: float

    @classmethod
    def drawn(cls, kind: WorldKind, rng: np.random.Generator, count: int = 4) -> World:
        """A world of `count` tasks with effects of the size that small models show."""
        specific = rng.normal(0.0, rng.uniform(0.1, 0.3), (count, count))
        np.fill_diagonal(specific, 0.0)
        if kind == "order-free":
            specific[:] = 0.0
        return cls(
            kind,
            tuple(f"task_{k}" for k in range(count)),
            rng.uniform(-1.5, 0.5, count),
            np.maximum(0.0, rng.normal(0.25, 0.25, count)),
            rng.uniform(0.2, 1.6, count),
            specific,
            float(rng.uniform(0.7, 0.95)) if kind == "forgetting" else 1.0,
            1.0 if kind == "order-free" else float(rng.beta(8, 2)),
            float(rng.uniform(0.05, 0.2)),
            rng.normal(-0.3, 0.3, (count, count)),
            float(rng.uniform(0.2, 0.8)) if kind == "entropy" else 0.0,
        )

    def single(self, i: int) -> Array:
        """Log-odds of all tasks after RL on task i alone."""
        value: Array = self.start_K + self.shared_K + self.specific_K_K[i]
        value[i] = self.start_K[i] + self.shared_K[i] + self.own_K[i]
        return value

    def sequence(self, order: Sequence[int]) -> Array:
        """Accuracies that training on each of `order` in turn ends at, without luck. Tasks that are not named are not
        trained; what others do to them is the same."""
        if not order:
            return _accuracy(self.start_K)
        value = self.start_K + self.shared_K
        for j in range(len(self.tasks)):
            place = order.index(j) if j in order else -1
            before, later = list(order[: max(place, 0)]), list(order[place + 1 :])
            if place >= 0:
                lower = max(0.0, 1 + self.response * sum(self.nats_K_K[i, j] for i in before))
                value[j] += self.own_K[j] * lower * (self.kept ** len(later))
            if self.kind in ("constant", "forgetting", "entropy"):
                value[j] += sum(self.specific_K_K[i, j] for i in later)
            elif self.kind == "saturating" and later:
                value[j] += self.specific_K_K[later[-1], j]
        return _accuracy(value)

    def joint(self) -> Array:
        """The same for joint training in like shares."""
        return _accuracy(self.start_K + self.shared_K + self.mixed * self.own_K)

    def with_luck(self, accuracy: Array, rng: np.random.Generator) -> Array:
        """What one run of the plan ends at."""
        value = np.log(accuracy / (1 - accuracy)) + rng.normal(0.0, self.luck, len(accuracy))
        return _accuracy(value)

    def measured(self, problems: int, rng: np.random.Generator) -> TransferMatrix:
        """The matrix that one run for each task, evaluated on so many problems, shows."""

        def row(accuracy: Array) -> dict[TaskName, Estimate]:
            return {task: seen(p, problems, rng) for task, p in zip(self.tasks, accuracy, strict=True)}

        after = {i: row(self.with_luck(_accuracy(self.single(k)), rng)) for k, i in enumerate(self.tasks)}
        return TransferMatrix(self.tasks, row(_accuracy(self.start_K)), after, entropy=self._entropies())

    def _entropies(self) -> Entropies:
        begin = dict.fromkeys(self.tasks, 3.0)
        rows = {
            i: {j: 3.0 + float(self.nats_K_K[a, b]) for b, j in enumerate(self.tasks)} for a, i in enumerate(self.tasks)
        }
        return Entropies(begin, rows)


def seen(accuracy: float, problems: int, rng: np.random.Generator) -> Estimate:
    """An evaluation of a policy of this accuracy."""
    mean = rng.binomial(problems, accuracy) / problems
    smooth = (mean * problems + 0.5) / (problems + 1)
    return Estimate(float(mean), problems, float(np.sqrt(smooth * (1 - smooth) / problems)))


def _accuracy(log_odds: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-log_odds)))
