"""Conversations and preferences: a judge compares with what somebody has written."""

from typing import Any

from omni_thinker.tasks.formats.base import Format, Unusable, Values, always
from omni_thinker.tasks.turns import is_turns, read_turns


def _chosen(values: Values) -> Values:
    """The better reply is the reference; where the prompt stands only in it, it is both."""
    changed = {"reference": _reply(values["reference"])}
    if values["prompt"] is values["reference"] and not is_turns(values["prompt"]):
        raise Unusable("prompt", "holds prompt and reply in one text; put the prompt into a column of its own")
    return changed


def _reply(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not is_turns(value):
        raise Unusable("reference", f"must be a text or a list of messages, got {type(value).__name__}")
    try:
        reply = read_turns(value).reply
    except ValueError as exc:
        raise Unusable("reference", str(exc)) from None
    if reply is None:
        raise Unusable("reference", "has no assistant turn")
    return reply


DPO = Format(
    "dpo",
    "columns `chosen` and `rejected`",
    {
        "prompt": ("prompt", "question", "instruction", "input", "chosen"),
        "reference": ("chosen",),
        "rejected": ("rejected",),
        "system": ("system", "system_prompt"),
    },
    ("prompt", "reference", "rejected"),
    marks=("reference", "rejected"),
    take=_chosen,
    reward=always("preference"),
)
MESSAGES = Format(
    "messages",
    "a list of messages (`messages`, `conversations`, `conversation`), of which the reply is the reference",
    {"prompt": ("messages", "conversations", "conversation")},
    ("prompt",),
    fits=lambda values: is_turns(values["prompt"]),
    reward=always("preference"),
)
