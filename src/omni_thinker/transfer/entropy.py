"""Did stages of structured tasks lower the policy's entropy, and open-ended ones raise it, as arXiv 2507.14783 says?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from omni_thinker.runs.schema.result import EntropyFinding
from omni_thinker.types import TaskName


@dataclass(frozen=True, slots=True)
class EntropyChange:
    """What a stage did to the token entropy of answers to its own task, nats per token, on validation."""

    task: TaskName
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


_LEAST_CHANGE = 0.005
"""Smallest change that counts as one, in nats per token."""


def _moved(change: float) -> str:
    if abs(change) < _LEAST_CHANGE:
        return "left the entropy of their own answers where it was: less than 0.01 nats"
    return f"{'lowered' if change < 0 else 'raised'} the entropy of their own answers by {abs(change):.2f} nats"


def stage_changes(
    start: Mapping[TaskName, float], stages: Sequence[tuple[TaskName, Mapping[TaskName, float]]]
) -> list[EntropyChange]:
    """One for each stage of a sequence; `stages` are (task, entropies after it)."""
    changes, before = [], start
    for task, after in stages:
        if task in before and task in after:
            changes.append(EntropyChange(task, before[task], after[task]))
        before = after
    return changes


def entropy_finding(changes: Sequence[EntropyChange], judged: Sequence[TaskName]) -> EntropyFinding:
    """Mean changes of structured (verified) and open-ended (judged) tasks, and whether the claim holds here."""
    groups = {
        "structured": [change.change for change in changes if change.task not in judged],
        "open_ended": [change.change for change in changes if change.task in judged],
    }
    means = {name: fmean(values) if values else None for name, values in groups.items()}
    lowered = None if means["structured"] is None else means["structured"] < -_LEAST_CHANGE
    raised = None if means["open_ended"] is None else means["open_ended"] > _LEAST_CHANGE
    said = [
        f"{what} stages {_moved(means[name] or 0.0)} per token on average ({len(groups[name])} stages)"
        for name, what in (("structured", "Structured"), ("open_ended", "open-ended"))
        if groups[name]
    ]
    words = "; ".join(said)
    words = words[:1].upper() + words[1:] + "." if words else "No stage's entropy was measured."
    if lowered is not None and raised is not None:
        holds = "as the paper has it" if lowered and raised else "not as the paper has it"
        words += f" That is {holds}: structured tasks lower, open-ended ones raise it."
    by_task: dict[TaskName, float] = {}
    for task in dict.fromkeys(change.task for change in changes):
        by_task[task] = fmean(change.change for change in changes if change.task == task)
    return EntropyFinding(**means, by_task=by_task, words=words)
