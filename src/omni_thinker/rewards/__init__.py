"""How an answer is scored."""

from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.parts import Part, SamplePart
from omni_thinker.rewards.registry import PARTS, is_verifiable, make_reward
from omni_thinker.rewards.validate import Failure, score_texts, validate

__all__ = [
    "PARTS", "Failure", "HybridReward", "Part", "Reward", "SamplePart", "is_verifiable", "make_reward", "score_texts",
    "validate",
]  # fmt: skip
