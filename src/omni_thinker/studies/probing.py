"""Probes: what RL on each task alone does to every task. Four ways to find out, from dear to cheap.

full: a whole stage on each task (arXiv 2507.14783). short: its first steps, extrapolated. lora: low-rank adapters in
place of the weights. gradient: no run, a straight line along each task's policy gradient at the start."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omni_thinker.arms import PROBE
from omni_thinker.errors import UserError
from omni_thinker.protocol import SketchesGradients
from omni_thinker.recipe import ProbeKind, Recipe
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.rl.gradient import add_policy_gradient
from omni_thinker.rl.updates.schedule import learning_rate_of
from omni_thinker.runs.schema.transfer import Entropies, TransferMatrix
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.budget import Cost
from omni_thinker.studies.session import ArmResult, Session
from omni_thinker.studies.setup import Setup, study_seed
from omni_thinker.studies.units import Unit, even_stages, probe_lengths
from omni_thinker.transfer.gradient import Gradients, first_order
from omni_thinker.transfer.probe import extrapolate
from omni_thinker.types import TaskName

_BATCHES_PER_STEP = 2
"""Batches that a gradient probe draws for each step: products of different batches are free of their own noise."""


@dataclass
class Probed:
    """One kind of probe, by task: its cost, what it was seen to do, and the experts that came of it.

    matrix: what whole stages would show; None until all tasks of a study of several were probed."""

    kind: ProbeKind
    matrix: TransferMatrix | None = None
    spent: dict[TaskName, Cost] = field(default_factory=dict)
    seen: dict[TaskName, Evaluation] = field(default_factory=dict)
    gradients: dict[TaskName, Gradients] = field(default_factory=dict)
    tokens_evaluated: int = 0
    experts: dict[TaskName, ArmResult] = field(default_factory=dict)

    def note(self, task: TaskName, evaluation: Evaluation, spent: Cost) -> None:
        """A task's probe has ended."""
        self.seen[task] = evaluation
        self.spent[task] = spent
        self.tokens_evaluated += evaluation.tokens


class Probes:
    """The probes of one seed, all from the same start. start: its weights; begun: its evaluation on validation."""

    def __init__(self, session: Session, kinds: Sequence[ProbeKind], start: Path, begun: Evaluation) -> None:
        self._session, self._start, self._begun = session, start, begun
        self._by_kind: dict[ProbeKind, Probed] = {kind: Probed(kind) for kind in kinds}
        self._adapters: tuple[Session, Path] | None = None

    def experts(self, kind: ProbeKind) -> list[ArmResult]:
        """The results of training on each task alone."""
        return list(self._by_kind[kind].experts.values())

    def train_alone(self, unit: Unit) -> ArmResult | None:
        """Train one task. The first steps are the short probe, the first stage is the full one and merging's expert.

        Returns the single-task arm, where the unit is one."""
        session, task = self._session, unit.task
        session.weights.load(self._start)

        # A probe is the beginning of the single-task arm, also where there is none.
        budget = session.budget(unit.steps, whole=session.recipe.study.steps)
        ahead = dict(unit.reads)

        def at_step(so_far: Cost) -> None:
            place = budget.place(so_far)
            reached = [kind for kind, end in ahead.items() if place >= end]
            if not reached:
                return
            for kind in reached:
                del ahead[kind]
            evaluation = session.evaluate(PROBE + task, "validation", so_far.steps)
            for kind in reached:
                self._by_kind[kind].note(task, evaluation, replace(so_far))
            if "full" in reached:
                path = session.weights.save(PROBE + task)
                expert = ArmResult(PROBE + task, path, replace(so_far), evaluation.estimates())
                self._by_kind["full"].experts[task] = expert

        scheduler = Stages([(task, unit.steps)], session.recipe.rl.problems_per_step)
        whole = bool(unit.arm) and session.recipe.study.single_budget == "full"
        watched, least = ((task,) if whole else ()), max(unit.reads.values())
        outcome = session.train(unit.name, scheduler, budget, watched=watched, at_step=at_step, least=least)
        if whole:
            return session.trained(unit.arm, outcome)
        expert = self._by_kind["full"].experts[task] if unit.arm else None
        return None if expert is None else replace(expert, name=unit.arm, training=outcome)

    def train_adapter(self, unit: Unit) -> None:
        """Train an adapter for one task on a second copy of the start, and keep it as a peft folder."""
        self._adapters = self._adapters or self._adapter_session()
        session, fresh = self._adapters
        session.weights.load(fresh)
        scheduler = Stages([(unit.task, unit.steps)], session.recipe.rl.problems_per_step)
        spent = session.train(unit.name, scheduler, session.budget(unit.steps, session.recipe.study.steps)).spent
        evaluation = session.evaluate(unit.name, "validation", spent.steps)
        probed = self._by_kind["lora"]
        probed.note(unit.task, evaluation, spent)
        folder = session.weights.export(unit.name, adapter=True)
        probed.experts[unit.task] = ArmResult(unit.name, folder, spent, evaluation.estimates())

    def make_base(self) -> None:
        """Write the start as a folder, and the fresh adapters that all tasks begin with."""
        session = self._session
        session.weights.load(self._start)
        session.weights.export("start")
        self._adapters = self._adapter_session()
        self._adapters[0].weights.save("lora")

    def _adapter_session(self) -> tuple[Session, Path]:
        """A session whose policy is the start with fresh adapters, and the file of these."""
        session, recipe = self._session, self._session.recipe
        adapted = recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update={"lora": recipe.study.probe_lora}),
                "rl": recipe.rl.model_copy(update={"lr": recipe.rl.lr * recipe.study.probe_lora_lr}),
            }
        )
        setup = replace(session.setup, recipe=adapted)
        folder = session.weights.exported("start")
        adapters = Session(setup, session.seed, session.desk, folder=folder)
        adapters.pools = session.pools
        return adapters, adapters.weights.file("lora")

    def sketch_gradient(self, unit: Unit) -> None:
        """Sketch one task's policy gradient at the start, in a few batches."""
        self._drop_adapters()
        session, task = self._session, unit.task
        session.weights.load(self._start)
        row = session.run.journal.once(f"{session.seed} gradient {task}", partial(_sketches, session, task, unit.steps))
        gradient, direction = np.array(row["sketches"]).swapaxes(0, 1)
        probed = self._by_kind["gradient"]
        probed.spent[task] = Cost(**row["spent"])
        probed.gradients[task] = Gradients(gradient, direction)

    def matrices(self) -> list[Probed]:
        """All kinds with their matrices, the one to plan with first. Called once all units have ended."""
        self._drop_adapters()
        setup, begun = self._session.setup, self._begun
        for probed in self._by_kind.values():
            if len(probed.gradients) > 1:
                probed.matrix = first_order(begun.estimates(), probed.gradients, _rates(setup.recipe, probed.gradients))
            elif len(setup.tasks) > 1 and set(probed.seen) == set(setup.tasks):
                probed.matrix = _matrix(setup, begun, probed.seen, probe_lengths(setup.recipe, probed.kind))
        return list(self._by_kind.values())

    def _drop_adapters(self) -> None:
        """Free the second policy."""
        if self._adapters is not None:
            self._adapters = None
            gc.collect()


