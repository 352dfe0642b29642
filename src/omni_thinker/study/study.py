"""A study: measure transfer, plan, train every arm on the same budget, compare on the test split.

    warm-up -> start -> single-task arms (their first stage is the probe) -> transfer matrix -> plan
            -> curriculum, joint, merge -> test split -> comparisons, verdict, report

The test split is touched only after all training has ended.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_thinker.baselines.merge import task_arithmetic
from omni_thinker.baselines.sft import WarmupReport
from omni_thinker.isolation import launch
from omni_thinker.recipe import Recipe, StudySpec
from omni_thinker.rl.evaluate import Estimate, Evaluation
from omni_thinker.runs.machine import machine
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages, even_stages
from omni_thinker.study.entropy import entropy_finding, stage_changes
from omni_thinker.study.session import ArmResult, Session, Spent, Stage
from omni_thinker.study.setup import Bench, prepare
from omni_thinker.study.statistics import Values, compare_arms
from omni_thinker.study.verdict import verdict
from omni_thinker.transfer.assumptions import StageSeen, check_assumptions
from omni_thinker.transfer.forecast import Interval, Joint, Merge, in_order, measured
from omni_thinker.transfer.forecast import Stages as StagePlan
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.hierarchical import Evidence
from omni_thinker.transfer.matrix import Row, TransferMatrix, pool
from omni_thinker.transfer.plan import Plan, make_plan
from omni_thinker.transfer.probe import extrapolate, probe_steps
from omni_thinker.transfer.quantities import to_csv
from omni_thinker.transfer.search import Objective
from omni_thinker.types import TaskName


@dataclass(frozen=True)
class SeedOutcome:
    """Everything one seed ended with."""

    seed: int
    warmup: WarmupReport
    warmup_seconds: float
    arms: Mapping[str, ArmResult]
    test: Mapping[str, Evaluation]
    matrix: TransferMatrix | None
    plan: Plan | None
    start_entropy: Mapping[TaskName, float]
    probes: Mapping[TaskName, Spent]


def run_study(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Run a whole study into the fresh directory `out`; returns what `result.json` holds.

    Raises UserError before anything is written for whatever can be checked beforehand.
    """
    began = time.monotonic()
    check_free(out)
    with Progress(*expected_work(recipe)) as progress:
        progress.show("checking tasks, rewards and every row")
        bench = prepare(recipe)
        run = RunDir(out, recipe)
        progress.say(f"study {recipe.name!r} into {out}")
        outcomes = []
        for seed in recipe.study.seeds:
            outcomes.append(_run_seed(bench, run, progress, seed))
            _write_transfer(run, outcomes)
            gc.collect()  # the last seed's policy, before the next one is loaded
        result = _result(bench, outcomes, time.monotonic() - began)
        run.write_json("result.json", result)
        progress.say(result["verdict"])
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
        "recipe": recipe.model_dump(mode="json"),
    }


def expected_work(recipe: Recipe) -> tuple[dict[str, int], dict[str, float]]:
    """Units of work by kind, and rough seconds of each until they have been measured."""
    study, tasks, seeds = recipe.study, len(recipe.tasks), len(recipe.study.seeds)
    trained = {"curriculum", "reverse", "joint"} & set(study.arms)
    steps = study.steps * len(trained)
    arms = 1 + len(trained) + ("merge" in study.arms)
    validations = 1 + len(trained)
    if _needs_probes(study):
        probed = len(_probed(recipe))
        full = "single" in study.arms and study.single_budget == "full"
        steps += probed * study.steps if full else sum(_probe_lengths(recipe).values())
        validations += probed * (2 if full else 1)
        arms += probed if "single" in study.arms else 0
    validations += (tasks - 1) * len({"curriculum", "reverse"} & set(study.arms)) + ("merge" in study.arms)
    expected = {
        "warmup": recipe.warmup.steps,
        "check": 1 + recipe.warmup.steps // recipe.warmup.check_every,
        "step": steps,
        "validation": validations,
        "test": arms,
    }
    prior = {"warmup": 4.0, "check": 8.0, "step": 5.0, "validation": 15.0, "test": 30.0}
    return {kind: count * seeds for kind, count in expected.items()}, prior


def _needs_probes(study: StudySpec) -> bool:
    return _is_planned(study) or bool({"single", "merge"} & set(study.arms))


def _is_planned(study: StudySpec) -> bool:
    return bool({"curriculum", "reverse"} & set(study.arms)) and not study.order


def _probed(recipe: Recipe) -> list[TaskName]:
    """Tasks that are trained alone: all of them, unless only some single-task arms are asked for."""
    study = recipe.study
    if study.single_tasks and not _is_planned(study) and "merge" not in study.arms:
        return [task for task in recipe.tasks if task in study.single_tasks]
    return list(recipe.tasks)


