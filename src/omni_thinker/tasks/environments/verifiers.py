"""`source = "verifiers:NAME"`: an environment of the package verifiers, with its data set, its turns and its rubric."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.rewards.verifiers import ROLLOUT, data_of, hosted_in, load
from omni_thinker.tasks.pool import refuse_keys, split_of
from omni_thinker.tasks.turns import read_turns
from omni_thinker.types import SPLITS, Problem, Split, TaskName, content_hash

MOST_TURNS = 10
"""Where neither recipe nor environment sets a bound."""
_LIMITS: Mapping[Split, int] = {"train": 100_000, "validation": 64, "test": 128}


class VerifiersTask:
    """`options` go to the environment's `load_environment`.

    Rows of its evaluation set are validation and test, rows of its training set train; where it has one set alone, all
    three are carved out of it by the content of the prompt. Rows come in an order by content hash and `seed`. Prompts
    that come twice count once. There are no gold answers: what a row holds as its answer need not be one as the model
    should write it."""

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Raises UserError where package or environment can't be had, and for keys that have no use here."""
        keys = ("files", "format", "fields", "splits", "template", "difficulty", "pools", "environment")
        refuse_keys(name, spec, keys)
        self.name, self._spec = name, spec
        self._environment = spec.source.partition(":")[2]
        try:
            options = json.dumps(spec.options, sort_keys=True)
            self._hosted = load(self._environment, options)
        except TypeError as exc:
            raise UserError(f"must be text, numbers, lists and tables: {exc}", key=f"tasks.{name}.options") from None
        except UserError as exc:
            raise UserError(f"{spec.source}: {exc.message}", key=f"tasks.{name}.source") from None
        self.reward = spec.reward or RewardSpec(gate=("finished",), sum={"verifiers": 1.0})
        self.verifiable = True
        self.turns = self._hosted.turns or MOST_TURNS
        self._splits: dict[Split, list[Problem]] | None = None

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens of the policy."""
        return self._spec.max_tokens or 256

    @property
    def environment(self) -> "VerifiersTask":
        """The task speaks for itself."""
        return self

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        """What the environment says in its rollout. Raises what it raises."""
        if ROLLOUT not in memory:
            memory[ROLLOUT] = hosted_in(problem).begin(problem)
        said: str | None = await memory[ROLLOUT].answer(answers[-1])
        return said

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split. Raises UserError where there is none."""
        if self._splits is None:
            self._splits = self._all()
        if not self._splits[split]:
            raise UserError(f"{self._spec.source} has no row for the {split} split", key=f"tasks.{self.name}.source")
        limit = {"train": self._spec.train, "validation": self._spec.validation, "test": self._spec.test}[split]
        return self._splits[split][: limit or _LIMITS[split]]

    def _all(self) -> dict[Split, list[Problem]]:
        environment = self._hosted.environment
        train, held_out = environment.build_dataset(), environment.build_eval_dataset()
        splits: dict[Split, list[Problem]] = {split: [] for split in SPLITS}
        seen = set[str]()
        for rows, name in ((held_out, "evaluation"), (train, "training")):
            for problem in self._read(rows or (), name):
                mark = content_hash(problem.shown)
                if mark not in seen:
                    seen.add(mark)
                    splits[_split(mark, name, both=bool(train) and bool(held_out))].append(problem)
        for problems in splits.values():
            problems.sort(key=lambda problem: content_hash(f"{self._spec.seed} {problem.shown}"))
        return splits

    def _read(self, rows: Any, name: str) -> Iterator[Problem]:
        for number, row in enumerate(rows):
            where = f"{self._spec.source}, row {number} of its {name} set"
            try:
                turns = read_turns(row["prompt"])
                if turns.user is None or turns.reply is not None:
                    raise ValueError("its prompt doesn't end with what the user says")
                json.dumps(row)
            except (ValueError, TypeError) as exc:
                raise UserError(f"{where}: {exc}", key=f"tasks.{self.name}.source") from None
            data = data_of(self._environment, self._spec.options, row)
            ident = f"{self.name}-{name}-{number}"
            yield Problem(ident, self.name, turns.user, None, data, turns.system, turns.earlier)


def _split(mark: str, name: str, *, both: bool) -> Split:
    if not both:
        return split_of(mark)
    if name == "training":
        return "train"
    return "validation" if int(mark, 16) % 2 else "test"
