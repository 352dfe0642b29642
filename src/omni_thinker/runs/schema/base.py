"""What every file of a run is made of, and how its classes become tables and are checked against them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from omni_thinker.types import TaskName

VERSION = 1
MACRO = "macro"
"""The name of the unweighted mean of tasks, where a task is named."""
CONFIG = ConfigDict(use_attribute_docstrings=True)
T = TypeVar("T")

_MOST = 1 << 64
"""No number of a run is larger. Python's own are unbounded, and a damaged file's would not fit into a float."""

Int = Annotated[int, Strict(), Field(ge=-_MOST, le=_MOST)]
Count = Annotated[int, Strict(), Field(ge=0, le=_MOST)]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]


def _measured(table: Any) -> Any:
    """Without the entries that are null, which were not measured."""
    return {key: value for key, value in table.items() if value is not None} if isinstance(table, Mapping) else table


def _spread(value: float) -> float:
    if value < 0.0:  # nan, of nothing measured, may pass
        raise PydanticCustomError("spread", "should be 0 or more")
    return value


def null_as(value: float) -> BeforeValidator:
    return BeforeValidator(lambda given: value if given is None else given)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Estimate:
    """A mean over problems. Problems are the units, since answers to one problem are alike."""

    mean: Annotated[Float, null_as(math.nan)]
    """Mean score in [0, 1]. It is null where no answer was scored."""
    n: Count
    """Number of problems."""
    stderr: Annotated[Float, AfterValidator(_spread), null_as(math.inf)]
    """Standard error of the mean. It is null where one problem or none was scored."""


Row = Annotated[Mapping[TaskName, Estimate], BeforeValidator(_measured)]
"""Accuracy on each task."""
Values = Annotated[Mapping[str, Float], BeforeValidator(_measured)]
"""Numbers by name. What isn't finite is null in the file, and is left out here."""


@dataclass(frozen=True, slots=True, config=CONFIG)
class Interval:
    """A mean with an interval around it."""

    mean: Float
    """Mean of the forecast."""
    low: Float
    """Lower end of the interval."""
    high: Float
    """Upper end of the interval."""


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Checks tables against a class, and makes tables of it. Made once."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump(record: Any) -> dict[str, Any]:
    """The table that the file holds."""
    table: dict[str, Any] = adapter(type(record)).dump_python(record, mode="json")
    return table


def with_seeds(kind: Callable[..., T], whole: Any, seeds: Mapping[int, Any]) -> T:
    """A document of a study: what is pooled, and each seed's own."""
    pooled = {each.name: getattr(whole, each.name) for each in fields(whole)}
    return kind(**pooled, seeds={str(seed): each for seed, each in seeds.items()})
