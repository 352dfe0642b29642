"""From a RewardSpec to a Reward."""

from __future__ import annotations

from collections.abc import Callable

from omni_thinker.errors import UserError
from omni_thinker.judging import Judge
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards.code import UnitTests
from omni_thinker.rewards.constraints import Constraints
from omni_thinker.rewards.gates import Finished, Format
from omni_thinker.rewards.gym import ReasoningGym
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.math import Math
from omni_thinker.rewards.parts import Part
from omni_thinker.rewards.preference import Preference
from omni_thinker.rewards.shape import Brevity, NotOverlong, NotRepetitive
from omni_thinker.rewards.text import Exact, ShortAnswer

PartFactory = Callable[[Judge | None], Part]


def _preference(judge: Judge | None) -> Part:
    if judge is None:
        raise UserError("the part 'preference' needs a judge", key="judge")
    return Preference(judge)


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
    "preference": _preference,
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


def make_reward(spec: RewardSpec, *, judge: Judge | None) -> HybridReward:
    """The reward of a recipe.

    Raises UserError for an unknown part, for one that is named twice, and for `preference` without a judge.
    """
    for name in (*spec.gate, *spec.sum):
        if name not in _parts:
            raise UserError(f"unknown reward part {name!r}; known: {', '.join(known_parts())}", key="reward")
    if len({*spec.gate, *spec.sum}) < len(spec.gate) + len(spec.sum):
        raise UserError("a reward part is named twice", key="reward")
    gates = {name: _parts[name](judge) for name in spec.gate}
    parts = {name: _parts[name](judge) for name in spec.sum}
    judged = [name for name, part in gates.items() if part.judged]
    if judged:
        raise UserError(f"{judged[0]!r} can't be a gate: a tie is neither passed nor failed", key="reward.gate")
    return HybridReward(gates, parts, spec.sum)
