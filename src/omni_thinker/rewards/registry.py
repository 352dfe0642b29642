"""From a RewardSpec to a Reward."""

from __future__ import annotations

from collections.abc import Callable

from omni_thinker.errors import UserError
from omni_thinker.judging import Judge, Rater
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards.code import UnitTests
from omni_thinker.rewards.constraints import Constraints
from omni_thinker.rewards.gates import Finished, Format
from omni_thinker.rewards.gym import ReasoningGym
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.judged import Preference, Ranking, Rubric
from omni_thinker.rewards.math import Math
from omni_thinker.rewards.parts import Part
from omni_thinker.rewards.shape import Brevity, NotOverlong, NotRepetitive
from omni_thinker.rewards.text import Exact, ShortAnswer

PartFactory = Callable[[Judge | None], Part]


def _judge(judge: Judge | None, part: str) -> Judge:
    if judge is None:
        raise UserError(f"the part {part!r} needs a judge", key="judge")
    return judge


def _rubric(judge: Judge | None) -> Part:
    rater = _judge(judge, "rubric")
    if not isinstance(rater, Rater):
        raise UserError(f"the part 'rubric' needs a judge behind an API, not {rater.name}", key="judge.kind")
    return Rubric(rater)


_parts: dict[str, PartFactory] = {
    "finished": lambda judge: Finished(),
    "format": lambda judge: Format(),
    "math": lambda judge: Math(),
    "unit_tests": lambda judge: UnitTests(),
    "unit_tests_partial": lambda judge: UnitTests(partial=True),
    "short_answer": lambda judge: ShortAnswer(),
    "exact": lambda judge: Exact(),
    "brevity": lambda judge: Brevity(),
    "not_overlong": lambda judge: NotOverlong(),
    "not_repetitive": lambda judge: NotRepetitive(),
    "constraints": lambda judge: Constraints(),
    "preference": lambda judge: Preference(_judge(judge, "preference")),
    "ranking": lambda judge: Ranking(_judge(judge, "ranking")),
    "tournament": lambda judge: Ranking(_judge(judge, "tournament"), rounds=4),
    "rubric": _rubric,
    "reasoning_gym": lambda judge: ReasoningGym(),
}


def register_part(name: str, factory: PartFactory) -> None:
    """Make a part of your own known. Raises UserError where the name is taken."""
    if name in _parts:
        raise UserError(f"a reward part called {name!r} exists already")
    _parts[name] = factory


def known_parts() -> tuple[str, ...]:
    """Names that a recipe's `reward` may use."""
    return tuple(sorted(_parts))


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
    for name in (*spec.gate, *spec.sum):
        if name not in _parts:
            raise UserError(f"unknown reward part {name!r}; known: {', '.join(known_parts())}", key="reward")
    if len({*spec.gate, *spec.sum}) < len(spec.gate) + len(spec.sum):
        raise UserError("a reward part is named twice", key="reward")
    if "preference" in spec.sum and {"ranking", "tournament"} & set(spec.sum):
        raise UserError("preference and ranking are asked of the same texts; choose one", key="reward.sum")
    gates = {name: _parts[name](judge) for name in spec.gate}
    parts = {name: _parts[name](judge) for name in spec.sum}
    judged = [name for name, part in gates.items() if part.judged]
    if judged:
        raise UserError(f"{judged[0]!r} can't be a gate: a tie is neither passed nor failed", key="reward.gate")
    return HybridReward(gates, parts, spec.sum)
