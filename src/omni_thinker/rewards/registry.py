"""From a RewardSpec to a Reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.judging import Judge, NoJudge, Rater
from omni_thinker.plugins import PREFIX, Registry
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.hybrid import GatesOnly, HybridReward
from omni_thinker.rewards.parts import Part
from omni_thinker.types import TaskName

_REWARDS = "omni_thinker.rewards"
PARTS = Registry(
    "reward part",
    {
        "finished": f"{_REWARDS}.gates:Finished",
        "format": f"{_REWARDS}.gates:Format",
        "math": f"{_REWARDS}.math:Math",
        "unit_tests": f"{_REWARDS}.programs.unit_tests:UnitTests",
        "unit_tests_partial": f"{_REWARDS}.programs.unit_tests:PartialUnitTests",
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
        "verifiers": f"{_REWARDS}.verifiers:Verifiers",
    },
    base=f"{_REWARDS}.parts:Part",
)
"""What a recipe's `reward` may name, besides `python:MODULE:CLASS` of a Part of one's own."""


def is_verifiable(spec: RewardSpec) -> bool:
    """False where a part of the reward asks a judge. An unknown part counts as verifiable: `make_reward` refuses it."""
    names = [name for name in (*spec.sum, *spec.gate) if name in PARTS or name.startswith(PREFIX)]
    return not any(PARTS.find(name, "reward").judged for name in names)


def _make_part(name: str, judge: Judge | None) -> Part:
    part_class: type[Any] = PARTS.find(name, "reward")
    if part_class.judged and judge is None:
        raise UserError(f"the part {name!r} needs a judge", key="judge")
    if part_class.judged and judge is not None and part_class.rates and not isinstance(judge, Rater):
        raise UserError(f"the part {name!r} needs a judge behind an API, not {judge.name}", key="judge.kind")
    try:
        part: Part = part_class(judge) if part_class.judged else part_class()
    except TypeError as exc:
        takes = "the judge" if part_class.judged else "nothing"
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

    Raises UserError for an unknown part, for one that is named twice, and for `preference` without a judge."""
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


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of every task.

    train: what RL maximises. evaluation: against a reference where training ranks within a group. gates: what needs no
    judge, which is the whole reward of tasks without one."""

    train: Mapping[TaskName, Reward]
    evaluation: Mapping[TaskName, Reward]
    gates: Mapping[TaskName, Reward]


def make_rewards(specs: Mapping[TaskName, RewardSpec], judge: Judge | None) -> Rewards:
    """Without a judge, judged tasks are scored by their gates alone. Raises UserError as `make_reward` does."""
    whole = {name: make_reward(spec, judge=judge or NoJudge()) for name, spec in specs.items()}
    gates: dict[TaskName, Reward] = {
        name: GatesOnly(reward) if reward.judged else reward for name, reward in whole.items()
    }
    if judge is None:
        return Rewards(gates, gates, gates)
    evaluation = {
        name: reward if measuring(specs[name]) is specs[name] else make_reward(measuring(specs[name]), judge=judge)
        for name, reward in whole.items()
    }
    return Rewards(whole, evaluation, gates)
