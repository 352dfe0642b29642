"""The pages of docs/ and README.md as a parser of Markdown sees them: links, headings, code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("README.md"), *ROOT.glob("CHANGELOG.md"), *ROOT.glob("docs/**/*.md")]
)


@dataclass(frozen=True)
class Code:
    """A block of code: where it stands, its language (empty: none is named), its text."""

    place: str
    language: str
    text: str


@cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text("utf-8"))


def inline(page: str) -> list[Token]:
    """What stands within sentences, headings and cells: texts, links, pictures, short code."""
    return [child for token in tokens(page) for child in token.children or []]


def links(page: str) -> list[str]:
    """Targets of links and pictures, as they are written."""
    found = [token.attrGet("href") or token.attrGet("src") for token in inline(page)]
    return [str(target) for target in found if target]


def anchors(page: str) -> set[str]:
    """What a link to a heading of the page may be: as GitHub makes it, and the site for headings like ours."""
    seen: dict[str, int] = {}
    found = set()
    for opening, heading in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type != "heading_open":
            continue
        words = "".join(child.content for child in heading.children or [])
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(name if name not in seen else f"{name}-{seen[name]}")
        seen[name] = seen.get(name, 0) + 1
    return found


def blocks(page: str) -> list[Code]:
    """Every block of code, fenced or indented."""
    return [
        Code(f"{page}:{(token.map or [0])[0] + 1}", token.info.strip(), token.content)
        for token in tokens(page)
        if token.type in ("fence", "code_block")
    ]


def all_blocks(language: str) -> list[Code]:
    return [code for page in PAGES for code in blocks(page) if code.language == language]


def short_code(page: str) -> list[str]:
    """What stands in backticks within a line."""
    return [token.content for token in inline(page) if token.type == "code_inline"]


def rows(page: str) -> list[list[list[str]]]:
    """The rows of its tables, without heads: of each cell what stands in backticks."""
    found: list[list[list[str]]] = []
    for token, inner in zip(tokens(page), tokens(page)[1:], strict=False):
        if token.type == "tr_open":
            found.append([])
        if token.type == "td_open":
            found[-1].append([child.content for child in inner.children or [] if child.type == "code_inline"])
    return [row for row in found if row]
