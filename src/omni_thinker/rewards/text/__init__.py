"""Answers that are compared as text: short answers, and texts or literals that must be exact."""

from omni_thinker.rewards.text.exact import Exact
from omni_thinker.rewards.text.normal import normalise
from omni_thinker.rewards.text.short_answer import ShortAnswer

__all__ = ["Exact", "ShortAnswer", "normalise"]
