"""From a recipe's task table to a task, and the check that splits share no prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean, load_class
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.builtin.coding import CodingTask
from omni_thinker.tasks.builtin.math import MathTask
from omni_thinker.tasks.builtin.qa import QaTask
from omni_thinker.tasks.builtin.writing import WritingTask
from omni_thinker.tasks.environments.verifiers import VerifiersTask
from omni_thinker.tasks.files import file_task
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.hf import hf_task
from omni_thinker.tasks.pool import PooledTask, refuse_keys
from omni_thinker.tasks.test_set import WithTestSet
from omni_thinker.types import SPLITS, Problem, Split, TaskName, content_hash

TASKS: Mapping[str, type[PooledTask]] = {task.kind: task for task in (MathTask, CodingTask, QaTask, WritingTask)}
BUILTIN: Mapping[str, str] = {kind: task.summary for kind, task in TASKS.items()}
"""The built-in tasks, one line about each."""
SOURCES = (
    *(f"builtin:{kind}" for kind in TASKS),
    "jsonl",
    "hf:NAME_OR_FOLDER",
    "reasoning_gym:NAME",
    "verifiers:NAME",
    "python:MODULE:CLASS",
)

Overlap = tuple[Split, Split, str]
"""The two splits and a prompt that both hold."""

Pools = Mapping[TaskName, Sequence[Problem]]
"""The problems of one split, by task."""


def make_tasks(specs: Mapping[TaskName, TaskSpec], data_root: str = "") -> dict[TaskName, Task]:
    """All tasks of a recipe, their files under `data_root`. Raises UserError for the first that can't be made."""
    root = Path(data_root) if data_root else None
    return {name: make_task(name, spec if root is None else spec.under(root)) for name, spec in specs.items()}


def make_pools(
    tasks: Mapping[TaskName, Task], limits: Mapping[Split, int], specs: Mapping[TaskName, TaskSpec]
) -> dict[Split, Pools]:
    """The problems of every split, at most `limits` of a task, under the system texts of `specs`. Raises UserError
    where splits share a prompt."""
    for task in tasks.values():
        check_splits(task)
    return {
        split: {
            name: [under(problem, specs[name].system) for problem in task.problems(split)[: limits.get(split)]]
            for name, task in tasks.items()
        }
        for split in SPLITS
    }


def under(problem: Problem, system: str | None) -> Problem:
    """The problem under its task's system text, where it has none of its own."""
    return problem if system is None or problem.system is not None else replace(problem, system=system)


def make_task(name: TaskName, spec: TaskSpec) -> Task:
    """The task that `spec` describes. Raises UserError naming the key where it can't be made."""
    task = _from_source(name, spec)
    return task if spec.test_set is None else WithTestSet(task, spec, spec.test_set)


def _from_source(name: TaskName, spec: TaskSpec) -> Task:
    kind, _, name_of_builtin = spec.source.partition(":")
    if spec.source == "jsonl":
        return file_task(name, spec)
    if kind == "hf":
        return hf_task(name, spec)
    refuse_keys(name, spec, ("format",))
    if kind == "builtin" and name_of_builtin in TASKS:
        return TASKS[name_of_builtin](name, spec)
    if kind == "reasoning_gym":
        refuse_keys(name, spec, ("test_set",))  # rows have no entry that a set's scorer could read
        return GymTask(name, spec)
    if kind == "verifiers":
        return VerifiersTask(name, spec)
    if kind == "python":
        return _python_task(name, spec)
    near = f"; did you mean 'builtin:{spec.source}'?" if f"builtin:{spec.source}" in SOURCES else ""
    hint = did_you_mean(spec.source, SOURCES) if not near else f"{near} known: {', '.join(SOURCES)}"
    raise UserError(f"unknown source {spec.source!r}{hint}", key=f"tasks.{name}.source")


def _python_task(name: TaskName, spec: TaskSpec) -> Task:
    """CLASS(name, spec) of the user's own module."""
    key = f"tasks.{name}.source"
    task_class = load_class(spec.source, key)
    class_name = task_class.__name__
    try:
        task = task_class(name, spec)
    except TypeError as exc:
        raise UserError(f"{class_name}(name, spec) can't be made: {exc}", key=key) from None
    if not isinstance(task, Task):
        lacking = [
            member for member in ("name", "max_tokens", "reward", "verifiable", "problems") if not hasattr(task, member)
        ]
        raise UserError(f"{class_name} isn't a Task: it lacks {', '.join(lacking)}", key=key)
    return task


def split_overlap(task: Task) -> list[Overlap]:
    """Prompts that lie in two splits, compared as words (case and white space apart)."""
    homes: dict[str, Split] = {}
    overlaps: list[Overlap] = []
    for split in SPLITS:
        for problem in task.problems(split):
            home = homes.setdefault(content_hash(problem.shown), split)
            if home != split:
                overlaps.append((home, split, problem.shown))
    return overlaps


def check_splits(task: Task) -> None:
    """UserError where validation or test holds a prompt of train (or test one of validation)."""
    if not (overlaps := split_overlap(task)):
        return
    first, second, prompt = overlaps[0]
    raise UserError(
        f"{len(overlaps)} prompt(s) of {second} also in {first}, such as {prompt[:100]!r}; remove them, or for rows "
        "set options.drop_overlap = true",
        key=f"tasks.{task.name}",
    )
