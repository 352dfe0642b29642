"""A study: measure transfer, plan, train every arm on the same budget, compare on the test split.

    warm-up -> start -> single-task arms (their first stage is the probe) -> transfer matrix -> plan
            -> curriculum, joint, merge -> test split -> comparisons, verdict, report

The test split is touched only after all training has ended.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_thinker.baselines.adapters import Adapter
from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.recipe import Recipe, scheduled_arms
from omni_thinker.recipe.schedulers import SchedulerSpec
from omni_thinker.runs.checkpoints import usable
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.resume import check_run
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages, even_stages
from omni_thinker.studies.estimate import expected_work, power_words, smallest_difference
from omni_thinker.studies.probing import (
    Probed,
    charged_steps,
    expert_kind,
    measure,
    probe_kinds,
)
from omni_thinker.studies.result import SeedOutcome, joint_shares, to_result
from omni_thinker.studies.scheduled import joint_weights, make_scheduler, stages_of
from omni_thinker.studies.session import ArmResult, Session
from omni_thinker.studies.setup import Bench, prepare, study_seed
from omni_thinker.studies.training import Cost, Stage
from omni_thinker.transfer.forecast import in_order
from omni_thinker.transfer.hierarchical import Evidence
from omni_thinker.transfer.matrix import TransferMatrix, pool
from omni_thinker.transfer.metrics import to_csv
from omni_thinker.transfer.plan import Plan, make_plan
from omni_thinker.transfer.search import Objective
from omni_thinker.types import TaskName

LOGS = ("metrics.jsonl", "samples.jsonl", "references.jsonl")
"""Files of a run that only grow."""


WORK = {
    "warmup": "steps of warm-up",
    "check": "evaluations in it",
    "step": "steps of RL",
    "validation": "evaluations on validation",
    "test": "evaluations on test",
}
"""What units of work are."""


def run_study(recipe: Recipe, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run a whole study into the fresh directory `out`, or go on with the one there; returns what `result.json` holds.

    Raises UserError before anything is written for whatever can be checked beforehand.
    """
    began = time.monotonic()
    if not resume:
        check_free(out)
    with Progress(*expected_work(recipe)) as progress:
        progress.show("checking tasks, rewards and every row")
        bench = prepare(recipe)
        run = RunDir(out, recipe, resume=resume)
        run.open_journal(LOGS, usable=lambda value: usable(out, value), counts=bench.counting)
        check_run(run, bench.recipe, bench.pools, judged=bench.judge is not None)
        run.journal.cut()
        progress.say(f"study {recipe.name!r} into {out}" + (", going on" if run.journal.replaying else ""))
        if run.journal.dropped:
            progress.say(f"{run.journal.dropped} entries after the last whole checkpoint are made again")
        if not resume and (words := power_words(bench)):
            progress.say(words)
        asked = f"result of {list(recipe.study.seeds)}, {recipe.study.bootstrap}, {recipe.study.confidence}"
        if (known := run.journal.noted(asked)) is not None:
            progress.say("this study has ended; nothing is left to do")
            run.write_json("result.json", known)  # the file may be gone, or of a look with more seeds
            return dict(known)
        outcomes = []
        for seed in recipe.study.seeds:
            outcomes.append(_run_seed(bench, run, progress, seed))
            _write_transfer(run, recipe, outcomes)
            gc.collect()  # the last seed's policy, before the next one is loaded
            if left := len(recipe.study.seeds) - len(outcomes):
                run.write_json("result.json", to_result(bench, outcomes, _seconds(run, began), left=left))
        before = sum(note != asked for note in run.journal.notes("result of "))
        result = to_result(bench, outcomes, _seconds(run, began), before=before)
        run.write_json("result.json", result)
        run.journal.note(asked, result)
        progress.say("the study has ended")
    return result