def _probe_lengths(recipe: Recipe) -> dict[TaskName, int]:
    """Steps of each task's probe: its whole stage where the single-task runs are arms or experts themselves."""
    study = recipe.study
    stages = dict(even_stages(list(recipe.tasks), study.steps))
    whole = bool({"single", "merge"} & set(study.arms))
    arms = len({"curriculum", "reverse", "joint"} & set(study.arms))
    return {
        task: stages[task]
        if whole
        else probe_steps(stages[task], arms, study.steps, len(recipe.tasks), study.probe_share)
        for task in _probed(recipe)
    }


def _run_seed(bench: Bench, run: RunDir, progress: Progress, seed: int) -> SeedOutcome:
    study = bench.recipe.study
    session = Session(bench, run, progress, seed)
    began = time.monotonic()
    warmup = session.warm_up()
    warmup_seconds = time.monotonic() - began
    session.write_references()
    start_path = session.save("start")
    begun = session.evaluate("start", "validation", 0)
    start = begun.estimates()
    arms = {"start": ArmResult("start", start_path, Spent(), start)}

    matrix, plan, experts = None, None, dict[TaskName, ArmResult]()
    if _needs_probes(study):
        rows, experts, singles = _singles(session, start_path)
        if "single" in study.arms:
            arms |= singles
        if len(bench.tasks) > 1 and len(rows) == len(bench.tasks):
            stages = dict(even_stages(list(bench.tasks), study.steps))
            passes = {task: probe.spent.steps / stages[task] for task, probe in experts.items()}
            matrix = extrapolate(TransferMatrix(tuple(bench.tasks), start, rows), passes)
            plan = make_plan(
                matrix,
                forecaster=study.forecaster,
                strategy=study.strategy,
                order=study.order,
                objective=Objective(study.objective),
            )
            progress.say(f"plan: {plan.words}")
    order = study.order or (plan.sequence.order if plan else tuple(bench.tasks))
    if "curriculum" in study.arms:
        arms["curriculum"] = _sequence(session, start_path, "curriculum", order, matrix)
    if "reverse" in study.arms:
        arms["reverse"] = _sequence(session, start_path, "reverse", order[::-1], None)
    if "joint" in study.arms:
        arms["joint"] = _joint(session, start_path)
    if "merge" in study.arms:
        arms["merge"] = _merge(session, start_path, list(experts.values()))

    test = {}
    for name, arm in arms.items():
        session.load(arm.weights)
        test[name] = session.evaluate(name, "test", arm.spent.steps)
        session.policy.export(run.models(seed) / name.replace(":", "-"))
    shutil.rmtree(session.state)  # fp32 masters; the exported folders are what a user keeps
    probes = {task: probe.spent for task, probe in experts.items()}
    return SeedOutcome(seed, warmup, warmup_seconds, arms, test, matrix, plan, begun.entropy(), probes)


def _singles(
    session: Session, start: Path
) -> tuple[dict[TaskName, Row], dict[TaskName, ArmResult], dict[str, ArmResult]]:
    """Train each task alone. The first share of the budget is the probe and the merging expert."""
    recipe = session.recipe
    lengths = _probe_lengths(recipe)
    full = "single" in recipe.study.arms and recipe.study.single_budget == "full"
    rows, experts, singles = dict[TaskName, Row](), dict[TaskName, ArmResult](), dict[str, ArmResult]()
    for task in _probed(recipe):
        session.load(start)
        length = lengths[task]
        steps = recipe.study.steps if full else length
        name = f"single:{task}"

        def end_probe(so_far: Spent, task: TaskName = task, length: int = length) -> None:
            if so_far.steps == length:
                probe = f"probe:{task}"
                rows[task] = session.evaluate(probe, "validation", so_far.steps).estimates()
                experts[task] = ArmResult(probe, session.save(probe), replace(so_far), rows[task])

        scheduler = Stages([(task, steps)], recipe.rl.problems_per_step)
        spent, _ = session.train(name, scheduler, steps, at_step=end_probe)
        if full:
            validation = session.evaluate(name, "validation", steps).estimates()
            singles[name] = ArmResult(name, session.save(name), spent, validation)
        else:
            singles[name] = ArmResult(name, experts[task].weights, spent, rows[task])
    return rows, experts, singles


