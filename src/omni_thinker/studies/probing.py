"""Probes: what RL on each task alone does to every task. Four ways to find out, from dear to cheap.

full: a whole stage on each task (arXiv 2507.14783). short: its first steps, extrapolated. lora: low-rank adapters in
place of the weights. gradient: no run, a straight line along each task's policy gradient at the start.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omni_thinker.arms import LORA, PROBE, SHARED, SINGLE, STAGED
from omni_thinker.errors import UserError
from omni_thinker.protocol import SketchesGradients
from omni_thinker.recipe import ProbeKind, Recipe, scheduled_arms
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.rl.gradient import add_policy_gradient
from omni_thinker.schedulers.stages import Stages, even_stages
from omni_thinker.studies.session import ArmResult, Session
from omni_thinker.studies.setup import Bench, study_seed
from omni_thinker.studies.training import Cost
from omni_thinker.transfer.gradient import Gradients, first_order
from omni_thinker.transfer.matrix import Entropies, TransferMatrix
from omni_thinker.transfer.probe import extrapolate, probe_steps
from omni_thinker.types import TaskName

_BATCHES = 2
"""Of a gradient probe, in place of each step: products of different batches are free of their own noise."""


@dataclass
class Probed:
    """One kind of probe of each task: its matrix (None unless every task was probed), its cost, and the experts."""

    kind: ProbeKind
    matrix: TransferMatrix | None = None
    spent: dict[TaskName, Cost] = field(default_factory=dict)
    tokens_evaluated: int = 0
    experts: dict[TaskName, ArmResult] = field(default_factory=dict)


# -- what is to be done -----------------------------------------------------------------------------------------------


def is_planned(recipe: Recipe) -> bool:
    return bool(STAGED & set(recipe.study.arms)) and not recipe.study.order


def probe_kinds(recipe: Recipe) -> tuple[ProbeKind, ...]:
    """The kinds that a study measures, the one that it plans with first."""
    study = recipe.study
    whole = "single" in study.arms or ("merge" in study.arms and "lora" not in study.probes)
    if study.probes:
        return (*study.probes, "full") if whole and "full" not in study.probes else study.probes
    if whole:
        return ("full",)
    return ("short",) if is_planned(recipe) else ()


def expert_kind(recipe: Recipe) -> ProbeKind:
    """Whose results the arm `merge` adds up."""
    return "full" if "full" in probe_kinds(recipe) else "lora"


def probed_tasks(recipe: Recipe) -> list[TaskName]:
    """Tasks that are trained alone: all of them, unless only some single-task arms are asked for."""
    study = recipe.study
    if study.single_tasks and not study.probes and not is_planned(recipe) and "merge" not in study.arms:
        return [task for task in recipe.tasks if task in study.single_tasks]
    return list(recipe.tasks)


def single_tasks(recipe: Recipe) -> list[TaskName]:
    """Tasks that have an arm of their own."""
    study = recipe.study
    return [task for task in recipe.tasks if "single" in study.arms and task in (study.single_tasks or recipe.tasks)]


def probe_lengths(recipe: Recipe, kind: ProbeKind) -> dict[TaskName, int]:
    """Steps of each task's probe."""
    study = recipe.study
    stages = dict(even_stages(list(recipe.tasks), study.steps))
    if kind == "full" or (kind == "lora" and "merge" in study.arms and expert_kind(recipe) == "lora"):
        return {task: stages[task] for task in probed_tasks(recipe)}
    arms = len(SHARED & set(study.arms)) + len(scheduled_arms(study))
    return {
        task: probe_steps(stages[task], arms, study.steps, len(recipe.tasks), study.probe_share)
        for task in probed_tasks(recipe)
    }


def charged_steps(recipe: Recipe) -> int:
    """What the probe that is planned with leaves of an arm's steps. Raises UserError where the plan costs nothing, or
    all of them."""
    study, kinds = recipe.study, probe_kinds(recipe)
    paid = sum(probe_lengths(recipe, kinds[0]).values()) if kinds and is_planned(recipe) else 0
    if not paid:
        raise UserError("'charged' pays for its plan, so it needs a probe and no study.order", key="study.arms")
    if study.steps - paid < len(recipe.tasks):
        raise UserError(
            f"the probe takes {paid} of {study.steps} steps, which leaves no stage for 'charged'; a short probe with a "
            "smaller study.probe_share leaves more",
            key="study.arms",
        )
    return study.steps - paid


