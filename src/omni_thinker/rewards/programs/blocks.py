"""The blocks of code in a response: fences as Markdown has them, and as models really write them."""

import re
from dataclasses import dataclass, field
from typing import Literal

from omni_thinker.rewards.programs.lines import TRIPLE, begins_code, is_code, segments, string_left_open

Language = Literal["python", "", "text", "other"]
"""What the fence says: Python, nothing (or nothing that is a language), plain text, another language."""

_FENCE = re.compile(r"((?:[ \t]*>)?[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})[ \t]*([^`]*)")
_ONE_LINE = re.compile(r"[ \t]*(`+)[ \t]*([^`]*[^`\s])[ \t]*\1[ \t]*")
_LINES = re.compile(r"\r\n|\r|\n")
_QUOTE = re.compile(r"[ \t]*> ?")
_WORD = re.compile(r"[A-Za-z][\w+#.-]*")
_PYTHON = frozenset(("python", "python2", "python3", "py", "py3", "ipython", "ipython3", "sage"))
_TEXT = frozenset(("text", "txt", "plaintext", "plain", "output", "console", "markdown", "md"))
_OTHERS = frozenset((
    "asm", "awk", "bash", "bat", "batch", "c", "c#", "c++", "cc", "clojure", "cmake", "coffeescript", "cpp", "cs",
    "csharp", "css", "csv", "cuda", "d", "dart", "diff", "docker", "dockerfile", "elixir", "elm", "erlang", "f#",
    "fish", "fortran", "fsharp", "go", "golang", "graphql", "groovy", "haskell", "hs", "html", "http", "ini", "java",
    "javascript", "js", "json", "jsonl", "jsx", "julia", "kotlin", "kt", "latex", "lisp", "lua", "make", "makefile",
    "math", "matlab", "mermaid", "nasm", "nim", "objc", "ocaml", "pascal", "perl", "php", "powershell", "prolog",
    "ps1", "pseudocode", "pycon", "r", "racket", "rb", "regex", "rs", "ruby", "rust", "scala", "scheme", "scss", "sh",
    "shell", "sol", "solidity", "sql", "swift", "tex", "toml", "ts", "tsx", "typescript", "vb", "verilog", "xml",
    "yaml", "yml", "zig", "zsh",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of code of a response."""

    code: str
    language: Language
    fenced: bool = True


@dataclass(slots=True)
class _Open:
    """A fence that isn't closed yet, or with no marker the prose between two."""

    margin: int
    marker: str = ""
    language: Language = ""
    quoted: bool = False
    lines: list[str] = field(default_factory=list)
    string: str = ""
    """The triple quotes of the string that the last line left open."""

    def add(self, line: str) -> None:
        if self.quoted:
            line = _QUOTE.sub("", line, count=1)
        blank = len(line) - len(line.lstrip(" \t"))
        self.lines.append(line[min(self.margin, blank) :])
        if self.language in ("python", "") and any(quotes in line for quotes in TRIPLE):
            self.string = string_left_open(line, self.string)

    def closes(self, line: str) -> bool:
        """Whether the line ends this block: its marker or more of it, not indented like the code of a function."""
        bare = (_QUOTE.sub("", line, count=1) if self.quoted else line).rstrip()
        marks = bare.lstrip(" \t")
        within = len(bare) - len(marks) < self.margin + 4
        return within and len(marks) >= len(self.marker) and set(marks) == {self.marker[0]}


def read_blocks(text: str) -> list[Block]:
    """All blocks in order: fenced ones, and the stretches of Python in the prose between them (`fenced` false).

    A block that isn't closed ends where its Python ends. Where the prompt opened the fence, the response begins within
    a block. Blocks of Markdown are read in their turn."""
    lines = [line.lstrip("\ufeff") for line in _LINES.split(text)]
    found: list[Block] = []
    current = _Open(0)
    last_of = {quotes: place for place, line in enumerate(lines) for quotes in TRIPLE if quotes in line}
    for place, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if current.string and last_of[current.string] >= place:
            current.add(line)  # a docstring may hold fences
        elif not current.marker:
            if fence is None:
                current.add(_one_line(line))
            elif not found and not fence[3].strip() and _begun_by_prompt(current.lines, lines[place + 1 :]):
                found.append(Block(_joined(_without_tag(current.lines)), "python"))
                current = _Open(0)
            else:
                found += _finished(current)
                current = _opened(fence)
        elif current.closes(line):
            found += _finished(current)
            current = _Open(0)
        elif fence is not None and _ends(current, fence):
            # A language begins the next block; anything else after the marks is prose.
            found += _finished(current)
            current = _opened(fence) if _word(fence[3]) else _Open(0)
        elif (last := _last_line(current, line)) is not None:
            current.add(last)
            found += _finished(current)
            current = _Open(0)
        else:
            current.add(line)
    if current.marker and current.language != "other":
        return [*found, *(Block(code, current.language) for code in segments(current.lines))]
    return [*found, *_finished(current)]


def _opened(fence: re.Match[str]) -> _Open:
    prefix = fence[1]
    quoted = prefix.lstrip().startswith(">")
    margin = len(_QUOTE.sub("", prefix, count=1)) if quoted else len(prefix)
    return _Open(margin, fence[2], _language(fence[3]), quoted)


def _finished(part: _Open) -> list[Block]:
    if not part.marker:
        return [Block(code, "", fenced=False) for code in segments(part.lines)]
    code = _joined(part.lines)
    inner = [block for block in read_blocks(code) if block.fenced] if part.language == "text" and "```" in code else []
    if inner:
        return inner
    return [Block(code, part.language)] if code.strip() else []


def _ends(part: _Open, fence: re.Match[str]) -> bool:
    """Whether a line with marks and words after them ends this block."""
    same = fence[2][0] == part.marker[0] and len(fence[2]) >= len(part.marker)
    return same and len(fence[1].expandtabs(4)) < part.margin + 4


def _last_line(part: _Open, line: str) -> str | None:
    """The code before marks at the end of a line (`return x```), if that is what the line holds."""
    bare = line.rstrip()
    ticks = len(bare) - len(bare.rstrip("`"))
    closed = part.marker[0] == "`" and ticks >= len(part.marker) and bare.count("`") == ticks
    return bare[:-ticks] if closed and bare[:-ticks].strip() else None


def _begun_by_prompt(before: list[str], after: list[str]) -> bool:
    """Whether the first fence of the text, between these lines, closes a block that the prompt opened."""
    opening = next((line for line in before if line.strip()), "")
    if not opening or (not is_code(opening) and _language(opening) != "python"):
        return False
    fences = [fence for line in after if (fence := _FENCE.fullmatch(line))]
    return len(fences) % 2 == 0 or bool(_word(fences[0][3]))


def _without_tag(lines: list[str]) -> list[str]:
    opening = next(place for place, line in enumerate(lines) if line.strip())
    return lines[opening + (_language(lines[opening]) == "python" and not is_code(lines[opening])) :]


def _one_line(line: str) -> str:
    """The code of a line that is a whole block (```python f = len```, `f = len`); any other line as it is."""
    block = _ONE_LINE.fullmatch(line)
    if block is None:
        return line
    tag, _, rest = block[2].partition(" ")
    code = rest.lstrip() if _language(tag) == "python" else block[2]
    return code if begins_code(code) else line


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _language(info: str) -> Language:
    word = _word(info)
    if word in _PYTHON or word.endswith(".py"):
        return "python"
    return "text" if word in _TEXT else "other" if word in _OTHERS else ""


def _word(info: str) -> str:
    """The language that an info string names (`python`, `{.python}`, `py title="a"`, `a.py`), or ""."""
    found = _WORD.match(info.strip().lstrip("{.").lower())
    word = found[0].rstrip(".") if found else ""
    alone = word in _PYTHON or word in _TEXT or word in _OTHERS or word.endswith(".py")
    return word if alone else ""
