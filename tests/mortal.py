"""Policies that end a study in the middle, as a kill does."""

from __future__ import annotations

from typing import Any, ClassVar

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OptimParams, OptimReport
from unigram_policy import UnigramPolicy


class Killed(Exception):
    """The process ended here, as far as a study can tell."""


class Mortal:
    """Ends the study at the update after so many as are `left`; below 0: never."""

    left: ClassVar[int] = -1

    def optim_step(self, optim: OptimParams) -> OptimReport:
        if Mortal.left == 0:
            raise Killed
        Mortal.left -= 1
        report: Any = super().optim_step(optim)  # type: ignore[misc]
        return report  # type: ignore[no-any-return]


class MortalUnigram(Mortal, UnigramPolicy):
    """Of one distribution over characters."""


class MortalTorch(Mortal, TorchPolicy):
    """Of a model, with moments."""
