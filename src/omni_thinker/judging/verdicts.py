"""What a judge's reply says: a verdict, a ranking or points, or why it says none."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni_thinker.judging.endpoint.completion import CHANCES
from omni_thinker.thoughts import split_thoughts

_MOST_POINTS = 10
_LEAST_CHANCE = 0.01
"""Of a first token that is one of the two digits, below which their ratio is noise."""
_ONE_DIGIT = re.compile(r"""["'(\[*`]{0,3}([12])["')\]*`.:]{0,3}""")
_END = re.compile(r"(?:<\|[a-z_]{2,20}\|>|</s>|<eos>|<end_of_turn>)\Z")
_BEFORE = re.compile(r"[\s>*_`\ufeff]*(?:json)?[\s*_`]*", re.IGNORECASE)
_AFTER = re.compile(r"[\s.*_`]*")
_OPENING = re.compile(r"""\{\s*(?:"[^"\n]{0,80}"|'[^'\n]{0,80}')\s*:""")
_BRACE = re.compile(r"[{}]")
_LONGEST = 20_000
"""Characters of a reply, from its end, that are looked at."""


class NoVerdict(Exception):
    """A reply that says nothing that counts. The message is the cause."""


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object in a reply: its place, and whether nothing but markup shares its lines."""

    table: Mapping[str, Any]
    start: int
    end: int
    alone: bool


def read_verdict(reply: str) -> int:
    """1 or 2 for the better answer, 0 for neither. Raises NoVerdict."""
    value = _read(reply, "better")
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        return int(value)
    if _is_integer(value) and 0 <= value <= 2:
        return int(value)
    raise NoVerdict(f'"better" is {_shown(value)}, not 0, 1 or 2')


def read_ranking(reply: str, count: int) -> tuple[int, ...]:
    """The answers' numbers, 1 to `count`, best first. Raises NoVerdict where the reply doesn't name each once."""
    value = _read(reply, "ranking")
    if isinstance(value, list) and all(map(_is_integer, value)) and sorted(value) == list(range(1, count + 1)):
        return tuple(value)
    raise NoVerdict(f'"ranking" is {_shown(value)}, not each number from 1 to {count} once')


def read_points(reply: str, count: int) -> tuple[int, ...]:
    """Points from 1 to 10 for each of `count` criteria, in order. Raises NoVerdict."""
    value = _read(reply, "scores")
    points = isinstance(value, list) and all(_is_integer(v) and 1 <= v <= _MOST_POINTS for v in value)
    if points and len(value) == count:
        return tuple(value)
    raise NoVerdict(f'"scores" is {_shown(value)}, not {count} whole numbers from 1 to {_MOST_POINTS}')


def read_digit(reply: str) -> float:
    """P(first) - P(second) where the server told log-probs, else 1 or -1 by the digit of the text's first line, or by a
    verdict in words. Raises NoVerdict."""
    if reply.startswith(CHANCES):
        table = json.loads(reply.removeprefix(CHANCES))
        first, second = (float(table.get(digit, 0.0)) for digit in ("1", "2"))
        if first + second < _LEAST_CHANCE:
            raise NoVerdict(f"the judge's first token isn't 1 or 2 (their chance is {first + second:.2g})")
        return (first - second) / (first + second)
    # Small models go on after the digit that was asked for.
    match = _ONE_DIGIT.fullmatch(reply.strip().partition("\n")[0].strip())
    return lead(int(match[1]) if match else read_verdict(reply))


def lead(better: int) -> float:
    """By how much the first answer leads: 1 if it is better, -1 if the second is, 0 if neither."""
    return {0: 0.0, 1: 1.0, 2: -1.0}[better]


def _read(reply: str, key: str) -> Any:
    """What the reply's last JSON object with this key says.

    It must end the reply. A judge may quote what an answer says of itself: where objects differ, the last one counts
    only if it stands on lines of its own."""
    said, unfinished = split_thoughts(reply)
    if unfinished:
        raise NoVerdict("the judge's thoughts never end")
    text = said.strip()[-_LONGEST:]
    while ended := _END.search(text):
        text = text[: ended.start()].rstrip()
    if not text:
        raise NoVerdict("nothing after the judge's thoughts" if reply.strip() else "an empty reply")
    objects, broken = _objects(text)
    found = [item for item in objects if key in item.table]
    last = found[-1] if found else None
    if last is None or any(end is None or (last.start >= end and not last.alone) for _, end in broken):
        raise NoVerdict(("JSON that breaks off or is malformed" if broken else "no verdict") + _ending(text))
    if not _AFTER.fullmatch(text, last.end):
        raise NoVerdict("words after the verdict" + _ending(text))
    if not last.alone and any(item.table[key] != last.table[key] for item in found):
        raise NoVerdict("several verdicts that differ" + _ending(text))
    return last.table[key]


def _objects(text: str) -> tuple[list[_Object], list[tuple[int, int | None]]]:
    """The outermost JSON objects of a text, and (start, end) of what begins like one and is none; end None: never."""
    decode = json.JSONDecoder(strict=False, object_pairs_hook=_once_each).raw_decode
    found: list[_Object] = []
    broken: list[tuple[int, int | None]] = []
    opening = _OPENING.search(text)
    while opening:
        start = opening.start()
        try:
            table, end = decode(text, start)
            found.append(_Object(table, start, end, _alone(text, start, end)))
        except (ValueError, RecursionError):
            closed = _closed(text, start)
            broken.append((start, closed))
            end = closed or len(text)
        opening = _OPENING.search(text, end)
    return found, broken


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _closed(text: str, place: int) -> int | None:
    """Where the brace at `place` is closed if all braces count, those within strings, too."""
    depth = 0
    for brace in _BRACE.finditer(text, place):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def _alone(text: str, start: int, end: int) -> bool:
    line_end = text.find("\n", end)
    before, after = text[text.rfind("\n", 0, start) + 1 : start], text[end : line_end if line_end >= 0 else len(text)]
    return _BEFORE.fullmatch(before) is not None and _AFTER.fullmatch(after) is not None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _ending(text: str) -> str:
    return f": ...{' '.join(text[-200:].split())[-60:]!r}"
