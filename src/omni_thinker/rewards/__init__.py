"""How an answer is scored."""

from __future__ import annotations

from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.parts import Part, SamplePart
from omni_thinker.rewards.registry import known_parts, make_reward, register_part
from omni_thinker.rewards.validate import Failure, score_texts, validate

__all__ = [
    "Failure",
    "HybridReward",
    "Part",
    "Reward",
    "SamplePart",
    "known_parts",
    "make_reward",
    "register_part",
    "score_texts",
    "validate",
]
