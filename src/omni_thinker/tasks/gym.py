"""`source = "reasoning_gym:NAME"`: a generator of the package reasoning-gym, scored by the package itself."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from omni_thinker.errors import UserError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.tasks.pool import Item, PooledTask
from omni_thinker.types import TaskName, content_hash

MAX_DRAWS = 1_000_000
"""Size that a generator is asked for; it makes its items one by one, when they are read."""


class GymTask(PooledTask):
    """`options` are the generator's configuration (not `seed` and `size`).

    data: `gym` (its name), `entry` (question, answer, metadata, as JSON), `gym_config` and `gym_index`, from which
    the exact entry can be made again. Disjoint across splits: the question's text.
    """

    kind = "reasoning_gym"
    summary = "a generator of reasoning-gym"
    default_reward = RewardSpec(gate=("finished",), sum={"reasoning_gym": 1.0})
    default_max_tokens: ClassVar[int] = 64
    patience: ClassVar[int] = 400  # some generators take long over an item

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Raises UserError where the package, the generator or one of its options is unknown."""
        for key in ("difficulty", "pools"):
            if getattr(spec, key) not in (None, ()):
                raise UserError("reasoning-gym has no dial; set its options instead", key=f"tasks.{name}.{key}")
        if reserved := {"seed", "size"} & set(spec.options):
            key = f"tasks.{name}.options.{min(reserved)}"
            raise UserError("is set by the task's own seed and train, validation and test", key=key)
        super().__init__(name, spec.model_copy(update={"options": {}}))
        self.gym = spec.source.partition(":")[2]
        self.config: Mapping[str, Any] = {**spec.options, "seed": spec.seed, "size": MAX_DRAWS}
        self._dataset = _create(name, self.gym, self.config)

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        index = rng.randrange(MAX_DRAWS)
        entry = self._dataset[index]
        question, answer = str(entry["question"]), entry.get("answer")
        plain = json.loads(json.dumps(dict(entry), default=str))
        data = {"gym": self.gym, "entry": plain, "gym_config": dict(self.config), "gym_index": index}
        return Item(content_hash(question), question, None if answer is None else str(answer), data)


def _create(name: TaskName, gym: str, config: Mapping[str, Any]) -> Any:
    try:
        package = importlib.import_module("reasoning_gym")
    except ImportError:
        raise UserError(
            "source reasoning_gym: needs the package; run: pip install reasoning-gym", key=f"tasks.{name}.source"
        ) from None
    try:
        return package.create_dataset(gym, **config)
    except Exception as exc:  # an unknown name, an unknown option or a value its own checks refuse
        raise UserError(f"reasoning-gym can't make {gym!r}: {exc}", key=f"tasks.{name}.source") from None
