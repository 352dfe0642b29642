"""`builtin:coding`: write a one-function Python program from a description and one example."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omni_thinker.recipe import RewardSpec
from omni_thinker.tasks.builtin.coding_ops import (
    WORDS,
    Op,
    branch_op,
    list_end,
    list_op,
    number_op,
    plain_op,
    string_end,
    string_op,
)
from omni_thinker.tasks.environments.base import Environment
from omni_thinker.tasks.environments.program_errors import ProgramErrors
from omni_thinker.tasks.pool import Item, PooledTask, level

TESTS = 5
"""Hidden tests of a problem."""
PROBES: dict[str, tuple[Any, ...]] = {
    "x": (*range(-25, 60), 100, 997, -640),
    "s": (*WORDS, "a", "sesto rain", ""),
    "nums": ([3, 1, 2], [9, 4, 7, 5], [], [0, -2, 8, 12, 6, 6], [5], [10, 3, 11, 4, 2], [-7, 14, 1]),
}
"""Inputs that tell functions apart: two descriptions that agree on all of them are one content."""


@dataclass(frozen=True, slots=True)
class Program:
    """A described function of one variable."""

    variable: str
    said: str
    code: str
    ops: Sequence[Op]

    def run(self, value: Any) -> Any:
        for op in self.ops:
            value = op.run(value)
        return value


class CodingTask(PooledTask):
    """Functions of a number, a string or a list: one operation (level 0), chains of two (1) and of two or three (2),
    one operation on strings and lists (3), conditionals too (4), longer chains of everything (5 and up).

    Disjoint across splits: what the function computes (its values on fixed probe inputs), whatever its wording."""

    kind = "coding"
    summary = "one-function Python programs with hidden unit tests"
    default_reward = RewardSpec(gate=("finished",), sum={"unit_tests": 1.0})
    default_difficulty = 1.5
    default_max_tokens = 48
    per_key = 3
    turns = 1

    @property
    def environment(self) -> Environment:
        """Sends programs back that fail, where the recipe gives the task turns."""
        return ProgramErrors(self.name, self.spec)

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        lvl = level(rng, difficulty)
        while True:
            program = _program(rng, lvl)
            inputs = _inputs(rng, program)
            if inputs is not None:
                return _item(program, inputs[0], inputs[1:])


def _program(rng: random.Random, lvl: int) -> Program:
    if lvl == 0:
        return _single("x", number_op(rng, 99))
    if lvl <= 2:
        return _chain(rng, "x", 2 if lvl == 1 else rng.randint(2, 3), lambda r: plain_op(r, 10 + 5 * lvl))
    kind = rng.choice(("x", "s", "nums") if lvl > 3 else ("s", "nums"))
    if lvl == 3 or (lvl == 4 and kind != "x"):
        one, end = (string_op, string_end) if kind == "s" else (list_op, list_end)
        return _single(kind, rng.choice((one, end))(rng))
    if kind == "x":
        return _single("x", branch_op(rng)) if lvl < 6 else _chain(rng, "x", lvl // 2, lambda r: plain_op(r, 50))
    one, end = (string_op, string_end) if kind == "s" else (list_op, list_end)
    return _chain(rng, kind, min(2 + (lvl - 5) // 2, 4), one, end if rng.random() < 0.5 else None)


def _single(variable: str, op: Op) -> Program:
    return Program(variable, f"returns {op.said.format(v=variable)}", op.code.format(v=variable), (op,))


def _chain(
    rng: random.Random,
    variable: str,
    length: int,
    draw: Callable[[random.Random], Op],
    end: Callable[[random.Random], Op] | None = None,
) -> Program:
    ops: list[Op] = []
    while len(ops) < length:
        op = end(rng) if end and len(ops) == length - 1 else draw(rng)
        if not ops or op.family != ops[-1].family:
            ops.append(op)
    code = variable
    for i, op in enumerate(ops):
        bare = i == 0 or ops[i - 1].tight or "({v})" in op.code
        code = op.code.format(v=code if bare else f"({code})")
    *first, last = [op.done for op in ops]
    return Program(variable, f"takes {variable}, {', '.join(first)}, then {last}", code, ops)


def _inputs(rng: random.Random, program: Program) -> list[Any] | None:
    """The example's input and TESTS others, or None where the tests would let a trivial or shortened answer pass."""
    if program.variable == "x":
        pool: list[Any] = rng.sample(range(0, 21), TESTS + 1) + rng.sample((-9, -6, -4, -1, 37, 58, 100), 2)
    elif program.variable == "s":
        pool = rng.sample(WORDS, TESTS + 3)
    else:
        pool = [[rng.randint(-3, 15) for _ in range(rng.randint(3, 5))] for _ in range(TESTS + 3)]
    rng.shuffle(pool)
    special = [value for op in program.ops for value in op.inputs]
    rng.shuffle(special)
    values = _distinct(special + pool)
    telling = [value for value in values if program.run(value) != value]
    if not telling:
        return None
    example = telling[0]  # an example that comes back unchanged would tell nothing
    picked = _varied(program, example, [value for value in values if value != example])
    return None if picked is None or not _all_matter(program, picked) else [example, *picked]


def _all_matter(program: Program, tests: Sequence[Any]) -> bool:
    """True where leaving out any one operation fails a test."""
    for i in range(len(program.ops)):
        shorter = replace(program, ops=[op for j, op in enumerate(program.ops) if j != i])
        if all(shorter.run(value) == program.run(value) for value in tests):
            return False
    return True


def _distinct(values: Sequence[Any]) -> list[Any]:
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct


def _varied(program: Program, example: Any, inputs: Sequence[Any]) -> list[Any] | None:
    """TESTS inputs on which neither a constant, nor the example's value, nor the input itself is right."""
    shown = program.run(example)
    different = [value for value in inputs if program.run(value) != shown and program.run(value) != value]
    if not different:
        return None
    first = different[0]
    picked = [first, *(value for value in inputs if value != first)][:TESTS]
    results = [program.run(value) for value in picked]
    if len(picked) == TESTS and all(result == results[0] for result in results):
        picked[-1] = next((value for value in inputs if program.run(value) != results[0]), picked[-1])
        results[-1] = program.run(picked[-1])
    return picked if len(picked) == TESTS and any(result != results[0] for result in results) else None


def _item(program: Program, example: Any, inputs: Sequence[Any]) -> Item:
    v = program.variable
    signature = f"f({v})"
    prompt = (
        f"Write a Python function {signature} that {program.said}. "
        f"Example: f({example!r}) returns {program.run(example)!r}."
    )
    tests = [f"assert f({value!r}) == {program.run(value)!r}" for value in inputs]
    key = repr([program.run(value) for value in PROBES[v]])
    answer = f"def {signature}:\n    return {program.code}"
    return Item(f"{v} {key}", prompt, answer, {"tests": tests, "entry_point": "f"})
