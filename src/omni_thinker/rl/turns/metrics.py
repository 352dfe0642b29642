"""What conversations came to: how many turns they took, and at which turn they succeeded."""

from collections.abc import Sequence
from statistics import fmean

from omni_thinker.rl.batch import ScoredGroup

SOLVED = 1 - 1e-9
"""From this score on an answer is right."""


def turn_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Of the samples of tasks with turns; nothing where there are none.

    turns: answers to a problem. message_length: tokens that the environment wrote. turn_success.K: of the conversations
    that reached turn K, the share that ended there with a right answer. For K > 1 an environment that only speaks to
    wrong answers was told of an error before, so this is the success after an error."""
    pairs = [
        (sample.dialogue, score.value)
        for group in groups
        for sample, score in zip(group.group.samples, group.scores, strict=True)
        if sample.dialogue is not None
    ]
    if not pairs:
        return {}
    described = {
        "turns": fmean(len(dialogue.exchanges) for dialogue, _ in pairs),
        "message_length": fmean(dialogue.reply_tokens for dialogue, _ in pairs),
    }
    ended = [(len(dialogue.exchanges), value) for dialogue, value in pairs if value is not None]
    for turn in range(1, max((turns for turns, _ in ended), default=0) + 1):
        reached = [(turns == turn and value >= SOLVED) for turns, value in ended if turns >= turn]
        described[f"turn_success.{turn}"] = fmean(reached)
    return described
