"""One arm's training: its steps, its stages, and what is kept of it on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omni_thinker.errors import UserError
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.rl.loop import Diverged, Learner, StepResult
from omni_thinker.rl.updates.schedule import learning_rate_of
from omni_thinker.runs.files import checksum, write_whole
from omni_thinker.runs.stopping import Stop, stopping
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.types import TaskName

if TYPE_CHECKING:
    from omni_thinker.studies.session import Session


@dataclass
class Cost:
    """What an arm cost. RL only: evaluations are the same for all arms and not counted."""

    steps: int = 0
    tokens_sampled: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0
    samples: int = 0

    def add(self, result: StepResult, seconds: float) -> None:
        self.steps += 1
        self.tokens_sampled += result.tokens_sampled
        self.tokens_trained += result.tokens_trained
        self.samples += sum(len(group.group.samples) for group in result.groups)
        self.seconds += seconds

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Stage:
    """A stage of a curriculum that has ended: its task, every task's validation accuracy and entropy, and its steps."""

    task: TaskName
    evaluation: Evaluation
    steps: int


class Training:
    """Trains the wanted weights for `steps` steps, from where the journal ends.

    Steps that the journal knows are replayed: only what they cost is read. The first one after them takes weights,
    moments, learner and scheduler from the last checkpoint."""

    def __init__(
        self, session: "Session", arm: str, scheduler: Scheduler, steps: int, whole: int | None = None
    ) -> None:
        """whole: the steps that the schedule of the learning rate is over, by default `steps`; what is trained alone
        begins as an arm of these would."""
        self._session, self._arm, self._scheduler, self._steps = session, arm, scheduler, steps
        self._whole = whole or steps
        self._key = f"{session.seed} train {arm}"
        self._known = session.run.journal.begin(self._key)
        self._checkpoints = session.checkpoints(arm)
        self._past = [Cost(**row) for value in self._known.values for row in value["spent"]]
        self._unwritten = list[Cost]()
        self._cost = Cost()
        self._since_reset = 0

    @cached_property
    def _learner(self) -> Learner:
        return self._session.learner(self._session.setup.rewards, self._arm)

    def run(
        self,
        *,
        at_step: Callable[[Cost], None] | None,
        stage_ends: bool,
        on_stage: Callable[[Sequence[Stage]], None] | None,
    ) -> tuple[Cost, list[Stage]]:
        """All steps. With `stage_ends` the arm is evaluated where a stage ends, and `on_stage` is told all that have;
        `at_step` runs after each step."""
        stages = list[Stage]()
        with stopping(self._session.progress.say) as stop:
            for step in range(self._steps):
                self._advance(step)
                if stage_ends and (task := self._ended_stage(step)) is not None:
                    evaluation = self._session.evaluate(self._arm, "validation", step + 1, task)
                    stages.append(Stage(task, evaluation, self._since_reset))
                    if on_stage is not None:
                        on_stage(stages)
                if at_step is not None:
                    at_step(replace(self._cost))
                self._keep(step, stop)
        self._end()
        return self._cost, stages

    def _advance(self, step: int) -> None:
        """Replay or compute one step."""
        if step and self._scheduler.stage(step) != self._scheduler.stage(step - 1):
            self._since_reset = 0
            if step > len(self._past):
                self._session.policy.reset_optimizer()  # moments of another task's gradient are no guide
        if step < len(self._past):
            self._cost = self._past[step]
            self._session.progress.skip("step", 1)
        else:
            self._session.weights.ensure_loaded()
            if step and step == len(self._past):
                self._restore()
            self._session.weights.changed()
            self._cost = self._compute(step)
            self._unwritten.append(self._cost)
        self._since_reset += 1

    def _restore(self) -> None:
        last = self._known.values[-1]
        self._checkpoints.read(self._session.policy, last)
        self._learner.restore(last["learner"])
        self._scheduler.load_state_dict(last["scheduler"])
        if self._since_reset == 0:
            self._session.policy.reset_optimizer()

    def _compute(self, step: int) -> Cost:
        """One step, logged; all that the arm has cost with it."""
        session, began = self._session, time.monotonic()
        try:
            rate = learning_rate_of(session.recipe.rl, step, self._whole)
            result = self._learner.step(self._scheduler.quotas(step), step, rate)
        except Diverged as exc:
            path = session.run.write_json("diverged.json", {"arm": self._arm, "step": step + 1, **exc.evidence})
            raise UserError(f"{exc.message}; the batch is in {path}", key=exc.key) from None
        seconds = time.monotonic() - began
        cost = replace(self._cost)
        cost.add(result, seconds)
        self._scheduler.observe(step, result.metrics)
        metrics = {**result.metrics, **(session.setup.judge.metrics() if session.setup.judge else {})}
        session.log(self._arm, "train", step + 1, seconds, metrics, self._scheduler.stage(step))
        session.progress.unit("step", seconds)
        self._show(step + 1, result, seconds)
        return cost

    def _show(self, step: int, result: StepResult, seconds: float) -> None:
        by_task = [
            f"{name.removeprefix('reward/')} {value:.2f}"
            for name, value in result.metrics.items()
            if name.startswith("reward/") and name != "reward/all"
        ]
        every = len(self._session.setup.tasks)
        rewards = " ".join([*by_task, *([f"({len(by_task)} of {every} tasks)"] if 1 < len(by_task) < every else [])])
        sampling = result.metrics.get("seconds/sample", 0.0)
        pace = f"{result.tokens_sampled / sampling:.0f} tok/s" if sampling else ""
        line = f"{self._arm} {step}/{self._steps} | reward {rewards} | {pace} | {seconds:.1f} s/step"
        self._session.progress.show(line)

    def _ended_stage(self, step: int) -> TaskName | None:
        """The task whose stage ends with this step."""
        stage = self._scheduler.stage(step)
        last = step + 1 == self._steps or self._scheduler.stage(step + 1) != stage
        return stage if last else None

    def _keep(self, step: int, stop: Stop) -> None:
        """Write a checkpoint where one is due, or where this is the last step for now."""
        computed, costly = step >= len(self._past), self._session.setup.costly
        exhausted = computed and costly is not None and costly.exhausted
        if computed and step + 1 < self._steps and (self._checkpoints.due() or stop.wanted or exhausted):
            value = {
                "spent": [asdict(cost) for cost in self._unwritten],
                "learner": self._learner.state(),
                "scheduler": self._scheduler.state_dict(),
            }
            written = self._checkpoints.write(self._session.policy, step + 1)
            self._session.run.journal.checkpoint(self._key, written | value)
            self._unwritten.clear()
            self._checkpoints.drop()
        if exhausted:
            raise UserError(f"spent after step {step + 1} of {self._arm}", key="judge.endpoint.budget")
        if stop.wanted:
            stop.leave()

    def _end(self) -> None:
        """Keep the trained weights, once."""
        session, path = self._session, self._session.weights.file(self._arm)

        def make() -> dict[str, Any]:
            write_whole(path, session.policy.save_weights)
            session.run.files.made(path)
            return {"spent": [asdict(cost) for cost in self._unwritten], "sum": checksum(path)}

        row = session.run.journal.once(self._key, make)
        self._checkpoints.drop(0)
        session.weights.saved(path, row["sum"] if self._known.ended else None)
