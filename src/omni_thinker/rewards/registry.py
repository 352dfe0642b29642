"""From a RewardSpec to a Reward."""

from __future__ import annotations

from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.judging import Judge, Rater
from omni_thinker.plugins import PREFIX, Registry
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.parts import Part

_REWARDS = "omni_thinker.rewards"
PARTS = Registry(
    "reward part",
    {
        "finished": f"{_REWARDS}.gates:Finished",
        "format": f"{_REWARDS}.gates:Format",
        "math": f"{_REWARDS}.math:Math",
        "unit_tests": f"{_REWARDS}.code:UnitTests",
        "unit_tests_partial": f"{_REWARDS}.code:PartialUnitTests",
        "short_answer": f"{_REWARDS}.text:ShortAnswer",
        "exact": f"{_REWARDS}.text:Exact",
        "brevity": f"{_REWARDS}.shape:Brevity",
        "not_overlong": f"{_REWARDS}.shape:NotOverlong",
        "not_repetitive": f"{_REWARDS}.shape:NotRepetitive",
        "constraints": f"{_REWARDS}.constraints:Constraints",
        "preference": f"{_REWARDS}.judged:Preference",
        "ranking": f"{_REWARDS}.judged:Ranking",
        "tournament": f"{_REWARDS}.judged:Tournament",
        "rubric": f"{_REWARDS}.judged:Rubric",
        "reasoning_gym": f"{_REWARDS}.gym:ReasoningGym",
    },
    base=f"{_REWARDS}.parts:Part",
)
"""What a recipe's `reward` may name, besides `python:MODULE:CLASS` of a Part of one's own."""


def is_verifiable(spec: RewardSpec) -> bool:
    """False where a part of the reward asks a judge. An unknown part counts as verifiable: `make_reward` refuses it."""
    names = [name for name in (*spec.sum, *spec.gate) if name in PARTS or name.startswith(PREFIX)]
    return not any(PARTS.find(name, "reward").judged for name in names)


def _make_part(name: str, judge: Judge | None) -> Part:
    found = PARTS.find(name, "reward")
    if not found.judged:
        return _called(found, name)
    if judge is None:
        raise UserError(f"the part {name!r} needs a judge", key="judge")
    if found.rates and not isinstance(judge, Rater):
        raise UserError(f"the part {name!r} needs a judge behind an API, not {judge.name}", key="judge.kind")
    return _called(found, name, judge)


def _called(found: type[Any], name: str, *arguments: Any) -> Part:
    try:
        part: Part = found(*arguments)
    except TypeError as exc:
        takes = "the judge" if arguments else "nothing"
        raise UserError(f"{name} can't be made, it is given {takes}: {exc}", key="reward") from None
    return part


def measuring(spec: RewardSpec) -> RewardSpec:
    """The reward that evaluations use: ranks within a group are half on average, whatever the policy, so there the
    reference is what a sample is compared with."""
    if not {"ranking", "tournament"} & set(spec.sum):
        return spec
    parts = {"preference" if name in ("ranking", "tournament") else name: weight for name, weight in spec.sum.items()}
    return spec.model_copy(update={"sum": parts})


def make_reward(spec: RewardSpec, *, judge: Judge | None) -> HybridReward:
    """The reward of a recipe.

    Raises UserError for an unknown part, for one that is named twice, and for `preference` without a judge.
    """
    if len({*spec.gate, *spec.sum}) < len(spec.gate) + len(spec.sum):
        raise UserError("a reward part is named twice", key="reward")
    if "preference" in spec.sum and {"ranking", "tournament"} & set(spec.sum):
        raise UserError("preference and ranking are asked of the same texts; choose one", key="reward.sum")
    gates = {name: _make_part(name, judge) for name in spec.gate}
    parts = {name: _make_part(name, judge) for name in spec.sum}
    judged = [name for name, part in gates.items() if part.judged]
    if judged:
        raise UserError(f"{judged[0]!r} can't be a gate: a tie is neither passed nor failed", key="reward.gate")
    return HybridReward(gates, parts, spec.sum)
