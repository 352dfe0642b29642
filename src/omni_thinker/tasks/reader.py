"""One row of a data set as a problem; every complaint names the place and the field."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.distractors import OtherAnswers
from omni_thinker.tasks.formats import PLAIN, Form, Unusable
from omni_thinker.tasks.paths import MISSING, lookup, opened
from omni_thinker.tasks.places import place_of
from omni_thinker.tasks.turns import Turns, is_turns, read_turns
from omni_thinker.types import POOL, Problem, TaskName, content_hash

SETTINGS = (
    "entry_point", "timeout", "inputs", "outputs", "float_tolerance", "usual_imports", "packages", "format", "aliases",
    "letters_ok", "length_limit", "length_buffer"
)  # fmt: skip
"""Handed to the row's reward as they are; it checks them. `options.defaults` has those of rows that lack them."""
FIELDS = (
    "prompt", "system", "answer", "choices", "tests", "setup", "reference", "context", "constraints", "id", "split",
    POOL, *SETTINGS
)  # fmt: skip
"""What a row can carry; `TaskSpec.fields` says under which name, by default its own."""
PLACEHOLDER = re.compile(r"\{(prompt|options|context|first_test)\}")
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and where it comes from (`file.jsonl:12`). `split` is the source's own, None where it has none.
    `fault`: why it can't be read, None where it can."""

    where: str
    values: Mapping[str, Any]
    split: str | None = None
    fault: str | None = None


def options_line(choices: Sequence[str]) -> str:
    """The choices as text on one line."""
    return "Options: " + (" | " if any("," in choice for choice in choices) else ", ").join(choices)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """The template filled in one pass, so that braces in a row are text. Lines whose slots are all empty go."""
    lines = []
    for line in template.split("\n"):
        names = PLACEHOLDER.findall(line)
        if not names or any(slots[name] for name in names):
            lines.append(PLACEHOLDER.sub(lambda match: slots[match[1]], line))
    return "\n".join(lines)


