"""One seed of a study: its units, walked one after another in this process, with one policy that all arms take turns
in."""

import shutil
from pathlib import Path
from typing import assert_never

from omni_thinker.baselines.adapters import Adapter
from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.recipe import scheduled_arms
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.rundir import RunDir
from omni_thinker.runs.schema.plan import Plan
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.curriculum import Replanner, plan_curriculum
from omni_thinker.studies.probing import Probed, Probes
from omni_thinker.studies.result import SeedOutcome
from omni_thinker.studies.scheduled import joint_weights, make_scheduler
from omni_thinker.studies.session import ArmResult, Session
from omni_thinker.studies.setup import Setup, study_seed
from omni_thinker.studies.training import Cost
from omni_thinker.studies.units import Unit, WorkPlan, even_stages
from omni_thinker.types import TaskName


class SeedWalk:
    """What the units of one seed have come to so far."""

    def __init__(self, setup: Setup, run: RunDir, progress: Progress, work: WorkPlan, seed: int) -> None:
        self._session = Session(setup, run, progress, seed)
        self._units, self._experts_from = work.of_seed(seed), work.experts
        self._kinds = work.probes
        self._arms = dict[str, ArmResult]()
        self._test = dict[str, Evaluation]()
        self._matrix: TransferMatrix | None = None
        self._plan: Plan | None = None
        self._probed = list[Probed]()

    def walk(self) -> SeedOutcome:
        """Run every unit, or read it from the journal."""
        for unit in self._units:
            self._run(unit)
        # fp32 weights of every arm; the exported folders are what a user keeps
        shutil.rmtree(self._session.weights.folder, ignore_errors=True)
        return SeedOutcome(
            self._session.seed,
            self._warmup,
            self._warmup_seconds,
            self._arms,
            self._test,
            self._matrix,
            self._plan,
            self._begun,
            self._probed,
        )

    def _run(self, unit: Unit) -> None:
        match unit.kind:
            case "warmup":
                self._warmup, self._warmup_seconds = self._session.warm_up()
            case "start":
                self._evaluate_start(unit)
            case "alone":
                if (arm := self._probes.train_alone(unit)) is not None:
                    self._arms[arm.name] = arm
            case "adapter":
                self._probes.train_adapter(unit)
            case "gradient":
                self._probes.sketch_gradient(unit)
            case "plan":
                self._make_plan()
            case "sequence":
                self._arms[unit.arm] = self._train_sequence(unit)
            case "mixture":
                self._arms[unit.arm] = self._train_mixture(unit)
            case "merge":
                self._arms[unit.arm] = self._merge(unit)
            case "test":
                self._evaluate_test(unit)
            case _:
                assert_never(unit.kind)

    def _evaluate_start(self, unit: Unit) -> None:
        session = self._session
        session.write_references()
        self._start: Path = session.weights.save(unit.arm)
        self._begun = session.evaluate(unit.arm, "validation", 0)
        self._arms[unit.arm] = ArmResult(unit.arm, self._start, Cost(), self._begun.estimates())
        self._probes = Probes(session, self._kinds, self._start, self._begun)

    def _make_plan(self) -> None:
        self._probed = self._probes.matrices()
        self._matrix = self._probed[0].matrix
        if self._matrix is not None:
            self._plan = plan_curriculum(self._session.recipe, self._matrix)
            self._session.progress.say(f"plan: {self._plan.words}")

    def _train_sequence(self, unit: Unit) -> ArmResult:
        """One task after another; the rest of the curriculum is replanned after each stage if the recipe says so."""
        session, study = self._session, self._session.recipe.study
        order: tuple[TaskName, ...] = study.order or (self._plan.sequence.order if self._plan else ())
        order = order or tuple(session.setup.tasks)
        session.weights.load(self._start)
        stages = even_stages(order[::-1] if unit.arm == "reverse" else order, unit.steps)
        scheduler = Stages(stages, session.recipe.rl.problems_per_step)
        replan = None
        if study.replan and self._matrix is not None and unit.arm == "curriculum":
            replan = Replanner(session, self._matrix, scheduler)
        spent, ended = session.train(unit.arm, scheduler, unit.steps, stage_ends=True, on_stage=replan)
        return ArmResult(unit.arm, session.weights.save(unit.arm), spent, ended[-1].evaluation.estimates(), ended)

    def _train_mixture(self, unit: Unit) -> ArmResult:
        """Joint training, or what a scheduler of the recipe says; evaluated after each stage or once at the end."""
        session, recipe = self._session, self._session.recipe
        spec = scheduled_arms(recipe.study).get(unit.arm)
        if spec is None:
            scheduler: Scheduler = Mixture(joint_weights(recipe), recipe.rl.problems_per_step)
        else:
            sizes = {task: len(problems) for task, problems in session.pools["train"].items()}
            seed = study_seed(session.seed, "scheduler", unit.arm)
            scheduler = make_scheduler(recipe, unit.arm, sizes, session.setup.judged, seed)
        session.weights.load(self._start)
        staged = spec is not None and spec.kind == "sequence"
        spent, ended = session.train(unit.arm, scheduler, unit.steps, stage_ends=staged)
        last = ended[-1].evaluation if ended else session.evaluate(unit.arm, "validation", spent.steps)
        return ArmResult(unit.arm, session.weights.save(unit.arm), spent, last.estimates(), ended)

    def _merge(self, unit: Unit) -> ArmResult:
        """Add up the experts; their own training is what this arm cost."""
        session, start = self._session, self._start
        experts = self._probes.experts(self._experts_from)
        rule = MergeRule(scale=session.recipe.study.merge_scale)

        def write(path: Path) -> None:
            for weights in (start, *(expert.weights for expert in experts)):
                session.weights.verify(weights)
            if self._experts_from == "lora":
                merge(start, [Adapter(expert.weights, session.recipe.model.name) for expert in experts], rule, path)
            else:
                merge(start, [Weights(expert.weights) for expert in experts], rule, path)

        path = session.weights.make_file(unit.arm, write)
        session.weights.load(path)
        spent = sum((expert.spent for expert in experts), Cost())
        return ArmResult(unit.arm, path, spent, session.evaluate(unit.arm, "validation", spent.steps).estimates())

    def _evaluate_test(self, unit: Unit) -> None:
        """The test split, which is touched only after all training of the seed."""
        arm = self._arms[unit.arm]
        self._session.weights.load(arm.weights)
        self._test[unit.arm] = self._session.evaluate(unit.arm, "test", arm.spent.steps)
        self._session.weights.export(unit.arm)
