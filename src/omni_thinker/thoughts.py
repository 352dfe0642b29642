"""Where the thoughts of a text end: the tags and channels in which models write them."""

import re

_NAMES = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning)"
_CLOSE = re.compile(rf"</{_NAMES}>|\[/THINK\]", re.IGNORECASE)
_OPEN = re.compile(rf"<{_NAMES}>|\[THINK\]", re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b")


def split_thoughts(text: str) -> tuple[str, bool]:
    """(what isn't thought, whether thoughts begin that never end).

    Prompts may end inside of an open block, so a closing tag alone ends thoughts, too."""
    if "<" not in text and "[" not in text:
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
