"""What a study works with: its tasks, their rewards and problems, and the judge; all checked before step 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omni_thinker.engine.hidden_states import last_states
from omni_thinker.judging.base import Costly, Counting, Judge
from omni_thinker.judging.make import make_judge
from omni_thinker.judging.shared.share import Share
from omni_thinker.recipe import Recipe
from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.registry import make_rewards
from omni_thinker.rl.stream import stable_seed
from omni_thinker.runs.rundir import DRAWN
from omni_thinker.studies.checks import check_model, check_turns, screen
from omni_thinker.studies.scheduled import check_schedulers
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.environments.base import Turns, make_turns
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.gym.cache import kept_in
from omni_thinker.tasks.refused import Refusals
from omni_thinker.tasks.registry import Pools, make_pools, make_tasks
from omni_thinker.types import Split, TaskName, Thinking


@dataclass(frozen=True, slots=True)
class Setup:
    """The tasks of a recipe with their rewards and the problems of each split that the study uses."""

    recipe: Recipe
    tasks: Mapping[TaskName, Task]
    rewards: Mapping[TaskName, Reward]
    eval_rewards: Mapping[TaskName, Reward]
    """Rewards as evaluations use them: against a reference where training ranks within a group."""
    gate_rewards: Mapping[TaskName, Reward]
    """Rewards that ask only what needs no judge: the gates of judged tasks, the reward itself elsewhere."""
    pools: Mapping[Split, Pools]
    judge: Judge | None
    refused: Mapping[TaskName, Refusals] = field(default_factory=dict)
    """Rows that were left out, of tasks that skip them."""
    drawn: tuple[GymTask, ...] = ()
    """Tasks whose problems were drawn by reasoning-gym."""
    turns: Mapping[TaskName, Turns] = field(default_factory=dict)
    """Who speaks to answers, of the tasks where somebody does."""

    @property
    def costly(self) -> Costly | None:
        """The judge, where it counts what it costs."""
        judge: object = self.judge
        return judge if isinstance(judge, Costly) else None

    @property
    def counting(self) -> Counting | None:
        """The judge, where its counts can be kept."""
        judge: object = self.judge
        return judge if isinstance(judge, Counting) else None

    @property
    def max_tokens(self) -> dict[TaskName, int]:
        return {name: task.max_tokens for name, task in self.tasks.items()}

    @property
    def stops(self) -> dict[TaskName, tuple[str, ...]]:
        """Texts that end an answer, of the tasks that have any."""
        return {name: spec.stop for name, spec in self.recipe.tasks.items() if spec.stop}

    @property
    def thinking(self) -> dict[TaskName, Thinking]:
        """What becomes of a model's thoughts, by task."""
        return {name: spec.thinking for name, spec in self.recipe.tasks.items()}

    @property
    def judged(self) -> list[TaskName]:
        return [name for name, task in self.tasks.items() if not task.verifiable]

    @property
    def compared(self) -> list[TaskName]:
        """Tasks whose problems need a reference."""
        return [name for name, reward in self.eval_rewards.items() if getattr(reward, "compares", False)]

    @property
    def left_out(self) -> list[str]:
        """A line about each task that some rows were left out of."""
        return [refused.words() for refused in self.refused.values() if refused.count]

    @property
    def fixed(self) -> list[str]:
        """A line about each task whose test problems come from files of their own."""
        sets = {name: spec.test_set for name, spec in self.recipe.tasks.items() if spec.test_set is not None}
        return [
            f"Test problems of {name}: {len(self.pools['test'][name])} of {', '.join(test.files)}. None has a prompt "
            "that is trained on."
            for name, test in sets.items()
        ]

    def keep_drawn(self, folder: Path) -> None:
        """Write the problems that were drawn of reasoning-gym into a run's directory."""
        for task in self.drawn:
            task.keep(folder / DRAWN)


def prepare(
    recipe: Recipe, *, with_judge: bool = True, resumed: Path | None = None, shared: Share | None = None
) -> Setup:
    """Make and check everything. Raises UserError for the first thing that is wrong.

    resumed: a run's directory, whose drawn problems are taken again. shared: what this process's judge shares with
    those of others."""
    room = check_model(recipe)
    tasks = make_tasks(recipe.tasks, recipe.data_root)
    limits: dict[Split, int] = {
        "validation": recipe.evaluation.validation_problems, "test": recipe.evaluation.test_problems
    }  # fmt: skip
    with kept_in(None if resumed is None else resumed / DRAWN):
        pools = make_pools(tasks, limits, recipe.tasks)
    judged = [name for name, task in tasks.items() if not task.verifiable]
    judge = make_judge(recipe.judge, recipe.model, last_states, shared) if judged and with_judge else None
    rewards = make_rewards({name: task.reward for name, task in tasks.items()}, judge)
    drawn = tuple(task for task in tasks.values() if isinstance(task, GymTask))
    turns = make_turns(tasks, recipe.tasks)
    check_turns(recipe, turns, room)
    usable, refused = screen(recipe, tasks, rewards.train, room, turns)
    if any(usable[name] is not task for name, task in tasks.items()):
        tasks, pools = usable, make_pools(usable, limits, recipe.tasks)
    check_schedulers(recipe, {name: len(problems) for name, problems in pools["train"].items()}, judged)
    return Setup(recipe, tasks, rewards.train, rewards.evaluation, rewards.gates, pools, judge, refused, drawn, turns)


def study_seed(seed: int, *parts: object) -> int:
    """The seed of one purpose within a run."""
    return stable_seed("study", seed, *parts)
