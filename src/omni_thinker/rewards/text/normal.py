"""The normal form of a short text: what two spellings of one answer share."""

import re
import unicodedata
from functools import cache

from omni_thinker.rewards.text.number_words import in_figures

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("’‘ʼʻ´", "'"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‐‑‒–—―−﹘﹣－", "-"),
        **{"٪": "%", "٫": ".", "٬": ",", "\u2044": "/"},
    }
)
_EDGES = " \t\n.,;:!?\"'`*_()[]{}"
_MEANINGFUL = "‰‱′″‴؉؊§"
"""Punctuation of other scripts that changes what a number or a word says."""
_ARTICLES = ("a", "an", "the")
_ARTICLE = re.compile(r"\b(?:an?|the)\b", re.IGNORECASE)
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_NO_UNIT = re.compile(r"(?<![\d.])\.(?=\d)")
_RAISED = re.compile(r"(?<=\d)(?=[⁰¹²³⁴-⁹⁺⁻])")
_VULGAR = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")


def normalise(text: str) -> str:
    """NFKC, no case, no articles, no punctuation at the edges of words, numbers in figures, single spaces.

    Signs inside and before words stay: "C++", "-5", "1.5" and "it's" keep their meaning; "U.S." is "US". "Twenty-one"
    is 21, "two hundred and five" 205, and "3 million" 3000000. A last "A" is a letter and stays ("hepatitis A"), and so
    does a capital one inside of a text."""
    return _normal(text, articles=False)


def with_articles(text: str) -> str | None:
    """The same with all articles, None where there are none: "vitamin a is" and "Vitamin A is" differ without."""
    return _normal(text, articles=True) if _ARTICLE.search(text) else None


def _normal(text: str, *, articles: bool) -> str:
    text = plain(text)
    edges = _EDGES if text.isascii() else _all_edges()
    raw = _folded(text).split()
    if "." in text:
        raw = [_NO_UNIT.sub("0.", word) for word in raw]
    letters = set() if articles else _letters(text)
    words: list[str] = []
    stops: set[int] = set()
    for place, word in enumerate(raw):
        bare = word.strip(edges)
        # An "A)" is the letter of an option, not an article.
        article = bare in _ARTICLES and word.endswith(bare) and place < len(raw) - 1 and place not in letters
        if not bare or (article and not articles):
            continue
        if "." in bare and _INITIALS.fullmatch(bare):
            bare = bare.replace(".", "")
        if word[-1] in ",;":
            stops.add(len(words))
        words.append(bare)
    return " ".join(in_figures(words, stops))


def _letters(text: str) -> set[int]:
    """Places of the words that are a capital "A" inside of a text with small letters."""
    if " A " not in text or text.isupper():
        return set()
    return {place for place, word in enumerate(text.split()) if word == "A" and place}


def plain(text: str) -> str:
    """NFKC, with one sign for each meaning, figures of all scripts as 0 to 9, and nothing that can't be seen."""
    if text.isascii():
        return text
    text = _VULGAR.sub(" ", _RAISED.sub("^", text)).translate(_SIGNS)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    return "".join(_character(c) for c in text)


def _character(char: str) -> str:
    if char.isascii():
        return char
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    return "" if unicodedata.category(char) == "Cf" else char


def _folded(text: str) -> str:
    """Without case. A capital dotted i is a small i, as its own language and all others write it."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i")


@cache
def _all_edges() -> str:
    kinds = ("Po", "Ps", "Pe", "Pi", "Pf")
    others = (chr(code) for code in range(0x80, 0x10000) if unicodedata.category(chr(code)) in kinds)
    return _EDGES + "".join(char for char in others if char not in _MEANINGFUL)
