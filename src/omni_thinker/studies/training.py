"""One arm's training: its steps, its stages, and what is kept of it on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from omni_thinker.errors import UserError
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.rl.loop import Diverged, Learner, StepResult
from omni_thinker.rl.updates.schedule import learning_rate_of
from omni_thinker.runs.files import checksum, write_whole
from omni_thinker.runs.stopping import Stop, stopping
from omni_thinker.runs.tape import Entry
from omni_thinker.schedulers.base import InParts, Scheduler
from omni_thinker.studies.budget import Budget, Cost
from omni_thinker.studies.interim import Watch
from omni_thinker.studies.weights import BestWeights
from omni_thinker.types import TaskName

if TYPE_CHECKING:
    from omni_thinker.studies.session import Session


def training_key(seed: int, arm: str) -> str:
    """How the journal calls a training."""
    return f"{seed} train {arm}"


def costs_of(entries: Sequence[Entry], seed: int, arm: str) -> list[Cost]:
    """What an arm had cost after each of its steps, from its unit's lines of the journal."""
    key = training_key(seed, arm)
    values = [entry.value for entry in entries if entry.key == key and entry.kind in ("checkpoint", "move")]
    return [Cost(**row) for value in values for row in value["spent"]]


@dataclass(frozen=True)
class Stage:
    """A stage of a curriculum that has ended: its task, every task's validation accuracy and entropy, and its steps."""

    task: TaskName
    evaluation: Evaluation
    steps: int


Stopped = Literal["budget", "plateau", "steps"]
"""Why an arm ended: its budget was spent, validation no longer rose, or it took too many steps for its tokens."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    selected: after which step the weights were the best on interim validation, and are kept; None: those of the end
    are. share: of its budget that was spent."""

    spent: Cost
    stages: list[Stage]
    selected: int | None
    stopped: Stopped
    share: float


