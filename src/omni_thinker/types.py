"""The nouns that every room shares. No torch, no I/O.

Shapes are named by suffix where tensors flow: P problems, G samples in a group, T tokens, V vocabulary."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TaskName = str
TokenIds = Sequence[int]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
StopReason = Literal["stop", "length"]
Thinking = Literal["auto", "off"] | int
"""Thoughts before an answer: as the template has them, none, or at most so many tokens."""
ThoughtState = Literal["open", "closed", "absent"]
"""Whether a prompt ends within thoughts, behind them, or without any."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said, without chat markup."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """What a model is asked: `user` are the last words, `earlier` the turns before them, by turns the user's and the
    assistant's. `system`: words above all; "" for none, None for those of the recipe's model."""

    user: str
    system: str | None = None
    earlier: tuple[Turn, ...] = ()

    @property
    def text(self) -> str:
        """The whole for readers and judges. Where the user's words are all, these alone."""
        if not self.system and not self.earlier:
            return self.user
        said = [("system", self.system)] if self.system else []
        said += [(turn.role, turn.text) for turn in self.earlier] + [("user", self.user)]
        return "\n\n".join(f"{role.capitalize()}: {words}" for role, words in said)


@dataclass(frozen=True, slots=True)
class Problem:
    """One item of a task.

    `prompt` is the user's turn, without chat markup. `answer` is a gold answer as the model should write it (also the
    supervised target), or None where there is none. `data` holds what the task's reward needs (`tests`, `choices`,
    `constraints`, `reference`, ...). `system` and `earlier` are those of its `Chat`."""

    id: str
    task: TaskName
    prompt: str
    answer: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    earlier: tuple[Turn, ...] = ()

    @property
    def chat(self) -> str | Chat:
        """What a policy is asked: the prompt, or a whole chat where there is more to it."""
        plain = self.system is None and not self.earlier
        return self.prompt if plain else Chat(self.prompt, self.system, self.earlier)

    @property
    def shown(self) -> str:
        """What readers and judges see of it."""
        return Chat(self.prompt, self.system, self.earlier).text


POOL = "difficulty_pool"
"""Where `Problem.data` says which of its task's difficulty pools a problem is in."""


def content_hash(text: str) -> str:
    """Sixteen hex digits that depend on the words of `text`, not on its case or white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a group is drawn. Temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing."""

    group_size: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A text that begins or ends thoughts, and its tokens. `own`: the vocabulary has tokens for it that nothing else is
    made of, so it is found by these; else by its text."""

    text: str
    ids: tuple[int, ...]
    own: bool


@dataclass(frozen=True, slots=True)
class ThoughtRule:
    """How thoughts are told from an answer in what a model writes after a prompt.

    Thoughts end with the first `close`. `state`: how the prompt ends; where it has no thoughts, they begin if the model
    writes `open` first of all. `budget`: after so many tokens of thoughts `closing`, which holds `close`, is written
    for the model; None: never."""

    open: Mark
    close: Mark
    closing: tuple[int, ...]
    state: ThoughtState
    budget: int | None = None

    def longest(self, max_tokens: int) -> int:
        """The most tokens that thoughts and an answer of `max_tokens` may have together."""
        if self.budget is None:
            return max_tokens
        return self.opening_room + self.budget + len(self.closing) + max_tokens

    @property
    def opening_room(self) -> int:
        """Tokens within which a model must have opened its thoughts."""
        return 0 if self.state == "open" else len(self.open.text.encode()) + 2


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt to draw a group for. `max_tokens` counts the stop token; `seed` fixes the group's draws alone,
    so that a result depends on neither the order nor the company of the requests. A sample ends where one of the texts
    `stop` does, and its text before it.

    `thoughts`: how the model thinks. With a budget `max_tokens` bounds the answer alone, without one all. Texts of
    `stop` don't end thoughts."""

    prompt: TokenIds
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    thoughts: ThoughtRule | None = None

    @property
    def longest(self) -> int:
        """The most tokens that a sample may have."""
        return self.max_tokens if self.thoughts is None else self.thoughts.longest(self.max_tokens)


