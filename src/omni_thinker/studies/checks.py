"""What is checked of a recipe before step 0, besides what its parts check themselves."""

import functools
import logging
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
from omni_thinker.types import SPLITS, Problem, TaskName

_log = logging.getLogger(__name__)


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


def check_problems(
    recipe: Recipe, tasks: Mapping[TaskName, Task], rewards: Mapping[TaskName, Reward], context: int | None
) -> None:
    """Raises UserError for the first row that can't be scored, or whose prompt leaves no room for an answer, and for
    stop texts that no answer can have."""
    for name, task in tasks.items():
        check_rows(task, rewards[name])
    tokenizer = load_tokenizer(recipe.model.name)
    for name, spec in recipe.tasks.items():
        if held := [text for text in spec.stop if any(token in text for token in tokenizer.all_special_tokens)]:
            raise UserError(f"{held[0]!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")
    for task in tasks.values() if context is not None else ():
        _check_lengths(task, tokenizer, recipe.model.system, context or 0)


def leave_out_long(recipe: Recipe, tasks: Mapping[TaskName, Task], context: int | None) -> None:
    """Drop problems of reasoning-gym that don't fit into the model's context, and say how many.

    Nobody wrote these prompts, so nobody could shorten them. Raises UserError where none of a split is left."""
    drawn = [task for task in tasks.values() if isinstance(task, GymTask)]
    if context is None or not drawn:
        return
    tokenizer = load_tokenizer(recipe.model.name)
    for task in drawn:
        limit = task.max_tokens
        had = {split: len(task.problems(split)) for split in SPLITS}
        lengths = functools.partial(
            _excess, max_tokens=limit, tokenizer=tokenizer, system=recipe.model.system, context=context
        )
        dropped = task.leave_out(lengths)
        room = f"with max_tokens = {limit} that is more than the model's context of {context}"
        for split in SPLITS:
            if dropped[split] == had[split]:
                why = f"the prompts of all {had[split]} {split} problems are too long: {room}"
                raise UserError(why, key=f"tasks.{task.name}.max_tokens")
        if any(dropped.values()):
            counts = ", ".join(f"{dropped[split]} of {had[split]} {split}" for split in SPLITS)
            _log.warning("tasks.%s: left out problems with long prompts (%s): %s", task.name, counts, room)


def check_rows(task: Task, reward: Reward) -> None:
    """Raises UserError for the first row of any split that `reward` can't score."""
    for split in SPLITS:
        for problem in task.problems(split):
            if why := reward.check(problem):
                raise UserError(f"can't score {split} row {problem.id!r}: {why}", key=f"tasks.{task.name}.reward")


def _check_lengths(task: Task, tokenizer: PreTrainedTokenizerBase, system: str, context: int) -> None:
    """Raises UserError for the first row whose prompt leaves no room for an answer in the model's context."""
    for split in SPLITS:
        for problem in task.problems(split):
            if length := _excess(problem, task.max_tokens, tokenizer, system, context):
                raise UserError(
                    f"{split} row {problem.id!r} has a prompt of {length} tokens; with max_tokens = {task.max_tokens} "
                    f"that is more than the model's context of {context}",
                    key=f"tasks.{task.name}.max_tokens",
                )


def _excess(
    problem: Problem, max_tokens: int, tokenizer: PreTrainedTokenizerBase, system: str, context: int
) -> int | None:
    """The prompt's length in tokens where it leaves no room for `max_tokens` of answer, else None."""
    # A token is at least one byte, so short prompts need not be tokenized.
    if len(problem.prompt.encode("utf-8", "replace")) + max_tokens < context // 2:
        return None
    length = len(chat_prompt_ids(tokenizer, system, problem.prompt))
    return length if length + max_tokens > context else None
