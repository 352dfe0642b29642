"""What a forecaster takes for granted before it sees a run: in plan.json, and in files of learned priors."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from omni_thinker.runs.schema.base import CONFIG, Float

_Above = Annotated[Float, Field(gt=0.0, allow_inf_nan=False)]
_Any = Annotated[Float, Field(allow_inf_nan=False)]
Normal = tuple[_Any, _Above]
"""Mean and standard deviation."""
Beta = tuple[_Above, _Above]
"""The two parameters of a beta distribution, of a share between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Priors:
    """Priors of the hierarchical forecaster. Effects are in log-odds."""

    name: str
    """`hand`, `atlas`, or the file that they were learned from."""
    shared: Normal
    """Mean of what any run brings to an evaluation."""
    shared_spread: Normal
    """Logarithm of its standard deviation over evaluations."""
    own: Normal
    """Mean of what a task's own run brings beyond that."""
    own_spread: Normal
    """Logarithm of its standard deviation over evaluations."""
    specific_spread: Normal
    """Logarithm of the standard deviation of what one task does to another beyond the shared part."""
    dilution: Beta
    """Share of its own gain that a task keeps when it is trained in a mixture."""
    retention: Beta
    """Share of its own gain that a task keeps over a later stage."""
    merged: Beta
    """Share of its own gain that a task keeps when experts are added up."""
    response: _Above
    """Standard deviation, around 0, of the share by which an own gain grows for each nat that earlier stages added to
    the entropy of its answers."""
    luck: tuple[_Above, _Any]
    """What a run misses its forecast by for no reason of ours: at least, and per spread of specific effects."""
    curve: _Above
    """How soon a learning curve flattens: x passes bring (1 - exp(-curve x)) / (1 - exp(-curve)) of a pass's gain."""
    recovery: _Above
    """How soon a stage brings back what others took from its task."""
