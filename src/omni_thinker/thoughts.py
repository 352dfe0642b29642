"""Where the thoughts of a text end: the tags and channels in which models write them."""

import re
from itertools import chain

_NAMES = r"(?:seed:|longcat_)?(?:think|thinking|thought|thoughts|reasoning)"
_OTHERS = (
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
    ("◁think▷", "◁/think▷"),
)
CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
"""How harmony's thoughts and its answer begin."""
MARKS = (
    CHANNELS,
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "thoughts", "reasoning")),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    *_OTHERS,
)
"""(what begins thoughts, what ends them) of each form."""
_CLOSE = re.compile("|".join([rf"</{_NAMES}>", *(re.escape(close) for _, close in _OTHERS)]), re.IGNORECASE)
_OPEN = re.compile("|".join([rf"<{_NAMES}>", *(re.escape(open_) for open_, _ in _OTHERS)]), re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b")
_FIRST = {mark[0] for mark in chain(*MARKS)}


def split_thoughts(text: str) -> tuple[str, bool]:
    """(what isn't thought, whether thoughts begin that never end).

    Prompts may end inside of an open block, so a closing tag alone ends thoughts, too."""
    if _FIRST.isdisjoint(text):
        return text, False
    final = list(_FINAL.finditer(text))
    if final:
        return text[final[-1].end() :].partition("<|")[0], False
    if _CHANNEL.search(text):
        return "", True
    closed = list(_CLOSE.finditer(text))
    if closed:
        text = text[closed[-1].end() :]
    opened = _OPEN.search(text)
    return (text, False) if opened is None else (text[: opened.start()], True)


def names_thoughts(pattern: str) -> bool:
    """Whether a regular expression asks for marks of thoughts."""
    plain = pattern.replace("\\", "")
    return any(mark in plain for mark in chain(*MARKS))


def leading_thoughts(text: str) -> tuple[int, int, int] | None:
    """Of a text that begins with a block of thoughts: where their words begin and end, and where the answer begins.
    None where it doesn't, or where they never end: of a model that isn't known to think, that is an answer."""
    begin = len(text) - len(text.lstrip())
    if text[begin : begin + 1] not in _FIRST:
        return None
    opened = _OPEN.match(text, begin)
    closed = _CLOSE.search(text, opened.end()) if opened else None
    return None if opened is None or closed is None else (opened.end(), closed.start(), closed.end())
