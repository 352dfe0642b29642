"""The rows of a report's tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from omni_thinker.arms import colour_of, is_single, kind_of, task_of
from omni_thinker.models.builtin import GGUF_NAME
from omni_thinker.plugins import PREFIX
from omni_thinker.recipe.schedulers import KINDS
from omni_thinker.report.figures import series
from omni_thinker.report.words import count, duration
from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.base import MACRO, Estimate
from omni_thinker.runs.schema.plan import PlanForecast
from omni_thinker.runs.schema.result import ArmRun

NAN = math.nan
_NOTHING = Estimate(NAN, 0, NAN)
PHASES = ("sample", "score", "train", "kl")
HEALTH_COLUMNS = ("zero_variance", "truncated", "abstain_rate", "error_rate", "mismatch_abs", "clip_frac")
MOST_ORDERS = 120


@dataclass(frozen=True)
class Cell:
    """An arm on a task, over seeds. `versus`: 1 above the start, -1 below, 0 not shown. `hint`: by itself alone."""

    mean: float
    stderr: float
    low: float
    high: float
    best: bool = False
    versus: int = 0
    hint: bool = False


@dataclass(frozen=True)
class ArmRow:
    arm: str
    about: str
    colour: str
    cells: list[Cell]


@dataclass(frozen=True)
class MeasureRow:
    """A measure of an arm on each task."""

    arm: str
    measure: str
    cells: list[Cell]


@dataclass(frozen=True)
class Budget:
    """What an arm spent, as the mean over seeds. NaN where the run did not say."""

    name: str
    steps: float
    sampled: float
    trained: float
    seconds: float
    aside: bool = False


@dataclass(frozen=True)
class HealthRow:
    arm: str
    values: list[float]
    kl: float
    phases: list[float]


def facts(run: RunData) -> list[tuple[str, str]]:
    """The facts row under the verdict; what is not known is not named."""
    machine = run.result.machine
    steps = sorted({item.steps for runs in run.result.arms.values() for item in runs if item.steps})
    per_problem = run.setting("evaluation", "samples")
    sizes = sorted(
        {item.n for runs in run.result.arms.values() for arm in runs for item in arm.test.values() if item.n}
    )
    tested = "–".join(map(str, dict.fromkeys((sizes[0], sizes[-1])))) if sizes else ""
    hardware = ", ".join(word for word in (machine.cpu, f"{machine.cores} cores" if machine.cores else "") if word)
    software = [("Python", machine.python), ("torch", machine.torch), ("transformers", machine.transformers)]
    rows = [
        ("Model", model_words(run)),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("RL steps per arm", "–".join(map(str, dict.fromkeys((steps[0], steps[-1])))) if steps else ""),
        ("Test problems per task", f"{tested} × {per_problem} answers" if tested and per_problem else tested),
        ("Answers sampled in RL", _answers_sampled(run)),
        ("Wall time", duration(run.result.seconds)),
        ("Machine", hardware),
        ("Peak memory", f"{machine.peak_rss_gb:.1f} GB"),
        ("Software", ", ".join(f"{name} {text}" for name, text in software if text)),
    ]
    return [(name, value) for name, value in rows if value]


def model_words(run: RunData) -> str:
    """The model and how it was trained; empty without a recipe."""
    name = str(run.setting("model", "name") or "")
    if name == "builtin":
        name = f"{GGUF_NAME.partition('.')[0]} (built-in)"
    dtype = run.setting("model", "dtype")
    trained = "LoRA" if run.setting("model", "lora") else "full weights"
    return ", ".join(filter(None, (name, dtype if dtype not in (None, "auto") else "", trained))) if name else ""


def _answers_sampled(run: RunData) -> str:
    size = run.setting("rl", "group_size")
    if not isinstance(size, int):
        return ""
    tasks = run.setting("tasks") or {}
    sizes = {task: run.setting("tasks", task, "rl", "group_size") for task in tasks}
    extra = {task: own - size for task, own in sizes.items() if isinstance(own, int)}
    arms = [arm for arm in run.records.arms("train") if arm != "warmup"]
    sizes_of = {"all": size, **extra}
    answers = sum(
        float(np.nansum(run.records.values(arm, f"problems/{of}", "train"))) * samples
        for arm in arms
        for of, samples in sizes_of.items()
    )
    return count(answers) if answers > 0 else ""


def over_seeds(estimates: list[Estimate]) -> Cell:
    """The mean over seeds. Seeds share the test problems, so the stderr is their root mean square, not smaller."""
    means = [item.mean for item in estimates if math.isfinite(item.mean)]
    if not means:
        return Cell(NAN, NAN, NAN, NAN)
    stderr = math.sqrt(series.mean(item.stderr**2 for item in estimates))
    return Cell(series.mean(means), stderr, min(means), max(means))


def macro(test: Mapping[str, Estimate], tasks: list[str]) -> Estimate:
    """The unweighted mean of tasks; their errors are independent. NaN while a task is missing."""
    estimates = [test.get(task, _NOTHING) for task in tasks]
    if not estimates:
        return _NOTHING
    stderr = math.sqrt(math.fsum(item.stderr**2 for item in estimates)) / len(estimates)
    return Estimate(
        math.fsum(item.mean for item in estimates) / len(estimates), sum(item.n for item in estimates), stderr
    )


def macro_cell(run: RunData, arm: str) -> Cell:
    """Macro accuracy of an arm on the test split."""
    return over_seeds([macro(item.test, run.tasks) for item in run.result.arms[arm]])


def arm_rows(run: RunData) -> list[ArmRow]:
    """Arms by tasks and macro on the test split, the highest mean of each column marked."""
    columns = [_column(run, task) for task in [*run.tasks, MACRO]]
    return [
        ArmRow(arm, about(run, arm), colour_of(arm, run.arms), [column[arm] for column in columns]) for arm in run.arms
    ]


def measure_rows(run: RunData) -> list[MeasureRow]:
    """Measures of several answers to a test problem, arm by arm; empty where the recipe asked for none."""
    tables = [own for runs in run.result.arms.values() for arm in runs for own in arm.measures.values()]
    names = sorted(dict.fromkeys(name for own in tables for name in own), key=_kind_of_measure)
    if not names:
        return []
    mean = f"mean@{run.setting('evaluation', 'samples')}"
    rows = []
    for arm in run.arms:
        runs = run.result.arms[arm]
        for name in (mean, *names):
            tests = [
                item.test if name == mean else {t: own[name] for t, own in item.measures.items() if name in own}
                for item in runs
            ]
            cells = [over_seeds([test.get(task, _NOTHING) for test in tests]) for task in run.tasks]
            rows.append(MeasureRow(arm, name, cells))
    return rows


def _kind_of_measure(name: str) -> int:
    return ("pass", "majority", "greedy").index(name.partition("@")[0])


def _column(run: RunData, task: str) -> dict[str, Cell]:
    cells = {}
    for arm in run.arms:
        runs = run.result.arms[arm]
        tests = [macro(item.test, run.tasks) if task == MACRO else item.test.get(task, _NOTHING) for item in runs]
        against = run.comparison(arm, "start", task)
        hint = against is not None and against.hint
        side = (1 if against.difference > 0 else -1) if against and (against.shown or hint) else 0
        cells[arm] = replace(over_seeds(tests), versus=side, hint=hint)
    top = max((cell.mean for cell in cells.values() if math.isfinite(cell.mean)), default=NAN)
    return {arm: replace(cell, best=len(cells) > 1 and cell.mean >= top - 1e-12) for arm, cell in cells.items()}


def about(run: RunData, arm: str) -> str:
    """One line on what an arm is."""
    if arm == "curriculum":
        orders = _trained_orders(run)
        each = f": {orders[0]}" if len(orders) == 1 else ", another one for each seed" if orders else ""
        return "RL on one task after another, in the planned order" + each
    if is_single(arm):
        return f"RL on {task_of(arm)} alone"
    if arm == "start" and run.result.warmup:
        return "the model after the supervised warm-up, before any RL"
    kind = kind_of(arm)
    return kind.about if kind else f"RL on all tasks, scheduled: {_scheduled(run, arm)}"


def _scheduled(run: RunData, arm: str) -> str:
    """What the arm's scheduler does, in the words of its own class. Code of the user's own isn't imported for it."""
    kind = run.setting("study", "schedulers", arm, "kind")
    kind = kind if isinstance(kind, str) else arm
    if kind == "python" or kind.startswith(PREFIX):
        return "by a class of your own"
    if kind not in KINDS:
        return "a scheduler says how many problems of each a step trains"
    words = " ".join((KINDS.find(kind, "study.schedulers").__doc__ or "").split()).rstrip(".")
    return (words[:1].lower() + words[1:]) if kind == arm else f"{kind}, {words[:1].lower()}{words[1:]}"