def probe_work(recipe: Recipe) -> tuple[int, int]:
    """(steps, evaluations) of all probes and single-task arms of one seed."""
    study, kinds = recipe.study, probe_kinds(recipe)
    alone = [kind for kind in ("short", "full") if kind in kinds]
    steps = evaluations = 0
    for task in probed_tasks(recipe) if alone else ():
        full = task in single_tasks(recipe) and study.single_budget == "full"
        ends = {probe_lengths(recipe, kind)[task] for kind in alone}
        steps += study.steps if full else max(ends)
        evaluations += len(ends) + full
    if "lora" in kinds:
        steps += sum(probe_lengths(recipe, "lora").values())
        evaluations += len(recipe.tasks)
    if "gradient" in kinds:
        steps += sum(probe_lengths(recipe, "gradient").values())
    return steps, evaluations


# -- doing it ---------------------------------------------------------------------------------------------------------


def measure(session: Session, start: Path, begun: Evaluation) -> tuple[list[Probed], dict[str, ArmResult]]:
    """All kinds that the recipe asks for, the one to plan with first, and the single-task arms."""
    kinds = probe_kinds(session.recipe)
    found: dict[ProbeKind, Probed] = {}
    singles: dict[str, ArmResult] = {}
    if {"short", "full"} & set(kinds):
        found, singles = _runs(session, start, begun)
    if "lora" in kinds:
        found["lora"] = _adapters(session, start, begun)
    if "gradient" in kinds:
        found["gradient"] = _gradients(session, start, begun)
    return [found[kind] for kind in kinds], singles


def _runs(session: Session, start: Path, begun: Evaluation) -> tuple[dict[ProbeKind, Probed], dict[str, ArmResult]]:
    """Train each task alone. The first steps are the short probe, the first stage the full one and merging's expert."""
    recipe, kinds = session.recipe, probe_kinds(session.recipe)
    wanted: list[ProbeKind] = [kind for kind in ("short", "full") if kind in kinds]
    found = {kind: Probed(kind) for kind in wanted}
    seen: dict[ProbeKind, dict[TaskName, Evaluation]] = {kind: {} for kind in wanted}
    singles = dict[str, ArmResult]()
    for task in probed_tasks(recipe):
        session.weights.load(start)
        is_arm = task in single_tasks(recipe)
        ends = {kind: probe_lengths(recipe, kind)[task] for kind in wanted}
        whole = is_arm and recipe.study.single_budget == "full"
        steps = recipe.study.steps if whole else max(ends.values())
        name = (SINGLE if is_arm else PROBE) + task

        def at_step(so_far: Cost, task: TaskName = task, ends: Mapping[ProbeKind, int] = ends) -> None:
            reached = [kind for kind, end in ends.items() if end == so_far.steps]
            if not reached:
                return
            evaluation = session.evaluate(PROBE + task, "validation", so_far.steps)
            for kind in reached:
                _note(found[kind], seen[kind], task, evaluation, replace(so_far))
            if "full" in reached:
                path = session.weights.save(PROBE + task)
                own = ArmResult(PROBE + task, path, replace(so_far), evaluation.estimates())
                found["full"].experts[task] = own

        spent, _ = session.train(name, Stages([(task, steps)], recipe.rl.problems_per_step), steps, at_step=at_step)
        if whole:
            validation = session.evaluate(name, "validation", steps).estimates()
            singles[name] = ArmResult(name, session.weights.save(name), spent, validation)
        elif is_arm:
            singles[name] = replace(found["full"].experts[task], name=name)
    for kind in wanted:
        found[kind].matrix = _matrix(session.bench, begun, seen[kind], probe_lengths(recipe, kind))
    return found, singles


def _adapters(session: Session, start: Path, begun: Evaluation) -> Probed:
    """Train an adapter for each task on a second copy of the start, and keep them as peft folders."""
    recipe = session.recipe
    session.weights.load(start)
    folder = session.weights.export("start")
    study = recipe.study
    adapted = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"lora": study.probe_lora}),
            "rl": recipe.rl.model_copy(update={"lr": recipe.rl.lr * study.probe_lora_lr}),
        }
    )
    bench = replace(session.bench, recipe=adapted)
    own = Session(bench, session.run, session.progress, session.seed, folder=folder)
    own.pools = session.pools
    own.policy.mark_start()
    fresh = own.weights.save("lora")
    found, seen = Probed("lora"), dict[TaskName, Evaluation]()
    lengths = probe_lengths(recipe, "lora")
    for task in probed_tasks(recipe):
        own.weights.load(fresh)
        name, steps = LORA + task, lengths[task]
        spent, _ = own.train(name, Stages([(task, steps)], recipe.rl.problems_per_step), steps)
        evaluation = own.evaluate(name, "validation", steps)
        _note(found, seen, task, evaluation, spent)
        kept = own.weights.export(name, adapter=True)
        found.experts[task] = ArmResult(name, kept, spent, evaluation.estimates())
    found.matrix = _matrix(session.bench, begun, seen, lengths)
    del own
    gc.collect()
    return found


