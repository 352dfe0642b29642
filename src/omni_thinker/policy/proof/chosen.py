"""The paths of one policy's model, proved when a length is first met."""

import logging

from transformers import PreTrainedModel

from omni_thinker.errors import printable
from omni_thinker.models.memory import return_free_memory
from omni_thinker.policy.proof.lengths import Lengths
from omni_thinker.policy.proof.memory import identity, recall, remember
from omni_thinker.policy.proof.prove import Paths, prove
from omni_thinker.sampling.loop import decoders

_log = logging.getLogger(__name__)


class Proven:
    """How a model is sampled and trained, by length."""

    def __init__(self, model: PreTrainedModel, *, recompute: bool = False) -> None:
        """Tries the model on short sequences. Raises UserError where it can't be trained at all."""
        self._model, self._recompute = model, recompute
        self._identity = identity(model, [recompute, decoders(model)])
        self._lengths = Lengths(model.config)
        self._known: dict[int, Paths] = {}
        self._said: set[str] = set()
        self.paths(1)

    def knows(self, length: int) -> bool:
        """Whether `paths` would try nothing."""
        return self._lengths.tried(length) in self._known

    def paths(self, length: int) -> Paths:
        """For sequences of `length` tokens. Raises UserError as at the start."""
        tried = self._lengths.tried(length)
        if tried not in self._known:
            self._known[tried] = self._prove(tried)
        return self._known[tried]

    def _prove(self, tried: int) -> Paths:
        key = f"{self._identity}-{tried}"
        paths = recall(key)
        if paths is None:
            paths = prove(self._model, longest=tried, recompute=self._recompute)
            return_free_memory()
            remember(key, paths)
        if paths.notes and (words := paths.words()) not in self._said:
            self._said.add(words)
            _log.warning("model.name: %s", printable(words))
        return paths
