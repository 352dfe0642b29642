"""result.json: arms on the test split, comparisons, and the verdict."""

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Bool, Count, Float, Int, Row, Values, null_as
from omni_thinker.types import TaskName


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class StageResult:
    """What validation showed after a stage of an arm."""

    task: TaskName
    """Task that the stage trained."""
    validation: Row
    """Accuracy on every task after the stage."""
    entropy: Values
    """Entropy of the answers to each task, in nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ArmRun:
    """One arm with one seed."""

    seed: Int
    """Seed of the run."""
    test: Row
    """Accuracy on each task's test problems."""
    validation: Row
    """Accuracy on each task's validation problems after training."""
    measures: Mapping[TaskName, Row] = field(default_factory=dict)
    """By task: `pass@k`, `majority@k` and `greedy` on the test problems, as the recipe's `evaluation` asks for them."""
    steps: Count
    """RL steps. Evaluations and the warm-up are not counted here or below."""
    samples: Count
    """Answers sampled in these steps."""
    tokens_sampled: Count
    """Tokens of these answers."""
    tokens_trained: Count
    """Tokens that had a gradient."""
    seconds: Float
    """Time that the steps took."""
    stages: tuple[StageResult, ...]
    """Stages of an arm that trains one task after another. Empty for other arms."""
    backward_transfer: Float | None
    """Mean accuracy at the end minus that right after a task's own stage, over all tasks but the last. Null without
    stages."""
    forward_transfer: Float | None
    """Mean accuracy right before a task's own stage minus that at the start, over all tasks but the first. Null without
    stages."""
    forgetting: Mapping[TaskName, Float] | None
    """Best accuracy after any stage minus that at the end, for each task. Null without stages."""
    budget_used: Float | None = None
    """Share of its budget that it spent. Null where it has none of its own."""
    stopped: Literal["budget", "plateau", "steps"] | None = None
    """Why it ended: its budget was spent, interim validations no longer rose, or it took too many steps for its
    tokens. Null where it has no budget of its own."""
    selected: Count | None = None
    """Step whose weights were kept as the best on interim validations, and tested. Null where those of the end were."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class Comparison:
    """The difference `a - b` on the test split, paired over problems and seeds."""

    a: str
    """Arm that is compared."""
    b: str
    """Arm that it is compared with."""
    task: str
    """A task, or `macro` for the unweighted mean of tasks."""
    difference: Float
    """Accuracy of `a` minus accuracy of `b`."""
    low: Float
    """Lower end of the interval of the difference."""
    high: Float
    """Upper end of the interval of the difference."""
    n: Count
    """Number of problems."""
    detectable: Float | None = None
    """Smallest true difference that would be shown nine times in ten. Null where the data can't say."""
    shown: Bool = field(kw_only=True)
    """True where 0 is excluded with the confidence of the whole family, and no seed is left to run."""
    family: Literal["control", "questions", "others"] = field(default="others", kw_only=True)
    """Comparisons that are corrected together: arms against joint training, the study's other questions, all others.
    Intervals of the first two hold for all of the family at once, those of `others` each by itself."""
    hint: Bool = field(default=False, kw_only=True)
    """True where a row of `others` excludes 0 by itself, but not with the confidence of its family."""

    def swapped(self) -> "Comparison":
        """`b - a`."""
        return replace(self, a=self.b, b=self.a, difference=-self.difference, low=-self.high, high=-self.low)


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ForecastOutcome:
    """A forecast that was made before training, beside what came of it."""

    seed: Int
    """Seed of the run."""
    arm: str
    """Arm that was forecast."""
    task: TaskName
    """Task that was forecast."""
    forecast: Float
    """Mean of the forecast validation accuracy."""
    low: Float
    """Lower end of its 80 % interval."""
    high: Float
    """Upper end of its 80 % interval."""
    outcome: Float
    """Validation accuracy that the arm reached."""
    inside: Bool
    """True where the outcome lies in the interval."""
    test: Float | None = None
    """Test accuracy that the arm reached. Null in runs of earlier versions."""
    constant: Float | None = None
    """Start plus the mean gain of a stage on its own task: a forecast that takes no method."""
    naive: Float | None = None
    """Accuracy that training on the task alone reached: another one."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ForecastErrors:
    """Mean absolute errors of forecasts on a split."""

    n: Count
    """Number of forecasts."""
    inside: Count
    """How many outcomes lie in their interval."""
    forecast: Float
    """Error of the forecasts."""
    naive: Float
    """Error of taking each task's own level."""
    constant: Float
    """Error of the start plus a constant gain."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ForecastQuality:
    """How good a study's forecasts were."""

    test: ForecastErrors
    """Errors on the test split, which nothing was planned with."""
    validation: ForecastErrors
    """Errors on validation, whose problems made the matrix."""
    rank: Float | None
    """Mean rank correlation of forecast and test accuracy over arms, within a task and seed. Null with few arms."""
    words: str
    """The same in words."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class AssumptionCell:
    """One place where an assumption was tested."""

    where: str
    """Stage and task, in words."""
    expected: Float
    """What the assumption says."""
    seen: Float
    """What the stage showed."""
    stderr: Annotated[Float, null_as(math.inf)]
    """Standard error of the difference of the two. Null where it isn't known."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Assumption:
    """An assumption of arXiv 2507.14783, tested on the stages of a run."""

    seed: Int
    """Seed of the run."""
    assumption: Literal["A1", "A2"]
    """`A1` is constant transfer and `A2` is saturation."""
    cells: tuple[AssumptionCell, ...]
    """Every place where it was tested."""
    mean_difference: Float
    """Mean absolute difference of expected and seen."""
    p: Float | None
    """Probability of differences this large by evaluation noise alone. Null where there is nothing to test."""
    power: Float | None = None
    """Probability of p < 0.05 if every place were off by 9 points. Null where differences couldn't be paired."""
    rank_correlation: Float | None
    """Spearman's correlation of expected and seen. Null with fewer than three cells."""
    words: str
    """The finding in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class EntropyFinding:
    """How stages changed the entropy of the answers to their own tasks, in nats per token."""

    structured: Float | None
    """Mean change over stages of verified tasks. Null without any."""
    open_ended: Float | None
    """Mean change over stages of judged tasks. Null without any."""
    by_task: Values
    """Mean change over the stages of each task."""
    words: str
    """The finding in a sentence."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class Agreement:
    """Effects that one kind of probe measured, compared with those of whole stages."""

    cells: Count
    """Number of cells that both kinds measured."""
    rank: Float | None
    """Spearman's correlation of the effects. Null with fewer than three cells, or where all are alike."""
    rank_off_diagonal: Float | None
    """The same for what tasks do to other tasks."""
    mean_difference: Float
    """Mean absolute difference of the effects."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Probes:
    """What one kind of probe cost with one seed, all tasks together."""

    seed: Int
    """Seed of the run."""
    kind: str
    """`full`, `short`, `lora` or `gradient`."""
    planned_with: Bool
    """True for the kind that the plan was made from."""
    steps: Count
    """RL steps."""
    tokens_sampled: Count
    """Tokens sampled in these steps."""
    tokens_trained: Count
    """Tokens that had a gradient."""
    tokens_evaluated: Count
    """Tokens sampled in the probes' evaluations."""
    seconds: Float
    """Time that the steps took."""
    share_of_training: Float | None
    """Share of all trained tokens, if this were the only kind. Null where nothing was trained."""
    against_full: Agreement | None
    """Agreement with whole stages. Null where these were not probed too."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Warmup:
    """The supervised warm-up of one seed."""

    seed: Int
    """Seed of the run."""
    steps: Count
    """Steps of supervised training."""
    tokens: Count
    """Tokens of the gold answers."""
    seconds: Float
    """Time that it took."""
    reached: Row
    """Scores on validation after the last check."""
    inside: Mapping[TaskName, Bool]
    """True where the score lies in the target band."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Machine:
    """What the run ran on."""

    cpu: str
    """Name of the processor."""
    cores: Count | None
    """Cores that the process could use."""
    memory_gb: Float
    """Memory of the machine, in GiB."""
    peak_rss_gb: Float
    """Peak memory of the process, in GiB."""
    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""
    transformers: str
    """Version of transformers."""
    platform: str
    """Operating system."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Scores:
    """scores.json: what comparisons are made of, for other statistics than ours."""

    version: Literal[1] = 1
    """Version of the format."""
    seeds: tuple[Int, ...]
    """Seeds, in the order of each arm's tables."""
    test: Mapping[str, tuple[Mapping[TaskName, Mapping[str, Float]], ...]]
    """Mean score of the answers to each test problem: by arm, seed, task and problem."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Result:
    """The outcome of a study."""

    version: Literal[1] = 1
    """Version of the format."""
    name: str
    """Name of the recipe."""
    tasks: tuple[TaskName, ...]
    """Tasks in the order of the recipe."""
    verdict: str
    """What was shown, in words."""
    seeds_left: Count = 0
    """Seeds that are still to run. Until they have, nothing counts as shown."""
    arms: Mapping[str, tuple[ArmRun, ...]]
    """Every arm, with one entry for each seed."""
    comparisons: tuple[Comparison, ...]
    """Every pair of arms, for each task and for `macro`."""
    forecasts: tuple[ForecastOutcome, ...]
    """Forecasts beside their outcomes. Empty without a plan."""
    forecast_quality: ForecastQuality | None = None
    """How good they were. Null without a plan."""
    assumptions: tuple[Assumption, ...]
    """Tests of the assumptions behind the forecasts."""
    entropy: EntropyFinding | None
    """Change of entropy by stages. Null where no arm had stages."""
    probes: tuple[Probes, ...]
    """Cost of measuring transfer, one entry for each seed and kind."""
    warmup: tuple[Warmup, ...]
    """The warm-up, one entry for each seed."""
    notes: tuple[str, ...]
    """Plain sentences that a reader must know."""
    seconds: Float
    """Wall-clock time of the study."""
    machine: Machine
    """What the run ran on."""
