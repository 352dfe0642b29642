"""Lines of the logs: metrics.jsonl, samples.jsonl and references.jsonl."""

from typing import Literal

from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Count, Float, Int, Values
from omni_thinker.types import Split, StopReason, TaskName

Kind = Literal["warmup", "train", "interim", "validation", "test"]
"""What was done and logged."""

RENAMED = {
    "clip_share": "clip_frac",
    "logprob_mismatch": "mismatch_abs",
    "kl_to_start": "kl_ref",
    "length": "completion_length",
}
"""Names that earlier versions gave to metrics."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Metrics:
    """A line of metrics.jsonl: a step or an evaluation."""

    seed: Int
    """Seed of the run."""
    unit: str = ""
    """Unit of the study that wrote the line."""
    arm: str
    """Name of the arm or probe, or `warmup`."""
    kind: Kind
    """`warmup`, `train`, `interim` (validation during an arm, on few problems), `validation` or `test`."""
    stage: TaskName | None
    """Task of the stage. Null outside of stages."""
    step: Count
    """Steps of the arm so far."""
    seconds: Float
    """Time that it took."""
    metrics: Values
    """Values by name."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Answer:
    """A line of samples.jsonl: an answer of an evaluation."""

    seed: Int
    """Seed of the run."""
    unit: str = ""
    """Unit of the study that wrote the line."""
    arm: str
    """Name of the arm."""
    split: Split
    """`validation` or `test`."""
    stage: TaskName | None
    """Task of the stage that had ended. Null outside of stages."""
    step: Count
    """Steps of the arm so far."""
    task: TaskName
    """Task of the problem."""
    problem: str
    """Id of the problem."""
    prompt: str
    """What was asked, without chat markup: the user's turn, or the whole conversation."""
    answer: str | None
    """Gold answer, where there is one."""
    reference: str | None
    """Reference response that a judge compared with, where there is one."""
    response: str
    """The answer, without the thoughts before it."""
    stop: StopReason
    """`stop`, or `length` where the answer ran into the token limit."""
    status: Literal["value", "abstain", "error"]
    """Whether the reward gave a value."""
    score: Float | None
    """The value in [0, 1]. Null where the reward abstained or failed."""
    parts: Values
    """Values of the reward's parts."""
    reason: str | None
    """Why there is no value, or a remark on it."""
    thoughts: str | None = None
    """What the model thought before the answer. Null where it didn't think."""
    turns: tuple[str, ...] = ()
    """Of a task with turns: the first answer, what the environment said to it, the second answer, and so on. The last
    is `response`. Empty for other tasks."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Reference:
    """A line of references.jsonl: a response of the starting model, which the judge compares with."""

    seed: Int = 0
    """Seed of the run."""
    unit: str = ""
    """Unit of the study that wrote the line."""
    problem: str
    """Id of the problem."""
    reference: str
    """The response."""