def _gradients(session: Session, start: Path, begun: Evaluation) -> Probed:
    """Each task's policy gradient at the start, in sketches of a few batches."""
    recipe = session.recipe
    session.weights.load(start)
    found, gradients = Probed("gradient"), dict[TaskName, Gradients]()
    for task, steps in probe_lengths(recipe, "gradient").items():
        row = session.run.journal.once(f"{session.seed} gradient {task}", partial(_sketches, session, task, steps))
        found.spent[task] = Cost(**row["spent"])
        gradient, direction = np.array(row["sketches"]).swapaxes(0, 1)
        gradients[task] = Gradients(gradient, direction)
    if len(gradients) > 1:
        stages = dict(even_stages(list(recipe.tasks), recipe.study.steps))
        rates = {task: sum(_rate(recipe, step) for step in range(stages[task])) for task in gradients}
        found.matrix = first_order(begun.estimates(), gradients, rates)
    return found


def _sketches(session: Session, task: TaskName, steps: int) -> dict[str, Any]:
    """Of a task's gradient at the weights at hand: [batches, 2, dimensions], and what they cost."""
    session.weights.ensure_loaded()
    rl, seed, policy = session.recipe.rl, study_seed(session.seed, "sketch"), session.policy
    if not isinstance(policy, SketchesGradients):
        raise UserError(f"the policy {session.recipe.model.policy} can't sketch gradients", key="study.probes")
    problems = max(1, rl.problems_per_step // _BATCHES)
    learner, spent, sketches = session.learner(session.bench.measures), Cost(), []
    for batch in range(steps * _BATCHES):
        began = time.monotonic()
        groups = learner.draw({task: problems})
        trained = add_policy_gradient(policy, groups, rl.temperature)
        sketches.append(policy.sketch_gradient(seed).numpy())
        seconds = time.monotonic() - began
        samples = [sample for group in groups for sample in group.group.samples]
        sampled = sum(len(sample.tokens) for sample in samples)
        spent += Cost(0, sampled, trained, seconds, len(samples))
        norm = float(np.linalg.norm(sketches[-1][0]))
        if session.bench.costly and session.bench.costly.exhausted:
            raise UserError(f"spent in the gradient probe of {task}", key="judge.endpoint.budget")
        session.log(
            f"gradient:{task}", "train", batch + 1, seconds, {"grad_norm": norm, "tokens_sampled/all": float(sampled)}
        )
        session.progress.show(f"gradient of {task} {batch + 1}/{steps * _BATCHES}")
        if batch % _BATCHES == _BATCHES - 1:
            session.progress.unit("step", seconds * _BATCHES)
    return {"spent": asdict(replace(spent, steps=steps)), "sketches": np.stack(sketches).tolist()}


def _rate(recipe: Recipe, step: int) -> float:
    return recipe.rl.lr * min(1.0, (step + 1) / max(1, recipe.rl.lr_warmup_steps))


def _note(found: Probed, seen: dict[TaskName, Evaluation], task: TaskName, evaluation: Evaluation, spent: Cost) -> None:
    seen[task] = evaluation
    found.spent[task] = spent
    found.tokens_evaluated += evaluation.tokens


def _matrix(
    bench: Bench, begun: Evaluation, seen: Mapping[TaskName, Evaluation], lengths: Mapping[TaskName, int]
) -> TransferMatrix | None:
    """What whole stages would show; None unless every task was probed."""
    tasks: Sequence[TaskName] = list(bench.tasks)
    if len(tasks) < 2 or set(seen) != set(tasks):
        return None
    stages = dict(even_stages(tasks, bench.recipe.study.steps))
    raw = TransferMatrix(
        tuple(tasks),
        begun.estimates(),
        {task: seen[task].estimates() for task in tasks},
        entropy=Entropies(begun.entropy(), {task: seen[task].entropy() for task in tasks}),
    )
    return extrapolate(raw, {task: lengths[task] / stages[task] for task in tasks})
