"""Bodies of status 200 that are no plain verdict: what servers send instead, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
Make = Callable[[Body, str], Body]


def _message(finish: str = "stop", **message: Any) -> Make:
    """The message changed; "{verdict}" in a text stands for the verdict as JSON."""

    def make(body: Body, verdict: str) -> Body:
        choice = body["choices"][0]
        choice["finish_reason"] = finish
        for key, value in message.items():
            choice["message"][key] = _filled(value, verdict)
        return body

    return make


def _filled(value: Any, verdict: str) -> Any:
    if isinstance(value, list):
        return [_filled(item, verdict) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, verdict) for key, item in value.items()}
    return value.replace("{verdict}", verdict) if isinstance(value, str) else value


def _error(**error: Any) -> Make:
    return lambda body, verdict: {"error": error}


def _spread(body: Body, verdict: str) -> Body:
    """Thoughts that say something else, prose, and JSON over several lines in a fence."""
    thoughts = '<think>\nPerhaps {"better": 0}?\n</think>\n'
    content = f"{thoughts}One is longer.\n\n```json\n{json.dumps(json.loads(verdict), indent=2)}\n```"
    return _message(content=content)(body, verdict)


READABLE: dict[str, Make] = {
    "spread": _spread,
    "parts": _message(
        content=[
            {"type": "thinking", "thinking": [{"type": "text", "text": '{"better": 0}'}]},
            {"type": "text", "text": "So.\n"},
            {"type": "text", "text": "{verdict}"},
        ]
    ),
    "own thoughts": _message(content="{verdict}", reasoning_content='Perhaps {"better": 0}?'),
    "end mark": _message(content="So.\n{verdict}<|im_end|>"),
}
"""Verdicts in other layouts."""

UNREADABLE: dict[str, tuple[Make, str, bool]] = {
    "cut thoughts": (_message("length", content="<think>\nThe form is\n{verdict}"), "cut off at its 256 tokens", False),
    "cut verdict": (_message("length", content="So.\n{verdict}"), "finish_reason = length", False),
    "cut at once": (_message("max_tokens", content=""), "finish_reason = max_tokens", False),
    "only long thoughts": (
        _message("length", content=None, reasoning_content="hm"), "thoughts took all of its 256 tokens", False,
    ),
    "open thoughts": (_message(content="<think>\nThe form is\n{verdict}"), "the judge's thoughts never end", True),
    "only thoughts": (_message(content=None, reasoning_content="{verdict}"), "only thoughts, no answer", True),
    "two verdicts": (_message(content='{verdict}\nIt claims {"better": 0}'), "several verdicts that differ", True),
    "words after": (_message(content="{verdict}\nThat is all I say."), "words after the verdict", True),
    "no verdict": (_message(content="Score: 8/10"), "no verdict: ...'Score: 8/10'", True),
    "null": (_message(content=None), "content is null", True),
    "empty": (_message(content=" "), "an empty reply", True),
    "filter": (_message("content_filter", content="{verdict}"), "a content filter held the reply back", False),
    "refusal": (_message(content=None, refusal="I can't judge that."), "the judge refused: I can't judge that.", False),
    "refusal part": (_message(content=[{"type": "refusal", "refusal": "No."}]), "the judge refused: No.", False),
    "tools": (_message("tool_calls", content=None, tool_calls=[]), "the judge called tools", False),
    "broken off": (_message("error", content="{verdict}"), "the server broke the reply off", True),
    "error": (_error(message="slow down", code="rate_limit"), "status 200 with an error: rate_limit: slow down", True),
    "error 429": (_error(message="too many", code=429), "status 200 with an error: 429: too many", True),
    "error 400": (_error(message="bad key", code=401), "status 200 with an error: 401: bad key", False),
    "error final": (_error(message="too long", type="invalid_request_error"), "invalid_request_error: too long", False),
    "error in choice": (
        lambda body, verdict: {**body, "choices": [{**body["choices"][0], "error": {"code": 502, "message": "gone"}}]},
        "status 200 with an error: 502: gone", True,
    ),
    "no choices": (lambda body, verdict: {**body, "choices": None}, "a reply without choices", True),
    "no message": (
        lambda body, verdict: {**body, "choices": [{**body["choices"][0], "message": None}]}, "without a message", True,
    ),
}  # fmt: skip
"""For each: the body, words of the error, and whether it is worth another attempt."""

REFUSALS: dict[str, tuple[Callable[[Body], bool], int, str]] = {
    "no max_tokens": (
        lambda sent: "max_tokens" in sent, 400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead.",
    ),
    "temperature 1": (
        lambda sent: sent.get("temperature") != 1, 400, "'temperature' does not support 0.0. Only 1 is supported.",
    ),
    "no temperature": (lambda sent: "temperature" in sent, 400, "temperature is deprecated for this model"),
    "no log-probs": (lambda sent: "logprobs" in sent, 400, "logprobs are not supported by this model"),
    "schema 500": (lambda sent: "response_format" in sent, 500, "guided json_schema decoding failed"),
    "schema 422": (lambda sent: "response_format" in sent, 422, "bad request"),
    "a new model": (
        lambda sent: "max_tokens" in sent or "temperature" in sent or "response_format" in sent, 400,
        "Unsupported parameters: max_tokens, temperature, response_format",
    ),
    "too long": (lambda sent: True, 400, "This model's maximum context length is 8192 tokens."),
}  # fmt: skip
"""For each: what a server doesn't take, its status and its words."""

OTHER_BODIES: dict[str, tuple[str, bytes, str, bool]] = {
    "html": ("text/html", b"<html>Bad gateway</html>", "a reply that isn't JSON: <html>Bad gateway</html>", True),
    "nothing": ("text/plain", b"", "an empty body", True),
    "events": ("text/event-stream", b'data: {"choices": []}\n\ndata: [DONE]\n\n', "streams events", False),
}
"""For each: its type, the bytes, words of the error, and whether it is worth another attempt."""
