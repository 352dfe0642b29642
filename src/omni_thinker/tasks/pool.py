"""Tasks whose problems our own code makes: three disjoint pools by content hash."""

import functools
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omni_thinker.errors import UserError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.rewards.registry import is_verifiable
from omni_thinker.types import POOL, SPLITS, Problem, Split, TaskName, content_hash

MAX_LEVEL = 10


@dataclass(frozen=True, slots=True)
class Item:
    """A generated problem. `key` names its content: items of one key never lie in two splits."""

    key: str
    prompt: str
    answer: str | None
    data: Mapping[str, Any] = field(default_factory=dict)


def split_of(key: str, splits: Sequence[Split] = SPLITS) -> Split:
    """The split that content belongs to: test 15 %, validation 15 %, train the rest.

    A split that is not in `splits` falls to train. The seed has no say, so no seed trains on another's test."""
    bucket = int(content_hash(key), 16) % 100
    split: Split = "train" if bucket < 70 else "validation" if bucket < 85 else "test"
    return split if split in splits else "train"


def level(rng: random.Random, difficulty: float) -> int:
    """A whole level in 0..10 near `difficulty`: neighbours are mixed so that the dial moves smoothly."""
    return min(MAX_LEVEL, max(0, math.floor(rng.uniform(difficulty - 1, difficulty + 1))))


def refuse_keys(name: TaskName, spec: TaskSpec, keys: Iterable[str]) -> None:
    """UserError where a key is set that this source would silently ignore."""
    for key in keys:
        if key == "template" and spec.template == "{prompt}":  # changes nothing; earlier runs wrote it down
            continue
        if getattr(spec, key) != TaskSpec.model_fields[key].get_default(call_default_factory=True):
            raise UserError(f"source {spec.source!r} doesn't use this key; remove it", key=f"tasks.{name}.{key}")


def sample_pool(
    make: Callable[[random.Random], Item],
    rng: random.Random,
    split: Split,
    size: int,
    per_key: int,
    patience: int,
    prompts: set[str] | None = None,
) -> list[Item]:
    """Up to `size` items of `split` with distinct prompts; fewer where no more exist.

    A key comes again, `per_key` times at most, only once no new keys turn up. `prompts`: hashes of those that are taken
    already, to which its own are added."""
    items: list[Item] = []
    prompts = set() if prompts is None else prompts
    keys: Counter[str] = Counter()
    misses, allowed = 0, 1
    while len(items) < size:
        if misses == patience:
            if allowed == per_key:
                break
            misses, allowed = 0, allowed + 1
        item = make(rng)
        mark = content_hash(item.prompt)
        if split_of(item.key) != split or mark in prompts or keys[item.key] >= allowed:
            misses += 1
            continue
        misses = 0
        prompts.add(mark)
        keys[item.key] += 1
        items.append(item)
    return items


class PooledTask(ABC):
    """Base of the built-in tasks: a subclass sets the class variables and writes `generate`.

    The pools depend on the task's seed, difficulty and sizes alone, and each split is drawn from a stream of
    its own, so that a larger train pool leaves the test pool as it was."""

    kind: ClassVar[str]
    summary: ClassVar[str]
    """One line for listings."""
    default_reward: ClassVar[RewardSpec]
    default_difficulty: ClassVar[float] = 1.0
    default_max_tokens: ClassVar[int] = 32
    default_sizes: ClassVar[Mapping[Split, int]] = {"train": 512, "validation": 64, "test": 128}
    per_key: ClassVar[int] = 1
    """Most items of one content key in a pool."""
    own_streams: ClassVar[bool] = True
    """Whether each split draws for itself. Where drawing is dear, all walk along one stream and take what is theirs."""
    patience: ClassVar[int] = 1500
    """Draws in a row that bring nothing new before the keys, and then the pool, count as exhausted."""

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Raises UserError for keys that generated tasks don't use."""
        refuse_keys(name, spec, ("files", "fields", "splits", "template", "options"))
        self.name, self.spec = name, spec
        self.seed = spec.seed
        self._max_tokens = spec.max_tokens
        self.reward: RewardSpec = spec.reward or self.default_reward
        self.verifiable: bool = is_verifiable(self.reward)
        if spec.pools and spec.difficulty is not None:
            raise UserError("already sets the difficulty; remove the key difficulty", key=f"tasks.{name}.pools")
        self.difficulty: float = self.default_difficulty if spec.difficulty is None else spec.difficulty
        self.pools: tuple[float, ...] = spec.pools
        sizes = {"train": spec.train, "validation": spec.validation, "test": spec.test}
        self.sizes: dict[Split, int] = {split: sizes[split] or self.default_sizes[split] for split in SPLITS}
        self._pools: dict[Split, tuple[Problem, ...]] = {}

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens of the policy."""
        return self._max_tokens or self.default_max_tokens

    @abstractmethod
    def generate(self, rng: random.Random, difficulty: float) -> Item:
        """One item, drawn with `rng` only. Equal content must give equal keys."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split: the number asked for, or all there are. Raises UserError where there is none."""
        if split not in self._pools:
            self._pools[split] = self._draw(split)
        return self._pools[split]

    def _items(self, split: Split) -> list[tuple[Item, float]]:
        """What a split holds, each with its difficulty. Raises UserError for a pool without any."""
        pools, prompts = self.pools or (self.difficulty,), set[str]()
        drawn: list[tuple[Item, float]] = []
        for place, difficulty in enumerate(pools):
            # A string seed is hashed with SHA-512, so it's the same in every process.
            rng = random.Random(f"{self.kind}/{self.seed}/{difficulty:g}" + f"/{split}" * self.own_streams)
            size = self.sizes[split] * (place + 1) // len(pools) - self.sizes[split] * place // len(pools)
            make = functools.partial(self.generate, difficulty=difficulty)
            items = sample_pool(make, rng, split, size, self.per_key, self.patience, prompts)
            if size and not items:
                raise self._nothing(split, difficulty)
            drawn += [(item, difficulty) for item in items]
        return drawn

    def _nothing(self, split: Split, difficulty: float) -> UserError:
        return UserError(
            f"no problem of difficulty {difficulty:g} falls into the {split} split; change difficulty",
            key=f"tasks.{self.name}.{'pools' if self.pools else 'difficulty'}",
        )

    def _draw(self, split: Split) -> tuple[Problem, ...]:
        drawn = self._items(split)
        if self.pools:  # evaluations take the first so many, which must hold every pool
            drawn.sort(key=lambda pair: content_hash(f"{self.seed} {pair[0].prompt}"))
        return tuple(
            Problem(
                f"{self.name}-{split}-{i}",
                self.name,
                item.prompt,
                item.answer,
                {**item.data, POOL: f"{difficulty:g}"} if self.pools else item.data,
            )
            for i, (item, difficulty) in enumerate(drawn)
        )
