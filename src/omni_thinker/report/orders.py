"""Which orders of a plan can be told apart."""

from collections.abc import Sequence

from omni_thinker.runs.schema.plan import Plan, PlanForecast

SETTLED = 0.95
"""Probability that the orders which may be the best hold together."""


def candidates(probabilities: Sequence[float]) -> int:
    """The fewest orders that hold the best one with probability `SETTLED`; 0 where nothing is known."""
    held = 0.0
    for count, probability in enumerate(sorted(probabilities, reverse=True), 1):
        held += probability
        if held >= SETTLED:
            return count
    return len(probabilities)


def told_apart_words(plan: Plan) -> str:
    """Whether the data can tell the orders apart, in words; empty where they weren't compared."""
    known = [item.probability_best for item in plan.orders if item.probability_best is not None]
    if len(known) < 2:
        return ""
    rivals, best, chance = candidates(known), max(known), 1 / len(known)
    odds = f"the likeliest is the best with probability {best:.2f} (by chance: {chance:.2f})"
    if rivals == 1:
        return f"One order stands out: it is the best with probability {best:.2f}."
    if rivals > len(known) / 2:
        return (
            f"The orders can't be told apart: {odds}. It takes {rivals} of the {len(known)} orders to include the best "
            f"with probability {SETTLED:.2f}."
        )
    return (
        f"{rivals} of {len(known)} orders can't be told apart: {odds}. They include the best with probability "
        f"{SETTLED:.2f}."
    )


def shares_text(mixture: PlanForecast) -> str:
    """Each task with its share of joint training."""
    return ", ".join(f"{task} {share:.0%}" for task, share in mixture.shares.items())


def mixture_words(plan: Plan) -> str:
    """In which shares joint training is forecast to end best; empty where the plan doesn't say."""
    mixture = plan.mixture
    if mixture is None:
        return ""
    return (
        f"Joint training is forecast to end best in the shares {shares_text(mixture)}: {mixture.score:.3f} "
        f"[{mixture.low:.3f}, {mixture.high:.3f}], in the recipe's {plan.joint.score:.3f}."
    )
