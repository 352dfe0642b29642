"""The units of work of a study: what is trained and evaluated, for how long, and what has to come first.

A recipe becomes a `WorkPlan` once. Progress, the dry run, `curriculum_net` and the walk through a study all read it.
Imports no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Literal

from omni_thinker.arms import LORA, PROBE, SINGLE, STAGED
from omni_thinker.errors import UserError
from omni_thinker.recipe import ProbeKind, Recipe, scheduled_arms
from omni_thinker.runs.journal import unit_id
from omni_thinker.types import TaskName

UnitKind = Literal[
    "warmup", "start", "alone", "base", "adapter", "gradient", "plan", "sequence", "mixture", "merge", "test"
]

UNITS: dict[UnitKind, str] = {
    "warmup": "warm-up",
    "start": "start",
    "alone": "single-task trainings",
    "base": "fresh adapters",
    "adapter": "LoRA probes",
    "gradient": "gradient probes",
    "plan": "plan",
    "sequence": "curricula",
    "mixture": "mixtures",
    "merge": "merge",
    "test": "evaluations on test",
}
"""Kinds of units, in words."""
WORK = {
    "warmup": "steps of warm-up",
    "check": "evaluations in it",
    "step": "steps of RL",
    "interim": "interim validations",
    "validation": "evaluations on validation",
    "test": "evaluations on test",
}
"""Kinds of work, in words."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work of one seed.

    needs: units of the same seed whose results it is a function of. after: units that have to end first, too, though
    it doesn't use them. arm: whose weights it makes or evaluates. task: the one that is trained alone. steps: RL steps,
    or supervised ones in the warm-up. evaluations: passes over the validation split. reads: after how many steps each
    kind of probe reads a task that is trained alone. interims: validations on few problems while it trains."""

    seed: int
    name: str
    kind: UnitKind
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    arm: str = ""
    task: TaskName = ""
    steps: int = 0
    evaluations: int = 0
    reads: Mapping[ProbeKind, int] = field(default_factory=dict)
    interims: int = 0

    @property
    def id(self) -> str:
        """How the journal calls it."""
        return unit_id(self.seed, self.name)

    @property
    def words(self) -> str:
        """Its seed and name, for people."""
        return f"seed {self.seed}: {self.name}"

    @property
    def computes(self) -> bool:
        """Whether it needs a model."""
        return self.kind != "plan"

    def seconds(self, pace: Mapping[str, float]) -> float:
        """How long it takes where a step or evaluation of each kind of `WORK` takes `pace`."""
        return sum(count * pace.get(kind, 1.0) for kind, count in self.work.items())

    @property
    def work(self) -> dict[str, int]:
        """Its steps and evaluations by kind (`WORK`)."""
        if self.kind == "warmup":
            return {"warmup": self.steps, "check": self.evaluations}
        if self.kind == "test":
            return {"test": 1}
        return {"step": self.steps, "interim": self.interims, "validation": self.evaluations}


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """What a study does.

    units: of every seed; each comes after those that it needs. probes: kinds of probe, the one that is planned with
    first. experts: the kind whose weights are merged."""

    units: tuple[Unit, ...]
    probes: tuple[ProbeKind, ...]
    experts: ProbeKind

    def of_seed(self, seed: int) -> list[Unit]:
        """The units of one seed."""
        return [unit for unit in self.units if unit.seed == seed]

    def inputs(self, unit: Unit) -> list[Unit]:
        """The units that `unit` is a function of, directly or not, in the order of the plan."""
        units = self.of_seed(unit.seed)
        wanted = set(unit.needs)
        for each in reversed(units):
            if each.name in wanted:
                wanted |= set(each.needs)
        return [each for each in units if each.name in wanted]

    @property
    def total(self) -> dict[str, int]:
        """Steps and evaluations of the whole study by kind (`WORK`)."""
        total = Counter(dict.fromkeys(WORK, 0))
        for unit in self.units:
            total.update(unit.work)
        return dict(total)


def plan_work(recipe: Recipe) -> WorkPlan:
    """All units of a study. Raises UserError where a probe leaves no steps for `curriculum_net`."""
    units = tuple(unit for seed in recipe.study.seeds for unit in _units_of_seed(recipe, seed))
    return WorkPlan(units, probe_kinds(recipe), expert_kind(recipe))


def _units_of_seed(recipe: Recipe, seed: int) -> list[Unit]:
    """Warm-up, start, probes and single-task arms, plan, other arms, and the test split once all of these ended."""
    warmup = recipe.warmup
    units = [
        Unit(seed, "warmup", "warmup", steps=warmup.steps, evaluations=1 + -(-warmup.steps // warmup.check_every)),
        Unit(seed, "start", "start", ("warmup",), arm="start", evaluations=1),
    ]
    units += (probes := _probe_units(recipe, seed))
    if probes:
        units.append(Unit(seed, "plan", "plan", tuple(unit.name for unit in probes if unit.kind != "base")))
    units += _arm_units(recipe, seed, probes)
    arms = tuple(unit for unit in units if unit.arm)
    ended = tuple(unit.name for unit in arms)
    return units + [Unit(seed, f"test {unit.arm}", "test", (unit.name,), ended, arm=unit.arm) for unit in arms]


def _probe_units(recipe: Recipe, seed: int) -> list[Unit]:
    study, kinds = recipe.study, probe_kinds(recipe)
    alone = [kind for kind in ("short", "full") if kind in kinds]
    units = list[Unit]()
    for task in probed_tasks(recipe) if alone else ():
        is_arm = task in single_tasks(recipe)
        whole = is_arm and study.single_budget == "full"
        reads: dict[ProbeKind, int] = {kind: probe_lengths(recipe, kind)[task] for kind in alone}
        name = (SINGLE if is_arm else PROBE) + task
        steps = study.steps if whole else max(reads.values())
        evaluations = len(set(reads.values())) + whole
        arm = name if is_arm else ""
        # What is trained alone for a while only is a probe, and evaluated as such.
        interims = interim_validations(recipe, steps) if whole else 0
        units.append(Unit(seed, name, "alone", ("start",), (), arm, task, steps, evaluations, reads, interims))
    if "lora" in kinds:
        lengths = probe_lengths(recipe, "lora").items()
        units.append(Unit(seed, "lora start", "base", ("start",)))
        units += [
            Unit(seed, LORA + task, "adapter", ("lora start",), (), "", task, n, 1, {"lora": n}) for task, n in lengths
        ]
    if "gradient" in kinds:
        lengths = probe_lengths(recipe, "gradient").items()
        units += [Unit(seed, f"gradient:{task}", "gradient", ("start",), (), "", task, n) for task, n in lengths]
    return units


def _arm_units(recipe: Recipe, seed: int, probes: Sequence[Unit]) -> list[Unit]:
    """Arms that train all tasks within one budget, and the merge of experts, which are among `probes`."""
    study = recipe.study
    planned = ("plan",) if probe_kinds(recipe) and not study.order else ("start",)
    units, stages = [], len(recipe.tasks)
    for arm in ("curriculum", "curriculum_net", "reverse"):
        if arm in study.arms:
            steps = steps_after_probe(recipe) if arm == "curriculum_net" else study.steps
            interims = interim_validations(recipe, steps)
            units.append(Unit(seed, arm, "sequence", planned, (), arm, "", steps, stages, {}, interims))
    mixtures = {arm: 1 for arm in study.arms if arm in ("joint", "joint_planned")}
    mixtures |= {name: spec.ends + len(spec.reads) for name, spec in scheduled_arms(study).items()}
    interims = interim_validations(recipe, study.steps)
    for arm, evaluations in mixtures.items():
        needs = "plan" if arm == "joint_planned" else "start"
        units.append(Unit(seed, arm, "mixture", (needs,), (), arm, "", study.steps, evaluations, {}, interims))
    if "merge" in study.arms:
        kind = "adapter" if expert_kind(recipe) == "lora" else "alone"
        experts = tuple(unit.name for unit in probes if unit.kind == kind)
        units.append(Unit(seed, "merge", "merge", experts, arm="merge", evaluations=1))
    units += [
        Unit(seed, name, "merge", merged.arms, arm=name, evaluations=1)
        for name, merged in study.merges.items()
        if name in study.arms
    ]
    return units


def is_planned(recipe: Recipe) -> bool:
    """Whether an arm's order or shares come from a plan."""
    study = recipe.study
    return "joint_planned" in study.arms or (bool(STAGED & set(study.arms)) and not study.order)


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
    """The kind of probe whose weights the arm `merge` adds up."""
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
    return {
        task: probe_steps(stages[task], study.steps, len(recipe.tasks), study.probe_share)
        for task in probed_tasks(recipe)
    }


