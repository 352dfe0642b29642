"""The ragged batch that a model is tried on."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

_ANSWERS = ((16, 11, 5), (9, 4, 2))
"""Tokens of each sample of two groups: samples and a whole group end while others go on."""
_SHORT_PROMPT = 7
_FILLING = "pad_token_id"


def made_up(config: PretrainedConfig, longest: int) -> list[TrainGroup]:
    """Two groups of random tokens, of which the longest sequence has `longest` tokens (at least 8).

    Among them the filling token, which is an ordinary one in many vocabularies: some models skip it when they count
    positions. Tokens that stand for an image or a sound are left out."""
    text = config.get_text_config()
    settings = config.to_dict() | text.to_dict()
    special = {value for key, value in settings.items() if "token_i" in key and isinstance(value, int)}
    vocabulary = _Vocabulary(int(text.vocab_size), special)
    filling = getattr(text, _FILLING, None)
    groups = []
    for number, wanted in enumerate(_ANSWERS):
        lengths = [max(1, min(length, longest // 2 - number - n)) for n, length in enumerate(wanted)]
        size = longest - lengths[0] if number == 0 else min(_SHORT_PROMPT, longest - lengths[0])
        prompt = vocabulary.draw(size, number)
        if number == 0 and isinstance(filling, int) and 0 <= filling < text.vocab_size:
            prompt = (*prompt[:2], filling, *prompt[3:])[:size]
        samples = [vocabulary.draw(length, 10 + 3 * number + n) for n, length in enumerate(lengths)]
        groups.append(group_of(prompt, samples))
    return groups


def group_of(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> TrainGroup:
    """A group for training that says nothing but its tokens."""
    zeros = (0.0,) * len(answers)
    samples = tuple(Sample(tuple(answer), (0.0,) * len(answer), "", "stop") for answer in answers)
    return TrainGroup("", tuple(prompt), samples, zeros, zeros)


class _Vocabulary:
    def __init__(self, size: int, special: set[int]) -> None:
        self._size, self._special = size, special if len(special) < size else set()

    def draw(self, count: int, stream: int) -> tuple[int, ...]:
        """Tokens of a stream of its own: numbers of a linear congruential generator."""
        tokens: list[int] = []
        state = 2654435761 * (stream + 1) % 2**32
        while len(tokens) < count:
            state = (1664525 * state + 1013904223) % 2**32
            if (token := (state >> 8) % self._size) not in self._special:
                tokens.append(token)
        return tuple(tokens)
