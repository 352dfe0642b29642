"""The result of a study: `runs.schema.result.Result` from what its seeds ended with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omni_thinker.arms import is_single
from omni_thinker.baselines.sft import WarmupReport
from omni_thinker.compare.at_k import without_majority
from omni_thinker.compare.paired import Values, compare_arms
from omni_thinker.compare.verdict import verdict
from omni_thinker.isolation import launch
from omni_thinker.recipe import Recipe
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.runs.json_text import plain
from omni_thinker.runs.machine import machine
from omni_thinker.runs.schema.plan import Plan
from omni_thinker.runs.schema.result import (
    ArmRun,
    Assumption,
    EntropyFinding,
    ForecastOutcome,
    Probes,
    Result,
    StageResult,
    Warmup,
)
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.studies.budget import Cost
from omni_thinker.studies.probing import Probed
from omni_thinker.studies.scheduled import joint_weights
from omni_thinker.studies.session import ArmResult
from omni_thinker.studies.setup import Setup
from omni_thinker.studies.training import Stage
from omni_thinker.studies.units import even_stages
from omni_thinker.transfer.assumptions import ProbeScores, check_assumptions
from omni_thinker.transfer.entropy import entropy_finding, stage_changes
from omni_thinker.transfer.forecast import Joint, Merge, interval, measured
from omni_thinker.transfer.forecast import Stage as PlannedStage
from omni_thinker.transfer.forecast import Stages as StagePlan
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.metrics import StageSeen, backward_transfer, forgetting, forward_transfer
from omni_thinker.transfer.probe import agreement
from omni_thinker.transfer.quality import constant_gain, forecast_quality, own_level
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
    begun: Evaluation
    probes: Sequence[Probed]
    """The kind that was planned with first."""


def to_result(
    setup: Setup, outcomes: Sequence[SeedOutcome], seconds: float, *, left: int = 0, before: int = 0
) -> dict[str, Any]:
    """`left`: seeds to come; until they have, nothing counts as shown, for who looks often sees a winner by luck.
    `before`: verdicts that this study gave with fewer seeds; each halves the chance of error that the next may take,
    so that all together err at most twice as often as one."""
    study = setup.recipe.study
    confidence = 1 - (1 - study.confidence) / 2**before
    names = list(outcomes[0].test)
    values: dict[str, list[Values]] = {name: [o.test[name].values for o in outcomes] for name in names}
    comparisons = compare_arms(values, resamples=study.bootstrap, confidence=confidence)
    words = verdict(comparisons, confidence, len(outcomes))
    if not any(score for arm in values.values() for tasks in arm for row in tasks.values() for score in row.values()):
        words = f"Every score on the test split is 0, so no arm can be told from another. {words}"
    if left:
        words = f"No verdict yet: {left} of {left + len(outcomes)} seeds are to come."
    forecasts = tuple(row for o in outcomes for row in _forecast_rows(o, setup.recipe))
    result = Result(
        name=setup.recipe.name,
        tasks=tuple(setup.tasks),
        verdict=words,
        seeds_left=left,
        arms={name: tuple(_arm_run(o, name) for o in outcomes) for name in names},
        comparisons=tuple(replace(c, shown=c.shown and not left, hint=c.hint and not left) for c in comparisons),
        forecasts=forecasts,
        forecast_quality=forecast_quality(forecasts),
        assumptions=tuple(_assumptions(outcomes, setup.recipe)),
        entropy=_entropy(outcomes, setup.judged),
        probes=tuple(row for o in outcomes for row in _probe_rows(o)),
        warmup=tuple(map(_warmup, outcomes)),
        notes=(*_notes(setup, outcomes), *_tokens(outcomes), *_looks(before, confidence)),
        seconds=seconds,
        machine=machine(),
    )
    table: dict[str, Any] = plain(result)
    return table


def _tokens(outcomes: Sequence[SeedOutcome]) -> list[str]:
    """Arms have the same steps, problems and answers; what these take in tokens is another matter, and told."""
    spent: dict[str, int] = {}
    for outcome in outcomes:
        for name, arm in outcome.arms.items():
            if name not in ("start", "merge") and not is_single(name):
                spent[name] = spent.get(name, 0) + arm.spent.tokens_sampled + arm.spent.tokens_trained
    joint = spent.pop("joint", 0)
    if not joint or not spent:
        return []
    ratios = {name: f"{name} {tokens / joint:.2f}" for name, tokens in spent.items()}
    if "curriculum_net" in spent:
        probes = [outcome.probes[0] for outcome in outcomes]
        steps = (cost for probe in probes for cost in probe.spent.values())
        paid = spent["curriculum_net"] + sum(cost.tokens_sampled + cost.tokens_trained for cost in steps)
        told = paid + sum(probe.tokens_evaluated for probe in probes)
        ratios["curriculum_net"] += (
            f" ({paid / joint:.2f} with its probe; {told / joint:.2f} with the probe's evaluations, too, which its "
            "budget of steps doesn't pay for)"
        )
    return [f"Tokens sampled and trained, in multiples of joint training's: {', '.join(ratios.values())}."]


def _looks(before: int, confidence: float) -> list[str]:
    if not before:
        return []
    times = "once" if before == 1 else f"{before} times"
    return [
        f"This study gave a verdict {times} before, with other seeds or settings of the comparison; its intervals now "
        f"hold with {100 * confidence:.4g} %, since every look is a chance of being wrong."
    ]


def _arm_run(outcome: SeedOutcome, name: str) -> ArmRun:
    arm = outcome.arms[name]
    training = arm.training
    run = stages_seen(arm)  # the measures of forgetting are those of a sequence, and None for other arms
    return ArmRun(
        seed=outcome.seed,
        test=outcome.test[name].estimates(),
        validation=arm.validation,
        measures=outcome.test[name].measured(),
        steps=arm.spent.steps,
        samples=arm.spent.samples,
        tokens_sampled=arm.spent.tokens_sampled,
        tokens_trained=arm.spent.tokens_trained,
        seconds=arm.spent.seconds,
        stages=tuple(
            StageResult(task=stage.task, validation=stage.evaluation.estimates(), entropy=stage.evaluation.entropy())
            for stage in arm.stages
        ),
        backward_transfer=backward_transfer(run) if run else None,
        forward_transfer=forward_transfer(outcome.arms["start"].validation, run) if run else None,
        forgetting=forgetting(run) if run else None,
        budget_used=training.share if training else None,
        stopped=training.stopped if training else None,
        selected=training.selected if training else None,
    )


def stages_seen(arm: ArmResult) -> list[StageSeen]:
    return [StageSeen(stage.task, stage.evaluation.estimates(), stage.evaluation.values) for stage in arm.stages]


def _forecast_rows(outcome: SeedOutcome, recipe: Recipe) -> list[ForecastOutcome]:
    """What was forecast for each arm and task before it was trained, and what it reached on validation."""
    if outcome.plan is None or outcome.matrix is None:
        return []
    predict = make_forecaster(outcome.plan.forecaster, outcome.matrix)
    # What was trained: where the rest was planned anew, it is not the first plan's order.
    trained = {name: arm for name, arm in outcome.arms.items() if arm.stages}
    plans: dict[str, StagePlan | Joint | Merge] = {name: _as_trained(arm, recipe) for name, arm in trained.items()}
    plans |= {"joint": Joint(joint_shares(recipe)), "merge": Merge(recipe.study.merge_scale)}
    if outcome.plan.mixture is not None:
        plans["joint_planned"] = Joint(outcome.plan.mixture.shares)
    constant, naive = constant_gain(outcome.matrix), own_level(outcome.matrix)
    rows = []
    for arm, plan in plans.items():
        if arm not in outcome.arms:
            continue
        shown = predict.by_task(measured(predict, predict.by_column(plan)))
        for task, draws in shown.items():
            expected, reached = interval(draws), outcome.arms[arm].validation[task].mean
            rows.append(
                ForecastOutcome(
                    seed=outcome.seed,
                    arm=arm,
                    task=task,
                    forecast=expected.mean,
                    low=expected.low,
                    high=expected.high,
                    outcome=reached,
                    inside=expected.low <= reached <= expected.high,
                    test=outcome.test[arm].estimates()[task].mean,
                    constant=constant[task],
                    naive=naive[task],
                )
            )
    return rows


def _as_trained(arm: ArmResult, recipe: Recipe) -> StagePlan:
    """An arm's stages, in passes: 1 is as long as a stage of the curriculum."""
    whole = dict(even_stages(list(recipe.tasks), recipe.study.steps))
    even = sum(stage.steps for stage in arm.stages) == recipe.study.steps and len(arm.stages) == len(whole)

    def passes(stage: Stage) -> float:
        # Which tasks of an even sequence get a step more depends on the order; that is no other length.
        same = even and abs(stage.steps - whole[stage.task]) <= 1
        return 1.0 if same else stage.steps / max(1, whole[stage.task])  # fewer steps than tasks leave some none

    return tuple(PlannedStage(stage.task, passes(stage)) for stage in arm.stages)


