"""atlas.jsonl: what many small studies came to, a row an evaluation."""

from collections.abc import Mapping
from typing import Literal

from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Bool, Count, Float, Int, Row, Values
from omni_thinker.types import TaskName

AtlasKind = Literal["start", "single", "mixture", "sequence", "merge"]
"""What kind of run an evaluation belongs to."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class AtlasStage:
    """Steps in which the same tasks were trained."""

    shares: Mapping[TaskName, Float]
    """Share of each task in the problems of a step. They add up to 1."""
    steps: Count
    """RL steps."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class AtlasRow:
    """A line of atlas.jsonl: one evaluation of all tasks on the validation split."""

    version: Count
    """Version of the schema."""
    key: str
    """Digest of all that decides the numbers: what was trained, the start, the seed, the recipe, the problems and the
    versions."""
    id: str
    """Start, seed and name of the run."""
    kind: AtlasKind
    """`start`, `single`, `mixture`, `sequence` or `merge`."""
    start: str
    """Name of the start."""
    warmup_steps: Count
    """Most steps that its warm-up had."""
    seed: Int
    """Seed of the warm-up, the problems and the answers."""
    stages: tuple[AtlasStage, ...]
    """What was trained before this evaluation, in order. Empty for the start and for merges."""
    merged: tuple[TaskName, ...]
    """Tasks whose single runs were merged. Empty for all but merges."""
    scale: Float | None
    """Factor of the sum of the changes of a merge. Null for all but merges."""
    steps: Count
    """RL steps before this evaluation. A merge has those of its parts."""
    whole: Bool
    """True for the last evaluation of a run."""
    samples: Count
    """Answers sampled in these steps."""
    tokens_sampled: Count
    """Tokens of these answers."""
    tokens_trained: Count
    """Tokens that had a gradient."""
    seconds: Float
    """Time that the steps took."""
    accuracy: Row
    """Accuracy on every task."""
    entropy: Values
    """Entropy of the answers to each task, in nats per token."""
    model: str
    """Model that was trained."""
    versions: Mapping[str, str]
    """Versions of the packages that decide the numbers."""
    cpu: str
    """Processor of the command's machine."""
    threads: Count
    """Threads that computed. With another number sums are rounded differently."""