@dataclass(frozen=True, slots=True)
class Thoughts:
    """What comes before an answer. `tokens`: how many of the sample's, marks included. `closed` is False where they
    never end. `forced`: places of the tokens that were written for the model. `whole`: the text of thoughts and answer,
    with those marks that are text."""

    text: str
    tokens: int
    closed: bool
    forced: tuple[int, ...] = ()
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer. `tokens` includes the stop token where `stop` is "stop", and the thoughts.

    `logprobs` has one entry per token, in nats, under the distribution that was sampled from; 0 for tokens that were
    written for the model. `text` is the answer after the thoughts, "" where these never end. `version`: of the weights
    that drew it, where an engine holds copies of the trainer's; None where it was the trainer itself.

    In a task with turns `tokens` are those of the whole conversation after the prompt, and `dialogue` says who wrote
    what. `written` are then the places of all tokens that the model didn't draw. All else is the last answer's."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: StopReason
    thoughts: Thoughts | None = None
    version: int | None = None
    written: tuple[int, ...] = ()
    dialogue: "Dialogue | None" = None

    @property
    def forced(self) -> tuple[int, ...]:
        """Places of tokens that the model didn't draw. They are no part of a loss or of a mean."""
        return self.written or (() if self.thoughts is None else self.thoughts.forced)

    @property
    def chosen(self) -> list[bool]:
        """Of each token, whether the model drew it."""
        forced = frozenset(self.forced)
        return [place not in forced for place in range(len(self.tokens))]

    @property
    def length(self) -> int:
        """How many tokens the answers have: all but those of an environment."""
        return len(self.tokens) - (0 if self.dialogue is None else self.dialogue.reply_tokens)

    @property
    def drawn(self) -> int:
        """How many tokens the model drew."""
        return len(self.tokens) - len(self.forced)

    @property
    def drawn_logprobs(self) -> tuple[float, ...]:
        """`logprobs` of the tokens that the model drew."""
        if not self.forced:
            return self.logprobs
        return tuple(x for x, own in zip(self.logprobs, self.chosen, strict=True) if own)

    @property
    def answer_length(self) -> int:
        """Tokens after the thoughts."""
        last = self if self.dialogue is None else self.dialogue.exchanges[-1].answer
        return len(last.tokens) - (0 if last.thoughts is None else last.thoughts.tokens)

    @property
    def longest_answer(self) -> int:
        """Tokens of the answer, thoughts included; of a conversation's longest one."""
        if self.dialogue is None:
            return len(self.tokens)
        return max(len(exchange.answer.tokens) for exchange in self.dialogue.exchanges)

    @property
    def response(self) -> str:
        """All that the model wrote, thoughts included."""
        return self.text if self.thoughts is None else self.thoughts.whole

    @property
    def answered(self) -> bool:
        """Whether there is an answer: not where thoughts never end."""
        return self.thoughts is None or self.thoughts.closed


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer of a conversation, and what the environment said to it: None where the conversation ends.
    `reply_tokens`: tokens from the answer to the next, the marks of the chat template included."""

    answer: Sample
    reply: str | None = None
    reply_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation with an environment. `memory`: what the environment kept of it, for a reward that knows it.
    `failure`: why the environment could not go on, so that there is nothing to score."""

    exchanges: tuple[Exchange, ...]
    memory: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """What the model said, without thoughts."""
        return tuple(exchange.answer.text for exchange in self.exchanges)

    @property
    def reply_tokens(self) -> int:
        """Tokens that the model didn't write."""
        return sum(exchange.reply_tokens for exchange in self.exchanges)

    @property
    def texts(self) -> tuple[str, ...]:
        """The words of both by turns; an answer comes first and last."""
        pairs = [(exchange.answer.text, exchange.reply) for exchange in self.exchanges]
        return tuple(text for pair in pairs for text in pair if text is not None)


@dataclass(frozen=True, slots=True)
class Group:
    """The G samples drawn for one prompt."""

    prompt: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward says of one sample: a value in [0, 1], an abstention, or an error.

    Abstentions and errors are never 0: such samples leave the group's baseline and carry no gradient."""

    status: Literal["value", "abstain", "error"]
    value: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    @classmethod
    def of(cls, value: float, **parts: float) -> "Score":
        """A value. Raises ValueError outside [0, 1] (NaN included)."""
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"a score lies in [0, 1], got {value}")
        return cls("value", float(value), parts)

    @classmethod
    def abstain(cls, reason: str) -> "Score":
        return cls("abstain", reason=reason)

    @classmethod
    def error(cls, reason: str) -> "Score":
        return cls("error", reason=reason)
