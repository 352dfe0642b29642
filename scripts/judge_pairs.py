"""Pairs for the judge's training: a text of the model at full strength, and one that is worse by how it was made.

No human label: what was sampled hot, by fewer layers or for another request, and what was damaged, is the worse one.
Lengths are matched: among the pairs of every kind the better text is as often the longer one as the shorter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"((?<=[.!?])\s+|\n+)")
_EMPTY_WORDS = (
    "I'm sorry, but I can't help with that.",
    "This is an interesting question. There are many things that could be said about it.",
    "Sure! Here it is:",
    "I am not sure what you mean. Could you please tell me more?",
    "As an AI language model, I do not have personal opinions or experiences.",
    "It is important to note that everyone is different. Some people think one thing and some think another.",
    "N/A",
    "Thank you for your message. I hope this helps! Let me know if you need anything else.",
    "No output.",
    "Yes.",
)


@dataclass(frozen=True)
class Drawn:
    """What was sampled for one request: twice at full strength, once hot, once with layers left out."""

    frame: int
    request: str
    good: str
    good_again: str
    hot: str
    shallow: str


@dataclass(frozen=True)
class Pair:
    kind: str
    request: str
    better: str
    worse: str


Damage = Callable[[random.Random, Drawn, str, Sequence[Drawn]], str | None]
"""(rng, what was drawn, the good text of it, everything drawn) -> a worse text, or None where there is none."""


def _off_topic(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    other = rng.choice(drawn)
    return other.good_again if other is not own else None


def _near_miss(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    """An answer to a request of the same frame: right in form, wrong in matter."""
    others = [other for other in drawn if other.frame == own.frame and other.request != own.request]
    return rng.choice(others).good_again if others else None


def _repeated(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    parts = sentences(good)
    if len(parts) < 2:
        return None
    said = parts[: rng.randint(1, max(1, len(parts) // 2))]
    while len(" ".join(said)) < len(good):
        said = said + said
    return " ".join(said)


def _words_shuffled(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    words = good.split()
    if len(words) < 5:
        return None
    size = rng.choice([3, 5, len(words)])
    for begin in range(0, len(words), size):
        window = words[begin : begin + size]
        rng.shuffle(window)
        words[begin : begin + size] = window
    return " ".join(words)


def _sentences_shuffled(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    parts = sentences(good)
    return " ".join(rng.sample(parts, len(parts))) if len(parts) > 3 else None


def _echo(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    """The request or its matter, instead of an answer."""
    return own.request.split("\n\n")[-1] if rng.random() < 0.6 else own.request


def _dull(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    return " ".join(rng.sample(_EMPTY_WORDS, rng.randint(1, 3)))


def _words_swapped(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    """Half of the longer words come from another answer: fluent in shape, wrong in matter."""
    words = good.split()
    foreign = [word for word in rng.choice(drawn).good_again.split() if len(word) > 4]
    if len(words) < 6 or len(foreign) < 4:
        return None
    return " ".join(rng.choice(foreign) if len(word) > 4 and rng.random() < 0.5 else word for word in words)


def _cut(rng: random.Random, own: Drawn, good: str, drawn: Sequence[Drawn]) -> str | None:
    words = good.split()
    return " ".join(words[: rng.randint(3, int(len(words) * 0.8))]) if len(words) >= 8 else None


KINDS: Mapping[str, tuple[float, Damage]] = {
    "hot": (1.0, lambda rng, own, good, drawn: own.hot),
    "shallow": (1.0, lambda rng, own, good, drawn: own.shallow),
    "off-topic": (0.5, _off_topic),
    "near miss": (1.0, _near_miss),
    "repeated": (0.5, _repeated),
    "words shuffled": (0.25, _words_shuffled),
    "sentences shuffled": (0.25, _sentences_shuffled),
    "echo": (0.35, _echo),
    "dull": (0.35, _dull),
    "words swapped": (0.5, _words_swapped),
    "cut": (0.25, _cut),
}
"""Each way of being worse, and how many pairs of it a good text gives."""
_SHORTENED = 0.5
"""Share of pairs of which both texts are cut to their beginning: people's requests often want one sentence."""


def make_pairs(drawn: Sequence[Drawn], seed: int, passes: int = 2) -> list[Pair]:
    """Pairs of all kinds, shuffled; `passes` times through what was drawn."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    for kind, (share, damage) in KINDS.items():
        found = [
            pair
            for _ in range(passes)
            for own in drawn
            if rng.random() < share and (pair := _pair(rng, kind, damage, own, drawn)) is not None
        ]
        longer = [pair for pair in found if len(pair.better) > len(pair.worse)]
        shorter = [pair for pair in found if len(pair.better) <= len(pair.worse)]
        count = min(len(longer), len(shorter))
        pairs += rng.sample(longer, count) + rng.sample(shorter, count)
    rng.shuffle(pairs)
    return pairs


def _pair(rng: random.Random, kind: str, damage: Damage, own: Drawn, drawn: Sequence[Drawn]) -> Pair | None:
    good = rng.choice([own.good, own.good_again])
    if _loops(good) or good.strip() in own.request:
        return None
    bad = damage(rng, own, good, drawn)
    if not bad or not bad.strip():
        return None
    if rng.random() < _SHORTENED:
        share = rng.uniform(0.15, 0.5)
        good, bad = shorten(good, share) or good, shorten(bad, share) or bad
    matched = _match(rng, good, bad)
    if matched is None or len(matched[0]) <= 5 or matched[0].strip() == matched[1].strip():
        return None
    return Pair(kind, own.request, *matched)


def _match(rng: random.Random, good: str, bad: str) -> tuple[str, str] | None:
    """Cut one of the two at a sentence's end, so that a coin decides which is the longer one."""
    good_is_longer = rng.random() < 0.5
    long, short = (good, bad) if good_is_longer else (bad, good)
    if len(long) > len(short):
        return good, bad
    cut = shorten(short, len(long) / len(short) * rng.uniform(0.6, 1.0))
    if cut is None or len(cut) >= len(long):
        return None
    return (good, cut) if good_is_longer else (cut, bad)


def sentences(text: str) -> list[str]:
    """Its sentences and lines."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part and part.strip()]


def shorten(text: str, share: float) -> str | None:
    """Its beginning up to the sentence's end nearest to `share` of its length; None for a single sentence."""
    parts = _SENTENCE_END.split(text.strip())
    beginnings = ["".join(parts[:end]).strip() for end in range(1, len(parts), 2)]
    beginnings = [beginning for beginning in beginnings if beginning and len(beginning) < 0.98 * len(text)]
    return min(beginnings, key=lambda beginning: abs(len(beginning) - share * len(text)), default=None)


def _loops(text: str) -> bool:
    """Whether a text goes in circles: too many of its three-word runs occur more than once."""
    words = text.split()
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(runs) < 10 or len(set(runs)) < 0.75 * len(runs)
