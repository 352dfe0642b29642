"""What the tables of a recipe are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_INT = 2**53
"""Larger whole numbers are slips, and no float holds them."""
Positive = Annotated[int, Field(gt=0, le=MAX_INT, strict=True)]
Count = Annotated[int, Field(ge=0, le=MAX_INT, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0.0, strict=True)]
Seconds = Annotated[float, Field(gt=0.0, le=1e9, strict=True)]
"""No clock of the system knows longer waits."""
NonNegative = Annotated[float, Field(ge=0.0, strict=True)]


class Table(BaseModel):
    """Unknown keys are refused, and so are numbers that aren't finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