class Training:
    """Trains the wanted weights until the budget is spent, from where the journal ends.

    Steps that the journal knows are replayed: only what they cost is read. The first one after them takes weights,
    moments, learner and scheduler from the last checkpoint."""

    def __init__(
        self, session: "Session", arm: str, scheduler: Scheduler, budget: Budget, watched: Sequence[TaskName] = ()
    ) -> None:
        """watched: tasks whose mean on interim validations counts; none: there are no such validations."""
        self._session, self._arm, self._scheduler, self._budget = session, arm, scheduler, budget
        self._parts = scheduler if isinstance(scheduler, InParts) else None
        self._watch = Watch(watched) if watched and session.recipe.rl.evaluate_every else None
        self._best = BestWeights(session, arm)
        self._key = training_key(session.seed, arm)
        self._known = session.run.journal.begin(self._key)
        self._checkpoints = session.checkpoints(arm)
        self._past = [Cost(**row) for value in self._known.values for row in value["spent"]]
        self._unwritten = list[Cost]()
        self._cost = Cost()
        self._since_reset, self._stage_begun = 0, 0.0
        self._stopped: Stopped = "budget"

    @cached_property
    def _learner(self) -> Learner:
        return self._session.learner(self._session.setup.rewards, self._arm)

    def run(
        self,
        *,
        at_step: Callable[[Cost], None] | None,
        stage_ends: bool,
        on_stage: Callable[[Sequence[Stage]], None] | None,
        least: int = 0,
    ) -> Outcome:
        """All steps. With `stage_ends` the arm is evaluated where a stage ends, and `on_stage` is told all that have;
        `at_step` runs after each step. least: steps of the plan before which a plateau doesn't end it."""
        stages = list[Stage]()
        with stopping(self._session.progress.say) as stop:
            for step in count():
                self._advance(step)
                last = self._is_last(step, least)
                if stage_ends and (task := self._ended_stage(step, last)) is not None:
                    evaluation = self._session.evaluate(self._arm, "validation", step + 1, task)
                    stages.append(Stage(task, evaluation, self._stage_steps()))
                    if on_stage is not None:
                        on_stage(stages)
                if at_step is not None:
                    at_step(replace(self._cost))
                self._keep(step, stop, last)
                if last:
                    break
        self._end()
        return Outcome(self._cost, stages, self._best.step, self._stopped, self._budget.share(self._cost))

    def _advance(self, step: int) -> None:
        """Replay or compute one step."""
        if step and self._scheduler.stage(step) != self._scheduler.stage(step - 1):
            self._since_reset, self._stage_begun = 0, self._budget.place(self._cost)
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

    def _is_last(self, step: int, least: int) -> bool:
        """Whether the arm ends with this step, after what validation says where it is due."""
        if self._parts is not None and self._budget.step_tokens:
            self._parts.pace(step + 1, self._budget.place(self._cost))
        rl, watch = self._session.recipe.rl, self._watch
        if watch is not None and (step + 1) % rl.evaluate_every == 0:
            values = self._session.validate_interim(self._arm, step + 1)
            settled = self._parts is None or self._parts.is_last(step)
            if watch.see(step + 1, values, counts=settled) and rl.keep == "best":
                self._best.write(step + 1)
        if self._budget.is_spent(self._cost):
            self._stopped = "steps" if self._budget.is_endless(self._cost) else "budget"
            return True
        flat = watch is not None and 0 < rl.patience <= watch.waited
        if flat and self._budget.place(self._cost) >= least:
            self._stopped = "plateau"
            self._session.progress.say(f"{self._arm} ends after {step + 1} steps: validation no longer rises")
            return True
        return False

    def _stage_steps(self) -> int:
        """Steps of the stage that ends now, of the plan."""
        reached = min(self._budget.place(self._cost), float(self._budget.steps))
        return round(reached) - round(self._stage_begun)

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
            place = self._budget.place(self._cost)
            rate = learning_rate_of(session.recipe.rl, step, self._budget.whole, place)
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
        line = f"{self._arm} {step}/{self._budget.steps} | reward {rewards} | {pace} | {seconds:.1f} s/step"
        self._session.progress.show(line)

    def _ended_stage(self, step: int, last: bool) -> TaskName | None:
        """The task whose stage ends with this step."""
        stage = self._scheduler.stage(step)
        return stage if last or self._scheduler.stage(step + 1) != stage else None

    def _keep(self, step: int, stop: Stop, last: bool) -> None:
        """Write a checkpoint where one is due, or where this is the last step for now."""
        computed, costly = step >= len(self._past), self._session.setup.costly
        exhausted = computed and costly is not None and costly.exhausted
        if computed and not last and (self._checkpoints.due() or stop.wanted or exhausted):
            value = {
                "spent": [asdict(cost) for cost in self._unwritten],
                "learner": self._learner.state(),
                "scheduler": self._scheduler.state_dict(),
            }
            written = self._checkpoints.write(self._session.policy, step + 1)
            self._session.run.journal.checkpoint(self._key, written | value)
            self._unwritten.clear()
            self._checkpoints.drop()
            self._best.drop_older()
        if exhausted:
            raise UserError(f"spent after step {step + 1} of {self._arm}", key="judge.endpoint.budget")
        if stop.wanted:
            stop.leave()

    def _end(self) -> None:
        """Keep the trained weights, once: the last ones, or the best."""
        session, path = self._session, self._session.weights.file(self._arm)

        def make() -> dict[str, Any]:
            if self._best.step not in (None, self._cost.steps):
                self._best.load()
            write_whole(path, session.policy.save_weights)
            session.run.files.made(path)
            return {"spent": [asdict(cost) for cost in self._unwritten], "sum": checksum(path)}

        row = session.run.journal.once(self._key, make)
        self._checkpoints.drop(0)
        self._best.drop_all()
        session.weights.saved(path, row["sum"] if self._known.ended else None)
        session.progress.skip("step", self._budget.steps - self._cost.steps)
        if self._watch is not None:
            every = session.recipe.rl.evaluate_every
            session.progress.skip("interim", self._budget.steps // every - self._cost.steps // every)
