"""The program in a response: the block that defines what the tests ask for, and what that block needs of the others."""

import builtins
import keyword
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from omni_thinker.rewards.extract import without_thoughts
from omni_thinker.rewards.programs.blocks import Block, read_blocks
from omni_thinker.rewards.programs.lines import without_literals

LONGEST_TEXT = 100_000
"""Characters of a response that are read."""
WHOLE = "the whole text"
"""Where a program is in a response in which nothing looks like one."""
_MOST_BLOCKS = 500
_DEFINED = re.compile(
    r"^(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)[ \t]*[\[(:]|^(\w+)[ \t]*(?::[^=\n]*)?=[ \t]*lambda\b", re.MULTILINE
)
_ASSIGNED = re.compile(r"^([ \t]*)((?:\w+[ \t]*,[ \t]*)*\w+)[ \t]*(?::[^=\n]*)?=(?!=)", re.MULTILINE)
_NESTED = re.compile(r"^[ \t]+(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)", re.MULTILINE)
_IMPORTED = re.compile(r"^[ \t]*(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+(\([^)]*\)|[^\n;]*)", re.MULTILINE)
_ALIAS = re.compile(r"([\w.]+|\*)(?:[ \t]+as[ \t]+(\w+))?")
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[^\n]*\n", re.MULTILINE)
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")
_KNOWN = frozenset((*keyword.kwlist, *dir(builtins)))
_TEST = re.compile(r"(?i:test)|main$|check$")
_READS = re.compile(r"\binput\b|\bstdin\b|\bopen\(0\b|\bfileinput\b")
_WRITES = re.compile(r"\bprint\b|\bstdout\b")


@dataclass(frozen=True, slots=True)
class Solution:
    """A program, and in words for a score's reason where in the response it was."""

    program: str
    place: str


class _Piece:
    """A block, and what can be told of its names without parsing it."""

    def __init__(self, block: Block, number: int) -> None:
        self.block, self.number = block, number

    @cached_property
    def bare(self) -> str:
        return without_literals(self.block.code)

    @cached_property
    def defined(self) -> frozenset[str]:
        """Functions, classes and lambdas."""
        return frozenset(first or second for first, second in _DEFINED.findall(self.bare))

    @cached_property
    def imported(self) -> frozenset[str]:
        aliases = (alias for names in _IMPORTED.findall(self.bare) for alias in _ALIAS.findall(names))
        return frozenset(name or path.partition(".")[0] for path, name in aliases)

    @cached_property
    def _targets(self) -> list[tuple[str, str]]:
        """The indentation and the name of whatever is assigned."""
        return [(margin, name.strip()) for margin, names in _ASSIGNED.findall(self.bare) for name in names.split(",")]

    @cached_property
    def assigned(self) -> frozenset[str]:
        """Global values."""
        return frozenset(name for margin, name in self._targets if not margin)

    @cached_property
    def nested(self) -> frozenset[str]:
        """Functions and classes within others, or under a condition."""
        return frozenset(_NESTED.findall(self.bare))

    @cached_property
    def used(self) -> frozenset[str]:
        return frozenset(_NAME.findall(self.bare)) - _KNOWN

    @property
    def bound(self) -> frozenset[str]:
        """Names that it needs from nowhere else."""
        return self.defined | self.imported | self.nested | {name for _, name in self._targets}