def describe(recipe: Recipe) -> dict[str, Any]:
    """Check everything that can be checked before step 0, and tell the work ahead. Writes nothing."""
    bench = prepare(recipe)
    work, _ = expected_work(recipe)
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "problems": {split: {task: len(own) for task, own in pools.items()} for split, pools in bench.pools.items()},
        "arms": list(recipe.study.arms),
        "seeds": list(recipe.study.seeds),
        "work": work,
        "detectable": smallest_difference(bench),
        "sees": power_words(bench) or "nothing to compare with joint training",
        "recipe": recipe.model_dump(mode="json"),
    }


def _seconds(run: RunDir, began: float) -> float:
    """That the study took so far; where it was gone on with, or seeds ran side by side, those of its steps and
    evaluations in all."""
    lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
    worked: float = sum(json.loads(line)["seconds"] for line in lines)
    return max(time.monotonic() - began, worked)


def _run_seed(bench: Bench, run: RunDir, progress: Progress, seed: int) -> SeedOutcome:
    study = bench.recipe.study
    session = Session(bench, run, progress, seed)
    warmup, warmup_seconds = session.warm_up()
    session.write_references()
    start_path = session.weights.save("start")
    begun = session.evaluate("start", "validation", 0)
    start = begun.estimates()
    arms = {"start": ArmResult("start", start_path, Cost(), start)}

    matrix, plan, probes = None, None, list[Probed]()
    if probe_kinds(bench.recipe):
        probes, singles = measure(session, start_path, begun)
        arms |= singles
        matrix = probes[0].matrix
        if matrix is not None:
            plan = plan_of(bench.recipe, matrix)
            progress.say(f"plan: {plan.words}")
    order = study.order or (plan.sequence.order if plan else tuple(bench.tasks))
    if "curriculum" in study.arms:
        arms["curriculum"] = _sequence(session, start_path, "curriculum", order, matrix)
    if "charged" in study.arms:
        arms["charged"] = _sequence(session, start_path, "charged", order, None, charged_steps(bench.recipe))
    if "reverse" in study.arms:
        arms["reverse"] = _sequence(session, start_path, "reverse", order[::-1], None)
    if "joint" in study.arms:
        arms["joint"] = _joint(session, start_path)
    for name, spec in scheduled_arms(study).items():
        arms[name] = _scheduled(session, start_path, name, spec)
    if "merge" in study.arms:
        kind = expert_kind(bench.recipe)
        experts = next(probed.experts for probed in probes if probed.kind == kind)
        arms["merge"] = _merge(session, start_path, list(experts.values()), adapters=kind == "lora")

    test = {}
    for name, arm in arms.items():
        session.weights.load(arm.weights)
        test[name] = session.evaluate(name, "test", arm.spent.steps)
        session.weights.export(name)
    shutil.rmtree(
        session.weights.folder, ignore_errors=True
    )  # fp32 masters; the exported folders are what a user keeps
    return SeedOutcome(seed, warmup, warmup_seconds, arms, test, matrix, plan, begun.entropy(), probes)


def _sequence(
    session: Session,
    start: Path,
    name: str,
    order: Sequence[TaskName],
    matrix: TransferMatrix | None,
    steps: int | None = None,
) -> ArmResult:
    """One task after another. With a `matrix`, and if the recipe says so, the rest is planned anew after each stage."""
    session.weights.load(start)
    stages = even_stages(order, session.recipe.study.steps if steps is None else steps)
    scheduler = Stages(stages, session.recipe.rl.problems_per_step)
    replan = _Replanner(session, matrix, scheduler) if matrix and session.recipe.study.replan else None
    spent, ended = session.train(name, scheduler, scheduler.steps, stage_ends=True, on_stage=replan)
    return ArmResult(name, session.weights.save(name), spent, ended[-1].evaluation.estimates(), ended)


