"""What is checked of a recipe before step 0, besides what its parts check themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from omni_thinker.errors import UserError
from omni_thinker.models.load import chat_prompt_ids, empty_model, load_tokenizer, model_info
from omni_thinker.policy.lora import add_lora
from omni_thinker.recipe import Recipe
from omni_thinker.rewards.base import Reward
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.refused import Refusals, joined, screened_by
from omni_thinker.tasks.rows import RowTask
from omni_thinker.types import Problem, Split, TaskName


@dataclass(frozen=True, slots=True)
class Room:
    """What a model's context has room for. `context` in tokens, None where the model names none."""

    tokenizer: PreTrainedTokenizerBase
    system: str
    context: int | None

    def missing(self, problem: Problem, max_tokens: int) -> str | None:
        """Why the prompt of `problem` leaves no room for an answer of so many tokens, or None."""
        # A token is at least one byte, so short prompts need not be tokenized.
        if self.context is None or len(problem.prompt.encode("utf-8", "replace")) + max_tokens < self.context // 2:
            return None
        length = len(chat_prompt_ids(self.tokenizer, self.system, problem.prompt))
        if length + max_tokens <= self.context:
            return None
        return (
            f"has a prompt of {length} tokens; with max_tokens = {max_tokens} that is more than the model's context of "
            f"{self.context}"
        )


@dataclass(frozen=True, slots=True)
class _Checks:
    """What a task's rows are held against."""

    task: TaskName
    reward: Reward
    room: Room
    max_tokens: int

    def fault(self, problem: Problem, split: Split) -> UserError | None:
        """Why a row can't be used, or None."""
        if (why := self.reward.check(problem)) is not None:
            return UserError(f"can't score {split} row {problem.id!r}: {why}", key=f"tasks.{self.task}.reward")
        if (why := self.room.missing(problem, self.max_tokens)) is not None:
            return UserError(f"{split} row {problem.id!r} {why}", key=f"tasks.{self.task}.max_tokens")
        return None


def check_model(recipe: Recipe) -> Room:
    """What the model's context has room for. Reads no weights.

    Raises UserError where the model, its tokenizer or its chat template is missing, where adapters can't be used, and
    for stop texts that no answer can have."""
    probes = recipe.study.probe_lora if "lora" in recipe.study.probes else None
    for key, lora in (("model.lora", recipe.model.lora), ("study.probe_lora", probes)):
        if lora is not None:
            add_lora(empty_model(recipe.model.name), lora, key=key)
    if recipe.model.lora is not None and "merge" in recipe.study.arms:
        # The sum of several adapters' factors isn't the sum of what they do.
        raise UserError("merging needs whole weights; leave out 'merge' or model.lora", key="study.arms")
    context: int | None = model_info(recipe.model.name)["context"]
    tokenizer = load_tokenizer(recipe.model.name)
    for name, spec in recipe.tasks.items():
        if held := [text for text in spec.stop if any(token in text for token in tokenizer.all_special_tokens)]:
            raise UserError(f"{held[0]!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")
    return Room(tokenizer, recipe.model.system, context)


def screen(
    recipe: Recipe, tasks: Mapping[TaskName, Task], rewards: Mapping[TaskName, Reward], room: Room
) -> tuple[dict[TaskName, Task], dict[TaskName, Refusals]]:
    """The tasks without the rows that can't be used, and these rows: those that `rewards` can't score, and those whose
    prompt leaves no room for an answer.

    Raises UserError for all such rows of a task that doesn't skip them."""
    screened: dict[TaskName, Task] = {}
    refused: dict[TaskName, Refusals] = {}
    for name, task in tasks.items():
        # Nobody wrote the prompts of reasoning-gym, so nobody could shorten them.
        skip = recipe.tasks[name].skip_refused or isinstance(task, GymTask)
        checks = _Checks(name, rewards[name], room, task.max_tokens)
        screened[name], unusable = screened_by(task, checks.fault, skip)
        refused[name] = joined((task.refused, unusable)) if isinstance(task, RowTask) else unusable
    return screened, refused
