"""`source = "reasoning_gym:NAME"`: a generator of the package reasoning-gym, scored by the package itself.

Both run inside the sandbox: one set makes its problems with programs that a model wrote, and several scorers read
answers as code."""

import json
import random
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.rewards.gym import EVALUATES, GYM, gym_set
from omni_thinker.tasks.pool import Item, PooledTask
from omni_thinker.types import TaskName, content_hash

MAX_DRAWS = 1_000_000
"""Size that a generator is asked for; it makes its items one by one, when they are read."""
_ENTRIES_AT_ONCE = 16
_DRAW_DEADLINE_S = 600.0
_INSPECT_DEADLINE_S = 60.0


class GymTask(PooledTask):
    """`options` are the generator's configuration (not `seed` and `size`).

    data: `gym` (its name), `entry` (question, answer, metadata, as JSON), `gym_config` and `gym_index`, from which
    the exact entry can be made again, and `evaluates` where the recipe allows its scorer to run answers as code.
    Disjoint across splits: the question's text."""

    kind = "reasoning_gym"
    summary = "a generator of reasoning-gym"
    default_reward = RewardSpec(gate=("finished",), sum={"reasoning_gym": 1.0})
    default_max_tokens: ClassVar[int] = 64
    patience: ClassVar[int] = 400  # some generators take long over an item

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Raises UserError where the sandbox, the package, the generator or one of its options can't be had, and
        where its scorer runs answers as code and the recipe doesn't allow that."""
        for key in ("difficulty", "pools"):
            if getattr(spec, key) not in (None, ()):
                raise UserError("reasoning-gym has no dial; set its options instead", key=f"tasks.{name}.{key}")
        if reserved := {"seed", "size"} & set(spec.options):
            key = f"tasks.{name}.options.{min(reserved)}"
            raise UserError("is set by the task's keys seed, train, validation and test", key=key)
        super().__init__(name, spec.model_copy(update={"options": {}}))
        self.gym = spec.source.partition(":")[2]
        self.config: Mapping[str, Any] = {**spec.options, "seed": spec.seed, "size": MAX_DRAWS}
        self._evaluates = _check_scorer(name, self.gym, self.config, spec.allow_evaluating_scorers)
        self._drawn: dict[int, dict[str, Any]] = {}

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        ahead = random.Random()
        ahead.setstate(rng.getstate())
        index = rng.randrange(MAX_DRAWS)
        if index not in self._drawn:
            self._draw_entries([ahead.randrange(MAX_DRAWS) for _ in range(_ENTRIES_AT_ONCE)])
        entry = self._drawn[index]
        question, answer = str(entry["question"]), entry.get("answer")
        data = {"gym": self.gym, "entry": entry, "gym_config": dict(self.config), "gym_index": index}
        if self._evaluates:
            data[EVALUATES] = True
        return Item(content_hash(question), question, None if answer is None else str(answer), data)

    def _draw_entries(self, indices: list[int]) -> None:
        """Ask for the entries that will be wanted next together: a process each would take longer."""
        chosen = gym_set(self.gym, self.config)
        request = {"set": chosen, "indices": indices}
        try:
            reply = GYM.call_sync(request, _DRAW_DEADLINE_S, settings=chosen, evaluates=True)
        except IsolationError as exc:
            why = f"reasoning-gym can't make problems of {self.gym!r}: {exc}"
            raise UserError(why, key=f"tasks.{self.name}.source") from None
        entries = reply.get("entries")
        if not isinstance(entries, list) or len(entries) != len(indices) or not all(map(_is_entry, entries)):
            why = f"reasoning-gym's problems of {self.gym!r} have an unknown form"
            raise UserError(why, key=f"tasks.{self.name}.source")
        self._drawn = dict(zip(indices, entries, strict=True))


def _is_entry(entry: object) -> bool:
    """Whether what a set made is a problem; programs that a model wrote may have had a hand in it."""
    question = entry.get("question") if isinstance(entry, dict) else None
    return isinstance(question, str) and not any("\ud800" <= char <= "\udfff" for char in question)


def _check_scorer(name: TaskName, gym: str, config: Mapping[str, Any], allowed: bool) -> bool:
    """Whether the scorer of a set may run answers as code. Raises UserError where it does and that isn't allowed."""
    if find_spec("reasoning_gym") is None:
        raise UserError(
            "source reasoning_gym: needs the package; run: pip install reasoning-gym", key=f"tasks.{name}.source"
        )
    chosen = gym_set(gym, config)
    try:
        json.dumps(chosen, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UserError(f"must be text, numbers, lists and tables: {exc}", key=f"tasks.{name}.options") from None
    try:
        where = GYM.call_sync({"set": chosen}, _INSPECT_DEADLINE_S, settings=chosen, evaluates=True).get("evaluates")
    except IsolationError as exc:  # no sandbox, an unknown name, an unknown option or a value its own checks refuse
        raise UserError(f"reasoning-gym can't make {gym!r}: {exc}", key=f"tasks.{name}.source") from None
    if where and not allowed:
        raise UserError(
            f"the scorer of {gym!r} runs answers as code beside the expected answer ({where}), so an answer could "
            "award itself a score; true accepts that (it stays inside the sandbox)",
            key=f"tasks.{name}.allow_evaluating_scorers",
        )
    return allowed