class _Replanner:
    """After a stage: what was seen sharpens the forecast, and the stages to come are put in the order it prefers."""

    def __init__(self, session: Session, matrix: TransferMatrix, scheduler: Stages) -> None:
        self._session, self._matrix, self._scheduler = session, matrix, scheduler
        self._evidence: list[Evidence] = []

    def __call__(self, ended: Sequence[Stage]) -> None:
        done = tuple(stage.task for stage in ended)
        self._evidence.append(Evidence(in_order(done), ended[-1].evaluation.estimates()))
        rest = self._scheduler.left(len(done))
        if len(rest) < 2:
            return
        study = self._session.recipe.study
        plan = make_plan(
            self._matrix,
            forecaster=study.forecaster,
            objective=Objective(study.objective, fixed={task: n for n, task in enumerate(done, 1)}),
            evidence=self._evidence,
            shares=joint_shares(self._session.recipe),
        )
        new = plan.sequence.order[len(done) :]
        if new != rest:
            self._session.progress.say(f"planned anew after {done[-1]}: {' -> '.join(new)}")
            self._scheduler.reorder(len(done), new)


def _joint(session: Session, start: Path) -> ArmResult:
    scheduler = Mixture(joint_weights(session.recipe), session.recipe.rl.problems_per_step)
    return _mixed(session, start, "joint", scheduler)


def _scheduled(session: Session, start: Path, name: str, spec: SchedulerSpec) -> ArmResult:
    """By the scheduler that the recipe names; one with stages is evaluated after each."""
    sizes = {task: len(own) for task, own in session.pools["train"].items()}
    seed = study_seed(session.seed, "scheduler", name)
    scheduler = make_scheduler(session.recipe, name, sizes, session.bench.judged, seed)
    return _mixed(session, start, name, scheduler, staged=stages_of(spec) > 0)


def _mixed(session: Session, start: Path, name: str, scheduler: Scheduler, *, staged: bool = False) -> ArmResult:
    """The whole budget as `scheduler` says, evaluated after each stage or once at the end."""
    session.weights.load(start)
    spent, ended = session.train(name, scheduler, session.recipe.study.steps, stage_ends=staged)
    last = ended[-1].evaluation if ended else session.evaluate(name, "validation", spent.steps)
    return ArmResult(name, session.weights.save(name), spent, last.estimates(), ended)


def _merge(session: Session, start: Path, experts: Sequence[ArmResult], *, adapters: bool) -> ArmResult:
    """The experts' own training is what this arm cost."""
    rule = MergeRule(scale=session.recipe.study.merge_scale)

    def write(path: Path) -> None:
        for read in (start, *(expert.weights for expert in experts)):
            session.weights.verify(read)
        kind = Adapter if adapters else Weights
        merge(start, [kind(expert.weights) for expert in experts], rule, path)

    path = session.weights.make_file("merge", write)
    session.weights.load(path)
    spent = sum((expert.spent for expert in experts), Cost())
    validation = session.evaluate("merge", "validation", spent.steps).estimates()
    return ArmResult("merge", path, spent, validation)


def plan_of(recipe: Recipe, matrix: TransferMatrix) -> Plan:
    """The plan that a recipe asks for, and its joint training beside it."""
    study = recipe.study
    return make_plan(
        matrix,
        forecaster=study.forecaster,
        strategy=study.strategy,
        order=study.order,
        objective=Objective(study.objective),
        shares=joint_shares(recipe),
    )


def _write_transfer(run: RunDir, recipe: Recipe, outcomes: Sequence[SeedOutcome]) -> None:
    """transfer.json and plan.json: pooled over the seeds so far, and each seed's own."""
    matrices = {o.seed: o.matrix for o in outcomes if o.matrix is not None}
    plans = {o.seed: o.plan for o in outcomes if o.plan is not None}
    if not matrices:
        return
    own = {str(seed): matrix.to_json() for seed, matrix in matrices.items()}
    pooled = pool(list(matrices.values()))
    run.write_json("transfer.json", {**pooled.to_json(), "seeds": own})
    run.write_text("transfer.csv", to_csv(pooled))
    for kind in {probed.kind for o in outcomes for probed in o.probes[1:] if probed.matrix is not None}:
        beside = [p.matrix for o in outcomes for p in o.probes if p.kind == kind and p.matrix is not None]
        run.write_json(f"transfer-{kind}.json", pool(beside).to_json())
    first = next(iter(plans.values()))
    plan = plan_of(recipe, pooled) if len(plans) > 1 else first
    run.write_json("plan.json", {**plan.to_json(), "seeds": {str(s): p.to_json() for s, p in plans.items()}})
