"""The tables of a report, by name."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from omni_thinker.report import signals, tables
from omni_thinker.report.frame import Column, Frame
from omni_thinker.report.words import number
from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.runs.schema.plan import PlanForecast

_SEED = (Column("seed", "Seed", "count"),)


def frames(run: RunData) -> dict[str, Frame]:
    """Every table that has rows."""
    made = (
        arms(run), measures(run), comparisons(run), budgets(run), probes(run), sequences(run), orders(run),
        strategies(run), forecasts(run), health(run), what_signals(run),
    )  # fmt: skip
    return {frame.name: frame for frame in made if frame}


def arms(run: RunData) -> Frame:
    """Accuracy of every arm on the test split. The page has a richer one, with marks and the range of seeds."""
    columns = [Column("arm", "Arm", "text"), *(Column(task, task, "estimate") for task in [*run.tasks, MACRO])]
    rows = [[row.arm, *((cell.mean, cell.stderr) for cell in row.cells)] for row in tables.arm_rows(run)]
    return Frame("arms", "Accuracy of each arm on the test split, with standard errors", columns, rows)


def measures(run: RunData) -> Frame:
    columns = [Column("arm", "Arm", "text"), Column("measure", "Measure", "text")]
    columns += [Column(task, task, "estimate") for task in run.tasks]
    rows = [
        [row.arm, row.measure, *((cell.mean, cell.stderr) for cell in row.cells)] for row in tables.measure_rows(run)
    ]
    return Frame("measures", "Several answers to a problem", columns, rows)


def comparisons(run: RunData) -> Frame:
    columns = [
        Column("arm", "Arm", "text"), Column("minus", "minus", "text"), Column("task", "Task", "text"),
        Column("difference", "Difference", "signed"), Column("interval", "Interval", "change"),
        Column("problems", "n", "count"), Column("family", "Family", "text"), Column("shown", "Shown", "text"),
    ]  # fmt: skip
    rows = [
        [
            item.a, item.b, item.task, item.difference, (item.low, item.high), item.n, item.family,
            "yes" if item.shown else "a hint, not corrected" if item.hint else "no difference shown",
        ]
        for item in run.result.comparisons
    ]  # fmt: skip
    return Frame("comparisons", "All comparisons, by task", columns, rows)


def budgets(run: RunData) -> Frame:
    columns = [
        Column("arm", "Arm", "text", wrap=True), Column("steps", "Steps", "count"),
        Column("tokens_sampled", "Tokens sampled", "count"), Column("tokens_trained", "Tokens trained", "count"),
        Column("time", "Time", "seconds"),
    ]  # fmt: skip
    spent = tables.budgets(run)
    rows = [[row.name, row.steps, row.sampled, row.trained, row.seconds] for row in spent]
    aside = frozenset(at for at, row in enumerate(spent) if row.aside)
    return Frame("budgets", "What each arm spent", columns, rows, aside=aside)


def probes(run: RunData) -> Frame:
    """Empty where there is nothing to compare."""
    kinds = run.result.probes
    columns = [
        Column("kind", "Kind", "text"), *_seed(run), Column("steps", "Steps", "count"),
        Column("tokens_sampled", "Tokens sampled", "count"), Column("tokens_trained", "trained", "count"),
        Column("tokens_evaluated", "evaluated", "count"), Column("share", "Share", "share"),
        Column("rank", "Rank", "short"), Column("rank_off_diagonal", "Rank, off diagonal", "short"),
        Column("mean_difference", "Mean difference"),
    ]  # fmt: skip
    rows = [
        [
            item.kind, *_of_seed(run, item.seed), item.steps, item.tokens_sampled, item.tokens_trained,
            item.tokens_evaluated, item.share_of_training,
            *((full.rank, full.rank_off_diagonal, full.mean_difference) if (full := item.against_full) else [None] * 3),
        ]
        for item in kinds
    ]  # fmt: skip
    strong = frozenset(at for at, item in enumerate(kinds) if item.planned_with)
    wanted = len(kinds) > 1 or any(item.against_full for item in kinds)
    return Frame("probes", "Ways of measuring transfer", columns, rows if wanted else [], strong=strong)


def sequences(run: RunData) -> Frame:
    columns = [
        Column("arm", "Arm", "text"), *_seed(run), Column("order", "Order", "order"),
        Column("backward_transfer", "Backward", "signed"), Column("forward_transfer", "Forward", "signed"),
        *(Column(f"forgot_{task}", f"Forgot: {task}") for task in run.tasks),
    ]  # fmt: skip
    rows = [
        [
            arm, *_of_seed(run, item.seed), [stage.task for stage in item.stages], item.backward_transfer,
            item.forward_transfer, *((item.forgetting or {}).get(task) for task in run.tasks),
        ]
        for arm, item in tables.sequences(run)
    ]  # fmt: skip
    return Frame("sequences", "What sequences kept", columns, rows)


def orders(run: RunData) -> Frame:
    """Orders from the best forecast down; the planned one stands out."""
    found = tables.orders(run)
    scale = _scale(found)
    columns = [
        Column("order", "Order", "order", wrap=True), Column("forecast", "Forecast"),
        Column("interval", "Interval", "interval"),
        Column("drawn", f"{number(scale[0], 2)} to {number(scale[1], 2)}", "bar"),
        Column("probability_best", "P(best)", "short"),
    ]  # fmt: skip
    rows = [[item.order, item.score, (item.low, item.high), _bar(item, scale), item.probability_best] for item in found]
    planned = run.plan.plan.order if run.plan else ()
    strong = frozenset(at for at, item in enumerate(found) if item.order == planned)
    return Frame("orders", "Orders and their forecasts", columns, rows, strong=strong)


def strategies(run: RunData) -> Frame:
    columns = [
        Column("strategy", "Strategy", "text"), Column("order", "Order", "order", wrap=True),
        Column("forecast", "Forecast"), Column("regret", "Regret"),
    ]  # fmt: skip
    named = run.plan.strategies.items() if run.plan else ()
    return Frame(
        "strategies", "Named strategies", columns, [[name, item.order, item.score, item.regret] for name, item in named]
    )


def forecasts(run: RunData) -> Frame:
    columns = [
        Column("task", "Task", "text"), *_seed(run), Column("arm", "Arm", "text"), Column("forecast", "Forecast"),
        Column("interval", "Interval", "interval"), Column("outcome", "Outcome"), Column("off_by", "Off by", "signed"),
        Column("inside", "Inside", "text"),
    ]  # fmt: skip
    rows = [
        [
            item.task, *_of_seed(run, item.seed), item.arm, item.forecast, (item.low, item.high), item.outcome,
            item.outcome - item.forecast, "inside" if item.inside else "outside",
        ]
        for item in run.result.forecasts
    ]  # fmt: skip
    strong = frozenset(at for at, item in enumerate(run.result.forecasts) if not item.inside)
    return Frame("forecasts", "Forecasts and outcomes on validation", columns, rows, strong=strong)


def health(run: RunData) -> Frame:
    columns = [
        Column("arm", "Arm", "text"), Column("zero_variance", "Zero variance", "share"),
        Column("truncated", "Cut short", "share"), Column("abstained", "Abstained", "share"),
        Column("errors", "Errors", "share"), Column("mismatch", "Mismatch", "tiny"),
        Column("clipped", "Clipped", "share"), Column("kl", "KL to start"),
        *(Column(f"{phase}_seconds", f"{phase} (s)", "short", rule=not at) for at, phase in enumerate(tables.PHASES)),
    ]  # fmt: skip
    rows = [[row.arm, *row.values, row.kl, *row.phases] for row in tables.health_rows(run)]
    return Frame("health", "Health of training", columns, rows)


def what_signals(run: RunData) -> Frame:
    columns = [
        Column("task", "Task", "text"), Column("arm", "Arm", "text"), Column("groups", "Groups a step", "short"),
        Column("zero_variance", "Zero variance", "share"), Column("learnability", "Learnability"),
        Column("entropy", "Entropy (nats)"), Column("gradient", "Gradient"), Column("alignment", "Alignment", "cosine"),
    ]  # fmt: skip
    rows = [[row.task, row.arm, *row.values] for row in signals.signal_rows(run)]
    return Frame("signals", "What each task gave to learn from", columns, rows)


def _seed(run: RunData) -> Sequence[Column]:
    return _SEED if len(run.seeds) > 1 else ()


def _of_seed(run: RunData, seed: int) -> Sequence[int]:
    return (seed,) if len(run.seeds) > 1 else ()


def _scale(found: Sequence[PlanForecast]) -> tuple[float, float]:
    """The ends of the axis on which the orders' intervals are drawn."""
    values = [value for item in found for value in (item.score, item.low, item.high) if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def position(value: float, scale: tuple[float, float]) -> str:
    """Where a value lies on a scale, as a CSS percentage."""
    if not math.isfinite(value):
        return "0%"
    return f"{100 * min(1.0, max(0.0, (value - scale[0]) / (scale[1] - scale[0]))):.1f}%"


def _bar(item: PlanForecast, scale: tuple[float, float]) -> Markup:
    low, high, middle = (position(value, scale) for value in (item.low, item.high, item.score))
    return Markup(
        '<span class="interval"><i style="left:{};right:calc(100% - {})"></i><b style="left:{}"></b></span>'
    ).format(low, high, middle)
