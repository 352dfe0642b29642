"""What a completion says, or why it says nothing."""

import json
import math
from collections.abc import Mapping
from typing import Any

from omni_thinker.judging.endpoint.causes import NoReply, TryAgain, short

CHANCES = "\0chances "
"""How the text of a reply begins that holds the first token's probabilities instead of words."""
MOST_EMPTY = 3
"""Attempts at a question whose replies are empty or can't be read: a server that is at fault seldom is again."""
RETRIED = (408, 409, 425, 429)
"""Statuses below 500 that may pass."""
_MOST_TOKENS = 1 << 40
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length", "max_length")
_FILTERED = (
    "content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation", "blocklist",
    "prohibited_content", "spii", "sensitive",
)  # fmt: skip
_BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource")
_TOOLS = ("tool_calls", "tool_use", "function_call")
_FINAL_ERRORS = (
    "invalid_request_error", "authentication_error", "permission_error", "permission_denied", "not_found_error",
    "context_length_exceeded", "content_filter", "model_not_found", "insufficient_quota", "invalid_api_key",
)  # fmt: skip
"""Codes and types of errors that asking again doesn't mend."""


def text_of(completion: Any, *, digit: bool, max_tokens: int) -> str:
    """The text of the first choice. `digit`: its first token's probabilities, where the server sent them.

    Raises NoReply or TryAgain, whose message names the cause, for whatever is no whole reply."""
    choice = _choice(completion)
    finish = str(getattr(choice, "finish_reason", None) or "").casefold()
    message = getattr(choice, "message", None)
    if message is None:
        raise TryAgain("a choice without a message")
    words, refused = _words(getattr(message, "content", None))
    refused = refused or getattr(message, "refusal", None)
    if refused:
        raise NoReply(f"the judge refused: {short(refused)}")
    if finish in _FILTERED:
        raise NoReply(f"a content filter held the reply back (finish_reason = {finish})")
    if finish in _BROKEN_OFF:
        raise TryAgain(f"the server broke the reply off (finish_reason = {finish})")
    chances = _chances(choice) if digit else None
    if chances is not None:
        return chances
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if finish in _CUT and not (digit and words.strip()):
        raise NoReply(_cut_off(finish, bool(thoughts), digit, max_tokens))
    if words.strip():
        # Half a surrogate pair is no text, and a reply never passes for log-probs.
        return words.lstrip("\0").encode("utf-8", "replace").decode()
    if finish in _TOOLS or getattr(message, "tool_calls", None):
        raise NoReply("the judge called tools instead of answering")
    if thoughts:
        raise TryAgain(
            "only thoughts, no answer: does the server know how this model thinks?", wait=0.0, most=MOST_EMPTY
        )
    empty = "an empty reply" if getattr(message, "content", None) is not None else "a reply whose content is null"
    raise TryAgain(empty, wait=0.0, most=MOST_EMPTY)


def counted(completion: Any) -> tuple[int, int] | None:
    """Tokens in and out as the server counted them, None where it doesn't."""
    usage = getattr(completion, "usage", None)
    if not usage:
        return None
    sent, answered = (min(_MOST_TOKENS, max(0, int(n))) for n in (usage.prompt_tokens, usage.completion_tokens))
    return sent, answered


def _choice(completion: Any) -> Any:
    if isinstance(completion, str):  # what the SDK makes of a body that isn't called JSON
        if completion.lstrip().startswith(("data:", "event:")):
            raise NoReply("the server streams events though none were asked for")
        raise TryAgain(f"a reply that isn't JSON: {short(completion)}" if completion.strip() else "an empty body")
    if error := _error(completion):
        raise error
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise TryAgain("a reply without choices")
    if error := _error(choices[0]):
        raise error
    return choices[0]


def _error(part: Any) -> NoReply | None:
    """What an error inside of a reply of status 200 stands for."""
    error = getattr(part, "error", None)
    if not error:
        return None
    table: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}
    names = [str(table[key]) for key in ("code", "type") if table.get(key) is not None]
    why = f"status 200 with an error: {short(': '.join([*names[:1], str(table.get('message', error))]))}"
    statuses = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) == 3]
    final = any(400 <= status < 500 and status not in RETRIED for status in statuses)
    if final or (not statuses and any(name in _FINAL_ERRORS for name in names)):
        return NoReply(why, worked=False)
    return TryAgain(why, worked=False)


def _words(content: Any) -> tuple[str, str | None]:
    """(the text of a message's content, a refusal among its parts). Content may be a list of parts; thoughts are none
    of the text."""
    if isinstance(content, str):
        return content, None
    words, refused = [], None
    for part in content if isinstance(content, list) else []:
        table = part if isinstance(part, Mapping) else {}
        if isinstance(part, str):
            words.append(part)
        elif table.get("type") in ("text", "output_text") and isinstance(table.get("text"), str):
            words.append(table["text"])
        elif table.get("type") == "refusal":
            refused = str(table.get("refusal") or "no reason given")
    return "".join(words), refused


def _cut_off(finish: str, thoughts: bool, digit: bool, max_tokens: int) -> str:
    if digit:
        return f'no digit before the limit (finish_reason = {finish}); a judge that thinks needs verdict = "text"'
    what = "the judge's thoughts took all of" if thoughts else "the reply was cut off at"
    return f"{what} its {max_tokens} tokens (finish_reason = {finish}); raise judge.endpoint.max_tokens"


def _chances(choice: Any) -> str | None:
    """CHANCES and {token: probability} of the first token, as JSON; None where the server tells no log-probs.

    Written as text, so that a cache holds it like any reply. Spellings that differ in white space are one token."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    if not content:
        return None
    chances: dict[str, float] = {}
    for option in content[0].top_logprobs or []:
        token = option.token.strip()
        chances[token] = chances.get(token, 0.0) + math.exp(min(0.0, float(option.logprob)))
    finite = {token: chance for token, chance in chances.items() if math.isfinite(chance)}
    return CHANCES + json.dumps(finite) if finite else None
