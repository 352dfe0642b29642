"""The table `[atlas]` of a recipe. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.recipe.tasks import TASK_NAME
from omni_thinker.recipe.types import Count, Positive, PositiveFloat, Table

Range = tuple[Positive, Positive]


class ChosenSpec(Table):
    """A run that was chosen rather than drawn, such as a plan and what it is compared with."""

    kind: Literal["mixture", "sequence"]
    """All tasks in every step, or one after another."""
    start: str
    """Name of the start that it begins at."""
    seed: Count
    """One of `study.seeds`."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Tasks, in order; those of a sequence may come again."""
    weights: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Of each task in a mixture, or the length of each stage of a sequence."""


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

    chosen: dict[str, ChosenSpec] = Field(default_factory=dict)
    """Runs of one's own: a name, and what it trains. They come after all others, and take `mixed_steps`, too."""

    def check(self, tasks: Sequence[str], steps: int, seeds: Sequence[int]) -> None:
        """Raises UserError, naming the key. tasks: of the recipe. steps: of a single run. seeds: of the study."""
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
        if len(tasks) < 2:
            raise UserError("an atlas needs two tasks or more", key="tasks")
        for name, run in self.chosen.items():
            self._check_chosen(name, run, tasks, seeds)

    def _check_chosen(self, name: str, run: ChosenSpec, tasks: Sequence[str], seeds: Sequence[int]) -> None:
        key = f"atlas.chosen.{name:.80}"
        drawn = ("alone-", "mixture-", "sequence-", "merge-")
        if not TASK_NAME.fullmatch(name) or name == "start" or name.startswith(drawn):
            raise UserError("can't be the name of a run", key=key)
        if run.start not in self.starts or run.seed not in seeds:
            known = f"starts are {', '.join(self.starts)}, seeds {', '.join(map(str, seeds))}"
            raise UserError(f"no start {run.start!r:.80} with seed {run.seed}; {known}", key=key)
        if unknown := [task for task in run.tasks if task not in tasks]:
            raise UserError(f"no task {unknown[0]!r:.80}", key=f"{key}.tasks")
        if len(run.weights) != len(run.tasks):
            raise UserError(f"{len(run.weights)} for {len(run.tasks)} tasks", key=f"{key}.weights")
        if run.kind == "mixture" and len(set(run.tasks)) < len(run.tasks):
            raise UserError("a mixture has each task once", key=f"{key}.tasks")
        if run.kind == "sequence" and self.mixed_steps * min(run.weights) < 2 * sum(run.weights):
            raise UserError("leaves a stage with fewer than two steps", key=f"{key}.weights")
