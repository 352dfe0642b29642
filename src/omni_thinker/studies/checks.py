"""What is checked of a recipe before step 0, besides what its parts check themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from omni_thinker.baselines.adapters import unmergeable
from omni_thinker.errors import UserError
from omni_thinker.models.chat import ChatFormat, load_chat
from omni_thinker.models.load import empty_model
from omni_thinker.policy.lora import add_lora
from omni_thinker.recipe import Recipe
from omni_thinker.rewards.base import Reward
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.refused import Refusals, joined, screened_by
from omni_thinker.tasks.registry import under
from omni_thinker.tasks.rows import RowTask
from omni_thinker.types import Problem, Split, TaskName


@dataclass(frozen=True, slots=True)
class Room:
    """What a model's context has room for. `context` in tokens, None where the model names none."""

    chat: ChatFormat
    context: int | None

    def missing(self, problem: Problem, max_tokens: int) -> str | None:
        """Why the prompt of `problem` leaves no room for an answer of so many tokens, or None."""
        # A token is at least one byte, so short prompts need not be tokenized.
        if self.context is None or len(problem.shown.encode("utf-8", "replace")) + max_tokens < self.context // 2:
            return None
        length = len(self.chat.prompt_ids(problem.chat))
        if length + max_tokens <= self.context:
            return None
        return (
            f"has a prompt of {length} tokens; with max_tokens = {max_tokens} that is more than the model's context of "
            f"{self.context}"
        )

    def unwritten(self, problem: Problem, gold: bool) -> UserError | None:
        """Why the chat template can't write the problem, and with `gold` its answer, or None."""
        try:
            if gold and problem.answer is not None:
                self.chat.target_text(problem.chat, problem.answer, self.chat.prompt_text(problem.chat))
            elif not isinstance(problem.chat, str):
                self.chat.prompt_text(problem.chat)
        except UserError as exc:
            return exc
        return None


@dataclass(frozen=True, slots=True)
class _Checks:
    """What a task's rows are held against."""

    task: TaskName
    reward: Reward
    room: Room
    max_tokens: int
    system: str | None
    warmed: bool

    def fault(self, problem: Problem, split: Split) -> UserError | None:
        """Why a row can't be used, or None."""
        if (why := self.reward.check(problem)) is not None:
            return UserError(f"can't score {split} row {problem.id!r}: {why}", key=f"tasks.{self.task}.reward")
        problem = under(problem, self.system)
        if (fault := self.room.unwritten(problem, split == "train" and self.warmed)) is not None:
            return UserError(f"{split} row {problem.id!r}: {fault.message}", key=f"tasks.{self.task}")
        if (why := self.room.missing(problem, self.max_tokens)) is not None:
            return UserError(f"{split} row {problem.id!r} {why}", key=f"tasks.{self.task}.max_tokens")
        return None


def check_model(recipe: Recipe) -> Room:
    """What the model's context has room for. Reads no weights.

    Raises UserError where the model, its tokenizer or its chat template is missing, where adapters can't be used, and
    for stop texts that no answer can have."""
    for key, needed in (("model.lora", recipe.model.lora is not None), ("study.probes", "lora" in recipe.study.probes)):
        if needed and find_spec("peft") is None:
            raise UserError("LoRA needs peft: pip install 'omni-thinker[lora]'", key=key)
    if "lora" in recipe.study.probes:
        adapted = add_lora(empty_model(recipe.model.name), recipe.study.probe_lora, key="study.probe_lora")
        if "merge" in recipe.study.arms and (odd := unmergeable(adapted)):
            raise UserError(f"adapters of {odd} can't be added up by the arm 'merge'", key="study.probe_lora.targets")
    if recipe.model.lora is not None and "merge" in recipe.study.arms:
        # The sum of several adapters' factors isn't the sum of what they do.
        raise UserError("merging needs whole weights; leave out 'merge' or model.lora", key="study.arms")
    config = empty_model(recipe.model.name).config.get_text_config()
    chat = load_chat(recipe.model)
    for name, spec in recipe.tasks.items():
        if held := [text for text in spec.stop if any(token in text for token in chat.tokenizer.all_special_tokens)]:
            raise UserError(f"{held[0]!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")
    return Room(chat, getattr(config, "max_position_embeddings", None))


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
        checks = _Checks(name, rewards[name], room, task.max_tokens, recipe.tasks[name].system, recipe.warmup.steps > 0)
        screened[name], unusable = screened_by(task, checks.fault, skip)
        refused[name] = joined((task.refused, unusable)) if isinstance(task, RowTask) else unusable
    return screened, refused
