"""The pages are in short, plain sentences: rules of style that no spell checker knows."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]})
MAX_LINE = 140
"""Characters, outside tables."""
MAX_WORDS, MAX_MEAN_WORDS = 40, 16
"""Of a sentence: at most, and on average over a page."""
MAX_SEMICOLONS = 2
"""Per 1,000 words."""
BANNED = {
    r"\b(go|goes|going|gone|went) on with\b": "resume, continue",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|better|worse|faster|slower)": "isn't a",
    r"\b(told|tells)\b": "reported, observed, says, shows",
    r"\b(is|are) said\b": "is logged, is reported",
    r"\b(know|knows|known|say|says|said) nothing of\b": "nothing about",
    r"\bone's own\b": "your own",
    r"\botherwise than\b": "differently from",
    r"\b(is|are|was|were|be) (made|computed|done) (again|anew)\b": "is repeated, is rebuilt",
    r"\bof which\b": "whose, or a new sentence",
}


def sentences(text: str) -> list[str]:
    """The prose of a page: without code, tables, headings and quotes. Each item of a list begins a sentence."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for line in text.splitlines() if not re.match(r"[|#>]|    (?!\s*([-*]|\d+\.) )", line)]
    prose = re.sub(r"\n\s*(?:[-*]|\d+\.) ", "\n\n", "\n" + "\n".join(lines))
    prose = re.sub(r"`[^`]*`", "CODE", prose)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    parts = re.split(r"\n\s*\n|(?<=[.!?])[\"')]?\s+(?=[\"'(]?[A-Za-z0-9])", re.sub(r"[*_]", "", prose))
    return [" ".join(part.split()) for part in parts if re.search(r"[a-z]", part)]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_of_a_page_are_short(page: str) -> None:
    prose = sentences((ROOT / page).read_text("utf-8"))
    lengths = [len(sentence.split()) for sentence in prose]
    assert not [sentence for sentence in prose if len(sentence.split()) > MAX_WORDS]
    assert not lengths or fmean(lengths) < MAX_MEAN_WORDS
    assert sum(sentence.count(";") for sentence in prose) <= max(1, MAX_SEMICOLONS * sum(lengths) / 1000)


@pytest.mark.parametrize("page", PAGES)
def test_page_has_no_banned_words(page: str) -> None:
    prose = "\n".join(sentences((ROOT / page).read_text("utf-8"))).lower()
    found = [(match[0], better) for rule, better in BANNED.items() for match in re.finditer(rule, prose)]
    assert not found, "each with what to say instead"


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_a_page_are_short(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    assert not [line for line in text.splitlines() if len(line) > MAX_LINE and not line.startswith("|")]
