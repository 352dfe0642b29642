"""`builtin:qa`: general knowledge in short form, with the options shown."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from omni_thinker.recipe import RewardSpec
from omni_thinker.tasks.builtin.qa_facts import (
    CONTINENTS,
    NO_BORDERS,
    NO_CAPITAL,
    NO_CONTINENT,
    NO_CURRENCY,
    Country,
    Element,
    clash,
    countries,
    elements,
    overlap,
)
from omni_thinker.tasks.pool import Item, PooledTask
from omni_thinker.tasks.reader import options_line


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, its answer and what is wrong for sure. `near` are the wrong options that are hard to rule out."""

    key: str
    question: str
    answer: str
    near: Sequence[str]
    far: Sequence[str]


class QaTask(PooledTask):
    """Capitals, continents, currencies and neighbours of countries; symbols and numbers of chemical elements.

    Disjoint across splits: the fact (subject and relation), asked in either direction. The difficulty sets the
    number of wrong options (3 at 0, 7 at 10) and the share of near ones (same continent, alike symbol)."""

    kind = "qa"
    summary = "short-form general knowledge (countries, chemical elements) with distractors"
    default_reward = RewardSpec(gate=("finished",), sum={"short_answer": 1.0})
    default_difficulty = 1.0
    default_max_tokens = 16
    per_key = 2
    patience = 4000  # the last facts of a finite store come up seldom

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        fact = rng.choice(_relations()[rng.choice(WEIGHTED)])
        count = 3 + round(0.4 * difficulty)
        near = sum(rng.random() < difficulty / 6 for _ in range(count))
        wrong = rng.sample(fact.near, min(near, len(fact.near)))
        wrong += rng.sample(fact.far, min(count - len(wrong), len(fact.far)))
        spare = [text for text in fact.near if text not in wrong]
        wrong += rng.sample(spare, min(count - len(wrong), len(spare)))
        choices = [fact.answer, *wrong]
        rng.shuffle(choices)
        prompt = f"{fact.question}\n{options_line(choices)}"
        return Item(fact.key, prompt, fact.answer, {"choices": choices})


WEIGHTED = ("capital", "country of", "continent", "currency", "border", "symbol", "element of", "number", "numbered")


@cache
def _relations() -> dict[str, list[Fact]]:
    """All facts by relation."""
    lands, atoms = list(countries().values()), list(elements().values())
    capitals = [land for land in lands if land.iso not in NO_CAPITAL and not overlap(land.name, land.capital)]
    return {
        "capital": [_capital(land, capitals) for land in capitals],
        "country of": [_country_of(land, capitals) for land in capitals],
        "continent": [_continent(land) for land in lands if land.iso not in NO_CONTINENT],
        "currency": [_currency(land, lands) for land in lands if land.iso not in NO_CURRENCY],
        "border": [fact for land in lands for fact in _borders(land, lands)],
        "symbol": [_element(f"What is the chemical symbol of {e.name}?", "symbol", e, atoms) for e in atoms],
        "element of": [_element(f"Which element has the symbol {e.symbol}?", "name", e, atoms) for e in atoms],
        "number": [_number(f"What is the atomic number of {e.name}?", "number", e, atoms) for e in atoms],
        "numbered": [_number(f"Which element has atomic number {e.number}?", "name", e, atoms) for e in atoms],
    }


def _capital(land: Country, lands: Sequence[Country]) -> Fact:
    near, far = _by_continent(land, lands, lambda other: other.capital)
    return Fact(f"capital {land.iso}", f"What is the capital of {land.the}?", land.capital, near, far)


def _country_of(land: Country, lands: Sequence[Country]) -> Fact:
    near, far = _by_continent(land, lands, lambda other: other.name)
    return Fact(f"capital {land.iso}", f"Which country has {land.capital} as its capital?", land.name, near, far)


def _by_continent(
    land: Country, lands: Sequence[Country], text: Callable[[Country], str]
) -> tuple[list[str], list[str]]:
    others = [other for other in lands if other.iso != land.iso and not overlap(text(other), text(land))]
    near = [text(other) for other in others if other.continent == land.continent]
    return near, [text(other) for other in others if other.continent != land.continent]


def _continent(land: Country) -> Fact:
    others = [name for name in CONTINENTS.values() if name != land.continent]
    return Fact(f"continent {land.iso}", f"On which continent is {land.the}?", land.continent, [], others)


def _currency(land: Country, lands: Sequence[Country]) -> Fact:
    usable = [other for other in lands if other.iso not in NO_CURRENCY and not clash(other.currency, land.currency)]
    near = _apart({other.currency for other in usable if other.continent == land.continent})
    far = _apart({other.currency for other in usable}, near)
    question = f"Which currency is used in {land.the}?"
    return Fact(f"currency {land.iso}", question, land.currency, near, far)


def _apart(names: set[str], taken: Sequence[str] = ()) -> list[str]:
    """The names in order, one of each family of alike names, and none like those taken."""
    distinct: list[str] = []
    for name in sorted(names):
        if not any(clash(name, other) for other in (*distinct, *taken)):
            distinct.append(name)
    return distinct


def _borders(land: Country, lands: Sequence[Country]) -> list[Fact]:
    """One fact per neighbour, all of one key; wrong options are never neighbours in either country's list."""
    usable = [other for other in lands if other.iso not in NO_BORDERS and other.iso != land.iso]
    apart = [other for other in usable if other.iso not in land.neighbours and land.iso not in other.neighbours]
    if land.iso in NO_BORDERS or not land.neighbours:
        return []
    facts = []
    for other in usable:
        if other.iso in land.neighbours and land.iso in other.neighbours:
            wrong = [third for third in apart if not overlap(third.name, other.name)]
            near = [third.name for third in wrong if third.continent == land.continent]
            far = [third.name for third in wrong if third.continent != land.continent]
            facts.append(Fact(f"border {land.iso}", f"Which country borders {land.the}?", other.name, near, far))
    return facts


def _element(question: str, field: str, element: Element, atoms: Sequence[Element]) -> Fact:
    """Symbol and name: the near options are the elements that begin alike."""
    alike = [other for other in atoms if other.name[0] == element.name[0] or other.symbol[0] == element.symbol[0]]
    return _about(f"symbol {element.symbol}", question, field, element, atoms, alike)


def _number(question: str, field: str, element: Element, atoms: Sequence[Element]) -> Fact:
    """Atomic numbers: the near options are within six places in the table."""
    alike = [other for other in atoms if abs(other.number - element.number) <= 6]
    return _about(f"number {element.symbol}", question, field, element, atoms, alike)


def _about(
    key: str, question: str, field: str, element: Element, atoms: Sequence[Element], alike: Sequence[Element]
) -> Fact:
    near = [str(getattr(other, field)) for other in alike if other is not element]
    far = [str(getattr(other, field)) for other in atoms if other not in alike]
    return Fact(key, question, str(getattr(element, field)), near, far)
