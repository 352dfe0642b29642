"""One update for each task of a step, in random order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import Loss, LossReport, OptimParams, OptimReport, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.recipe.rl import Update
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Problem
from scripted import Scripted, in_turns

TASKS = ("a", "b", "c")


class Told(TorchPolicy):
    """Remembers which tasks were trained in which update."""

    def __init__(self) -> None:
        super().__init__(ModelSpec(name="tiny", dtype="float32"))
        self.updates: list[list[str]] = [[]]

    def forward_backward(
        self, batch: Sequence[TrainGroup], loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        self.updates[-1] += [group.task for group in batch]
        return super().forward_backward(batch, loss, temperature=temperature, reference=reference)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        self.updates.append([])
        return super().optim_step(optim)


def trained(*, update: Update, skip: int = 0, steps: int = 6) -> list[list[str]]:
    policy = Told()
    pools = {task: [Problem(f"{task}{n}", task, str(n)) for n in range(20)] for task in TASKS}
    spec = RlSpec(group_size=2, kl_every=0, lr=1e-6, update=update)
    rewards, lengths = dict.fromkeys(TASKS, Scripted(in_turns)), dict.fromkeys(TASKS, 2)
    learner = Learner(policy, spec, make_streams(pools, 0), rewards, lengths)
    if skip:
        learner.restore({**learner.state(), "streams": dict.fromkeys(TASKS, 2 * skip)})
    for step in range(skip, steps):
        learner.step(dict.fromkeys(TASKS, 2), step)
    return [sorted(update) for update in policy.updates if update]


def test_update_by_task_trains_each_task_alone_in_changing_order() -> None:
    assert trained(update="step") == [["a", "a", "b", "b", "c", "c"]] * 6
    found = trained(update="task")
    steps = [found[begin : begin + 3] for begin in range(0, len(found), 3)]
    assert len(steps) == 6
    assert all(sorted(step) == [["a", "a"], ["b", "b"], ["c", "c"]] for step in steps)
    assert len({str(step) for step in steps}) > 2
    assert trained(update="task") == found


@pytest.mark.parametrize("skip", [1, 4])
def test_update_by_task_of_a_resumed_step_has_the_same_order(skip: int) -> None:
    assert trained(update="task", skip=skip) == trained(update="task")[3 * skip :]