def steps_after_probe(recipe: Recipe) -> int:
    """RL steps of an arm less those of the probe that is planned with.

    Raises UserError where no probe is paid for, or where it takes so many that a stage would have none."""
    study, kinds = recipe.study, probe_kinds(recipe)
    paid = sum(probe_lengths(recipe, kinds[0]).values()) if kinds and not study.order else 0
    if not paid:
        raise UserError("'curriculum_net' pays for its plan, so it needs a probe and no study.order", key="study.arms")
    if study.steps - paid < len(recipe.tasks):
        raise UserError(
            f"the probe takes {paid} of {study.steps} steps, which leaves no stage for 'curriculum_net'; a short probe "
            "with a smaller study.probe_share leaves more",
            key="study.arms",
        )
    return study.steps - paid


def interim_validations(recipe: Recipe, steps: int) -> int:
    """Interim validations of an arm of so many steps."""
    return steps // recipe.rl.evaluate_every if recipe.rl.evaluate_every else 0


def even_stages(order: Sequence[TaskName], steps: int) -> list[tuple[TaskName, int]]:
    """Share `steps` evenly over the tasks of `order`; what is left over goes to the first ones."""
    each, left = divmod(steps, len(order))
    return [(task, each + (1 if i < left else 0)) for i, task in enumerate(order)]


def probe_steps(stage: int, steps: int, tasks: int, share: float) -> int:
    """Steps of one probe so that all `tasks` of them take at most `share` of one arm's `steps`, whatever else is
    compared; at least 1, at most the whole `stage`."""
    return max(1, min(stage, floor(share * steps / tasks + 1e-9)))
