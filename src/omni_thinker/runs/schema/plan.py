"""plan.json: forecasts of orders and of joint training, and the choice between them."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Bool, Count, Float, Interval
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.types import TaskName


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class PlanForecast:
    """One plan and what it is forecast to end at."""

    kind: Literal["sequence", "joint"]
    """`sequence` for one task after another, `joint` for all at once."""
    order: tuple[TaskName, ...]
    """Tasks of the stages. Empty for joint training."""
    passes: tuple[Float, ...]
    """Length of each stage. 1 is as long as a task's share of the budget."""
    shares: Mapping[TaskName, Float] = field(default_factory=dict)
    """Share of each task in joint training. Empty for a sequence."""
    score: Float
    """The objective as forecast."""
    low: Float
    """Lower end of the interval of the objective."""
    high: Float
    """Upper end of the interval of the objective."""
    probability_best: Float | None
    """Probability of being the best of all orders. For joint training, of beating the sequence. Null where not
    all orders are listed."""
    forecast: Mapping[TaskName, Interval]
    """What an evaluation of each task would show."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class Strategy:
    """The order that a named rule would have chosen."""

    order: tuple[TaskName, ...]
    """Tasks in order."""
    score: Float
    """The objective as forecast."""
    regret: Float
    """How much of the best score it gives up."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class Decision:
    """Whether the sequence is better than joint training, and whether the data can tell."""

    gain_over_joint: Float
    """Forecast gain of the sequence over joint training in the objective."""
    stderr: Float
    """Standard error of the gain."""
    probability: Float
    """Probability that the gain is above 0."""
    settled: Bool
    """True where that probability is at least 0.95, or at most 0.05."""
    more_problems: Count | None
    """Evaluation problems per task that would settle it at the same gain. 0 where it is settled, null where no number
    would."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Plan:
    """What is forecast to end best, and its rivals."""

    version: Literal[1] = 1
    """Version of the format."""
    plan: PlanForecast
    """What is forecast to end best. Where that is joint training, the curriculum arm still trains `sequence`."""
    sequence: PlanForecast
    """The best sequence."""
    joint: PlanForecast
    """Joint training of the same length, in the recipe's shares."""
    mixture: PlanForecast | None = None
    """Joint training of the same length in the shares that are forecast to end best. Null where the forecaster has no
    opinion on shares."""
    orders: tuple[PlanForecast, ...]
    """Orders that were forecast, the best first."""
    strategies: Mapping[str, Strategy]
    """The order of each named rule."""
    exact: Bool
    """True where every order was tried."""
    upper_bound: Float
    """A score that no order can exceed."""
    forecaster: str
    """Name of the forecaster."""
    priors: Priors | None = None
    """What the forecaster took for granted. Null for formulas."""
    objective: str
    """`mean`, `worst` or `weights`."""
    level: Float
    """Coverage of the intervals."""
    decision: Decision
    """Comparison with joint training."""
    words: str
    """The plan in a paragraph."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class StudyPlan(Plan):
    """plan.json of a study: made from the pooled matrix."""

    seeds: Mapping[str, Plan]
    """The plan of each seed."""
