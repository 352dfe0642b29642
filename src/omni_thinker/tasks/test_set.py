"""A task whose test problems come from files of their own: `[tasks.NAME.test_set]`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec
from omni_thinker.recipe.tasks import EvalSetSpec
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.files import rows_of
from omni_thinker.tasks.reader import Row
from omni_thinker.tasks.refused import Refusals, joined
from omni_thinker.tasks.rows import ROW_OPTIONS, RowTask
from omni_thinker.types import Problem, Split, TaskName, content_hash


class WithTestSet:
    """A task with other test problems. Its own test problems aren't used.

    With `options.drop_overlap` prompts of the set are left out of train and validation; without, `check_splits` refuses
    them. `places` and `refused` are those of all rows."""

    def __init__(self, task: Task, spec: TaskSpec, test: EvalSetSpec) -> None:
        """Raises UserError for rows that can't be read."""
        self.name, self.max_tokens = task.name, task.max_tokens
        self.reward, self.verifiable = task.reward, task.verifiable
        self._task = task
        key = f"tasks.{task.name}.test_set"
        rows = _test_rows(test, f"{key}.files")
        try:
            read = RowTask(task.name, _as_rows(task, spec, test), rows)
        except UserError as exc:
            raise UserError(exc.message, file=exc.file, key=_own_key(exc.key, task.name)) from None
        # The rows of another file may have the ids of these.
        self._test = tuple(replace(problem, id=f"test_set/{problem.id}") for problem in read.problems("test"))
        self.places = {f"test_set/{ident}": place for ident, place in read.places.items()}
        self.refused: Refusals = read.refused
        if isinstance(task, RowTask):
            self.places = {**task.places, **self.places}
            self.refused = joined((task.refused, read.refused))
            self.refused.total = task.refused.total + read.refused.total
        dropped = self._test if spec.options.get("drop_overlap") else ()
        self._dropped = {content_hash(problem.shown) for problem in dropped}

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split. Raises UserError where it holds none."""
        if split == "test":
            return self._test
        problems = self._task.problems(split)
        if not self._dropped:
            return problems
        kept = [problem for problem in problems if content_hash(problem.shown) not in self._dropped]
        if not kept:
            raise UserError(f"every prompt of {split} is in it", key=f"tasks.{self.name}.test_set")
        return kept


def _own_key(key: str | None, name: TaskName) -> str | None:
    """The key of the set, where an error names the task's."""
    task = f"tasks.{name}."
    own = key is not None and key.startswith(tuple(f"{task}{field}" for field in EvalSetSpec.model_fields))
    return f"{task}test_set.{key.removeprefix(task)}" if key and own else key


def _test_rows(test: EvalSetSpec, key: str) -> Iterator[Row]:
    for file in test.files:
        for row in rows_of(Path(file), key):
            yield replace(row, split="test")


def _as_rows(task: Task, spec: TaskSpec, test: EvalSetSpec) -> TaskSpec:
    """A task of the set's rows alone, all of them test problems, that is scored as the task is."""
    return spec.model_copy(
        update={
            "source": "jsonl",
            "files": test.files,
            "format": test.format,
            "fields": test.fields,
            "template": spec.template if test.template is None else test.template,
            "splits": {"test": ("test",)},
            "pools": (),
            "options": {key: value for key, value in spec.options.items() if key in ROW_OPTIONS},
            "reward": task.reward,
        }
    )
