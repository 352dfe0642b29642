"""The operations that `builtin:coding` chains: English, Python source and the same thing as a closure."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Op:
    """`said`: after "returns" ("{v} plus 3"). `done`: as a step of a chain ("adds 3").

    `code` has one slot for the operand. `family`: two neighbours of one family would fold into one operation."""

    said: str
    done: str
    code: str
    run: Callable[[Any], Any]
    family: str
    tight: bool = False
    """The code is a call, an index or a literal and needs no brackets around it."""
    inputs: tuple[Any, ...] = ()
    """Inputs that show what is special about this operation, such as both sides of a threshold."""


def number_op(rng: random.Random, top: int) -> Op:
    """One arithmetic operation with a constant in 2..top."""
    c = rng.randint(2, top)
    small = rng.randint(2, min(top, 12))
    return rng.choice(
        (
            Op(f"{{v}} plus {c}", f"adds {c}", f"{{v}} + {c}", lambda x: x + c, "sum"),
            Op(f"{{v}} minus {c}", f"subtracts {c}", f"{{v}} - {c}", lambda x: x - c, "sum"),
            Op(f"{{v}} times {c}", f"multiplies by {c}", f"{{v}} * {c}", lambda x: x * c, "product"),
            Op(f"{c} minus {{v}}", f"subtracts it from {c}", f"{c} - {{v}}", lambda x: c - x, "sum"),
            Op(f"the remainder of {{v}} divided by {small}", f"takes the remainder after dividing by {small}",
               f"{{v}} % {small}", lambda x: x % small, "remainder"),
        )
    )  # fmt: skip


def plain_op(rng: random.Random, top: int) -> Op:
    """An operation with a constant or a one-argument function such as the square."""
    if rng.random() < 0.7:
        return number_op(rng, top)
    return rng.choice(
        (
            Op("the square of {v}", "squares it", "{v} ** 2", lambda x: x**2, "square"),
            Op(
                "the absolute value of {v}", "takes its absolute value", "abs({v})", abs, "abs", True, (-3, -12, -20, 5)
            ),
            Op("{v} with its sign flipped", "flips its sign", "-{v}", lambda x: -x, "product"),
        )
    )


def branch_op(rng: random.Random) -> Op:
    """A conditional on a number."""
    c, d, e = rng.sample(range(2, 21), 3)
    edges = (c - 1, c, c + 1, -c, c + 7)
    return rng.choice(
        (
            Op(f"{d} if {{v}} is greater than {c}, otherwise {e}", "", f"{d} if {{v}} > {c} else {e}",
               lambda x: d if x > c else e, "if", inputs=edges),
            Op(f"{{v}} plus {d} if {{v}} is greater than {c}, otherwise {{v}}", "",
               f"{{v}} + {d} if {{v}} > {c} else {{v}}", lambda x: x + d if x > c else x, "if", inputs=edges),
            Op(f"{{v}} plus {d} if {{v}} is even, otherwise {{v}} minus {e}", "",
               f"{{v}} + {d} if {{v}} % 2 == 0 else {{v}} - {e}",
               lambda x: x + d if x % 2 == 0 else x - e, "if", inputs=(2, 3, 8, 11)),
            Op(f"the larger of {{v}} and {c}", "", f"max({{v}}, {c})", lambda x: max(x, c), "max", True, edges),
            Op(f"the smaller of {{v}} and {c}", "", f"min({{v}}, {c})", lambda x: min(x, c), "min", True, edges),
            Op(f"True if {{v}} is a multiple of {d}, otherwise False", "", f"{{v}} % {d} == 0",
               lambda x: x % d == 0, "bool", inputs=(d, 2 * d, d + 1, 3 * d - 1)),
        )
    )  # fmt: skip


WORDS = ("apple", "banana", "carrot", "dinner", "eleven", "forest", "garden", "kitten", "letter", "melon", "noodle",
         "orange", "pepper", "rabbit", "summer", "tomato", "window", "yellow", "Planet", "Sunday")  # fmt: skip
TAILS = ("!", "?", "ing", "er", "ly", "-x", "_1", "abc", "oo", "...", "y", "ness")
LETTERS = "aeinorst"


def string_op(rng: random.Random) -> Op:
    """An operation that takes a string and gives a string."""
    n, letter, tail = rng.randint(2, 4), rng.choice(LETTERS), rng.choice(TAILS)
    new = rng.choice("xz*#")
    return rng.choice(
        (
            Op("{v} in upper case", "puts it in upper case", "{v}.upper()", str.upper, "case", True),
            Op("{v} reversed", "reverses it", "{v}[::-1]", lambda s: s[::-1], "reverse", True),
            Op(f"{{v}} repeated {n} times", f"repeats it {n} times", f"{{v}} * {n}", lambda s: s * n, "repeat"),
            Op(f"the first {n} characters of {{v}}", f"keeps the first {n} characters", f"{{v}}[:{n}]",
               lambda s: s[:n], "slice", True),
            Op(f"the last {n} characters of {{v}}", f"keeps the last {n} characters", f"{{v}}[-{n}:]",
               lambda s: s[-n:], "slice", True),
            Op(f"{{v}} without its first {n} characters", f"drops the first {n} characters", f"{{v}}[{n}:]",
               lambda s: s[n:], "slice", True),
            Op(f"{{v}} followed by {tail!r}", f"appends {tail!r}", f"{{v}} + {tail!r}", lambda s: s + tail, "append"),
            Op(f"{{v}} preceded by {tail!r}", f"puts {tail!r} in front", f"{tail!r} + {{v}}",
               lambda s: tail + s, "prepend"),
            Op(f"{{v}} with every {letter!r} replaced by {new!r}", f"replaces every {letter!r} by {new!r}",
               f"{{v}}.replace({letter!r}, {new!r})", lambda s: s.replace(letter, new), f"replace {letter}", True),
        )
    )  # fmt: skip


def string_end(rng: random.Random) -> Op:
    """An operation that takes a string and gives a number or a truth value."""
    letter, c = rng.choice(LETTERS), rng.randint(2, 20)
    return rng.choice(
        (
            Op(f"how often {letter!r} occurs in {{v}}", f"counts {letter!r}", f"{{v}}.count({letter!r})",
               lambda s: s.count(letter), "end", True),
            Op(f"{c} plus the length of {{v}}", f"adds {c} to its length", f"len({{v}}) + {c}",
               lambda s: len(s) + c, "end"),
            Op(f"{c} times the length of {{v}}", f"multiplies its length by {c}", f"len({{v}}) * {c}",
               lambda s: len(s) * c, "end"),
            Op(f"True if {letter!r} is in {{v}}, otherwise False", f"tells whether {letter!r} is in it",
               f"{letter!r} in {{v}}", lambda s: letter in s, "end"),
        )
    )  # fmt: skip


def list_op(rng: random.Random) -> Op:
    """An operation that takes a list of numbers and gives a list of numbers."""
    c, n = rng.randint(2, 9), rng.randint(2, 3)
    return rng.choice(
        (
            Op(f"{{v}} with {c} added to every item", f"adds {c} to every item", f"[i + {c} for i in {{v}}]",
               lambda a: [i + c for i in a], "map sum", True),
            Op(f"{{v}} with every item multiplied by {c}", f"multiplies every item by {c}", f"[i * {c} for i in {{v}}]",
               lambda a: [i * c for i in a], "map product", True),
            Op(f"the items of {{v}} greater than {c}", f"keeps the items greater than {c}",
               f"[i for i in {{v}} if i > {c}]", lambda a: [i for i in a if i > c], "filter", True),
            Op(f"the first {n} items of {{v}}", f"keeps the first {n} items", f"{{v}}[:{n}]",
               lambda a: a[:n], "slice", True),
            Op(f"{{v}} without its first {n} items", f"drops the first {n} items", f"{{v}}[{n}:]",
               lambda a: a[n:], "slice", True),
            Op("{v} sorted from small to large", "sorts it from small to large", "sorted({v})", sorted, "order", True),
            Op("{v} in reverse order", "reverses it", "{v}[::-1]", lambda a: a[::-1], "order", True),
        )
    )  # fmt: skip


def list_end(rng: random.Random) -> Op:
    """An operation that takes a list of numbers and gives a number."""
    c = rng.randint(2, 9)
    return rng.choice(
        (
            Op(f"{c} plus the sum of {{v}}", f"adds {c} to its sum", f"sum({{v}}) + {c}", lambda a: sum(a) + c, "end"),
            Op(f"{c} times the sum of {{v}}", f"multiplies its sum by {c}", f"sum({{v}}) * {c}",
               lambda a: sum(a) * c, "end"),
            Op(f"{c} plus the length of {{v}}", f"adds {c} to its length", f"len({{v}}) + {c}",
               lambda a: len(a) + c, "end"),
            Op(f"how many items of {{v}} are greater than {c}", f"counts the items greater than {c}",
               f"sum(i > {c} for i in {{v}})", lambda a: sum(i > c for i in a), "end", True),
            Op(f"the sum of the items of {{v}} greater than {c}", f"sums the items greater than {c}",
               f"sum(i for i in {{v}} if i > {c})", lambda a: sum(i for i in a if i > c), "end", True),
        )
    )  # fmt: skip
