"""From what a service drew to a sample of ours: where a stop text ends it, and which part is thoughts."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.losses import Row
from omni_thinker.sampling.loop import stop_place
from omni_thinker.sampling.thinking import Decode, Thinker, make_sample, matters
from omni_thinker.types import Sample, SampleRequest

_KEY = "engine.tinker.url"
_ABOVE_ZERO = 1e-3
"""Rounding by which a log-prob may be above 0."""


def drawn(reply: Any, count: int) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probs of each sample of a service's reply. Raises UserError where these aren't `count` samples, or
    a log-prob is missing or none."""
    samples = [([*one.tokens], [*(one.logprobs or ())]) for one in reply.sequences]
    if len(samples) != count:
        raise UserError(f"the service drew {len(samples)} samples, not {count}", key=_KEY)
    for tokens, logprobs in samples:
        if len(tokens) != len(logprobs):
            raise UserError("the service gave no log-probs of what it drew", key=_KEY)
        if min(tokens, default=0) < 0 or not all(isfinite(x) and x <= _ABOVE_ZERO for x in logprobs):
            raise UserError("the service drew what isn't a token, or gave a log-prob that is none", key=_KEY)
    return samples


def scored(output: Any, made: Sequence[Row]) -> list[list[float]]:
    """The log-probs of each row's targets in a service's reply. Raises UserError where there is none for each."""
    outputs = output.loss_fn_outputs
    found = [[*one["logprobs"].data] if "logprobs" in one else [] for one in outputs]
    if [len(one) for one in found] != [len(row.targets) for row in made]:
        raise UserError("the service didn't give one log-prob for each token", key=_KEY)
    if not all(isfinite(x) for one in found for x in one):
        raise UserError("the service's log-probs aren't numbers; go on with --resume and a lower rl.lr", key=_KEY)
    return found


def finished(
    request: SampleRequest, tokens: Sequence[int], logprobs: Sequence[float], stop_ids: frozenset[int], decode: Decode
) -> Sample:
    """The sample that our own sampler would have made of these draws: it ends with the first stop token or stop text,
    whatever comes after. Services know either tokens or texts, so stop texts are found here."""
    end, stop, cut = len(tokens), bool(tokens) and tokens[-1] in stop_ids, -1
    thinker = Thinker(request, decode) if matters(request) else None
    for count, token in enumerate(tokens, 1):
        if thinker is not None:
            thinker.saw(int(token))
        if token in stop_ids:
            end, stop = count, True
            break
        if not request.stop or (thinker is not None and thinker.thinking):
            continue
        begin = (thinker.end or 0) if thinker is not None else 0
        place = stop_place(list(tokens[begin:count]), request.stop, decode, after="\r\n" if begin else "")
        if place is not None:
            end, stop, cut = count, True, place
            break
    return make_sample(
        tokens[:end], logprobs[:end], "stop" if stop else "length", stop_ids, request, decode, followed=thinker, cut=cut
    )
