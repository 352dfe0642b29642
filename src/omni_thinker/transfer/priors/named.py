"""The priors of the hierarchical forecaster, as set by hand."""

from math import log

from omni_thinker.runs.schema.priors import Beta, Priors
from omni_thinker.transfer.forecast import CURVE_RATE

HAND = Priors(
    name="hand",
    shared=(0.2, 0.4),
    shared_spread=(log(0.35), 0.5),
    own=(0.6, 0.6),
    own_spread=(log(0.6), 0.5),
    specific_spread=(log(0.25), 0.5),
    dilution=(8.5, 1.5),
    # With four tasks it costs a sequence as much as dilution costs a mixture, so that without data neither is
    # preferred.
    retention=(9.0, 1.0),
    merged=(6.0, 3.0),
    response=0.3,
    luck=(0.15, 0.6),
    curve=CURVE_RATE,
    # Sooner than it was learnt: a quarter pass brings 86 % (a short refresh nearly did in arXiv 2606.02398).
    recovery=8.0,
)
"""Set by hand, with one published mix in view."""


def priors_words(priors: Priors) -> str:
    """What is taken for granted, in a line."""

    def mean(beta: Beta) -> str:
        return f"{beta[0] / sum(beta):.0%}"

    return (
        f"Priors ({priors.name}): of its own gain a task keeps {mean(priors.dilution)} in a mixture, "
        f"{mean(priors.retention)} over each later stage and {mean(priors.merged)} in a merge"
    )
