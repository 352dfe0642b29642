"""Rows of data sets as a task: what every adapter shares, whatever the rows were read from."""

import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

from omni_thinker.errors import UserError, printable
from omni_thinker.plugins import did_you_mean
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.rewards.registry import is_verifiable
from omni_thinker.tasks.distractors import OtherAnswers
from omni_thinker.tasks.formats import PLAIN, Form, recognise
from omni_thinker.tasks.places import Place, decide_base
from omni_thinker.tasks.pool import split_of
from omni_thinker.tasks.reader import FIELDS, SETTINGS, Reader, Row
from omni_thinker.tasks.refused import Refusals
from omni_thinker.types import POOL, SPLITS, Problem, Split, TaskName, content_hash

ROW_OPTIONS = ("answer_index_base", "defaults", "distractors", "drop_overlap", "system")
"""`answer_index_base` (0 or 1): a whole-number answer is the place of a choice, counted from there; without it the rows
decide. `system` ("prepend" or "drop"): a row's system text goes before its prompt, or nowhere. `drop_overlap` (true):
rows of train whose prompt is in validation or test, and rows of validation whose prompt is in test, are left out.
`defaults` ({timeout = 5, packages = ["numpy"]}): settings of the reward for rows that don't have them.
`distractors` ({from = "rows", count = N}): rows without choices get N, drawn from the answers to other rows."""
DEFAULT_MAX_TOKENS = 128
MAX_DISTRACTORS = 25
HEAD = 64
"""Rows by which their form is recognised."""
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?")
_LATEX = re.compile(r"\\[A-Za-z]+|\$.*\$")
_MOSTLY = 0.8
_log = logging.getLogger(__name__)