def _sequence(
    session: Session, start: Path, name: str, order: Sequence[TaskName], matrix: TransferMatrix | None
) -> ArmResult:
    """One task after another. With a `matrix`, and if the recipe says so, the rest is planned anew after each stage."""
    session.load(start)
    scheduler = Stages(even_stages(order, session.recipe.study.steps), session.recipe.rl.problems_per_step)
    replan = _Replanner(session, matrix, scheduler) if matrix and session.recipe.study.replan else None
    spent, ended = session.train(name, scheduler, scheduler.steps, stage_ends=True, on_stage=replan)
    return ArmResult(name, session.save(name), spent, ended[-1].evaluation.estimates(), ended)


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
        )
        new = plan.sequence.order[len(done) :]
        if new != rest:
            self._session.progress.say(f"planned anew after {done[-1]}: {' -> '.join(new)}")
            self._scheduler.reorder(len(done), new)


def _joint(session: Session, start: Path) -> ArmResult:
    session.load(start)
    weights = {task: spec.weight for task, spec in session.recipe.tasks.items()}
    scheduler = Mixture(weights, session.recipe.rl.problems_per_step)
    spent, _ = session.train("joint", scheduler, session.recipe.study.steps)
    validation = session.evaluate("joint", "validation", spent.steps).estimates()
    return ArmResult("joint", session.save("joint"), spent, validation)


def _merge(session: Session, start: Path, experts: Sequence[ArmResult]) -> ArmResult:
    """The experts' own training is what this arm cost."""
    path = session.state / "merge.safetensors"
    task_arithmetic(start, [expert.weights for expert in experts], session.recipe.study.merge_scale, path)
    session.load(path)
    spent = sum((expert.spent for expert in experts), Spent())
    validation = session.evaluate("merge", "validation", spent.steps).estimates()
    return ArmResult("merge", path, spent, validation)


def _write_transfer(run: RunDir, outcomes: Sequence[SeedOutcome]) -> None:
    """transfer.json and plan.json: pooled over the seeds so far, and each seed's own."""
    matrices = {o.seed: o.matrix for o in outcomes if o.matrix is not None}
    plans = {o.seed: o.plan for o in outcomes if o.plan is not None}
    if not matrices:
        return
    own = {str(seed): matrix.to_json() for seed, matrix in matrices.items()}
    pooled = pool(list(matrices.values()))
    run.write_json("transfer.json", {**pooled.to_json(), "seeds": own})
    run.write_text("transfer.csv", to_csv(pooled))
    first = next(iter(plans.values()))
    plan = make_plan(pooled, forecaster=first.forecaster) if len(plans) > 1 else first
    run.write_json("plan.json", {**plan.to_json(), "seeds": {str(s): p.to_json() for s, p in plans.items()}})


def _result(bench: Bench, outcomes: Sequence[SeedOutcome], seconds: float) -> dict[str, Any]:
    study = bench.recipe.study
    names = list(outcomes[0].test)
    arms = {name: [_arm_json(o.seed, o.arms[name], o.test[name]) for o in outcomes] for name in names}
    values: dict[str, list[Values]] = {name: [o.test[name].values for o in outcomes] for name in names}
    comparisons = compare_arms(values, resamples=study.bootstrap, confidence=study.confidence)
    return {
        "version": 1,
        "name": bench.recipe.name,
        "tasks": list(bench.tasks),
        "verdict": verdict(comparisons, study.confidence, len(outcomes)),
        "arms": arms,
        "comparisons": [c.to_json() for c in comparisons],
        "forecasts": [row for o in outcomes for row in _forecast_rows(o, bench.recipe)],
        "assumptions": _assumptions(outcomes),
        "entropy": _entropy(outcomes, bench.judged),
        "probes": [_probes_json(o) for o in outcomes if o.probes],
        "warmup": [_warmup_json(o) for o in outcomes],
        "notes": _notes(bench, outcomes),
        "seconds": seconds,
        "machine": machine(),
    }


def _arm_json(seed: int, arm: ArmResult, test: Evaluation) -> dict[str, Any]:
    return {
        "seed": seed,
        "test": _row_json(test.estimates()),
        "validation": _row_json(arm.validation),
        "steps": arm.spent.steps,
        "samples": arm.spent.samples,
        "tokens_sampled": arm.spent.tokens_sampled,
        "tokens_trained": arm.spent.tokens_trained,
        "seconds": arm.spent.seconds,
        "stages": [
            {
                "task": stage.task,
                "validation": _row_json(stage.evaluation.estimates()),
                "entropy": stage.evaluation.entropy(),
            }
            for stage in arm.stages
        ],
    }


def _row_json(row: Mapping[TaskName, Estimate]) -> dict[str, Any]:
    return {task: estimate.to_json() for task, estimate in row.items()}


