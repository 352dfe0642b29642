"""The table `[cluster]` of a recipe: what a unit of a study needs where several are worked on. Imports no torch."""

from typing import Annotated

from pydantic import Field

from omni_thinker.recipe.types import Count, NonNegative, Positive, Table


class ClusterSpec(Table):
    """Units (arms, probes, evaluations) on the nodes of a cluster."""

    cores: Positive = 1
    """CPU cores of a unit; as many threads compute."""
    gpus: NonNegative = 0.0
    """GPUs of a unit. A part of one (0.5) lets several units share it."""
    memory_gb: NonNegative = 0.0
    """Memory of a unit in GB (10^9 bytes), kept free for it; 0: not looked at."""
    most: Count = 0
    """Most units at a time; 0: as many as the nodes have room for."""
    attempts: Annotated[int, Field(gt=0, le=100, strict=True)] = 3
    """Attempts at a unit whose worker or node is lost, before the study ends."""
    shared: bool = False
    """Whether the run's directory is on a disk that all nodes see under the same path. Else weights travel."""
