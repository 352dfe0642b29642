"""Sets of reasoning_gym as recipes ask for them: options, levels, sizes, golds. Loaded by gym_handler.py alone."""

import dataclasses
import datetime
import enum
import json
import random
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import reasoning_gym  # noqa: TID253  (this script runs in a process of its own, and only where it is wanted)
from reasoning_gym import factory  # noqa: TID253

COMPOSITE = "composite"
_SIZE = 500
"""Problems of a set that is only asked to score."""
_LARGEST = {"acre": 2_000, "word_ladder": 20_000}
"""Most problems of a set that makes all of them at once, or that has a bound of its own."""
_MOVE = "Agent[{}]"


def _boxnet_gold(metadata: Mapping[str, Any]) -> str:
    """One box after the other, one square at a time, first along the rows."""
    state: Mapping[str, Sequence[str]] = metadata["initial_state"]
    targets: dict[str, list[str]] = {}
    for place, items in state.items():
        for target in (item for item in items if item.startswith("target_")):
            targets.setdefault(target.removeprefix("target_"), []).append(place)
    taken: list[dict[str, str]] = []
    for place, items in state.items():
        for box in (item for item in items if item.startswith("box_")):
            at = [float(part) for part in place.split("_")]
            colour = box.removeprefix("box_")
            for axis, goal in enumerate(map(float, targets[colour].pop().split("_"))):
                while at[axis] != goal:
                    agent = _MOVE.format(f"{at[0]}, {at[1]}")
                    at[axis] += 1.0 if goal > at[axis] else -1.0
                    taken.append({agent: f"move({box}, square[{at[0]}, {at[1]}])"})
            taken.append({_MOVE.format(f"{at[0]}, {at[1]}"): f"move({box}, target_{colour})"})
    return json.dumps(taken)


_GOLDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "boxnet": _boxnet_gold,
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "propositional_logic": lambda metadata: str(metadata["example_answer"]),
    "rubiks_cube": lambda metadata: str(metadata["example_correct_answer"]),
}
"""Right answers for sets that have none of their own."""


class MadeSet:
    """A set, with what it left in its class: several sets of one class would share that."""

    def __init__(self, name: str, config: Mapping[str, Any], level: int | None) -> None:
        """config: options, `seed` and `size` among them; the size is lowered to what the set can make.

        Raises ValueError for a level that the set doesn't have, and whatever the package raises."""
        fix_chance(0)
        self.name, self.levels = name, levels_of(name)
        options, self.size = _sized(name, config)
        self.dataset = _make(name, options, level)
        self._left = {key: value for key, value in vars(type(self.dataset)).items() if _is_state(key, value)}

    def restore(self) -> None:
        """Put back what the class held when this set was made."""
        for key, value in self._left.items():
            setattr(type(self.dataset), key, value)

    def part(self, entry: Mapping[str, Any]) -> tuple[str, Any]:
        """Name and set that scores `entry`: of the composite set, one of its parts."""
        if self.name != COMPOSITE:
            return self.name, self.dataset
        name = entry["metadata"]["source_dataset"]
        return name, self.dataset.datasets[name]

    def parts(self) -> list[Any]:
        """All sets that may score an entry."""
        return list(self.dataset.datasets.values()) if self.name == COMPOSITE else [self.dataset]

    def draw(self, index: int) -> tuple[dict[str, Any], str | None]:
        """Problem `index` and its gold answer, the same in every process."""
        fix_chance(index)
        entry = dict(self.dataset[index])
        answer = entry.get("answer")
        if answer is None and (known := _GOLDS.get(self.part(entry)[0])):
            answer = known(entry["metadata"])
        return entry, None if answer is None else str(answer)


def fix_chance(number: int) -> None:
    """Some sets draw from generators that the whole process shares."""
    random.seed(number)
    np.random.seed(number % 2**32)


def levels_of(name: str) -> int:
    """Difficulties that a set's curriculum has; 0 where it has none."""
    if name not in factory.CURRICULA:
        return 0
    return max((len(each.levels) for each in factory.create_curriculum(name).attributes.values()), default=0)


def _is_state(key: str, value: object) -> bool:
    return not key.startswith("__") and key != "_abc_impl" and isinstance(value, list | dict | set | None)


def _sized(name: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The options, with sizes that the set and its parts can have, and the set's size."""
    asked = int(config.get("size", _SIZE))
    size = min(asked, _LARGEST.get(name, asked))
    options = dict(config)
    if name == COMPOSITE and isinstance(options.get("datasets"), list):
        parts = [dict(part) for part in options["datasets"]]
        for part in parts:
            own = dict(part.get("config") or {})
            own["size"] = min(size, _LARGEST.get(str(part.get("name")), size))
            part |= {"config": own, "weight": part.get("weight", 1.0)}
        size = min([size, *(part["config"]["size"] for part in parts)])
        for part in parts:
            hints = _hints(str(part.get("name")))
            part["config"] = {key: _typed(hints.get(key), value) for key, value in part["config"].items()}
        options["datasets"] = parts
    return {**options, "size": size}, size


def _make(name: str, options: Mapping[str, Any], level: int | None) -> Any:
    hints = _hints(name)
    typed = {key: _typed(hints.get(key), value) for key, value in options.items()}
    if level is None:
        return reasoning_gym.create_dataset(name, **typed)
    if not (count := levels_of(name)):
        raise ValueError("it has no difficulties")
    if level >= count:
        raise ValueError(f"its difficulties are 0 to {count - 1}, got {level}")
    curriculum = factory.create_curriculum(name)
    if twice := sorted(_fields(curriculum) & set(options)):
        raise ValueError(f"its difficulty sets {twice[0]!r} too; leave out one of them")
    curriculum.set_global_level(level)
    dataset_class, _ = factory.DATASETS[name]
    return dataset_class(curriculum.generate_configuration(typed))


def _fields(curriculum: Any) -> set[str]:
    """Options that a curriculum sets."""
    names = ("field_name", "lower_field_name", "upper_field_name")
    return {getattr(each, name) for each in curriculum.attributes.values() for name in names if hasattr(each, name)}


def _hints(name: str) -> dict[str, Any]:
    if name not in factory.DATASETS:
        return {}
    try:
        return typing.get_type_hints(factory.DATASETS[name][1])
    except (NameError, TypeError):
        return {}


def _typed(hint: Any, value: Any) -> Any:
    """An option, which came as JSON, as the set's configuration has it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next((each for each in inner if each is not type(None)), None)
        return None if value is None else _typed(hint, value)
    if isinstance(value, list):
        items = [_typed(inner[0] if inner else None, item) for item in value]
        return tuple(items) if (origin or hint) is tuple else items
    if not isinstance(hint, type):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return hint(**value)
    if issubclass(hint, enum.Enum):
        return hint(value)
    if issubclass(hint, datetime.date | datetime.time) and isinstance(value, str):
        return hint.fromisoformat(value)
    return value
