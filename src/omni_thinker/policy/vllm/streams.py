"""From tokens that an engine streams to samples: where each ends, what is written for it, and which group it is of.

An engine knows prompts, seeds and a number of tokens. Stop texts and thoughts are followed here, token by token, with
the functions of our own sampler, so that both mean the same. What an engine draws beyond a sample's end is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from omni_thinker.protocol import OnGroup
from omni_thinker.sampling.loop import stop_place
from omni_thinker.sampling.thinking import Decode, Thinker, make_sample, matters
from omni_thinker.types import Group, Sample, SampleRequest, StopReason

_CALLS = count()


class EndedEarly(Exception):
    """An engine ended an ask that had neither met its end nor spent its tokens."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt that an engine is to go on from, for at most `max_tokens` tokens."""

    key: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that an engine drew for an ask, with their log-probs. `ended`: there will be no more."""

    key: str
    tokens: Sequence[int]
    logprobs: Sequence[float]
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Orders:
    """What an engine is to do: asks that nobody needs any longer, and new ones."""

    drop: tuple[str, ...] = ()
    begin: tuple[Ask, ...] = ()


def sample_seed(seed: int, number: int, part: int = 0) -> int:
    """The seed of one sample of a group, in [0, 2^62): of the group's seed and the sample's number alone.

    `part`: how often the engine was asked to go on after a mark that was written for the model."""
    key = np.array([seed % 2**64, number], np.uint64)
    return int(np.random.Philox(key=key).random_raw(part + 1)[part] >> np.uint64(2))


class Streams:
    """All samples of some requests while they are drawn."""

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        group_size: int,
        stop_ids: frozenset[int],
        decode: Decode,
        version: int,
        finished: OnGroup,
    ) -> None:
        """`version`: of the weights; samples bear it. `finished` is told each group once its last sample ends."""
        self._requests, self._finished = requests, finished
        self._stop_ids, self._decode, self._version = stop_ids, decode, version
        self._draws = [[_Draw(request, g, stop_ids, decode) for g in range(group_size)] for request in requests]
        self._asked: dict[str, tuple[int, _Draw]] = {}
        self._call = next(_CALLS)  # an engine may still draw for asks of the call before, which was cut short
        self._missing = [group_size] * len(requests)

    @property
    def done(self) -> bool:
        return not any(self._missing)

    @property
    def pending(self) -> tuple[str, ...]:
        """Asks that an engine still draws for."""
        return tuple(self._asked)

    def begin(self) -> Orders:
        """The asks to begin with, those of a group one after another: their prompt is computed once."""
        orders = [self._go_on(r, draw) for r, draws in enumerate(self._draws) for draw in draws]
        return Orders(begin=tuple(ask for order in orders for ask in order.begin))

    def take(self, piece: Piece) -> Orders:
        """Add what an engine drew. Raises EndedEarly where it ended before the sample does."""
        if piece.key not in self._asked:  # drawn before the engine heard that nobody needs it
            return Orders()
        r, draw = self._asked[piece.key]
        for token, logprob in zip(piece.tokens, piece.logprobs, strict=True):
            draw.add(int(token), float(logprob))
            if draw.ended or draw.writes:
                del self._asked[piece.key]
                drop = () if piece.ended else (piece.key,)
                return replace(self._go_on(r, draw), drop=drop)
        if piece.ended:
            raise EndedEarly(f"it ended an answer after {len(draw.tokens)} tokens, before its end")
        return Orders()

    def _go_on(self, r: int, draw: "_Draw") -> Orders:
        """Write what is to be written for the model, and ask for what comes next."""
        draw.write()
        if not draw.ended:
            ask = Ask(
                f"{self._call}.{r}.{draw.number}.{draw.parts}",
                (*self._requests[r].prompt, *draw.tokens),
                self._requests[r].longest - len(draw.tokens),
                sample_seed(self._requests[r].seed, draw.number, draw.parts),
            )
            draw.parts += 1
            self._asked[ask.key] = r, draw
            return Orders(begin=(ask,))
        self._missing[r] -= 1
        if not self._missing[r]:
            samples = (draw.sample() for draw in self._draws[r])
            group = tuple(replace(sample, version=self._version) for sample in samples)
            self._finished(r, Group(tuple(self._requests[r].prompt), group))
        return Orders()


class _Draw:
    """One sample while it is drawn."""

    def __init__(self, request: SampleRequest, number: int, stop_ids: frozenset[int], decode: Decode) -> None:
        self._request, self.number, self._stop_ids, self._decode = request, number, stop_ids, decode
        self._thinker = Thinker(request, decode) if matters(request) else None
        self.tokens: list[int] = []
        self._logprobs: list[float] = []
        self._stopped, self._cut = False, -1
        self.parts = 0

    @property
    def ended(self) -> bool:
        limit = self._request.max_tokens if self._thinker is None else self._thinker.limit
        return self._stopped or len(self.tokens) >= limit

    @property
    def writes(self) -> bool:
        """Whether a mark is to be written in place of a draw."""
        return self._thinker is not None and self._thinker.next() >= 0

    def add(self, token: int, logprob: float, *, written: bool = False) -> None:
        self.tokens.append(token)
        self._logprobs.append(logprob)
        self._stopped = token in self._stop_ids and not written
        if self._thinker is not None:
            self._thinker.saw(token)
        if not self._stopped and self._request.stop:
            self._meet_stop_text()

    def write(self) -> None:
        while self._thinker is not None and self.writes and not self.ended:
            self.add(self._thinker.next(), 0.0, written=True)

    def sample(self) -> Sample:
        stop: StopReason = "stop" if self._stopped else "length"
        return make_sample(
            self.tokens,
            self._logprobs,
            stop,
            self._stop_ids,
            self._request,
            self._decode,
            followed=self._thinker,
            cut=self._cut,
        )

    def _meet_stop_text(self) -> None:
        begin = 0
        if self._thinker is not None:
            if self._thinker.thinking:
                return
            begin = self._thinker.end or 0
        place = stop_place(self.tokens[begin:], self._request.stop, self._decode, after="\r\n" if begin else "")
        if place is not None:
            self._stopped, self._cut = True, place
