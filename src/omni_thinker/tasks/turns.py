"""Conversations in rows: lists of messages, of which a problem takes one user turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip
_ROLE_KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation of at most one exchange. None: there is no such turn."""

    system: str | None
    user: str | None
    reply: str | None


def is_turns(value: Any) -> bool:
    """Whether a value is a list of messages, in OpenAI's names (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and _keys(turn) is not None for turn in value)
    )


def read_turns(value: Sequence[Mapping[str, Any]]) -> Turns:
    """The turns of a conversation. Raises ValueError for any but [system,] [user,] [assistant], each at most once."""
    texts: dict[str, str] = {}
    order = ("system", "user", "assistant")
    for place, turn in enumerate(value):
        role_key, content_key = _keys(turn) or _ROLE_KEYS[0]
        role = _ROLES.get(str(turn[role_key]).lower())
        if role is None:
            raise ValueError(f"turn {place} has the role {str(turn[role_key])!r:.40}; the roles are {', '.join(order)}")
        if role in texts:
            raise ValueError(
                f"holds {_count(value, role)} {role} turns; a problem has one exchange for now, so split the rows"
            )
        if any(later in texts for later in order[order.index(role) :]):
            raise ValueError(f"turn {place} is a {role} turn that follows a later one; the order is {', '.join(order)}")
        texts[role] = _text(turn.get(content_key), place)
    return Turns(*(texts.get(role) for role in order))


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((keys for keys in _ROLE_KEYS if keys[0] in turn), None)


def _count(value: Sequence[Mapping[str, Any]], role: str) -> int:
    return sum(_ROLES.get(str(turn[(_keys(turn) or _ROLE_KEYS[0])[0]]).lower()) == role for turn in value)


def _text(content: Any, place: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"turn {place} holds something besides text")
    return "".join(str(text) for text in texts)
