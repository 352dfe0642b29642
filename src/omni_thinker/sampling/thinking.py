"""Thoughts in what is drawn: where they end, and the mark that is written for a model that thinks for too long."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from omni_thinker.thoughts import leading_thoughts
from omni_thinker.types import Mark, Sample, SampleRequest, StopReason, ThoughtRule, Thoughts

Decode = Callable[[Sequence[int]], str]
"""From tokens to text, special tokens left out."""


class Thinker:
    """Follows the thoughts of one sample while it is drawn.

    Before each token `next` says whether one is to be written in place of a draw; `saw` is told each token, drawn or
    written. `limit` is the number of tokens at which the sample ends, as far as is known by then."""

    def __init__(self, request: SampleRequest, decode: Decode) -> None:
        if request.thoughts is None:
            raise ValueError("a request without a rule has no thoughts to follow")
        self._rule, self._max_tokens, self._decode = request.thoughts, request.max_tokens, decode
        self._tokens: list[int] = []
        self._begin: int | None = None
        self._closing: list[int] = []
        self.limit = request.max_tokens
        self.end: int | None = None
        """Tokens up to where the answer begins, None before that."""
        self.forced: tuple[int, ...] = ()
        if self._rule.state == "open":
            self._open(0)

    @property
    def thinking(self) -> bool:
        return self._begin is not None and self.end is None

    def next(self) -> int:
        """The token that is written, or -1 where one is drawn."""
        return self._closing[0] if self._closing else -1

    def saw(self, token: int) -> None:
        self._tokens.append(token)
        count = len(self._tokens)
        if self._closing:
            self._closing.pop(0)
            self.forced += (count - 1,)
            if not self._closing:
                self._close(count)
        elif self.end is None:
            if _ends_with(self._rule.close, self._tokens, self._decode):
                self._close(count)
            elif self.thinking:
                self._spend(count)
            elif count <= self._rule.opening_room and opened(self._rule, self._tokens, self._decode):
                self._open(count)

    def _open(self, count: int) -> None:
        self._begin = count
        if self._rule.budget is not None:
            self.limit = count + self._rule.budget + len(self._rule.closing) + self._max_tokens
            self._spend(count)

    def _spend(self, count: int) -> None:
        if self._rule.budget is not None and self._begin is not None and count - self._begin >= self._rule.budget:
            self._closing = list(self._rule.closing)

    def _close(self, count: int) -> None:
        self.end = count
        if self._rule.budget is not None and self._begin is not None:
            self.limit = count + self._max_tokens


def matters(request: SampleRequest) -> bool:
    """Whether thoughts must be followed while they are drawn: for a budget, or stop texts that wait for their end."""
    return request.thoughts is not None and (request.thoughts.budget is not None or bool(request.stop))


def make_sample(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    stop: StopReason,
    stop_ids: frozenset[int],
    request: SampleRequest,
    decode: Decode,
    *,
    followed: Thinker | None = None,
    cut: int = -1,
) -> Sample:
    """A sample with its thoughts and its answer apart. `cut`: characters of the answer before a stop text, -1 where
    none was met. `followed`: what was told of all its tokens."""
    ids, own_logprobs = tuple(map(int, tokens)), tuple(map(float, logprobs))
    spoken = [token for token in ids if token not in stop_ids]
    rule = request.thoughts
    if rule is None:
        text = decode(spoken)
        return _apart(Sample(ids, own_logprobs, text[:cut] if cut >= 0 else text, stop), spoken, decode)
    forced = followed.forced if followed else ()
    end = followed.end if followed else thoughts_end(rule.close, ids, decode)
    if end is None and not (followed.thinking if followed else opened(rule, ids, decode)):
        text = decode(spoken)
        return Sample(ids, own_logprobs, text[:cut] if cut >= 0 else text, stop)
    if end is None:
        thoughts = Thoughts(_words(rule, ids, decode), len(ids), False, forced, decode(spoken))
        return Sample(ids, own_logprobs, "", stop, thoughts)
    answer, before = decode([token for token in ids[end:] if token not in stop_ids]), decode(ids[:end])
    answer = answer[:cut] if cut >= 0 else answer
    thoughts = Thoughts(_words(rule, ids[:end], decode), end, True, forced, before + answer)
    # The mark's last token may hold the beginning of the answer.
    answer = answer if rule.close.own else before.partition(rule.close.text)[2] + answer
    return Sample(ids, own_logprobs, answer.lstrip("\r\n"), stop, thoughts)


def gold_sample(tokens: Sequence[int], text: str, rule: ThoughtRule | None, decode: Decode) -> Sample:
    """A gold answer of which `tokens` are what follows the prompt, as far as a template knows.

    It comes after an empty block where the prompt ends within thoughts, and where the template writes one. Such a block
    counts as written for the model, so that nobody learns from it to leave out thoughts."""
    end = 0
    if rule is not None:
        found = thoughts_end(rule.close, tokens, decode)
        if found is not None and not _words(rule, tokens[:found], decode):
            end = found
            if rule.state == "closed":  # the prompt has the block already
                tokens, end = tokens[found:], 0
        elif found is None and rule.state == "open":
            tokens, end = (*rule.closing, *tokens), len(rule.closing)
    ids = tuple(tokens)
    thoughts = Thoughts("", end, True, tuple(range(end))) if end else None
    return Sample(ids, (0.0,) * len(ids), text, "stop", thoughts)


def thoughts_end(close: Mark, tokens: Sequence[int], decode: Decode) -> int | None:
    """The number of tokens up to and with the first mark that ends thoughts, None where there is none."""
    if close.own:
        last, size = close.ids[-1], len(close.ids)
        ends = (place + 1 for place, token in enumerate(tokens) if token == last)
        return next((end for end in ends if tuple(tokens[max(0, end - size) : end]) == close.ids), None)
    if close.text not in decode(tokens):
        return None
    return bisect_left(range(len(tokens)), True, key=lambda count: close.text in decode(tokens[:count]))


def opened(rule: ThoughtRule, tokens: Sequence[int], decode: Decode) -> bool:
    """Whether thoughts have begun: in the prompt, or first of all in `tokens`, but for white space."""
    if rule.state == "open":
        return True
    first = tokens[: rule.opening_room]
    if not rule.open.own:
        return decode(first).lstrip().startswith(rule.open.text)
    end = thoughts_end(rule.open, first, decode)
    return end is not None and not decode(first[: end - len(rule.open.ids)]).strip()


def _ends_with(mark: Mark, tokens: Sequence[int], decode: Decode) -> bool:
    if mark.own:
        return tokens[-1] == mark.ids[-1] and tuple(tokens[-len(mark.ids) :]) == mark.ids
    return mark.text in decode(tokens[-len(mark.text.encode()) :])  # a token is at least one byte


def _words(rule: ThoughtRule, tokens: Sequence[int], decode: Decode) -> str:
    """Thoughts without their marks. Those that are tokens of their own need not be special, so decode may show them."""
    shown = list(tokens)
    for ids in (rule.closing, rule.close.ids if rule.close.own else ()):
        if ids and tuple(shown[-len(ids) :]) == ids:
            shown = shown[: -len(ids)]
    if rule.open.own and tuple(shown[: len(rule.open.ids)]) == rule.open.ids:
        shown = shown[len(rule.open.ids) :]
    text = decode(shown).strip()
    return text.removeprefix(rule.open.text).partition(rule.close.text)[0].strip()


def _apart(sample: Sample, spoken: Sequence[int], decode: Decode) -> Sample:
    """The same where a model that isn't known to think began with a whole block of thoughts."""
    if (found := leading_thoughts(sample.text)) is None:
        return sample
    begin, end, answer = found
    tokens = bisect_left(range(len(spoken)), True, key=lambda count: len(decode(spoken[:count])) >= answer)
    thoughts = Thoughts(sample.text[begin:end].strip(), tokens, True, whole=sample.text)
    return Sample(sample.tokens, sample.logprobs, sample.text[answer:].lstrip("\r\n"), sample.stop, thoughts)
