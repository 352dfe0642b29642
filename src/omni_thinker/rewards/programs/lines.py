"""Which lines of a text without fences are Python. Works on the text alone: nothing here parses a program."""

import keyword
import re
from collections.abc import Iterator, Sequence

_KEYWORDS = "|".join((*keyword.kwlist, "match", "case", "type"))
_LITERAL = re.compile(
    r"[A-Za-z]{0,2}(?:'''[\s\S]*?(?:'''|\Z)|\"\"\"[\s\S]*?(?:\"\"\"|\Z)|'(?:\\.|[^'\\\n])*'?|\"(?:\\.|[^\"\\\n])*\"?)|#[^\n]*"
)
# No Python has two operands side by side with nothing between them, and nearly every sentence has.
_SENTENCE = re.compile(rf"(?:\b(?!(?:{_KEYWORDS})\b)\w+|[)\]}}])[ \t]+(?!(?:{_KEYWORDS})\b)\w")
_MARKUP = re.compile(r"(?:\[/?[A-Z]+\]$|[-*+>|][ \t]|\*\*|`|<|\||\d+[.)])")
_DEFINITION = r"(?:async[ \t]+def|def|class)[ \t]+\w+[ \t]*[\[(:]"
_IMPORT = r"import[ \t]+[A-Za-z_][\w.]*[ \t]*(?:$|[,;\\]|as\b)|from[ \t]+[\w.]+[ \t]+import\b"
_TYPE = (
    r"[ \t]*:[ \t]*(?:[A-Z,]|[a-z_]\w*\.|(?:int|float|complex|bool|str|bytes|list|tuple|set|frozenset|dict|object)\b)"
)
_ASSIGNMENT = rf"[A-Za-z_(\[*][\w.,*()\[\] \t+-]*(?:{_TYPE}[^=]*)?(?:\*\*|//|>>|<<|[-+*/%&|^@])?=(?!=)"
_BLOCK = (
    r"(?:async[ \t]+)?(?:if|elif|for|while|with|match|case|except)\b.*[:(\[{\\,]|(?:try|else|finally|except)[ \t]*:"
)
_STATEMENT = r"(?:assert|raise|del|global|await|pass)\b"
_EXPRESSION = r"[A-Za-z_]\w*(?:\.\w+)*[ \t]*[(\[]|[(\[{]"
_FIRST = re.compile(rf"{_DEFINITION}|{_IMPORT}|@[A-Za-z_]|{_ASSIGNMENT}")
_ANY = re.compile(rf"{_DEFINITION}|{_IMPORT}|@[A-Za-z_]|{_ASSIGNMENT}|{_BLOCK}|{_STATEMENT}|{_EXPRESSION}|[)\]}},.]")
_OPENING, _CLOSING = "([{", ")]}"
_LONGEST_LINE = 400
"""Characters of a line that are looked at: enough to know a statement, and few enough for any pattern."""


def without_literals(code: str) -> str:
    """The code with a comma in place of every string, and without comments."""
    return _LITERAL.sub(lambda match: "" if match[0].startswith("#") else ",", code)


def segments(lines: Sequence[str]) -> Iterator[str]:
    """The stretches of Python among lines of prose, their common indentation removed, in order.

    A stretch begins at a line that looks like Python. It ends before the first line that is indented no deeper and
    doesn't. Stretches of nothing but comments are left out."""
    place = 0
    while place < len(lines):
        if not _begins(lines[place]):
            place += 1
            continue
        end = _end(lines, place)
        margin = _indentation(lines[place])
        code = "\n".join(line[min(margin, _indentation(line)) :] for line in lines[place:end]).rstrip() + "\n"
        if without_literals(code).strip():
            yield code
        place = end


def is_code(line: str) -> bool:
    """Whether a line that isn't indented can be Python: a statement, a comment, or the end of one of several lines."""
    bare = without_literals(line[:_LONGEST_LINE]).strip()
    if not bare:
        return True
    return not _MARKUP.match(bare) and not _SENTENCE.search(bare) and _ANY.match(bare) is not None


def begins_code(line: str) -> bool:
    """Whether a line can hardly be anything but Python: a definition, an import, an assignment."""
    return is_code(line) and _FIRST.match(line[:_LONGEST_LINE]) is not None


def _begins(line: str) -> bool:
    bare = line.strip()
    if not bare or not is_code(bare) or bare[0] in ")]}.,":
        return False
    return not line[0].isspace() or begins_code(bare)


def _end(lines: Sequence[str], start: int) -> int:
    """Where the stretch that begins at `start` ends: its last line, plus one."""
    margin, depth, quote = _indentation(lines[start]), 0, ""
    continued = False
    end = start
    for place in range(start, len(lines)):
        line = lines[place]
        inside = bool(quote) or depth > 0 or continued
        if not inside and line.strip():
            indented = _indentation(line)
            if indented < margin or (indented == margin and not is_code(line.strip())):
                break
        depth, quote = _open(line, depth, quote)
        continued = line.endswith("\\")
        if line.strip():
            end = place + 1
    return end


TRIPLE = ("'''", '"""')
_TOKEN = re.compile(r"'''|\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\\.|#.*|[(\[{)\]}]")


def _open(line: str, depth: int, quote: str) -> tuple[int, str]:
    """How many brackets, and which triple quotes, are open after the line."""
    place = 0
    while place < len(line):
        if quote:
            closing = line.find(quote, place)
            if closing < 0:
                return depth, quote
            place, quote = closing + 3, ""
            continue
        token = _TOKEN.search(line, place)
        if token is None:
            break
        place = token.end()
        text = token[0]
        if text in TRIPLE:
            quote = text
        elif text in _OPENING:
            depth += 1
        elif text in _CLOSING:
            depth = max(0, depth - 1)
    return depth, quote


def string_left_open(line: str, string: str) -> str:
    """The triple quotes of the string that is open after the line; `string` before it. Prose opens none."""
    return _open(line, 0, string)[1] if string or is_code(line.strip()) else ""


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))