class Reader:
    """Typed access to one row; every complaint names the place and the field."""

    def __init__(
        self, row: Row, spec: TaskSpec, form: Form, others: OtherAnswers | None = None, base: int | None = None
    ) -> None:
        """`others`: what options are drawn from where the row has none. `base`: where places of choices are counted
        from. Raises UserError for a row that isn't one of its form."""
        self.row, self.spec, self.form, self.others, self.base = row, spec, form, others, base
        self.found: set[str] = set()
        self.taken: Mapping[str, Any] = {}
        if row.fault is not None:
            raise UserError(row.fault, file=row.where)
        if form.format is PLAIN:
            return
        values = form.values(row.values)
        for field in form.format.required:
            if field not in values:
                raise self.bad(field, "is missing")
        try:
            self.taken = form.format.take(values)
        except Unusable as exc:
            raise self.bad(exc.field, exc.why) from None

    def path(self, field: str) -> str:
        return self.form.paths.get(field) or self.spec.fields.get(field, field)

    def bad(self, field: str, why: str) -> UserError:
        return UserError(why, file=self.row.where, key=self.path(field))

    def get(self, field: str) -> Any:
        """The field's value, or MISSING (null counts as missing)."""
        if field in self.taken:
            self.found.add(field)
            return MISSING if self.taken[field] is None else self.taken[field]
        value = lookup(self.row.values, self.path(field))
        if value is not MISSING:
            self.found.add(field)
        return value

    def text(self, field: str) -> str | None:
        """A string (numbers are written out), or None where it is missing. Refuses broken Unicode."""
        value = self.get(field)
        return None if value is MISSING else self._string(field, value)

    def _string(self, field: str, value: Any) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            raise self.bad(field, f"must be text, got the number {value}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if not isinstance(value, str):
            raise self.bad(field, f"must be text, got {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.bad(field, "has half of a surrogate pair, which isn't text") from None
        return value

    def texts(self, field: str) -> list[str] | None:
        value = self.get(field)
        if value is MISSING:
            return None
        if isinstance(value, str):
            read = opened(value)
            value = read if isinstance(read, list) and field == "tests" else [value]
        if not isinstance(value, Sequence) or not value:
            raise self.bad(field, f"must be a list of texts with at least one, got {value!r:.60}")
        return [self._string(field, item) for item in value]

    def tests(self) -> list[Any] | None:
        """Statements, or tables of input and output."""
        value = opened(self.get("tests"))
        tables = isinstance(value, list | tuple) and [
            {"input": test["input"], "output": test["output"]}
            for test in value
            if isinstance(test, Mapping) and {"input", "output"} <= test.keys()
        ]
        return tables if tables and len(tables) == len(value) else self.texts("tests")

    def split(self) -> str | None:
        if self.row.split is not None:
            self.found.add("split")
            return self.row.split
        value = self.text("split")
        if value is None and (self.spec.splits or "split" in self.spec.fields):
            raise self.bad("split", "is missing, though the task names splits")
        return value

    def choices(self) -> tuple[list[str], list[str]] | None:
        """Texts and labels. Takes a list, or the table {"text": [...], "label": [...]} that some data sets use."""
        value = opened(self.get("choices"))
        table: Mapping[str, Any] = value if isinstance(value, Mapping) else {"text": value}
        value, labels = table.get("text"), table.get("label")
        if value is MISSING or value == []:
            return None
        if not isinstance(value, list | tuple):
            raise self.bad("choices", f"must be a list of texts, got {value!r:.60}")
        texts = [self._string("choices", item) for item in value]
        if len(texts) < 2 or not all(text.strip() for text in texts):
            raise self.bad("choices", f"needs two texts or more, none empty, got {value!r:.60}")
        letters = [chr(ord("A") + i) for i in range(len(texts))]
        if isinstance(labels, list | tuple) and len(labels) == len(texts):
            return texts, [str(label) for label in labels]
        return texts, letters

    def answer(self, choices: tuple[list[str], list[str]] | None, reference: str | None) -> str | None:
        raw = self.get("answer")
        answer = self.text("answer")
        if answer is None:
            return reference
        if not answer.strip():
            raise self.bad("answer", "is empty")
        return answer if choices is None else self._chosen(raw, answer, *choices)

    def _chosen(self, raw: Any, answer: str, texts: list[str], labels: list[str]) -> str:
        """The text of the choice that the answer names by text, label or place."""
        place = place_of(raw, texts, labels)
        if self.base is not None and place is not None:
            if not 0 <= place - self.base < len(texts):
                raise self.bad("answer", f"{raw} isn't a place in a list of {len(texts)} choices")
            return texts[place - self.base]
        same = [text for text in texts if content_hash(text) == content_hash(answer)]
        if same:
            return same[0]
        letter = LETTER.fullmatch(answer.strip())
        label = letter[1].upper() if letter else answer.strip()
        if label in labels:
            return texts[labels.index(label)]
        raise self.bad("answer", f"{answer!r:.60} is none of the choices and no letter of one")

    def place(self) -> tuple[int, list[str]] | None:
        """The answer where it may be the place of a choice, and the choices."""
        choices = self.choices()
        place = None if choices is None else place_of(self.get("answer"), *choices)
        return None if choices is None or place is None else (place, choices[0])

    def _turns(self) -> Turns:
        """What is asked, with what came before it and the reply that the row ends with. Raises UserError for turns that
        no model takes."""
        value = opened(self.get("prompt"))
        system = self.text("system") if {"system"} & {*self.form.paths, *self.spec.fields} else None
        if not is_turns(value):
            return self._under(Turns(system, self.text("prompt"), None))
        try:
            turns = read_turns(value)
        except ValueError as exc:
            raise self.bad("prompt", str(exc)) from None
        for text in (turns.system, *(turn.text for turn in turns.earlier), turns.user, turns.reply):
            if text is not None:
                self._string("prompt", text)
        return self._under(replace(turns, system=turns.system or system))

    def _under(self, turns: Turns) -> Turns:
        """The turns with the row's system text where `options.system` wants it."""
        system, user = turns.system, turns.user
        how = self.spec.options.get("system")
        if not system or not system.strip() or user is None or how == "drop":
            return replace(turns, system=None)
        return replace(turns, system=None, user=f"{system}\n\n{user}") if how == "prepend" else turns

    def problem(self, name: TaskName) -> tuple[Problem, str]:
        """The problem, and the bare words that decide its split."""
        turns = self._turns()
        prompt, reply = turns.user, turns.reply
        if prompt is None or not prompt.strip():
            raise self.bad("prompt", "is missing" if prompt is None else "is empty")
        choices, tests, context = self.choices(), self.tests(), self.text("context")
        references = self.texts("reference")
        reference = references[0] if references else reply
        data: dict[str, Any] = {"setup": self.text("setup")}
        defaults = self.spec.options.get("defaults", {})
        data |= {name: defaults.get(name) if (value := self.get(name)) is MISSING else value for name in SETTINGS}
        data |= {"tests": tests, "choices": choices and choices[0], "reference": reference, "context": context}
        answer = self.answer(choices, reference)
        if choices is None and answer is not None and self.others is not None:
            options = self.others.options(answer, self.spec.options["distractors"]["count"])
            data["choices"] = options if len(options) > 1 else None
        data["constraints"] = self._table("constraints")
        data[POOL] = self.text(POOL)
        meta = self.row.values.get("meta")
        data["meta"] = meta if isinstance(meta, Mapping) else None
        slots = {"prompt": prompt, "context": context or "", "first_test": _shown(tests[0]) if tests else ""}
        slots["options"] = options_line(data["choices"]) if data["choices"] else ""
        rendered = fill(self.spec.template or self.form.format.template, slots)
        ident = self.text("id") or f"{name}-{content_hash(self.row.where + json.dumps(slots))}"
        filled = {key: value for key, value in data.items() if value not in (None, "")}
        content = "\n\n".join([*(turn.text for turn in turns.earlier), prompt])
        return Problem(ident, name, rendered, answer, filled, turns.system, turns.earlier), content

    def _table(self, field: str) -> Mapping[str, Any] | None:
        value = self.get(field)
        if value is MISSING:
            return None
        if not isinstance(value, Mapping):
            raise self.bad(field, f"must be a table, got {type(value).__name__}")
        return value


def _shown(test: Any) -> str:
    """A test as a prompt shows it."""
    return test if isinstance(test, str) else f"Input:\n{test['input']}\nOutput:\n{test['output']}"
