"""Rows that can't be used: all of a task's are counted, and the first are named."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from omni_thinker.errors import UserError, printable
from omni_thinker.recipe import RewardSpec
from omni_thinker.tasks.base import Task
from omni_thinker.types import SPLITS, Problem, Split, TaskName

_KEPT = 100
_NAMED = 4
_LONGEST_REASON = 120
_log = logging.getLogger(__name__)


@dataclass
class Refusals:
    """The rows of a task (or file) `of` that were refused. `total`: all rows that were looked at. `first`: the first
    hundred."""

    of: str
    total: int = 0
    count: int = 0
    first: list[UserError] = field(default_factory=list)

    def add(self, why: UserError) -> None:
        """Count a row that can't be used."""
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(why)

    def settle(self, skip: bool) -> None:
        """Raises UserError for all refused rows together; with `skip` they are logged, unless none is left."""
        if not self.count:
            return
        if skip and self.count < self.total:
            _log.warning("%s", printable(self.words()))
            return
        first = self.first[0]
        more = _named(self.first[1:_NAMED], first)
        also = f"; also {more}" if more else ""
        rest = "skip_refused = true (--skip-refused) leaves them out" if self.count < self.total else "none is left"
        said = f"{first.message}{also} ({self._counted()} refused; {rest})"
        raise UserError(said, file=first.file, key=first.key)

    def words(self) -> str:
        """What was left out, in one line."""
        named = _named(self.first[:_NAMED])
        more = ", ..." if self.count > _NAMED else ""
        return f"{self.of}: {self._counted()} left out: {named}{more}"

    def to_json(self) -> dict[str, object]:
        """Counts and the first reasons, as plain data."""
        return {"rows": self.total, "refused": self.count, "first": [str(why) for why in self.first]}

    def _counted(self) -> str:
        return f"{self.count:,} of {self.total:,} rows {'is' if self.count == 1 else 'are'}"


def _named(refused: Sequence[UserError], before: UserError | None = None) -> str:
    """Rows with their reasons; a row with the reason of the one `before` it by its place alone."""
    words = []
    for why in refused:
        same = before is not None and why.file is not None and (why.key, why.message) == (before.key, before.message)
        line = str(why.file if same else why)
        words.append(line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "...")
        before = why
    return ", ".join(words)


def joined(refused: Iterable[Refusals]) -> Refusals:
    """Refusals at several checks as one; `total` is that of the first."""
    parts = list(refused)
    whole = Refusals(parts[0].of)
    for part in parts:
        whole.total = whole.total or part.total
        whole.count += part.count
        whole.first = [*whole.first, *part.first][:_KEPT]
    return whole


class Screened:
    """A task without the problems that can't be scored."""

    def __init__(self, task: Task, unusable: set[tuple[Split, str]]) -> None:
        """`unusable`: splits and ids of the problems that are left out."""
        self.name: TaskName = task.name
        self.max_tokens: int = task.max_tokens
        self.reward: RewardSpec = task.reward
        self.verifiable: bool = task.verifiable
        self._task, self._unusable = task, unusable

    def problems(self, split: Split) -> Sequence[Problem]:
        """All usable problems of a split. Raises UserError where none is left."""
        usable = [problem for problem in self._task.problems(split) if (split, problem.id) not in self._unusable]
        if not usable:
            raise UserError(f"no row of {split} can be used", key=f"tasks.{self.name}")
        return usable


def screened_by(task: Task, fault: Callable[[Problem, Split], UserError | None], skip: bool) -> tuple[Task, Refusals]:
    """The task without the problems that have a fault, and these. Raises UserError for all of them, unless `skip`."""
    refused = Refusals(f"tasks.{task.name}")
    unusable: set[tuple[Split, str]] = set()
    for split in SPLITS:
        for problem in task.problems(split):
            refused.total += 1
            if (why := fault(problem, split)) is not None:
                refused.add(why)
                unusable.add((split, problem.id))
    refused.settle(skip)
    return (Screened(task, unusable) if unusable else task), refused
