"""Forecasters by name."""

from collections.abc import Mapping, Sequence

from omni_thinker.errors import UserError
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import DRAWS, Additive, Forecaster, Literal, Logit, Naive, Relative
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from omni_thinker.transfer.priors.named import HAND

FORECASTERS: Mapping[str, type[Literal] | type[Hierarchical]] = {
    forecaster.name: forecaster for forecaster in (Naive, Additive, Relative, Logit, Hierarchical)
}


def make_forecaster(
    name: str,
    matrix: TransferMatrix,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    evidence: Sequence[Evidence] = (),
    priors: Priors = HAND,
) -> Forecaster:
    """The forecaster called `name` for `matrix`. `evidence` and `priors` are used by `hierarchical` alone; the others
    are formulas.

    Raises UserError for an unknown name."""
    if name not in FORECASTERS:
        raise UserError(f"unknown forecaster {name!r}; known: {', '.join(FORECASTERS)}", key="--forecaster")
    if name == Hierarchical.name:
        return Hierarchical(matrix, draws, seed, evidence, priors)
    return FORECASTERS[name](matrix, draws, seed)