class RowTask:
    """A task made of rows. `places`: where the row of each problem's id is (`file.jsonl:12`).

    Raises UserError naming file, line and field of the rows that can't be read."""

    def __init__(self, name: TaskName, spec: TaskSpec, rows: Iterable[Row]) -> None:
        self.name = name
        self.max_tokens: int = spec.max_tokens or DEFAULT_MAX_TOKENS
        check_spec(name, spec)
        rows = iter(rows)
        head = list(islice(rows, HEAD))
        self.form: Form = recognise(name, spec, [row.values for row in head if row.fault is None])
        self.base, whole = _base(name, spec, self.form, chain(head, rows))
        groups, self.places, self.refused = _read(name, spec, self.form, whole, self.base)
        if spec.options.get("drop_overlap"):
            _drop_overlap(groups)
        sizes = {"train": spec.train, "validation": spec.validation, "test": spec.test}
        self._pools: dict[Split, tuple[Problem, ...]] = {
            split: tuple(_shuffled(groups[split], spec.seed)[: sizes[split]]) for split in SPLITS
        }
        by_form = RewardSpec(sum={self.form.reward: 1.0}) if self.form.reward else None
        self.reward: RewardSpec = (
            spec.reward or by_form or _default_reward([p for group in groups.values() for p in group])
        )
        self.verifiable: bool = is_verifiable(self.reward)
        if (self.form.guessed or self.form.note) and self.form.format is not PLAIN:
            _log.warning("%s", printable(f"tasks.{name}: {self.words()}"))

    def words(self) -> str:
        """What the rows were read as, in one line."""
        where = ", ".join(f"{field} = {path}" for field, path in self.form.paths.items() if field in FIELDS)
        return f"rows in the form {self.form.format.name} ({where}; reward {' + '.join(self.reward.sum)})" + (
            f"; {self.form.note}" if self.form.note else ""
        )

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split. Raises UserError where it holds none."""
        if not self._pools[split]:
            why = "no row falls into this split; give more rows, or name those of each split (docs/recipe.md)"
            raise UserError(why, key=f"tasks.{self.name}.splits.{split}")
        return self._pools[split]


def check_spec(name: TaskName, spec: TaskSpec) -> None:
    """UserError for keys of `fields`, `splits`, `options` and slots of `template` that nothing reads."""
    for table, known in (("fields", FIELDS), ("splits", SPLITS)):
        for key in getattr(spec, table):
            if key not in known:
                raise UserError(f"unknown key{did_you_mean(key, known)}", key=f"tasks.{name}.{table}.{key}")
    if spec.pools:
        raise UserError(f"applies to generated tasks only; rows use fields.{POOL}", key=f"tasks.{name}.pools")
    if spec.options.get("answer_index_base", 0) not in (0, 1):
        raise UserError("must be 0 or 1", key=f"tasks.{name}.options.answer_index_base")
    if not isinstance(spec.options.get("drop_overlap", False), bool):
        raise UserError("must be true or false", key=f"tasks.{name}.options.drop_overlap")
    defaults = spec.options.get("defaults", {})
    if not isinstance(defaults, dict):
        raise UserError("must be a table of settings", key=f"tasks.{name}.options.defaults")
    for key in defaults:
        if key not in SETTINGS:
            raise UserError(f"unknown key{did_you_mean(key, SETTINGS)}", key=f"tasks.{name}.options.defaults.{key}")
    drawn = spec.options.get("distractors", {"from": "rows", "count": 1})
    sound = isinstance(drawn, dict) and set(drawn) == {"from", "count"} and drawn["from"] == "rows"
    if not sound or type(drawn["count"]) is not int or not 1 <= drawn["count"] <= MAX_DISTRACTORS:
        said = f'takes {{from = "rows", count = N}} with N from 1 to {MAX_DISTRACTORS}'
        raise UserError(said, key=f"tasks.{name}.options.distractors")
    if spec.options.get("system", "drop") not in ("drop", "prepend"):
        raise UserError("must be 'prepend' or 'drop'", key=f"tasks.{name}.options.system")
    if spec.template and "{prompt}" not in spec.template:
        raise UserError("must contain {prompt}", key=f"tasks.{name}.template")
    slots = ("prompt", "options", "context", "first_test")
    for slot in re.findall(r"\{(\w+)\}", spec.template):
        # Other braces (LaTeX, code) stay as they are; only what looks like a slip of the pen is refused.
        if slot not in slots and difflib.get_close_matches(slot, slots, 1, 0.75):
            raise UserError(f"unknown placeholder {{{slot}}}{did_you_mean(slot, slots)}", key=f"tasks.{name}.template")
    owners: dict[str, str] = {}
    for split, values in spec.splits.items():
        for value in values:
            if owners.setdefault(value, split) != split:
                raise UserError(f"{value!r} is named for {owners[value]} too", key=f"tasks.{name}.splits.{split}")


def _read(
    name: TaskName, spec: TaskSpec, form: Form, rows: Iterable[Row], base: int | None
) -> tuple[dict[Split, list[Problem]], dict[str, str], Refusals]:
    """Problems by split, where each id's row is, and the rows that were refused; a split that no row names is carved
    out of train by content hash of the bare prompt."""
    parsed: list[tuple[str | None, str, Problem]] = []
    used_fields: set[str] = set()
    ids: dict[str, str] = {}
    refused = Refusals(f"tasks.{name}")
    others = None
    if "distractors" in spec.options:
        rows = list(rows)
        others = OtherAnswers(_bare_answers(spec, form, rows), spec.seed)
    for row in rows:
        refused.total += 1
        try:
            reader = Reader(row, spec, form, others, base)
            problem, content = reader.problem(name)
            if problem.id in ids:
                raise reader.bad("id", f"id {problem.id!r} is already used by {ids[problem.id]}")
            split = reader.split()
        except UserError as exc:
            refused.add(exc)
            continue
        ids[problem.id] = row.where
        used_fields |= reader.found
        parsed.append((split, content, problem))
    refused.settle(spec.skip_refused)
    if not parsed:
        where = ", ".join(spec.files) or spec.source
        raise UserError(f"no rows in {where:.200}", key=f"tasks.{name}.{'files' if spec.files else 'source'}")
    for field in spec.fields:
        if field not in used_fields:
            raise UserError(f"no row has {spec.fields[field]!r}", key=f"tasks.{name}.fields.{field}")
    return _by_split(name, spec, parsed), ids, refused


def _bare_answers(spec: TaskSpec, form: Form, rows: Iterable[Row]) -> Iterator[str]:
    """The answers of rows without choices. Rows that are refused have none."""
    for row in rows:
        with suppress(UserError):
            reader = Reader(row, spec, form)
            if reader.choices() is None and (answer := reader.text("answer")) is not None:
                yield answer


def _base(name: TaskName, spec: TaskSpec, form: Form, rows: Iterable[Row]) -> tuple[int | None, Iterable[Row]]:
    """Where places of choices are counted from, as the recipe or the rows say, and the rows again."""
    if "answer_index_base" in spec.options:
        return spec.options["answer_index_base"], rows
    rows = iter(rows)
    head = list(islice(rows, HEAD))
    if not any(_places(spec, form, head)):
        return None, chain(head, rows)
    kept = [*head, *rows]
    base, why = decide_base(name, _places(spec, form, kept))
    if base is not None:
        _log.warning("%s", printable(f"tasks.{name}: answers are places counted from {base} ({why})"))
    return base, kept


def _places(spec: TaskSpec, form: Form, rows: Iterable[Row]) -> Iterator[Place]:
    for row in rows:
        with suppress(UserError):
            reader = Reader(row, spec, form)
            if (found := reader.place()) is not None:
                yield Place(*found, row.where)


def _by_split(
    name: TaskName, spec: TaskSpec, parsed: Sequence[tuple[str | None, str, Problem]]
) -> dict[Split, list[Problem]]:
    values = {value for value, _, _ in parsed if value is not None}
    if not spec.splits and values and "train" not in values:
        raise UserError(
            f"no row of split 'train' (the rows have {_some(values)}); map them here", key=f"tasks.{name}.splits"
        )
    values_of_split = spec.splits or {split: (split,) for split in SPLITS if split in values}
    for split, expected in spec.splits.items():
        if absent := set(expected) - values:
            said = f"the rows have {_some(values)}" if values else "the rows name no split"
            raise UserError(f"no row of split {_some(absent)} ({said})", key=f"tasks.{name}.splits.{split}")
    owner: dict[str, Split] = {value: split for split in SPLITS for value in values_of_split.get(split, ())}
    carved: list[Split] = [split for split in SPLITS if split not in values_of_split or split == "train"]
    groups: dict[Split, list[Problem]] = {split: [] for split in SPLITS}
    for value, content, problem in parsed:
        # With splits named but not train, the rows that no split claims are train.
        home = owner.get(value) if value is not None else "train"
        if home is None and "train" not in values_of_split:
            home = "train"
        if home is not None:
            groups[split_of(content, carved) if home == "train" else home].append(problem)
    return groups


def _some(values: Iterable[str]) -> str:
    return ", ".join(repr(value) for value in sorted(values)[:8])


def _shuffled(problems: Iterable[Problem], seed: int) -> list[Problem]:
    return sorted(problems, key=lambda problem: (content_hash(f"{seed} {problem.id}"), problem.id))


def _drop_overlap(groups: dict[Split, list[Problem]]) -> None:
    taken: set[str] = set()
    for split in reversed(SPLITS):  # test keeps all it has
        groups[split] = [problem for problem in groups[split] if content_hash(problem.shown) not in taken]
        taken |= {content_hash(problem.shown) for problem in groups[split]}


def _default_reward(problems: Sequence[Problem]) -> RewardSpec:
    """The verifier that the rows speak for; a recipe's `reward` overrules it."""
    answers = [problem.answer for problem in problems]
    if any("tests" in problem.data or {"inputs", "outputs"} <= problem.data.keys() for problem in problems):
        verifier = "unit_tests"
    elif any("choices" in problem.data for problem in problems):
        verifier = "short_answer"
    elif all(answer is not None and NUMBER.fullmatch(answer) for answer in answers):
        verifier = "math"
    elif any("reference" in problem.data for problem in problems) or None in answers:
        verifier = "preference"
    else:
        verifier = "math" if _in_latex([answer for answer in answers if answer is not None]) else "short_answer"
    return RewardSpec(gate=("finished",), sum={verifier: 1.0})


def _in_latex(answers: Sequence[str]) -> bool:
    """Whether answers are numbers and formulas, some of them in LaTeX."""
    latex = sum(_LATEX.search(answer) is not None for answer in answers)
    numbers = sum(NUMBER.fullmatch(answer) is not None for answer in answers)
    return latex > 0 and latex + numbers >= _MOSTLY * len(answers)