def joint_shares(recipe: Recipe) -> dict[TaskName, float]:
    """Each task's share of joint training."""
    weights = joint_weights(recipe)
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def _assumptions(outcomes: Sequence[SeedOutcome], recipe: Recipe) -> list[Assumption]:
    """A1 and A2, tested on the stages of every seed's sequences of whole stages."""
    rows: list[Assumption] = []
    for outcome in outcomes:
        runs = [
            stages_seen(arm)
            for arm in outcome.arms.values()
            if arm.stages and all(stage.passes == 1 for stage in _as_trained(arm, recipe))
        ]
        if outcome.matrix is not None and runs:
            rows += check_assumptions(outcome.matrix, runs, outcome.seed, _probe_scores(outcome))
    return rows


def _probe_scores(outcome: SeedOutcome) -> ProbeScores | None:
    """Scores of the probes that the matrix was measured by, if they were whole stages."""
    planned = outcome.probes[0]
    if planned.kind != "full":
        return None
    return ProbeScores(outcome.begun.values, {task: seen.values for task, seen in planned.seen.items()})


def _entropy(outcomes: Sequence[SeedOutcome], judged: Sequence[TaskName]) -> EntropyFinding | None:
    changes = [
        change
        for outcome in outcomes
        for arm in outcome.arms.values()
        for change in stage_changes(
            outcome.begun.entropy(), [(stage.task, stage.evaluation.entropy()) for stage in arm.stages]
        )
    ]
    return entropy_finding(changes, judged) if changes else None