def _sketches(session: Session, task: TaskName, steps: int) -> dict[str, Any]:
    """Sketches of a task's gradient at the wanted weights, [batches, 2, dimensions], and what they cost."""
    session.weights.ensure_loaded()
    rl, seed, policy = session.recipe.rl, study_seed(session.seed, "sketch"), session.policy
    if not isinstance(policy, SketchesGradients):
        raise UserError(f"the policy {session.recipe.model.policy} can't sketch gradients", key="study.probes")
    problems = max(1, rl.problems_per_step // _BATCHES_PER_STEP)
    learner, spent, sketches = session.learner(session.setup.eval_rewards), Cost(), []
    for batch in range(steps * _BATCHES_PER_STEP):
        began = time.monotonic()
        groups = learner.draw({task: problems})
        trained = add_policy_gradient(policy, groups, session.recipe.rl_of(task).temperature)
        sketches.append(policy.sketch_gradient(seed).numpy())
        seconds = time.monotonic() - began
        samples = [sample for group in groups for sample in group.group.samples]
        sampled = sum(sample.length for sample in samples)
        spent += Cost(0, sampled, trained, seconds, len(samples))
        norm = float(np.linalg.norm(sketches[-1][0]))
        if session.setup.costly and session.setup.costly.exhausted:
            raise UserError(f"spent in the gradient probe of {task}", key="judge.endpoint.budget")
        session.log(
            f"gradient:{task}", "train", batch + 1, seconds, {"grad_norm": norm, "tokens_sampled/all": float(sampled)}
        )
        session.progress.show(f"gradient of {task} {batch + 1}/{steps * _BATCHES_PER_STEP}")
        if batch % _BATCHES_PER_STEP == _BATCHES_PER_STEP - 1:
            session.progress.unit("step", seconds * _BATCHES_PER_STEP)
    return {"spent": asdict(replace(spent, steps=steps)), "sketches": np.stack(sketches).tolist()}


def _rates(recipe: Recipe, tasks: Mapping[TaskName, Gradients]) -> dict[TaskName, float]:
    """Learning rates summed over a stage of each task, the first of an arm."""
    whole = recipe.study.steps
    stages = dict(even_stages(list(recipe.tasks), whole))
    return {task: sum(learning_rate_of(recipe.rl, step, whole) for step in range(stages[task])) for task in tasks}


def _matrix(
    setup: Setup, begun: Evaluation, probed: Mapping[TaskName, Evaluation], lengths: Mapping[TaskName, int]
) -> TransferMatrix:
    """The matrix that whole stages would show."""
    tasks: Sequence[TaskName] = list(setup.tasks)
    stages = dict(even_stages(tasks, setup.recipe.study.steps))
    raw = TransferMatrix(
        tuple(tasks),
        begun.estimates(),
        {task: probed[task].estimates() for task in tasks},
        entropy=Entropies(begun.entropy(), {task: probed[task].entropy() for task in tasks}),
    )
    return extrapolate(raw, {task: lengths[task] / stages[task] for task in tasks})
