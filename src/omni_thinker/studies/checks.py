"""What is checked of a recipe before step 0, besides what its parts check themselves."""

from collections.abc import Mapping
from importlib.util import find_spec

from transformers import PreTrainedTokenizerBase

from omni_thinker.baselines.adapters import unmergeable
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


def check_model(recipe: Recipe) -> int | None:
    """The model's context in tokens, None where it names none. Reads no weights.

    Raises UserError where the model, its tokenizer or its chat template is missing, and where adapters can't be used.
    """
    context: int | None = model_info(recipe.model.name)["context"]
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
    return context


def screen(
    recipe: Recipe, tasks: Mapping[TaskName, Task], rewards: Mapping[TaskName, Reward], context: int | None
) -> tuple[dict[TaskName, Task], dict[TaskName, Refusals]]:
    """The tasks without the rows that can't be used, and these rows: those that `rewards` can't score, and those whose
    prompt leaves no room for an answer in the model's context.

    Raises UserError for all such rows of a task that doesn't skip them, and for stop texts that no answer can have."""
    screened: dict[TaskName, Task] = {}
    refused: dict[TaskName, Refusals] = {}
    for name, task in tasks.items():
        screened[name], refused[name] = unscored_rows(task, rewards[name], recipe.tasks[name].skip_refused)
    tokenizer = load_tokenizer(recipe.model.name)
    for name, spec in recipe.tasks.items():
        if held := [text for text in spec.stop if any(token in text for token in tokenizer.all_special_tokens)]:
            raise UserError(f"{held[0]!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")
    for name, task in screened.items() if context is not None else ():
        skip = recipe.tasks[name].skip_refused or isinstance(task, GymTask)  # whose prompts nobody could shorten
        screened[name], long = _too_long_rows(task, tokenizer, recipe.model.system, context or 0, skip)
        refused[name] = joined((refused[name], long))
    for name, task in tasks.items():
        if isinstance(task, RowTask):
            refused[name] = joined((task.refused, refused[name]))
    return screened, refused


def unscored_rows(task: Task, reward: Reward, skip: bool) -> tuple[Task, Refusals]:
    """The task without the rows of any split that `reward` can't score, and these. Raises UserError unless `skip`."""

    def fault(problem: Problem, split: Split) -> UserError | None:
        if (why := reward.check(problem)) is None:
            return None
        return UserError(f"can't score {split} row {problem.id!r}: {why}", key=f"tasks.{task.name}.reward")

    return screened_by(task, fault, skip)


def _too_long_rows(
    task: Task, tokenizer: PreTrainedTokenizerBase, system: str, context: int, skip: bool
) -> tuple[Task, Refusals]:
    """The task without the rows whose prompt leaves no room for an answer in the model's context, and these."""

    def fault(problem: Problem, split: Split) -> UserError | None:
        # A token is at least one byte, so short prompts need not be tokenized.
        if len(problem.prompt.encode("utf-8", "replace")) + task.max_tokens < context // 2:
            return None
        length = len(chat_prompt_ids(tokenizer, system, problem.prompt))
        if length + task.max_tokens <= context:
            return None
        return UserError(
            f"{split} row {problem.id!r} has a prompt of {length} tokens; with max_tokens = {task.max_tokens} "
            f"that is more than the model's context of {context}",
            key=f"tasks.{task.name}.max_tokens",
        )

    return screened_by(task, fault, skip)