def _probe_rows(outcome: SeedOutcome) -> list[Probes]:
    """What each kind of probe cost, its share of all that was trained if it were the only kind, and how well it agrees
    with whole stages where these were run too. A probe that is the beginning of a single-task arm cost nothing extra,
    and is counted all the same."""
    singles = any(map(is_single, outcome.arms))
    others = sum((arm.spent for name, arm in outcome.arms.items() if name not in ("start", "merge")), Cost())
    full = next((probed.matrix for probed in outcome.probes if probed.kind == "full"), None)
    rows = []
    for place, probed in enumerate(outcome.probes):
        spent = sum(probed.spent.values(), Cost())
        inside = singles and probed.kind in ("short", "full")
        total = others.tokens_trained + (0 if inside else spent.tokens_trained)
        compared = None
        if full is not None and probed.matrix is not None and probed.kind != "full":
            compared = agreement(probed.matrix, full)
        rows.append(
            Probes(
                seed=outcome.seed,
                kind=probed.kind,
                planned_with=place == 0 and outcome.plan is not None,
                steps=spent.steps,
                tokens_sampled=spent.tokens_sampled,
                tokens_trained=spent.tokens_trained,
                tokens_evaluated=probed.tokens_evaluated,
                seconds=spent.seconds,
                share_of_training=spent.tokens_trained / total if total else None,
                against_full=compared,
            )
        )
    return rows


