"""A learner whose skills follow known rules, so that what a study says of its arms can be held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni_thinker.compare.paired import Values
from omni_thinker.schedulers.base import Scheduler

Array = NDArray[np.float64]
Make = Callable[[int], Scheduler]
"""A scheduler for a seed."""


@dataclass(frozen=True)
class World:
    """Skills are log-odds of a task's average problem. A problem trained on task i adds `effect_K_K[i, j]` to skill j,
    less as j nears `ceiling`; each step a share `decay` of what was gained on tasks that it didn't train is lost;
    `luck` is the spread of what a step does beside that, `spread` that of problems' difficulty."""

    tasks: tuple[str, ...]
    start_K: Array
    effect_K_K: Array
    ceiling: float = 1.0
    decay: float = 0.0
    luck: float = 0.0
    spread: float = 0.8
    saturates: bool = True


@dataclass
class Learner:
    world: World
    rng: np.random.Generator
    skills_K: Array = field(init=False)

    def __post_init__(self) -> None:
        self.skills_K = self.world.start_K.copy()

    def step(self, quotas: Mapping[str, int]) -> dict[str, float]:
        """Train, and tell what schedulers learn from."""
        world, metrics = self.world, dict[str, float]()
        counts_K = np.array([quotas.get(task, 0) for task in world.tasks], dtype=float)
        for task, chance in zip(world.tasks, _share(self.skills_K), strict=True):
            if count := quotas.get(task, 0):
                seen = self.rng.binomial(8 * count, chance) / (8 * count)
                metrics |= {f"reward/{task}": seen, f"advantage/{task}": 2 * seen * (1 - seen)}
                metrics[f"problems/{task}"] = float(count)
        room = np.maximum(0.0, 1 - _share(self.skills_K) / world.ceiling) if world.saturates else 1.0
        self.skills_K += counts_K @ world.effect_K_K * room
        idle = counts_K == 0
        self.skills_K -= idle * world.decay * (self.skills_K - world.start_K)
        self.skills_K += self.rng.normal(0, world.luck, len(idle))
        return metrics

    def values(self, difficulties_K_P: Array, samples: int) -> Values:
        """Scores of a test split: the mean of `samples` answers to each problem."""
        own = self.rng.normal(0, 0.3, difficulties_K_P.shape)  # what this arm finds harder than another does
        chances = _share(self.skills_K[:, None] - difficulties_K_P + own)
        table = self.rng.binomial(samples, chances) / samples
        return {
            task: {str(place): float(value) for place, value in enumerate(row)}
            for task, row in zip(self.world.tasks, table, strict=True)
        }


def run_study(
    world: World, arms: Mapping[str, Make], rng: np.random.Generator, seeds: int, steps: int, problems: int
) -> dict[str, list[Values]]:
    """Every arm on the same problems, once a seed."""
    difficulties = rng.normal(0, world.spread, (len(world.tasks), problems))
    found: dict[str, list[Values]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, make in arms.items():
            found[name].append(_trained(world, make(seed), rng, steps).values(difficulties, 2))
    return found


def true_scores(world: World, arms: Mapping[str, Make], steps: int, runs: int = 200) -> dict[str, float]:
    """What each arm ends at on average over runs and problems, macro."""
    rng = np.random.default_rng(1)
    offsets = rng.normal(0, np.hypot(world.spread, 0.3), 400)
    return {
        name: float(
            np.mean(
                [
                    _share(_trained(world, make(run), rng, steps).skills_K[:, None] - offsets).mean()
                    for run in range(runs)
                ]
            )
        )
        for name, make in arms.items()
    }


def _trained(world: World, scheduler: Scheduler, rng: np.random.Generator, steps: int) -> Learner:
    learner = Learner(world, rng)
    for step in range(steps):
        scheduler.observe(step, learner.step(scheduler.quotas(step)))
    return learner


def _share(log_odds: Array) -> Array:
    return 1 / (1 + np.exp(-log_odds))


def sequence(tasks: Sequence[str], steps: int) -> list[tuple[str, int]]:
    """Even stages."""
    return [(task, steps // len(tasks)) for task in tasks]
