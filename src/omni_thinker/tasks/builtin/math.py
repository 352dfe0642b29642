"""`builtin:math`: short arithmetic and word problems with whole-number answers."""

import random
from collections.abc import Sequence

from omni_thinker.recipe import RewardSpec
from omni_thinker.tasks.builtin.math_stories import BUY, DAYS, FOOD, NAMES, PLANTS, STORIES, THINGS, Story
from omni_thinker.tasks.pool import Item, PooledTask, level

LARGEST = (5, 6, 9, 15, 25, 50, 75, 99, 150, 250, 500)
"""Largest term of a sum or difference, by level."""
LARGEST_FACTOR = (0, 0, 3, 5, 9, 10, 12, 15, 20, 25, 30)
"""Largest factor, by level; 0: no products."""
TWO_STEP_SHARE = (0.0, 0.0, 0.15, 0.3, 0.5, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9)

BARE = {
    "+": ("What is {a} + {b}?", "{a} + {b} =", "Add {a} and {b}.", "What is {a} plus {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b} =", "Take {b} away from {a}.", "What is {a} minus {b}?"),
    "*": ("What is {a} x {b}?", "{a} x {b} =", "Multiply {a} by {b}.", "What is {a} times {b}?"),
}
COUNTING = {
    1: ("What number comes after {a}?", "What number comes right after {a}?", "Count on by one from {a}."),
    -1: ("What number comes before {a}?", "What number comes right before {a}?", "Count back by one from {a}."),
}


class MathTask(PooledTask):
    """Counting, sums, differences, products, one- and two-step word problems; the answer is the bare number.

    Disjoint across splits: the operation with its operands for bare arithmetic and counting (4 + 3 and
    "Add 3 and 4" are one content), the story with its operands for word problems (names and objects vary
    within a split only)."""

    kind = "math"
    summary = "short arithmetic and word problems with whole-number answers"
    default_reward = RewardSpec(gate=("finished",), sum={"math": 1.0})
    default_difficulty = 1.0
    default_max_tokens = 8
    per_key = 12

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        lvl = level(rng, difficulty)
        if rng.random() < TWO_STEP_SHARE[lvl]:
            return _story(rng, lvl, [story for story in STORIES if story.steps == 2])
        form = rng.random()
        if lvl <= 1 and form < 0.25:
            step, start = rng.choice((1, -1)), rng.randint(1, 20 + 10 * lvl)
            prompt = rng.choice(COUNTING[step]).format(a=start)
            return Item(f"count {step:+d} from {start}", prompt, str(start + step))
        if form < 0.5:
            return _bare(rng, lvl)
        return _story(rng, lvl, [story for story in STORIES if story.steps == 1])


def _bare(rng: random.Random, lvl: int) -> Item:
    sign = rng.choice("+-*" if LARGEST_FACTOR[lvl] else "+-")
    if sign == "*":
        a, b = (rng.randint(1, LARGEST_FACTOR[lvl]) for _ in "ab")
        value = a * b
    else:
        a, b = (rng.randint(1, LARGEST[lvl]) for _ in "ab")
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        value = a + b if sign == "+" else a - b
    operands = (a, b) if sign == "-" else (min(a, b), max(a, b))  # sums and products commute: one content
    return Item(f"{operands[0]} {sign} {operands[1]}", rng.choice(BARE[sign]).format(a=a, b=b), str(value))


def _story(rng: random.Random, lvl: int, stories: Sequence[Story]) -> Item:
    story = rng.choice([story for story in stories if LARGEST_FACTOR[lvl] or not story.factors])
    small, large = LARGEST_FACTOR[lvl], LARGEST[lvl]
    while True:
        operands = {name: rng.randint(2, small) if name in story.factors else rng.randint(1, large) for name in "abc"}
        value = story.solve(operands["a"], operands["b"], operands["c"])
        if value is not None:
            break
    who, other = rng.sample(NAMES, 2)
    day, later = rng.choice(DAYS)
    words = {"n": who, "m": other, "day": day, "day2": later}
    words |= _noun("o", rng.choice(THINGS)) | _noun("f", rng.choice(FOOD)) | _noun("p", rng.choice(PLANTS))
    words |= _noun("t", rng.choice(BUY))
    counted = {f"{x}_{noun}": _count(operands[x], words[noun], words[noun + "s"]) for x in "abc" for noun in "ofpt"}
    counted |= {f"{x}_{one}": _count(operands[x], one) for x in "abc" for one in UNITS}
    prompt = story.text.format(**operands, **words, **counted, ab=operands["a"] * operands["b"])
    used = [f"{name}={operands[name]}" for name in story.operands]
    return Item(f"{story.name} {' '.join(used)}", prompt, str(value))


UNITS = ("page", "dollar", "point", "passenger", "bag", "row", "day", "book", "card", "year", "friend")


def _noun(slot: str, noun: tuple[str, str]) -> dict[str, str]:
    return {slot: noun[0], slot + "s": noun[1]}


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
