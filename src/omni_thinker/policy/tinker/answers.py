"""From what a service drew to a sample of ours: where a stop text ends it, and which part is thoughts."""

from collections.abc import Sequence

from omni_thinker.sampling.loop import stop_place
from omni_thinker.sampling.thinking import Decode, Thinker, make_sample, matters
from omni_thinker.types import Sample, SampleRequest


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
