"""Preferences for answers that no verifier can check."""

from omni_thinker.judging.base import Costly, Criterion, Judge, NoJudge, Ranker, Rater, Verdict

__all__ = ["Costly", "Criterion", "Judge", "NoJudge", "Ranker", "Rater", "Verdict"]
