"""How a model thinks before it answers: read off its chat template and its vocabulary.

A prompt may end within an open block of thoughts, behind a closed one, or before any; then the model opens one itself,
or doesn't think."""

import re
from dataclasses import dataclass

from omni_thinker.models.chat import ChatFormat
from omni_thinker.thoughts import CHANNELS, MARKS
from omni_thinker.types import Chat, Mark, Thinking, ThoughtRule, ThoughtState

_SWITCHES = ("enable_thinking", "thinking")
"""What templates call the option that turns thoughts off when it is false."""


@dataclass(frozen=True, slots=True)
class ThinkForm:
    """The marks of a model's thoughts. `template`: the chat template writes them, so the model was taught to think;
    else they are only in its vocabulary. `switch`: the option by which the template turns thoughts off. `opens`: its
    prompts end within thoughts."""

    open: Mark
    close: Mark
    closing: tuple[int, ...]
    template: bool
    switch: str | None
    opens: bool

    def state(self, prompt: str) -> ThoughtState:
        """How a rendered prompt ends."""
        return _state(prompt, self.open.text, self.close.text)

    def closed(self, prompt: str) -> str:
        """A rendered prompt after which a model answers without thoughts."""
        if self.state(prompt) == "closed":
            return prompt
        if (self.open.text, self.close.text) == CHANNELS:
            return prompt + self.close.text
        if self.state(prompt) == "open":
            return prompt + ("" if prompt.endswith("\n") else "\n") + f"\n{self.close.text}\n\n"
        return f"{prompt}{self.open.text}\n\n{self.close.text}\n\n"

    def rule(self, prompt: str, budget: int | None) -> ThoughtRule:
        """How an answer to a rendered prompt is told from its thoughts."""
        return ThoughtRule(self.open, self.close, self.closing, self.state(prompt), budget)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt up to where the model goes on, as text and as tokens. `rule`: how its thoughts are told from its answer,
    None where it has none. `format`: what wrote the prompt."""

    text: str
    tokens: tuple[int, ...]
    rule: ThoughtRule | None
    format: ChatFormat


def think_form(chat: ChatFormat) -> ThinkForm | None:
    """The form of a model's thoughts; None where neither its template nor its vocabulary knows any."""
    template = chat.template
    prompt = chat.prompt_text("?").rstrip()
    vocabulary = {token.content for token in chat.tokenizer.added_tokens_decoder.values()}
    at_end = [pair for pair in MARKS if prompt.endswith(pair)]
    written = [pair for pair in MARKS if pair[0] in template or pair[1] in template]
    held = [pair for pair in MARKS if _in_vocabulary(pair[1], vocabulary)]
    found = [*at_end, *written, *held]
    if not found:
        return None
    opening, closing = found[0]
    code = _code(template)
    switch = next((name for name in _SWITCHES if re.search(rf"(?<![\w.]){name}\b", code)), None)
    # The answer's channel is that of another message.
    whole = f"<|end|><|start|>assistant{closing}" if found[0] == CHANNELS else f"\n{closing}\n\n"
    return ThinkForm(
        _mark(chat, opening),
        _mark(chat, closing),
        tuple(chat.encode(whole)),
        found[0] in (*at_end, *written),
        switch,
        _state(prompt, opening, closing) == "open",
    )


def ask(chat: ChatFormat, form: ThinkForm | None, said: str | Chat, thinking: Thinking) -> Asked:
    """What a model is asked that is to think so.

    `thinking`: "auto" is what the template does. "off" is the template's own switch where it has one that helps, else
    an empty block; a model whose template doesn't think is asked as ever. A number is a budget of tokens."""
    off = thinking == "off" and form is not None and form.template
    if off and form is not None and form.switch is not None:
        chat = chat.under({form.switch: False})
    text = chat.prompt_text(said)
    if form is None:
        return Asked(text, tuple(chat.encode(text)), None, chat)
    if off and (form.switch is None or form.state(text) == "open"):
        text = form.closed(text)
    budget = thinking if isinstance(thinking, int) else None
    return Asked(text, tuple(chat.encode(text)), form.rule(text, budget), chat)


def ask_further(chat: ChatFormat, form: ThinkForm | None, words: str, thinking: Thinking, *, closed: bool) -> Asked:
    """What comes between an answer and the next, where the user says `words` to it; else as `ask`. `closed`: whether
    the answer has the end of its turn. Raises UserError where the template has no words for it."""
    off = thinking == "off" and form is not None and form.template
    if off and form is not None and form.switch is not None:
        chat = chat.under({form.switch: False})
    answered, text = chat.further(words, closed=closed)
    if form is None:
        return Asked(text, chat.tokens_after(answered, text), None, chat)
    if off and (form.switch is None or form.state(text) == "open"):
        text = form.closed(text)
    budget = thinking if isinstance(thinking, int) else None
    return Asked(text, chat.tokens_after(answered, text), form.rule(text, budget), chat)


def _state(prompt: str, opening: str, closing: str) -> ThoughtState:
    end = prompt.rstrip()
    # "<|channel>thought": a word may follow the mark.
    if re.search(re.escape(opening) + r"\w*\Z", end):
        return "open"
    return "closed" if end.endswith(closing) else "absent"


def _mark(chat: ChatFormat, text: str) -> Mark:
    ids = tuple(chat.encode(text))
    added = chat.tokenizer.added_tokens_decoder
    return Mark(text, ids, bool(ids) and ids[0] in added and ids[-1] in added)


def _in_vocabulary(mark: str, vocabulary: set[str]) -> bool:
    return set(re.findall(r"<\|\w+\|>", mark)) <= vocabulary if mark == CHANNELS[1] else mark in vocabulary


def _code(template: str) -> str:
    """What a template computes with, without the texts that it writes."""
    blocks = re.findall(r"\{[%{].*?[%}]\}", template, re.DOTALL)
    return " ".join(re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "", block) for block in blocks)
