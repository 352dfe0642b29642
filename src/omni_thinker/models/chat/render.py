"""Rendering: from messages to text, with the template's options and a fixed date."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerBase as Tokenizer

from omni_thinker.errors import UserError
from omni_thinker.models.chat.dates import today, with_date
from omni_thinker.plugins import did_you_mean

OPTIONS = "model.template_options"
Message = Mapping[str, str]
_FOR_TEMPLATES = ("tools", "documents", "kwargs")
"""Arguments of `apply_chat_template` that are the template's own."""


class Refused(Exception):
    """The template raised: it has no words for such messages."""


class Renderer:
    """One template with its options. `where`: what it is part of, for messages."""

    def __init__(self, tokenizer: Tokenizer, options: Mapping[str, Any], day: str, where: object) -> None:
        """`day`: the date that it prints, as YYYY-MM-DD; empty for today. Raises UserError for a tokenizer without a
        template, and for options that the template doesn't have."""
        self.tokenizer, self.options, self.day, self.where = tokenizer, dict(options), day or today(), where
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template; add chat_template.jinja, use an instruct model, or set "
                "model.chat_template",
                file=where,
            )
        try:
            self.template: str = tokenizer.get_chat_template(None, self.options.get("tools"))
        except ValueError as exc:  # several templates, none of which is the default
            raise UserError(f"can't choose among its chat templates: {exc}", file=where) from None
        self._dated = with_date(self.template, self.day, repr(self.options))
        self.in_parts = False
        """Whether what somebody says is a list of parts, as for models that also see and hear."""
        self._check_options()

    def on(self, day: str) -> "Renderer":
        """The same template on another date."""
        other = Renderer(self.tokenizer, self.options, day, self.where)
        other.in_parts = self.in_parts
        return other

    def render(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The messages as text; with `generate` up to where the assistant begins. Raises Refused."""
        try:
            text = self.tokenizer.apply_chat_template(
                [self._message(message) for message in messages],
                chat_template=self._dated,
                tokenize=False,
                add_generation_prompt=generate,
                **self.options,
            )
        except TemplateSyntaxError as exc:
            raise Refused(f"{type(exc).__name__}: {exc.message} (line {exc.lineno})") from None
        except SecurityError as exc:
            raise Refused(f"{type(exc).__name__}: {exc}") from None
        except Exception as exc:  # the template is a program of the model's author; anything may go wrong in it
            hint = "" if isinstance(exc, RecursionError) else f"; what a template needs to be given goes into {OPTIONS}"
            raise Refused(f"{type(exc).__name__}: {exc}{hint}") from None
        if not isinstance(text, str):
            raise Refused(f"it gave {type(text).__name__}, not text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise Refused(f"it gave half a character, {text[exc.start]!r}, which no token stands for") from None
        return text

    def _message(self, message: Message) -> dict[str, Any]:
        content = message["content"]
        return {**message, "content": [{"type": "text", "text": content}] if self.in_parts else content}

    def attempt(self, messages: Sequence[Message], *, generate: bool = True) -> str | None:
        """As `render`; None where the template refuses."""
        try:
            return self.render(messages, generate=generate)
        except Refused:
            return None

    def _check_options(self) -> None:
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters, "messages"} - {*_FOR_TEMPLATES}
        words = sorted(set(re.findall(r"[A-Za-z_]\w*", self.template)))
        for name in self.options:
            key = f"{OPTIONS}.{name}"
            if name in taken:
                raise UserError("isn't a variable of the template, but what it is called with", key=key)
            if name not in words:
                raise UserError(f"the chat template has no such variable{_nearest(name, words)}", key=key)


def _nearest(name: str, words: Sequence[str]) -> str:
    """Only the nearest: a template has hundreds of words."""
    return did_you_mean(name, words).partition(" known:")[0].rstrip(";")


def read_template(path: str) -> str:
    """The Jinja template in a file. Raises UserError where it can't be read."""
    try:
        text = Path(path).expanduser().read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=path, key="model.chat_template") from None
    if not text.strip():
        raise UserError("is empty", file=path, key="model.chat_template")
    return text
