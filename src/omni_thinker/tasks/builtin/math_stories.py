"""The stories of `builtin:math`: what happens, and how its number is found."""

from collections.abc import Callable
from dataclasses import dataclass

NAMES = (
    "Ada", "Ali", "Amy", "Ana", "Ben", "Bo", "Cara", "Dan", "Dina", "Eli", "Emma", "Eva", "Finn", "Gus", "Hana",
    "Ida", "Ivan", "Jack", "Jana", "Joe", "Kai", "Kim", "Lea", "Leo", "Lily", "Lucy", "Luis", "Max", "Mia",
    "Mona", "Ned", "Nina", "Noah", "Nora", "Omar", "Oscar", "Paul", "Pia", "Ravi", "Rosa", "Ruth", "Sam", "Sara",
    "Sofia", "Tim", "Tom", "Vera", "Will", "Yuki", "Zoe",
)  # fmt: skip
DAYS = (("Monday", "Tuesday"), ("Tuesday", "Friday"), ("Thursday", "Sunday"), ("Friday", "Saturday"))
THINGS = tuple((one, f"{one}s") for one in (
    "pencil", "pen", "marble", "sticker", "shell", "stone", "coin", "stamp", "ball", "button", "ribbon", "toy",
))  # fmt: skip
FOOD = (("apple", "apples"), ("plum", "plums"), ("cookie", "cookies"), ("cherry", "cherries"), ("fig", "figs"))
PLANTS = (("rose", "roses"), ("tulip", "tulips"), ("bean", "beans"), ("carrot", "carrots"), ("daisy", "daisies"))
BUY = (("pen", "pens"), ("cup", "cups"), ("kite", "kites"), ("hat", "hats"), ("ticket", "tickets"), ("book", "books"))


@dataclass(frozen=True, slots=True)
class Story:
    """`text` with slots; `solve(a, b, c)` is the answer, or None where the operands make no sense.

    `operands` names those the text uses; `factors` those that are multiplied or divided, so kept small."""

    name: str
    text: str
    solve: Callable[[int, int, int], int | None]
    operands: str = "ab"
    factors: str = ""
    steps: int = 1


def _add(a: int, b: int, _: int) -> int:
    return a + b


def _less(a: int, b: int, _: int) -> int | None:
    return a - b if a > b else None


def _times(a: int, b: int, _: int) -> int:
    return a * b


STORIES = (
    Story("get more", "{n} has {a_o} and gets {b} more. How many {os} does {n} have now?", _add),
    Story("together", "{n} has {a_o}. {m} has {b_o}. How many {os} do they have together?", _add),
    Story("pages", "{n} reads {a_page} on {day} and {b_page} on {day2}. How many pages is that in all?", _add),
    Story("colours", "A box holds {a} red and {b} blue {os}. How many {os} are in the box?", _add),
    Story("bus on", "A bus has {a_passenger} and picks up {b} more. How many passengers does it have now?", _add),
    Story("pays", "{n} pays {a_dollar} for a toy and {b_dollar} for lunch. How many dollars is that in all?", _add),
    Story("age", "{n} is {a_year} old. How old will {n} be in {b_year}?", _add),
    Story("plants", "{n} plants {a_p} and then {b} more. How many {ps} does {n} plant in all?", _add),
    Story("points", "{n} scores {a_point} in one game and {b_point} in another. How many points is that?", _add),
    Story("finds", "{n} finds {a_o} on {day} and {b_o} on {day2}. How many {os} does {n} find in all?", _add),
    Story("gives", "{n} has {a_o} and gives {b} to {m}. How many {os} does {n} have left?", _less),
    Story("eats", "{n} has {a_f} and eats {b}. How many {fs} are left?", _less),
    Story("more than", "{n} has {a_o}. {m} has {b_o}. How many more {os} does {n} have than {m}?", _less),
    Story("shelf", "A shelf holds {a_book}. {n} takes {b} away. How many books are still on the shelf?", _less),
    Story("spends", "{n} has {a_dollar} and spends {b_dollar} on a {t}. How many dollars are left?", _less),
    Story("page left", "A book has {a_page}. {n} has read {b_page}. How many pages are left to read?", _less),
    Story("needs", "{n} needs {a_o} and has {b}. How many more {os} does {n} need?", _less),
    Story("bus off", "A bus has {a_passenger} and drops off {b}. How many passengers does it have now?", _less),
    Story("loses", "{n} has {a_o} and loses {b}. How many {os} does {n} still have?", _less),
    Story("bags", "{n} has {a_bag} with {b_o} in each. How many {os} does {n} have?", _times, factors="ab"),
    Story("costs", "One {t} costs {b_dollar}. How many dollars do {a_t} cost?", _times, factors="ab"),
    Story("daily", "{n} reads {b_page} every day. How many pages does {n} read in {a_day}?", _times, factors="ab"),
    Story("rows", "A garden has {a_row} with {b_p} in each row. How many {ps} are in the garden?", _times,
          factors="ab"),
    Story("shares", "{n} shares {ab} {fs} equally among {a_friend}. How many {fs} does each friend get?",
          lambda a, b, c: b, factors="ab"),
    Story("packs", "{n} packs {ab} {os} into bags of {b}. How many bags does {n} need?",
          lambda a, b, c: a, factors="ab"),
    Story("get and give", "{n} has {a_o}, gets {b} more and gives {c} to {m}. How many {os} does {n} have now?",
          lambda a, b, c: a + b - c if a + b > c else None, "abc", steps=2),
    Story("bus both", "A bus has {a_passenger}, drops off {b} and picks up {c}. How many passengers does it have now?",
          lambda a, b, c: a - b + c if a > b else None, "abc", steps=2),
    Story("three days", "{n} scores {a_point}, then {b_point}, then {c_point}. How many points is that in all?",
          lambda a, b, c: a + b + c, "abc", steps=2),
    Story("more together", "{n} has {a_o}. {m} has {b} more than {n}. How many {os} do they have together?",
          lambda a, b, c: 2 * a + b, steps=2),
    Story("twice spent", "{n} has {a_dollar}, spends {b_dollar} on a {t} and {c} more on lunch. "
          "How many dollars are left?",
          lambda a, b, c: a - b - c if a > b + c else None, "abc", steps=2),
    Story("bags and more", "{n} has {a_bag} with {b_o} in each and {c} more. How many {os} does {n} have?",
          lambda a, b, c: a * b + c, "abc", factors="ab", steps=2),
    Story("change", "{n} has {c_dollar} and buys {a_t} for {b_dollar} each. How many dollars are left?",
          lambda a, b, c: c - a * b if c > a * b else None, "abc", factors="ab", steps=2),
    Story("share and more", "{n} shares {ab} {fs} equally among {a_friend} and then gives each friend {c} more. "
          "How many {fs} does each friend get?", lambda a, b, c: b + c, "abc", factors="ab", steps=2),
)  # fmt: skip
