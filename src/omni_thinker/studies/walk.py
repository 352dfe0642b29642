"""What the units of one seed do. Units that are run in one process take turns in one policy.

A unit is a function of the recipe, the seed and what its inputs came to. A process that works on a unit first runs its
inputs, which only read what the journal says of them."""

from pathlib import Path
from typing import assert_never

from omni_thinker.baselines.adapters import Adapter
from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.recipe import scheduled_arms
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.runs.json_text import plain
from omni_thinker.runs.progress import Listener
from omni_thinker.runs.schema.base import adapter
from omni_thinker.runs.schema.plan import Plan
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.runs.unit_run import UnitRun
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.budget import Cost
from omni_thinker.studies.curriculum import Replanner, plan_curriculum
from omni_thinker.studies.probing import Probed, Probes
from omni_thinker.studies.result import SeedOutcome
from omni_thinker.studies.scheduled import joint_weights, make_scheduler
from omni_thinker.studies.session import ArmResult, Desk, Session
from omni_thinker.studies.setup import Setup, study_seed
from omni_thinker.studies.units import Unit, WorkPlan, even_stages
from omni_thinker.types import TaskName


class SeedWalk:
    """What the units of one seed have come to so far, in this process."""

    def __init__(self, setup: Setup, work: WorkPlan, seed: int) -> None:
        self.setup, self.seed = setup, seed
        self.ran = set[str]()
        """Units that were run or read."""
        self._session: Session | None = None
        self._experts_from, self._kinds = work.experts, work.probes
        self._arms = dict[str, ArmResult]()
        self._test = dict[str, Evaluation]()
        self._matrix: TransferMatrix | None = None
        self._plan: Plan | None = None
        self._probed = list[Probed]()

    def run(self, unit: Unit, run: UnitRun, progress: Listener) -> None:
        """Run a unit whose inputs were run before, or read it where the journal has all of it."""
        if self._session is None:
            self._session = Session(self.setup, self.seed, Desk(run, progress))
        self._session.desk.run, self._session.desk.progress = run, progress
        self._work(unit, self._session)
        self.ran.add(unit.name)

    def outcome(self) -> SeedOutcome:
        """What the seed ended with, once all its units were run."""
        return SeedOutcome(
            self.seed,
            self._warmup,
            self._warmup_seconds,
            self._arms,
            self._test,
            self._matrix,
            self._plan,
            self._begun,
            self._probed,
        )

    def _work(self, unit: Unit, session: Session) -> None:
        match unit.kind:
            case "warmup":
                self._warmup, self._warmup_seconds = session.warm_up()
            case "start":
                self._evaluate_start(unit, session)
            case "alone":
                if (arm := self._probes.train_alone(unit)) is not None:
                    self._arms[arm.name] = arm
            case "base":
                self._probes.make_base()
            case "adapter":
                self._probes.train_adapter(unit)
            case "gradient":
                self._probes.sketch_gradient(unit)
            case "plan":
                self._make_plan(session)
            case "sequence":
                self._arms[unit.arm] = self._train_sequence(unit, session)
            case "mixture":
                self._arms[unit.arm] = self._train_mixture(unit, session)
            case "merge":
                self._arms[unit.arm] = self._merge(unit, session)
            case "test":
                self._evaluate_test(unit, session)
            case _:
                assert_never(unit.kind)

    def _evaluate_start(self, unit: Unit, session: Session) -> None:
        session.write_references()
        self._start: Path = session.weights.save(unit.arm)
        self._begun = session.evaluate(unit.arm, "validation", 0)
        self._arms[unit.arm] = ArmResult(unit.arm, self._start, Cost(), self._begun.estimates())
        self._probes = Probes(session, self._kinds, self._start, self._begun)

    def _make_plan(self, session: Session) -> None:
        """The plan is read like everything else: another machine could round a forecast otherwise."""
        self._probed = self._probes.matrices()
        self._matrix = matrix = self._probed[0].matrix
        if matrix is None:
            return
        row = session.run.journal.once(f"{session.seed} plan", lambda: plain(plan_curriculum(session.recipe, matrix)))
        self._plan = adapter(Plan).validate_python(row)
        session.progress.say(f"plan: {self._plan.words}")

    def _train_sequence(self, unit: Unit, session: Session) -> ArmResult:
        """One task after another; the rest of the curriculum is replanned after each stage if the recipe says so."""
        study = session.recipe.study
        order: tuple[TaskName, ...] = study.order or (self._plan.sequence.order if self._plan else ())
        order = order or tuple(session.setup.tasks)
        session.weights.load(self._start)
        stages = even_stages(order[::-1] if unit.arm == "reverse" else order, unit.steps)
        scheduler = Stages(stages, session.recipe.rl.problems_per_step)
        replan = None
        if study.replan and self._matrix is not None and unit.arm == "curriculum":
            replan = Replanner(session, self._matrix, scheduler)
        budget, tasks = session.budget(unit.steps), list(session.setup.tasks)
        outcome = session.train(unit.arm, scheduler, budget, watched=tasks, stage_ends=True, on_stage=replan)
        return session.trained(unit.arm, outcome)

    def _train_mixture(self, unit: Unit, session: Session) -> ArmResult:
        """Joint training, or what a scheduler of the recipe says; evaluated after each stage or once at the end."""
        recipe = session.recipe
        spec = scheduled_arms(recipe.study).get(unit.arm)
        if spec is None:
            weights = self._planned_shares() if unit.arm == "joint_planned" else joint_weights(recipe)
            scheduler: Scheduler = Mixture(weights, recipe.rl.problems_per_step)
        else:
            sizes = {task: len(problems) for task, problems in session.pools["train"].items()}
            seed = study_seed(session.seed, "scheduler", unit.arm)
            scheduler = make_scheduler(recipe, unit.arm, sizes, session.setup.judged, seed)
        session.weights.load(self._start)
        staged, reads = spec is not None and spec.kind == "sequence", () if spec is None else spec.reads

        def at_step(so_far: Cost) -> None:
            if so_far.steps in reads:
                session.evaluate(unit.arm, "validation", so_far.steps)

        budget, tasks = session.budget(unit.steps), list(session.setup.tasks)
        outcome = session.train(unit.arm, scheduler, budget, watched=tasks, at_step=at_step, stage_ends=staged)
        return session.trained(unit.arm, outcome)

    def _planned_shares(self) -> dict[TaskName, float]:
        """Shares of the tasks that the plan trains jointly."""
        assert self._plan is not None  # the recipe's checks see to both
        assert self._plan.mixture is not None
        return {task: share for task, share in self._plan.mixture.shares.items() if share > 0}

    def _merge(self, unit: Unit, session: Session) -> ArmResult:
        """Add up the experts; their own training is what this arm cost."""
        start, study = self._start, session.recipe.study
        merged, source = study.merges.get(unit.arm), self._experts_from
        if merged is None:
            experts, rule = self._probes.experts(source), MergeRule(scale=study.merge_scale)
        else:
            experts, rule, source = [self._arms[name] for name in merged.arms], MergeRule(scale=merged.scale), "full"

        def write(path: Path) -> None:
            for weights in (start, *(expert.weights for expert in experts)):
                session.weights.verify(weights)
            if source == "lora":
                merge(start, [Adapter(expert.weights, session.recipe.model.name) for expert in experts], rule, path)
            else:
                merge(start, [Weights(expert.weights) for expert in experts], rule, path)

        path = session.weights.make_file(unit.arm, write)
        session.weights.load(path)
        spent = sum((expert.spent for expert in experts), Cost())
        return ArmResult(unit.arm, path, spent, session.evaluate(unit.arm, "validation", spent.steps).estimates())

    def _evaluate_test(self, unit: Unit, session: Session) -> None:
        """The test split, which is touched only after all training of the seed."""
        arm = self._arms[unit.arm]
        session.weights.load(arm.weights)
        self._test[unit.arm] = session.evaluate(unit.arm, "test", arm.step)
        session.weights.export(unit.arm)
