"""What every policy of ours says and is asked: prompts, gold answers and texts, by the chat template of its model."""

from collections.abc import Sequence
from dataclasses import replace

from omni_thinker.models.chat import ChatFormat
from omni_thinker.models.think_form import Asked, ask, ask_further, think_form
from omni_thinker.sampling.thinking import gold_sample
from omni_thinker.types import Chat, Sample, SampleRequest, Thinking, ThoughtRule


class Texts:
    """The half of a policy that knows words and no weights: part of the Policy protocol, and all of `Thinks` and
    `Converses` in `omni_thinker.protocol`."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self.tokenizer = chat.tokenizer
        self.think_form = think_form(chat)
        self.stop_ids = frozenset(chat.facts.stop_ids)

    def encode_prompt(self, chat: str | Chat) -> tuple[int, ...]:
        return tuple(self.chat.prompt_ids(chat))

    def ask(self, chat: str | Chat, thinking: Thinking) -> tuple[tuple[int, ...], ThoughtRule | None]:
        if self.think_form is None:  # nothing to tell apart: the prompt is written once
            return self.encode_prompt(chat), None
        asked = self._ask(chat, thinking)
        return asked.tokens, asked.rule

    def gold(self, chat: str | Chat, answer: str, thinking: Thinking) -> tuple[tuple[int, ...], Sample]:
        asked = self._ask(chat, thinking)
        target = asked.format.target_ids(chat, answer, prompt=asked.text)
        return asked.tokens, gold_sample(target, answer, asked.rule, self.decode)

    def follow(self, answer: Sample, words: str, thinking: Thinking) -> tuple[tuple[int, ...], ThoughtRule | None]:
        asked = ask_further(self.chat, self.think_form, words, thinking, closed=self._closed(answer))
        return asked.tokens, asked.rule

    def _closed(self, answer: Sample) -> bool:
        """Whether a sampled answer has the end of its turn."""
        facts = self.chat.facts
        if facts.stop_text:  # its last token may hold more
            return facts.stop_text in self.decode(answer.tokens[-len(facts.stop_text.encode()) :])
        return bool(facts.turn_end) and answer.tokens[-1:] == facts.turn_end[-1:]

    def _ask(self, chat: str | Chat, thinking: Thinking) -> Asked:
        asked = ask(self.chat, self.think_form, chat, thinking)
        # `encode_prompt` may be another's: a class made from this one may write prompts in its own way.
        written = asked.rule is not None and thinking == "off"
        return asked if written else replace(asked, tokens=self.encode_prompt(chat))

    def encode_answer(self, text: str) -> tuple[int, ...]:
        return self.chat.target_ids("", text)

    def ending(self, requests: Sequence[SampleRequest]) -> Sequence[SampleRequest]:
        """The requests, with the text that ends the template's answers where no token does."""
        end = self.chat.facts.stop_text
        return [replace(request, stop=(*request.stop, end)) for request in requests] if end else requests

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
