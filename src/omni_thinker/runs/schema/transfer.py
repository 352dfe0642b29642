"""transfer.json: the transfer matrix."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, SerializerFunctionWrapHandler, model_serializer
from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Estimate, Row, Values, dump
from omni_thinker.types import TaskName


@dataclass(frozen=True, slots=True, config=CONFIG)
class Column:
    """One evaluation of a task that has several. What was not measured is missing from `after`."""

    name: str
    """Name of the evaluation. In the file it is the key of the entry."""
    task: TaskName
    """Task that it belongs to. Nothing need have been trained on it."""
    start: Estimate
    """Accuracy at the start."""
    after: Row
    """Accuracy after RL on each task alone."""


def _columns(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return tuple({"name": name, **row} if isinstance(row, Mapping) else row for name, row in given.items())


def _by_name(columns: tuple[Column, ...]) -> dict[str, Any]:
    return {row.pop("name"): row for row in map(dump, columns)}


@dataclass(frozen=True, slots=True, config=CONFIG)
class Entropies:
    """Entropy of the answers to each task, in nats per token."""

    start: Values
    """At the start."""
    after: Mapping[TaskName, Values]
    """After RL on each task alone, as `after[trained][evaluated]`."""

    def change(self, trained: TaskName, on: TaskName) -> float:
        """What RL on one task did to the entropy of answers to another; 0 where it isn't known."""
        after = self.after.get(trained, {}).get(on)
        return 0.0 if after is None or on not in self.start else after - self.start[on]


@dataclass(frozen=True, slots=True, config=CONFIG)
class TransferMatrix:
    """What RL on each task did to every task, measured on the validation split."""

    version: Literal[1] = field(default=1, kw_only=True)
    """Version of the format."""
    tasks: tuple[TaskName, ...]
    """Tasks of the matrix."""
    start: Row
    """Accuracy on each task at the start."""
    after: Mapping[TaskName, Row]
    """Accuracy after RL on each task alone, as `after[trained][evaluated]`. Null where it was not measured."""
    evaluations: Annotated[tuple[Column, ...], BeforeValidator(_columns), PlainSerializer(_by_name)] = ()
    """Single evaluations by name, for tasks that have several. Left out where there are none."""
    entropy: Entropies | None = None
    """Entropy of the answers. Left out where it was not measured."""

    def columns(self) -> tuple[Column, ...]:
        """The single evaluations where a task has them, its own row elsewhere."""
        divided = {column.task for column in self.evaluations}
        whole = [
            Column(j, j, self.start[j], {i: row[j] for i, row in self.after.items() if j in row})
            for j in self.tasks
            if j not in divided
        ]
        return (*whole, *self.evaluations)

    def effect(self, trained: TaskName, on: TaskName) -> float:
        """transfer[trained -> on]: change of accuracy, in [-1, 1]. 0 where it wasn't measured."""
        cell = self.after[trained].get(on)
        return 0.0 if cell is None else cell.mean - self.start[on].mean

    @model_serializer(mode="wrap")
    def _to_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = handler(self)
        table["after"] = {i: {j: row.get(j) for j in self.tasks} for i, row in table["after"].items()}
        optional = ("evaluations", "entropy", "seeds")
        return {key: value for key, value in table.items() if value or key not in optional}


@dataclass(frozen=True, slots=True, config=CONFIG)
class StudyTransfer(TransferMatrix):
    """transfer.json of a study: pooled over its seeds."""

    seeds: Mapping[str, TransferMatrix] = field(default_factory=dict, kw_only=True)
    """The matrix of each seed."""
