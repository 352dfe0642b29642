"""One template, made once for a model and its options: chats as tokens, answers as a model would have sampled them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from omni_thinker.errors import UserError
from omni_thinker.models.chat.facts import (
    ANSWER,
    REPLY,
    WORD,
    ChatFacts,
    TurnEnd,
    check_plain,
    generation_prompt,
    prints_date,
    system_support,
    turn_end,
)
from omni_thinker.models.chat.render import Message, Refused, Renderer, read_template
from omni_thinker.models.load import end_ids, load_tokenizer
from omni_thinker.recipe import ModelSpec
from omni_thinker.types import Chat


class ChatFormat:
    """How chats with one model are written.

    Prompts are what `apply_chat_template` gives, special tokens and all: none is added, so that a first token which the
    template writes isn't there twice."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        ends: Iterable[int] = (),
        system: str = "",
        options: Mapping[str, Any] | None = None,
        day: str = "",
        where: object = None,
    ) -> None:
        """ends: tokens that end a text besides the tokenizer's. system: for chats that have none of their own. options:
        arguments of the template. day: the date that it prints (YYYY-MM-DD); empty for today. where: what messages
        name.

        Raises UserError where the template is missing or can't render the plainest prompt."""
        self.tokenizer, self.system = tokenizer, system
        self._renderer = Renderer(tokenizer, options or {}, day, where)
        self._variants: dict[str, ChatFormat] = {}
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self._ends = tuple(dict.fromkeys((*own, *ends)))
        self._plain = check_plain(self._renderer)

    @cached_property
    def facts(self) -> ChatFacts:
        """What the template does."""
        end = self._turn_end
        closing = self._after(self._plain, WORD + end.text)[len(self._after(self._plain, WORD)) :] if end.text else ()
        tokens = (*closing, *(() if end.token is None else (end.token,)))
        stops = {*self._ends, *(() if end.stop_text else tokens[-1:])}
        answered = self._renderer.attempt([*self._messages(Chat(WORD)), REPLY], generate=False) or ""
        begins = self.tokenizer.bos_token_id
        written = begins is not None and self.encode(self._plain)[:1] == [begins]
        adds = begins is not None and self.tokenizer.encode(WORD)[:1] == [begins]
        return ChatFacts(
            turn_end=tokens,
            stop_ids=tuple(sorted(stops)),
            stop_text=end.stop_text,
            system=self._takes_system,
            prints_date=prints_date(self._renderer),
            prefix_holds=answered.startswith(self.prompt_text(WORD)),
            bos="template" if written else "tokenizer" if adds else "none",
            generation_prompt=generation_prompt(self._renderer),
        )

    @property
    def template(self) -> str:
        """Its source."""
        return self._renderer.template

    def under(self, options: Mapping[str, Any]) -> "ChatFormat":
        """The same template with these options besides. Raises UserError as the constructor does."""
        key = repr(sorted(options.items()))
        if key not in self._variants:
            own = self._renderer
            self._variants[key] = ChatFormat(
                self.tokenizer,
                ends=self._ends,
                system=self.system,
                options={**own.options, **options},
                day=own.day,
                where=own.where,
            )
        return self._variants[key]

    def prompt_text(self, chat: str | Chat) -> str:
        """The chat up to where the assistant begins, as text. Raises UserError where the template refuses it."""
        return self._render(self._messages(chat), generate=True)

    def prompt_ids(self, chat: str | Chat) -> list[int]:
        """`prompt_text` as tokens.

        No system words give no system turn, or an empty one where the template would put in words of its own. A
        template that has no system turn gets the words at the head of the first user's."""
        return self.encode(self.prompt_text(chat))

    def target_ids(self, chat: str | Chat, answer: str, *, prompt: str | None = None) -> tuple[int, ...]:
        """What a model would have sampled after `prompt_ids(chat)`, had it given this answer: what the template puts
        before the answer, the answer as the template has it, and the end of the turn. `prompt`: the text that it
        follows, where that isn't `prompt_text(chat)`.

        Raises UserError where the template doesn't write such an answer."""
        prompt = self.prompt_text(chat) if prompt is None else prompt
        end = self._turn_end.token
        return (*self._after(prompt, self.target_text(chat, answer, prompt)), *(() if end is None else (end,)))

    def target_text(self, chat: str | Chat, answer: str, prompt: str) -> str:
        """What `target_ids` encodes, without an end that the template doesn't write."""
        messages, end = self._messages(chat), self._turn_end
        whole = self._render([*messages, {"role": "assistant", "content": answer}], generate=False)
        before = prompt
        if not whole.startswith(prompt):
            # The template writes a prompt otherwise once it is answered: take what it puts where the answer is.
            before, found, _ = self._render([*messages, REPLY], generate=False).rpartition(ANSWER)
            if not found:
                raise self._bad("the chat template doesn't write what the assistant says")
        closing = end.text + end.cut
        if not whole.startswith(before) or not whole.endswith(closing) or len(before) + len(closing) > len(whole):
            raise self._bad(f"the chat template writes this answer unlike others: {_parting(before, whole)}")
        body = whole[len(before) : len(whole) - len(closing)]
        if held := next((mark for mark in self._stops if mark in answer), None):
            raise self._bad(f"the answer {answer!r:.60} holds {held!r}, where answers end")
        nothing = [*messages, {"role": "assistant", "content": ""}]
        left_out = answer.strip() and answer.strip() not in body
        if left_out and whole == self._renderer.attempt(nothing, generate=False):
            raise self._bad(f"the chat template leaves out the answer {answer!r:.60}")
        return body + end.text

    def further(self, words: str, *, closed: bool) -> tuple[str, str]:
        """(an answered chat, what comes after it up to where the next answer begins), where the user says `words` to
        the answer. `closed`: whether the answer has the end of its turn, which is written for it otherwise.

        Raises UserError where the template refuses a second turn of the user's."""
        for mark in self.tokenizer.all_special_tokens:  # what an environment quotes of an answer is text, not markup
            words = words.replace(str(mark), "")
        asked = [{"role": "user", "content": WORD}, REPLY, {"role": "user", "content": words}]
        _, found, rest = self._render(asked, generate=True).partition(ANSWER)
        if not found:
            raise self._bad("the chat template leaves out an answer once the user speaks again")
        end = self._turn_end
        mark = end.text or ("" if end.token is None else str(self.tokenizer.convert_ids_to_tokens(end.token)))
        before, held, after = rest.partition(mark) if mark else ("", "", rest)
        if before.strip() or not held:  # the template ends this turn in another way once there is a next
            before, held, after = "", "", rest
        answered = self._plain + ANSWER
        return (answered + before + held, after) if closed else (answered, rest)

    def tokens_after(self, text: str, further: str) -> tuple[int, ...]:
        """`further` as tokens that follow those of `text`. Raises UserError where none do."""
        return self._after(text, further)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in which the template has written the special ones already."""
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def render_text(self, messages: Sequence[Message]) -> str:
        """Messages as they are, up to where the assistant begins. Raises UserError as `prompt_text`."""
        return self._render(messages, generate=True)

    @cached_property
    def _turn_end(self) -> TurnEnd:
        return turn_end(self._renderer, self._ends)

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        """What ends an answer, as text."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.facts.stop_ids))
        return tuple(filter(None, (*tokens, self.facts.stop_text)))

    @cached_property
    def _takes_system(self) -> Any:
        return system_support(self._renderer)

    def _messages(self, chat: str | Chat) -> Sequence[Message]:
        chat = Chat(chat) if isinstance(chat, str) else chat
        system = self.system if chat.system is None else chat.system
        turns = [{"role": turn.role, "content": turn.text} for turn in chat.earlier]
        turns.append({"role": "user", "content": chat.user})
        if system and self._takes_system == "none":
            first = next(turn for turn in turns if turn["role"] == "user")
            first["content"] = f"{system}\n\n{first['content']}"
        elif system or self._takes_system == "own":
            turns.insert(0, {"role": "system", "content": system})
        return turns

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        try:
            return self._renderer.render(messages, generate=generate)
        except Refused as exc:
            raise self._bad(f"the chat template can't render this chat: {exc}") from None

    def _after(self, prompt: str, text: str) -> tuple[int, ...]:
        """`text` as tokens that follow those of `prompt`.

        Where a token of both together would lie on both sides, the text is encoded by itself. Some tokenizers put a
        space before that, which something in front keeps away. Raises UserError where all change the text."""
        first, both = self.encode(prompt), self.encode(prompt + text)
        if both[: len(first)] == first:
            return tuple(both[len(first) :])
        mark = str(self.tokenizer.convert_ids_to_tokens(self._ends[0])) if self._ends else ""
        wanted = self._decode(both)
        for lead in ("", "\n", mark):
            before, ids = self.encode(lead), self.encode(lead + text)
            alone = ids[len(before) :]
            if ids[: len(before)] == before and self._decode([*first, *alone]) == wanted:
                return tuple(alone)
        raise self._bad(f"no tokens continue the prompt with {text!r:.60}: {_parting(self._decode(first), wanted)}")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _bad(self, why: str) -> UserError:
        return UserError(why, file=self._renderer.where)


def load_chat(spec: ModelSpec, folder: str | Path | None = None) -> ChatFormat:
    """The template of `folder`, or of the model that `spec` names, with the options of `spec`.

    Raises UserError where the tokenizer or its template is missing or can't be used."""
    name = str(folder or spec.name)
    tokenizer = load_tokenizer(name)
    if spec.chat_template:
        tokenizer.chat_template = read_template(spec.chat_template)
    return ChatFormat(
        tokenizer,
        ends=end_ids(name),
        system=spec.system,
        options=spec.template_options,
        day=spec.date,
        where=spec.chat_template or name,
    )


def _parting(one: str, other: str) -> str:
    """Where two texts part, in words."""
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return f"after {one[max(0, at - 30) : at]!r}, {one[at : at + 30]!r} becomes {other[at : at + 30]!r}"