def find_solution(text: str, wanted: Collection[str] = (), *, reads_input: bool = False) -> Solution:
    """The program in a response, thoughts left out. Works on the text alone: only the sandbox compiles it.

    wanted: what the tests take from it. The last block that defines most of that is the solution; of equals the last
    counts, and blocks of another language don't. What it uses and doesn't define is taken from other blocks.
    reads_input: without names, the last block that reads its input and prints. Without either: the last that defines
    something but tests. A response without fences is searched for stretches of Python."""
    text = without_thoughts(text)[:LONGEST_TEXT]
    pieces = [_Piece(block, 0) for block in read_blocks(text)[-_MOST_BLOCKS:]]
    wanted = frozenset(wanted)
    candidates: list[_Piece] = []
    for eligible in _eligible(pieces):
        if eligible and (not candidates or (not _defines(candidates, wanted) and _defines(eligible, wanted))):
            candidates = eligible
    if not candidates:
        return Solution(text.lstrip("\ufeff"), WHOLE)
    for number, piece in enumerate(candidates, 1):
        piece.number = number
    chosen = max(candidates, key=lambda piece: (_fit(piece, wanted, reads_input), piece.number))
    parts = _with_helpers(chosen, candidates, wanted)
    return Solution(_program(parts), _place(parts, candidates))


def _eligible(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Blocks that may hold the solution, the likeliest kind first."""
    yield [piece for piece in pieces if piece.block.fenced and piece.block.language in ("python", "")]
    yield [piece for piece in pieces if piece.block.language in ("python", "")]
    yield [piece for piece in pieces if piece.block.language != "other"]
    yield list(pieces)


def _defines(pieces: Sequence[_Piece], wanted: frozenset[str]) -> bool:
    return any(wanted & (piece.defined | piece.assigned | piece.imported | piece.nested) for piece in pieces)


def _fit(piece: _Piece, wanted: frozenset[str], reads_input: bool) -> tuple[int, ...]:
    if wanted:
        return len(wanted & piece.defined), len(wanted & (piece.assigned | piece.imported)), len(wanted & piece.nested)
    if reads_input:
        reads, writes = bool(_READS.search(piece.bare)), bool(_WRITES.search(piece.bare))
        return reads and writes, reads, writes, bool(piece.used)
    return (any(not _TEST.match(name) for name in piece.defined),)


def _with_helpers(chosen: _Piece, pieces: Sequence[_Piece], wanted: frozenset[str]) -> list[_Piece]:
    """The chosen block among those that define what it needs, in the order in which they run."""
    taken, queue = {chosen.number: chosen}, [chosen]
    missing = set(wanted)
    while queue:
        piece = queue.pop()
        missing = (missing | piece.used) - {name for one in taken.values() for name in one.bound}
        if not missing:
            continue
        # The nearest before it, else the nearest after it.
        for other in sorted(pieces, key=lambda p: (p.number > chosen.number, abs(p.number - chosen.number))):
            if other.number not in taken and _helps(other, missing, wanted):
                taken[other.number] = other
                queue.append(other)
                missing -= other.bound
    helpers = sorted((piece for piece in taken.values() if piece is not chosen), key=lambda piece: piece.number)
    late = [piece for piece in helpers if piece.number > chosen.number and piece.used & chosen.defined]
    return [*(piece for piece in helpers if piece not in late), chosen, *late]


def _helps(piece: _Piece, missing: Collection[str], wanted: frozenset[str]) -> bool:
    """Whether a block defines or imports something that is missing; plain values only where it isn't a use of the
    solution."""
    names = frozenset(missing)
    if names & piece.defined or names & piece.imported or ("*" in piece.imported and not piece.defined):
        return True
    return bool(names & piece.assigned) and not piece.used & wanted and not _READS.search(piece.bare)


def _program(parts: Sequence[_Piece]) -> str:
    code = [piece.block.code.lstrip("\ufeff") for piece in parts]
    if len(code) == 1:
        return code[0]
    # What a file must begin with stays at the beginning.
    future = "".join(line for text in code for line in _FUTURE.findall(text))
    return future + "\n".join(_FUTURE.sub("", text) for text in code)


def _place(parts: Sequence[_Piece], candidates: Sequence[_Piece]) -> str:
    numbers = sorted(piece.number for piece in parts)
    kind = "block" if any(piece.block.fenced for piece in parts) else "unfenced code,"
    shown = " + ".join(map(str, numbers[:5])) + (" + ..." if len(numbers) > 5 else "")
    return "unfenced code" if len(candidates) == 1 and kind != "block" else f"{kind} {shown} of {len(candidates)}"