def _trained_orders(run: RunData) -> list[str]:
    runs = run.result.arms.get("curriculum", ())
    return list(dict.fromkeys(" → ".join(stage.task for stage in item.stages) for item in runs if item.stages))


def budgets(run: RunData) -> list[Budget]:
    """What each arm spent, and before them what all arms share: warm-up and probes."""
    rows = []
    if run.result.warmup:
        steps, seconds = (
            series.mean(getattr(item, name) for item in run.result.warmup) for name in ("steps", "seconds")
        )
        rows.append(Budget("warm-up (shared)", steps, NAN, NAN, seconds, aside=True))
    rows += _probe_budgets(run)
    return rows + [_budget(arm, run.result.arms[arm]) for arm in run.arms]


def _budget(arm: str, runs: Sequence[ArmRun]) -> Budget:
    return Budget(
        arm,
        steps=series.mean(item.steps for item in runs),
        sampled=series.mean(item.tokens_sampled for item in runs),
        trained=series.mean(item.tokens_trained for item in runs),
        seconds=median([item.seconds for item in runs]),  # one seed may have run beside something else
    )


def _probe_budgets(run: RunData) -> list[Budget]:
    """The curriculum's plan is not free: all probes of a kind together, per seed."""
    rows = []
    for kind in dict.fromkeys(row.kind for row in run.result.probes):
        probes = [row for row in run.result.probes if row.kind == kind]
        share = series.mean(row.share_of_training for row in probes if row.share_of_training is not None)
        purpose = "for the plan" if probes[0].planned_with else "beside it"
        evaluated = series.mean(row.tokens_evaluated for row in probes)
        label = f"{kind} probes, {purpose} ("
        label += f"{share:.0%} of the tokens trained; " if math.isfinite(share) else ""
        label += f"{count(evaluated)} more tokens in their evaluations)"
        steps, sampled, trained, seconds = (
            series.mean(getattr(row, name) for row in probes)
            for name in ("steps", "tokens_sampled", "tokens_trained", "seconds")
        )
        rows.append(Budget(label, steps, sampled, trained, seconds, aside=True))
    return rows


def sequences(run: RunData) -> list[tuple[str, ArmRun]]:
    """Arms that were trained in stages, seed by seed."""
    return [(arm, item) for arm in run.arms for item in run.result.arms[arm] if item.stages]


def orders(run: RunData) -> list[PlanForecast]:
    """Orders from the best forecast down."""
    if run.plan is None:
        return []
    return sorted(run.plan.orders, key=lambda item: -item.score)[:MOST_ORDERS]


def health_rows(run: RunData) -> list[HealthRow]:
    """Means over the RL steps of each arm and over seeds; the KL is that of the last steps."""
    rows = []
    for arm in run.arms:
        name = series.trained_as(run, arm)
        values = [series.over_steps(run, name, f"{column}/all") for column in HEALTH_COLUMNS]
        ends = [points[-1][1] for points in series.by_seed(run, name, "kl_ref/all").values()]
        phases = [series.over_steps(run, name, f"seconds/{phase}") for phase in PHASES]
        if any(math.isfinite(value) for value in [*values, *phases, *ends]):
            rows.append(HealthRow(arm, values, series.mean(ends), phases))
    return rows
