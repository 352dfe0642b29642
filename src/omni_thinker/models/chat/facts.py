"""What a template does, found by rendering short conversations with it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from omni_thinker.errors import UserError
from omni_thinker.models.chat.render import Message, Refused, Renderer

WORD, ANSWER = "omnithinker", "omnianswer"
"""Stand in for the words of the user and of the assistant."""
USER: Message = {"role": "user", "content": WORD}
REPLY: Message = {"role": "assistant", "content": ANSWER}
_DAYS = ("2003-02-01", "2019-10-28")
_TIMES = 8
"""How often a prompt is written again, to see whether it is the same: a choice among two is then seen but once in 256
times."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What closes the assistant's turn.

    text: what the template writes for it, "" where it writes nothing. token: an id that comes after it, None where the
    text is all. cut: what the template writes after the turn, which a model never says. stop_text: what ends an answer
    where no token does."""

    text: str
    token: int | None
    cut: str
    stop_text: str | None


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """What is known about a template and its tokenizer.

    turn_end: tokens that close the assistant's turn. stop_ids: tokens that end an answer. stop_text: a text that does,
    where the turn ends with no special token. system: whether it takes a system turn; `own`: it does, and writes words
    of its own without one. prints_date: whether prompts depend on the date. prefix_holds: whether a prompt is the
    beginning of the same conversation with its answer. bos: who writes the first token: the template, nobody though the
    `tokenizer` would for plain text, or `none` is known. generation_prompt: what comes between the user's turn and the
    answer."""

    turn_end: tuple[int, ...]
    stop_ids: tuple[int, ...]
    stop_text: str | None
    system: Literal["yes", "none", "own"]
    prints_date: bool
    prefix_holds: bool
    bos: Literal["template", "tokenizer", "none"]
    generation_prompt: str


def check_plain(renderer: Renderer) -> str:
    """The plainest prompt; finds out in which form the template takes words. Raises UserError where it takes none."""
    try:
        text = renderer.render([USER], generate=True)
        if WORD not in text:
            renderer.in_parts = True
            text = renderer.render([USER], generate=True)
    except Refused as exc:
        raise UserError(f"its chat template fails: {exc}", file=renderer.where) from None
    if WORD not in text:
        raise UserError("its chat template leaves out what the user says", file=renderer.where)
    if any(renderer.attempt([USER]) != text for _ in range(_TIMES)):
        said = "its chat template writes one chat in several ways, so prompts would differ from run to run"
        raise UserError(f"{said}; leave out what is random in it", file=renderer.where)
    return text


def system_support(renderer: Renderer) -> Literal["yes", "none", "own"]:
    """Whether the template takes a system turn (see ChatFacts)."""
    system = {"role": "system", "content": f"{WORD}-system"}
    rendered = renderer.attempt([system, USER])
    if rendered is None or system["content"] not in rendered or rendered.count(WORD) < 2:
        return "none"  # or it takes the place of the user's
    bare, empty = renderer.attempt([USER]), renderer.attempt([{**system, "content": ""}, USER])
    # Longer without a system turn than with an empty one: the template fills in its own.
    return "own" if bare is not None and empty is not None and len(bare) > len(empty) else "yes"


def prints_date(renderer: Renderer) -> bool:
    """Whether what the template writes depends on the date."""
    one, other = map(renderer.on, _DAYS)
    system = {"role": "system", "content": WORD}
    chats: list[list[Message]] = [[USER], [system, USER], [USER, REPLY, USER]]
    return any(one.attempt(chat) != other.attempt(chat) for chat in chats)


def generation_prompt(renderer: Renderer) -> str:
    """What `add_generation_prompt` adds; where it changes more than that, all that follows the user's words."""
    with_it, without = renderer.attempt([USER]), renderer.attempt([USER], generate=False)
    if with_it is None:
        return ""
    if without is not None and with_it.startswith(without):
        return with_it[len(without) :]
    return with_it.rpartition(WORD)[2]


def turn_end(renderer: Renderer, ends: Iterable[int]) -> TurnEnd:
    """What closes the assistant's turn. `ends`: tokens that end a text, of which the tokenizer's comes first."""
    ends = tuple(ends)
    whole = renderer.attempt([USER, REPLY], generate=False) or ""
    last = whole.rpartition(ANSWER)[2] if ANSWER in whole else ""
    # What follows the same turn where it isn't the last: a template may close conversations besides turns.
    longer = renderer.attempt([USER, REPLY, USER], generate=False) or ""
    middle = longer.rpartition(ANSWER)[2] if ANSWER in longer else last
    special = _special(renderer, ends)
    marks = _marks(last, special)
    if marks:
        closing = marks[: next((place + 1 for place, mark in enumerate(marks) if special[mark] in ends), len(marks))]
        both = zip(closing, _marks(middle, special), strict=False)
        shared = [mark for mark, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
        text = _through(last, shared or closing)
        return TurnEnd(text, None, last[len(text) :], None)
    if text := last.rstrip():
        return TurnEnd(text, None, last[len(text) :], text.strip())
    following = _marks(middle, special)[:1]
    if following and special[following[0]] in ends and middle.lstrip().startswith(following[0]):
        return TurnEnd("", special[following[0]], last, None)  # the next turn's first token is what ends this one
    return TurnEnd("", next(iter(ends), None), last, None)


def _special(renderer: Renderer, ends: Sequence[int]) -> dict[str, int]:
    """Tokens that are marked special in the vocabulary, and those that end a text, by what they look like."""
    # The end of a turn need not be among the tokens that have a name.
    added = renderer.tokenizer.added_tokens_decoder
    special = {str(token.content): number for number, token in added.items() if token.special}
    named: list[str | None] = list(renderer.tokenizer.convert_ids_to_tokens(list(ends)))
    return special | {name: number for name, number in zip(named, ends, strict=True) if name}


def _marks(text: str, special: Iterable[str]) -> list[str]:
    """The special tokens that stand in a text, in order; of two at one place the longer."""
    found, at = list[str](), 0
    longest_first = sorted(special, key=len, reverse=True)
    while True:
        places = [(place, -len(mark), mark) for mark in longest_first if (place := text.find(mark, at)) >= 0]
        if not places:
            return found
        place, _, mark = min(places)
        found.append(mark)
        at = place + len(mark)


def _through(text: str, marks: Sequence[str]) -> str:
    """The text up to the end of the last of `marks`, which stand in it in this order."""
    at = 0
    for mark in marks:
        at = text.index(mark, at) + len(mark)
    return text[:at]