def _forecast_rows(outcome: SeedOutcome, recipe: Recipe) -> list[dict[str, Any]]:
    """What was forecast for each arm and task before it was trained, and what it reached on validation."""
    if outcome.plan is None or outcome.matrix is None:
        return []
    predict = make_forecaster(outcome.plan.forecaster, outcome.matrix)
    planned = recipe.study.order or outcome.plan.sequence.order
    weights = {task: spec.weight for task, spec in recipe.tasks.items()}
    shares = {task: weight / sum(weights.values()) for task, weight in weights.items()}
    plans: dict[str, StagePlan | Joint | Merge] = {
        "curriculum": in_order(planned),
        "reverse": in_order(planned[::-1]),
        "joint": Joint(shares),
        "merge": Merge(recipe.study.merge_scale),
    }
    rows = []
    for arm, plan in plans.items():
        if arm not in outcome.arms:
            continue
        shown = predict.by_task(measured(predict, predict.by_column(plan)))
        for task, draws in shown.items():
            interval, reached = Interval.of(draws), outcome.arms[arm].validation[task].mean
            rows.append(
                {
                    "seed": outcome.seed,
                    "arm": arm,
                    "task": task,
                    "forecast": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "outcome": reached,
                    "inside": interval.low <= reached <= interval.high,
                }
            )
    return rows


def _assumptions(outcomes: Sequence[SeedOutcome]) -> list[dict[str, Any]]:
    """A1 and A2, tested on the stages of every seed's sequences."""
    rows = []
    for outcome in outcomes:
        runs = [
            [StageSeen(stage.task, stage.evaluation.estimates()) for stage in arm.stages]
            for arm in outcome.arms.values()
            if arm.stages
        ]
        if outcome.matrix is not None and runs:
            rows += [{"seed": outcome.seed, **v.to_json()} for v in check_assumptions(outcome.matrix, runs)]
    return rows


def _entropy(outcomes: Sequence[SeedOutcome], judged: Sequence[TaskName]) -> dict[str, Any] | None:
    changes = [
        change
        for outcome in outcomes
        for arm in outcome.arms.values()
        for change in stage_changes(
            outcome.start_entropy, [(stage.task, stage.evaluation.entropy()) for stage in arm.stages]
        )
    ]
    return entropy_finding(changes, judged) if changes else None


def _probes_json(outcome: SeedOutcome) -> dict[str, Any]:
    """What the probes cost, and their share of all that was trained; a probe that is the beginning of a single-task arm
    cost nothing extra, and is counted all the same."""
    probes = sum(outcome.probes.values(), Spent())
    singles = any(name.startswith("single:") for name in outcome.arms)
    others = sum((arm.spent for name, arm in outcome.arms.items() if name not in ("start", "merge")), Spent())
    total = others.tokens_trained + (0 if singles else probes.tokens_trained)
    return {
        "seed": outcome.seed,
        "steps": probes.steps,
        "tokens_sampled": probes.tokens_sampled,
        "tokens_trained": probes.tokens_trained,
        "seconds": probes.seconds,
        "share_of_training": probes.tokens_trained / total if total else None,
    }


def _warmup_json(outcome: SeedOutcome) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "steps": outcome.warmup.steps,
        "tokens": outcome.warmup.tokens,
        "seconds": outcome.warmup_seconds,
        "reached": _row_json(outcome.warmup.reached),
        "inside": dict(outcome.warmup.inside),
    }


def _notes(bench: Bench, outcomes: Sequence[SeedOutcome]) -> list[str]:
    recipe = bench.recipe
    notes = [
        "Accuracy is the mean score of "
        f"{recipe.evaluation.samples} answers per problem at temperature {recipe.evaluation.temperature:g}.",
        f"Every trained arm had {recipe.study.steps} RL steps of {recipe.rl.problems_per_step} problems x "
        f"{recipe.rl.group_size} samples"
        + (
            "; the single-task arms only their probe."
            if recipe.study.single_budget == "stage" and "single" in recipe.study.arms
            else "."
        ),
        "The start is the model after a supervised warm-up on gold answers: it is the SFT arm.",
    ]
    if bench.judge is not None:
        notes.append(f"Judged tasks ({', '.join(bench.judged)}): {bench.judge.caveat}")
    if any("unit_tests" in part for task in bench.tasks.values() for part in task.reward.sum) and (
        launch().strength == "weak"
    ):
        notes.append("Programs ran in the weak sandbox: a process with limits, which sees this user's files.")
    for outcome in outcomes:
        outside = [task for task, inside in outcome.warmup.inside.items() if not inside]
        if outside:
            low, high = recipe.warmup.target
            reached = ", ".join(f"{task} {outcome.warmup.reached[task].mean:.2f}" for task in outside)
            notes.append(f"Seed {outcome.seed}: after the warm-up {reached}, outside the target {low:g} to {high:g}.")
    if len(outcomes) == 1:
        notes.append("One seed: intervals hold for new problems, not for new training runs.")
    return notes
