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
class SampleRequest:
    """One prompt to draw a group for. `max_tokens` counts the stop token; `seed` fixes the group's draws alone,
    so that a result depends on neither the order nor the company of the requests. A sample ends where one of the texts
    `stop` does, and its text before it."""

    prompt: TokenIds
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer. `tokens` includes the stop token where `stop` is "stop".

    `logprobs` has one entry per token, in nats, under the distribution that was sampled from."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: StopReason


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