def _warmup(outcome: SeedOutcome) -> Warmup:
    return Warmup(
        seed=outcome.seed,
        steps=outcome.warmup.steps,
        tokens=outcome.warmup.tokens,
        seconds=outcome.warmup_seconds,
        reached=outcome.warmup.reached,
        inside=outcome.warmup.inside,
    )


def _budget_words(recipe: Recipe) -> str:
    study = recipe.study
    if study.budget == "steps":
        return f"Every trained arm had {study.steps} RL steps that asked for"
    return f"Every trained arm had {study.tokens} tokens, sampled and trained, in steps that asked for"


def _spending(outcomes: Sequence[SeedOutcome], recipe: Recipe) -> list[str]:
    """Arms that spent another share of the budget than all of it, and weights that were chosen on validation."""
    runs = [
        (f"{name} (seed {outcome.seed})", arm.training)
        for outcome in outcomes
        for name, arm in outcome.arms.items()
        if arm.training is not None
    ]
    notes = []
    if recipe.study.budget == "tokens":
        shares = ", ".join(f"{name} {run.share:.3f} in {run.spent.steps} steps" for name, run in runs)
        notes.append(f"Shares of the budget of tokens that were spent: {shares}; a last step may go beyond it.")
    early = [(name, run) for name, run in runs if run.stopped == "plateau"]
    if early:
        words = ", ".join(f"{name} after {run.spent.steps} steps, {run.share:.0%} of its budget" for name, run in early)
        notes.append(
            f"Ended early, since validation no longer rose: {words}. Arms are compared at the same allowance; these "
            "spent less of it."
        )
    if endless := [name for name, run in runs if run.stopped == "steps"]:
        notes.append(f"Not at equal budgets: {', '.join(endless)} took too many steps for the tokens and was ended.")
    chosen = [f"{name} {run.selected} of {run.spent.steps}" for name, run in runs if run.selected is not None]
    if chosen:
        notes.append(
            "The weights that are tested were chosen by their interim validations, never by the test split: after step "
            f"{', '.join(chosen)}. So validation accuracies of these arms are too high on average; test accuracies "
            "aren't."
        )
    return notes


def _notes(setup: Setup, outcomes: Sequence[SeedOutcome]) -> list[str]:
    recipe = setup.recipe
    notes = [
        "Accuracy is the mean score of "
        f"{recipe.evaluation.samples} answers per problem at temperature {recipe.evaluation.temperature:g}.",
        f"{_budget_words(recipe)} {recipe.rl.problems_per_step} problems x "
        f"{'/'.join(dict.fromkeys(str(recipe.rl_of(task).group_size) for task in recipe.tasks))} samples"
        + (", 'curriculum_net' fewer by those of its probe" if "curriculum_net" in recipe.study.arms else "")
        + (
            "; the single-task arms only their probe."
            if recipe.study.single_budget == "stage" and "single" in recipe.study.arms
            else "."
        ),
        "The start is the model after a supervised warm-up on gold answers: it is the SFT arm.",
    ]
    notes += [words for words in (without_majority(recipe.evaluation, setup.eval_rewards), *setup.fixed) if words]
    notes += _spending(outcomes, recipe)
    notes += [f"Rows that can't be used: {words}." for words in setup.left_out]
    if setup.judge is not None:
        notes.append(f"Judged tasks ({', '.join(setup.judged)}): {setup.judge.caveat}")
    if any("unit_tests" in name for task in setup.tasks.values() for name in task.reward.sum) and (
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
