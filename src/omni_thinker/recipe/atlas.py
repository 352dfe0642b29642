"""The table `[atlas]` of a recipe. Imports no torch."""

from typing import Annotated

from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.recipe.tasks import TASK_NAME
from omni_thinker.recipe.types import Count, Positive, Table

Range = tuple[Positive, Positive]


class AtlasSpec(Table):
    """Many small studies over the recipe's tasks (docs/atlas.md). Single runs take `study.steps` steps."""

    seed: Count = 0
    """Draws the mixtures, sequences and merges."""
    starts: Annotated[dict[str, Count], Field(min_length=1)] = Field(default_factory=lambda: {"short": 20, "long": 60})
    """Starts of RL: a name, and the steps of its warm-up."""
    mixtures: Count = 40
    """Mixtures of some tasks."""
    sequences: Count = 40
    """Sequences of some tasks."""
    merges: Count = 10
    """Merges of some single runs."""
    repeated: Count = 2
    """So many of each kind are run from every start with every seed; the others once, in turn."""
    mixture_tasks: Range = (2, 8)
    """Fewest and most tasks of a mixture."""
    sequence_stages: Range = (2, 5)
    """Fewest and most stages of a sequence."""
    merge_tasks: Range = (2, 4)
    """Fewest and most single runs of a merge."""
    mixed_steps: Positive = 48
    """RL steps of each mixture and each sequence."""
    reads: tuple[Positive, ...] = ()
    """Steps after which single runs are evaluated on their way: what a short probe sees."""

    def check(self, tasks: int, steps: int) -> None:
        """Raises UserError, naming the key. tasks: how many the recipe has. steps: of a single run."""
        for name in self.starts:
            if not TASK_NAME.fullmatch(name):
                raise UserError("can't be the name of a start", key=f"atlas.starts.{name:.80}")
        for key in ("mixture_tasks", "sequence_stages", "merge_tasks"):
            low, high = getattr(self, key)
            if low > high:
                raise UserError(f"must be the fewest and the most, got {low} and {high}", key=f"atlas.{key}")
        if self.mixed_steps < self.sequence_stages[1] ** 2:
            raise UserError("leaves stages of a sequence without a step", key="atlas.mixed_steps")
        if wrong := [read for read in self.reads if read >= steps]:
            raise UserError(f"must be below study.steps ({steps}), got {wrong[0]}", key="atlas.reads")
        if tasks < 2:
            raise UserError("an atlas needs two tasks or more", key="tasks")
