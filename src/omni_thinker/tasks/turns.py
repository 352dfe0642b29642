"""Conversations in rows: lists of messages, which end with what the user asks or with the answer to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omni_thinker.types import Turn

_ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip
_ROLE_KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation. `user`: what is asked last, after the turns in `earlier`. `reply`: the answer to it. None: there
    is no such turn."""

    system: str | None
    user: str | None
    reply: str | None
    earlier: tuple[Turn, ...] = ()


def is_turns(value: Any) -> bool:
    """Whether a value is a list of messages, in OpenAI's names (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and _keys(turn) is not None for turn in value)
    )


def read_turns(value: Sequence[Mapping[str, Any]]) -> Turns:
    """The turns of a conversation. Raises ValueError for any but [system,] user, assistant, user, ... by turns, or one
    reply alone."""
    said = [_said(turn, place) for place, turn in enumerate(value)]
    system = said.pop(0)[1] if said[0][0] == "system" else None
    first = len(value) - len(said)
    lone = [role for role, _ in said] == ["assistant"]
    for place, (role, _) in enumerate(said):
        if role == "system":
            raise ValueError(f"turn {first + place} is a system turn; only the first can be")
        if role != ("user", "assistant")[place % 2] and not lone:
            raise ValueError(
                f"turn {first + place} is the {role}'s, and so was the one before" if place
                else f"turn {first} is the assistant's; the user begins"
            )  # fmt: skip
    reply = said.pop()[1] if said and said[-1][0] == "assistant" else None
    user = said.pop()[1] if said else None
    earlier = tuple(Turn("user" if role == "user" else "assistant", text) for role, text in said)
    return Turns(system, user, reply, earlier)


def _said(turn: Mapping[str, Any], place: int) -> tuple[str, str]:
    role_key, content_key = _keys(turn) or _ROLE_KEYS[0]
    role = _ROLES.get(str(turn[role_key]).lower())
    if role is None:
        known = "system, user, assistant"
        raise ValueError(f"turn {place} has the role {str(turn[role_key])!r:.40}; the roles are {known}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError(f"turn {place} calls a tool, which no answer here can")
    return role, _text(turn.get(content_key), place)


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((keys for keys in _ROLE_KEYS if keys[0] in turn), None)


def _text(content: Any, place: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"turn {place} holds something besides text")
    return "".join(str(text) for text in texts)
