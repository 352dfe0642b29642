"""`source = "reasoning_gym:NAME"`: a generator of the package reasoning-gym, scored by the package itself.

Both run inside the sandbox: one set makes its problems with programs that a model wrote, and several scorers read
answers as code. There hash seed and random generators are fixed, so a seed means the same in every process."""

import json
import logging
import random
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.rewards.gym import EVALUATES, GYM, gym_set
from omni_thinker.tasks.gym.cache import cached, keep
from omni_thinker.tasks.gym.draws import DrawFailed, Draws, commonest
from omni_thinker.tasks.pool import Item, PooledTask
from omni_thinker.types import SPLITS, Split, TaskName, content_hash

MAX_DRAWS = 1_000_000
"""Size that a generator is asked for; it makes its items one by one, when they are read."""
_INSPECT_DEADLINE_S = 60.0
_AHEAD = 64
_UNUSABLE = 48
"""After so many problems in a row that can't be used, none is looked for any more."""
_log = logging.getLogger(__name__)


class GymTask(PooledTask):
    """`options` are the generator's configuration (not `seed` and `size`); `difficulty` and `pools` are levels of its
    curriculum, whole numbers from 0.

    data: `gym` (its name), `entry` (question, answer, metadata, as JSON), `gym_config`, `gym_level` and `gym_index`,
    from which the exact entry can be made again, and `evaluates` where the recipe allows its scorer to run answers as
    code. Problems whose own scorer gives the gold less than 1, or a wrong answer 1, are left out. Disjoint across
    splits: the question's text."""

    kind = "reasoning_gym"
    summary = "a generator of reasoning-gym"
    default_reward = RewardSpec(gate=("finished",), sum={"reasoning_gym": 1.0})
    default_max_tokens: ClassVar[int] = 64
    patience: ClassVar[int] = 400  # some generators take long over an item
    own_streams: ClassVar[bool] = False

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Raises UserError where the sandbox, the package, the generator, a level or an option can't be had, and
        where its scorer runs answers as code and the recipe doesn't allow that."""
        if reserved := {"seed", "size"} & set(spec.options):
            key = f"tasks.{name}.options.{min(reserved)}"
            raise UserError("is set by the task's keys seed, train, validation and test", key=key)
        super().__init__(name, spec.model_copy(update={"options": {}}))
        if find_spec("reasoning_gym") is None:
            why = "source reasoning_gym: needs the package; run: pip install reasoning-gym"
            raise UserError(why, key=f"tasks.{name}.source")
        self.gym = spec.source.partition(":")[2]
        self.config: Mapping[str, Any] = {**spec.options, "seed": spec.seed, "size": MAX_DRAWS}
        self.allowed = spec.allow_evaluating_scorers
        self._leveled = bool(spec.pools) or spec.difficulty is not None
        self._sizes, self._draws = dict[int | None, int](), dict[int | None, Draws]()
        for difficulty in self.pools or (self.difficulty,):
            level = self._level(difficulty)
            chosen = gym_set(self.gym, self.config, level)
            self._sizes[level] = _inspect(self, chosen)
            self._draws[level] = Draws(chosen, f"tasks.{name}: reasoning_gym:{self.gym}", evaluates=self.allowed)
        self._tables: dict[str, dict[str, Any]] = {}
        self._faults: dict[int, str] = {}
        self._longest: int | None = None

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens: what the recipe says, or enough for every gold answer."""
        if self._max_tokens:
            return self._max_tokens
        if self._longest is None:
            golds = [problem.answer or "" for split in SPLITS for problem in self.problems(split)]
            # A token is at least one byte. One more ends the answer, and another begins it with some tokenizers.
            self._longest = max(len(gold.encode("utf-8", "replace")) for gold in golds) + 2
        return max(self.default_max_tokens, self._longest)

    @property
    def draw_seconds(self) -> float:
        """Processor time of drawing so far; what comes out of the cache takes none."""
        return sum(draws.seconds for draws in self._draws.values())

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        level = self._level(difficulty)
        draws, size = self._draws[level], self._sizes[level]
        faults: list[str] = []
        while len(faults) < _UNUSABLE:
            ahead = random.Random()
            ahead.setstate(rng.getstate())
            index = rng.randrange(size)
            try:
                row = draws.row(index, [ahead.randrange(size) for _ in range(_AHEAD)])
            except DrawFailed as exc:
                raise UserError(f"reasoning-gym can't make problems of {self.gym!r}: {exc}", key=self._key) from None
            if "fault" not in row:
                return self._item(row, index, level)
            faults.append(row["fault"])
            self._faults[index] = row["fault"]
        why = f"{self.gym!r} can't be used: of {len(faults)} problems in a row none is sound: {commonest(faults)}"
        raise UserError(why, key=self._key)

    def keep(self, folder: Path) -> None:
        """Write what was drawn so far into a run's folder, from where a resumed run takes it."""
        for name, table in self._tables.items():
            keep(name, table, folder)

    @property
    def _key(self) -> str:
        return f"tasks.{self.name}.source"

    def _level(self, difficulty: float) -> int | None:
        if not self._leveled:
            return None
        if difficulty != int(difficulty):
            why = f"levels of reasoning-gym are whole numbers, got {difficulty:g}"
            raise UserError(why, key=f"tasks.{self.name}.{'pools' if self.pools else 'difficulty'}")
        return int(difficulty)

    def _item(self, row: Mapping[str, Any], index: int, level: int | None) -> Item:
        question = str(row["entry"]["question"])
        data = {"gym": self.gym, "entry": row["entry"], "gym_config": dict(self.config), "gym_index": index}
        if level is not None:
            data["gym_level"] = level
        if self.allowed:
            data[EVALUATES] = True
        return Item(content_hash(question), question, row["gold"], data)

    def _items(self, split: Split) -> list[tuple[Item, float]]:
        def make() -> dict[str, Any]:
            self._faults.clear()
            items = super(GymTask, self)._items(split)
            rows = [[item.key, item.prompt, item.answer, dict(item.data), difficulty] for item, difficulty in items]
            return {"problems": rows, "faults": list(self._faults.values())}

        table = make() if (what := self._what(split)) is None else self._cached(what, make)
        _say_missing(self, split, len(table["problems"]), table["faults"])
        if len(self._pools) == len(SPLITS) - 1:  # this is the last
            for draws in self._draws.values():
                draws.forget()
        return [(Item(*fields), difficulty) for *fields, difficulty in table["problems"]]

    def _nothing(self, split: Split, difficulty: float) -> UserError:
        if self._leveled:
            return super()._nothing(split, difficulty)
        return UserError(
            f"no problem falls into the {split} split; change the options", key=f"tasks.{self.name}.options"
        )

    def _cached(self, what: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        name, table = cached(what, make)
        self._tables[name] = table
        return table

    def _what(self, split: Split) -> dict[str, Any] | None:
        """All that the problems of a split depend on, None where the package's version is unknown."""
        try:
            package = version("reasoning-gym")
        except PackageNotFoundError:
            return None
        levels = [None] if not self._leveled else [*(self.pools or (self.difficulty,))]
        size, evaluates = self.sizes[split], self.allowed
        table = {"package": package, "gym": self.gym, "config": dict(self.config), "levels": levels}
        return {**table, "split": split, "size": size, "evaluates": evaluates}


def _say_missing(task: GymTask, split: Split, count: int, faults: list[str]) -> None:
    """One line where a split is smaller than asked for, or problems were left out."""
    words = []
    if count < task.sizes[split]:
        words.append(f"{count} of {task.sizes[split]} problems, no more turned up that differ")
    if faults:
        words.append(f"{len(faults)} drawn problems left out, such as: {commonest(faults)}")
    if words:
        _log.warning("tasks.%s: reasoning_gym:%s, %s: %s", task.name, task.gym, split, "; ".join(words))


def _inspect(task: GymTask, chosen: Mapping[str, Any]) -> int:
    """How many problems a set has. Raises UserError where it can't be had or used."""
    try:
        json.dumps(chosen, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UserError(f"must be text, numbers, lists and tables: {exc}", key=f"tasks.{task.name}.options") from None
    try:
        reply = GYM.call_sync({"set": chosen}, _INSPECT_DEADLINE_S, settings=chosen, evaluates=True)
    except IsolationError as exc:  # no sandbox, an unknown name, an unknown option or a value its own checks refuse
        why = str(exc).removeprefix("ValueError: ")
        raise UserError(f"reasoning-gym refuses {task.gym!r}: {why}", key=f"tasks.{task.name}.source") from None
    if (where := reply.get("evaluates")) and not task.allowed:
        raise UserError(
            f"the scorer of {task.gym!r} runs answers as code beside the expected answer ({where}), so an answer could "
            "award itself a score; true accepts that (it stays inside the sandbox)",
            key=f"tasks.{task.name}.allow_evaluating_scorers",
        )
    return int(reply["size"])
