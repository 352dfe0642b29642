"""What a server takes: servers that call themselves compatible differ in the parameters that they refuse."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from omni_thinker.recipe import EndpointSpec

_log = logging.getLogger(__name__)
_TOP_LOGPROBS = 20
"""Likeliest tokens asked for; the most that hosted servers tell."""
_DIGIT_TOKENS = 4
_REFUSES = re.compile(
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|not supported|n't support|not support|only the default|deprecated"
    r"|not allowed|not permitted|extra inputs|use 'max_completion_tokens'",
    re.IGNORECASE,
)
_ONLY_ONE = re.compile(r"only\b.{0,40}\b1(?:\.0)?\b", re.IGNORECASE)
_ABOUT_SCHEMAS = re.compile(r"response_format|json_schema|schema|structured|guided|grammar", re.IGNORECASE)

_ABOUT_OTHERS = re.compile(
    r"context.?length|too long|content.?(?:filter|management)|not exist|not found|stream", re.IGNORECASE
)


class Dialect:
    """The parameters of one endpoint's requests. What a server has refused once isn't sent again.

    A JSON schema is wanted where the recipe says so; with "auto" it is left out of a question for which it failed, and
    of all others where no reply with one has ever been read."""

    def __init__(self, spec: EndpointSpec) -> None:
        self._spec = spec
        self._limit = "max_tokens"
        self._temperature: float | None = spec.temperature
        self._logprobs = True
        self._schema = spec.structured != "text"
        self._schema_works = False

    def wants_schema(self, *, failed: bool) -> bool:
        """Whether a schema is sent. `failed`: a reply to this question with one was of no use."""
        return self._schema and not (failed and self._spec.structured == "auto")

    def arguments(self, text: str, schema: Mapping[str, Any] | None, *, digit: bool) -> dict[str, Any]:
        """The request's arguments, but for the model."""
        spec = self._spec
        most = min(spec.max_tokens, _DIGIT_TOKENS) if digit else spec.max_tokens
        sent: dict[str, Any] = {"messages": [{"role": "user", "content": text}], self._limit: most}
        if self._temperature is not None:
            sent["temperature"] = self._temperature
        if digit:
            sent |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if self._logprobs else {}
        elif schema is not None:
            sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        return sent

    def learn(self, sent: Mapping[str, Any], message: str) -> bool:
        """Whether a refusal of what was `sent` is about a parameter that can be done without, as it is from now on."""
        if not _REFUSES.search(message):
            return False
        if "max_tokens" in sent and re.search(r"\bmax_tokens\b", message):
            self._told(self._limit == "max_tokens", "max_completion_tokens is sent instead of max_tokens")
            self._limit = "max_completion_tokens"
            return True
        if "temperature" in sent and "temperature" in message:
            other = 1.0 if sent["temperature"] != 1.0 and _ONLY_ONE.search(message) else None
            how = "its own" if other is None else "1"
            self._told(self._temperature != other, f"it takes no temperature of {sent['temperature']:g}: {how} is used")
            self._temperature = other
            return True
        if "logprobs" in sent and "logprobs" in message:
            self._told(self._logprobs, "it has no log-probs, so its digit counts")
            self._logprobs = False
            return True
        return False

    def schema_refused(self, sent: Mapping[str, Any], status: int, message: str) -> bool:
        """Whether the same question is to be asked without its schema."""
        if "response_format" not in sent or self._spec.structured != "auto":
            return False
        if status in (400, 422):
            return _ABOUT_SCHEMAS.search(message) is not None or not _ABOUT_OTHERS.search(message)
        return status >= 500 and _ABOUT_SCHEMAS.search(message) is not None

    def worked(self, sent: Mapping[str, Any], *, after_schema_failed: bool) -> None:
        """The reply to what was `sent` could be read."""
        if "response_format" in sent:
            self._schema_works = True
        elif after_schema_failed and not self._schema_works:
            self._told(self._schema, "replies held to a JSON schema are of no use, so none is asked for")
            self._schema = False

    def _told(self, news: bool, what: str) -> None:
        if news:
            _log.warning("the judge at %s: %s", self._spec.base_url, what)
