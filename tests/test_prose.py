"""The pages are written in short, plain sentences: rules that a spell checker doesn't know."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

PAGES = ("README.md", "CHANGELOG.md", *(f"docs/{name}.md" for name in (
    "architecture", "forecasting", "glossary", "judges", "lab-log", "performance", "results", "rewards", "schedulers", "security",
    "studies/schedulers/README", "how-to/README", "how-to/policy", "how-to/reward", "how-to/scheduler", "how-to/task")))  # fmt: skip
MAX_LINE, MAX_WORDS, MAX_MEAN_WORDS, MAX_SEMICOLONS = 140, 40, 16, 2
"""Characters of a line outside tables; words of a sentence, at most and on average; semicolons per 1,000 words."""
BANNED = {
    r"\b(go|goes|going|gone|went) on with\b": "resumed, continues",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|better|worse|faster|slower)": "isn't a",
    r"\b(told|tells)\b": "reported, says, shows",
    r"\b(is|are) said\b": "is logged, is reported",
    r"\b(know|knows|say|says|known|said) nothing of\b": "says nothing about",
    r"\bone's own\b": "your own",
    r"\botherwise than\b": "differently from",
    r"\b(not|nor) \w+ but for\b|, but for\b": "except for",
    r"\b(is|are|was|were|be) (made|computed|done) again\b": "is repeated, is rebuilt",
    r"\bmay be that\b|\bin place of\b.*\bin place of\b": "instead of",
}


def sentences(text: str) -> list[str]:
    """Prose alone: code, tables and quotes are left out; each item of a list begins a sentence."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for line in text.splitlines() if not re.match(r"\||#|>|    (?!\s*[-*\d])", line)]
    prose = re.sub(r"\n\s*(?:[-*]|\d+\.) ", "\n\n", "\n" + "\n".join(lines))
    prose = re.sub(r"`[^`]*`", "CODE", prose)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    prose = re.sub(r"[*_]", "", prose)
    parts = re.split(r"\n\s*\n|(?<=[.!?])[\"')]?\s+(?=[\"'(]?[A-Z0-9])", prose)
    return [" ".join(part.split()) for part in parts if re.search(r"[a-z]", part)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_plain(repo: Path, page: str) -> None:
    text = (repo / page).read_text("utf-8")
    said = sentences(text)
    words = [len(sentence.split()) for sentence in said]
    assert not [sentence for sentence in said if len(sentence.split()) > MAX_WORDS]
    assert not words or fmean(words) < MAX_MEAN_WORDS
    assert sum(sentence.count(";") for sentence in said) <= MAX_SEMICOLONS * max(1, sum(words) / 1000)
    assert not [line for line in text.splitlines() if len(line) > MAX_LINE and not line.startswith("|")]
    prose = "\n".join(said).lower()
    found = {match[0]: better for rule, better in BANNED.items() for match in re.finditer(rule, prose)}
    assert not found, "say instead what stands behind the colon"


def test_every_page_is_checked(repo: Path) -> None:
    pages = {str(path.relative_to(repo)) for path in (repo / "docs").rglob("*.md")} | {"README.md", "CHANGELOG.md"}
    assert pages - {"docs/run-directory.md"} == set(PAGES)
