"""What is checked of a recipe before step 0, besides what its parts check themselves."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from omni_thinker.errors import UserError
from omni_thinker.models.chat import ChatFormat, load_chat
from omni_thinker.models.load import empty_model, load_config, resolve
from omni_thinker.models.think_form import ThinkForm, ask, ask_further, think_form
from omni_thinker.policy.lora import add_lora
from omni_thinker.policy.make import POLICIES, check_engine
from omni_thinker.recipe import Recipe, TaskSpec
from omni_thinker.rewards.base import Reward
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.environments.base import Turns
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.refused import Refusals, joined, screened_by
from omni_thinker.tasks.registry import under
from omni_thinker.tasks.rows import RowTask
from omni_thinker.tasks.test_set import WithTestSet
from omni_thinker.types import Problem, Split, TaskName, Thinking

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """What a model's context has room for. `context` in tokens, None where the model names none. `form`: how it thinks,
    None where it doesn't."""

    chat: ChatFormat
    context: int | None
    form: ThinkForm | None = None

    def missing(
        self, problem: Problem, max_tokens: int, thinking: Thinking = "auto", turns: Turns | None = None
    ) -> str | None:
        """Why the prompt of `problem` leaves no room for thoughts and an answer of so many tokens, or for all answers
        and messages of a task with turns; None where it does."""
        budget = thinking if isinstance(thinking, int) else 0
        if self.context is None:
            return None
        if problem.earlier == ():
            # A token is at least one byte, so short prompts need not be tokenized.
            written = len(problem.shown.encode("utf-8", "replace")) + self._around(thinking)
            if turns is None and written + max_tokens + budget < self.context // 2:
                return None
        asked = ask(self.chat, self.form, problem.chat, thinking)
        prompt, rule = asked.tokens, asked.rule
        longest = max_tokens if rule is None else rule.longest(max_tokens)
        if turns is not None:
            longest = turns.most * longest + turns.longest
        if len(prompt) + longest <= self.context:
            return None
        thoughts = f" and thinking = {budget}" if budget else ""
        if turns is not None:
            thoughts += f", turns = {turns.most} and message_tokens = {turns.message_tokens}"
        return (
            f"has a prompt of {len(prompt)} tokens; with max_tokens = {max_tokens}{thoughts} that is more than the "
            f"model's context of {self.context}"
        )

    @cache  # noqa: B019 - as long as a study
    def _around(self, thinking: Thinking) -> int:
        """Bytes that the template, and the system's words, put around those of a user."""
        return len(ask(self.chat, self.form, "?", thinking).text.encode("utf-8", "replace"))

    def unwritten(self, problem: Problem, gold: bool, thinking: Thinking = "auto") -> UserError | None:
        """Why the chat template can't write the problem, and with `gold` its answer, or None."""
        try:
            if gold and problem.answer is not None:
                asked = ask(self.chat, self.form, problem.chat, thinking)
                asked.format.target_text(problem.chat, problem.answer, asked.text)
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
    spec: TaskSpec
    warmed: bool
    """Whether gold answers are trained on."""
    turns: Turns | None
    places: Mapping[str, str]
    """Where the row of a problem's id is, for tasks that read rows."""

    def fault(self, problem: Problem, split: Split) -> UserError | None:
        """Why a row can't be used, or None."""
        place = self.places.get(problem.id)
        row = f"{split} row" if place else f"{split} row {problem.id!r}"
        if (why := self.reward.check(problem)) is not None:
            return UserError(f"can't score {row}: {why}", file=place, key=f"tasks.{self.task}.reward")
        problem, thinking = under(problem, self.spec.system), self.spec.thinking
        if (unwritten := self.room.unwritten(problem, split == "train" and self.warmed, thinking)) is not None:
            return UserError(f"{row}: {unwritten.message}", file=place, key=f"tasks.{self.task}")
        if (why := self.room.missing(problem, self.max_tokens, thinking, self.turns)) is not None:
            return UserError(f"{row} {why}", file=place, key=f"tasks.{self.task}.max_tokens")
        return None


def check_model(recipe: Recipe) -> Room:
    """What the model's context has room for. Reads no weights.

    Raises UserError where the model, its tokenizer or its chat template is missing, where adapters can't be used, and
    for stop texts that no answer can have, and for a budget of thoughts where the model knows none."""
    check_engine(recipe)
    probes = recipe.study.probe_lora if "lora" in recipe.study.probes else None
    for key, lora in (("model.lora", recipe.model.lora), ("study.probe_lora", probes)):
        if lora is not None:
            add_lora(empty_model(recipe.spoken.name), lora, key=key)
    if recipe.model.lora is not None and {"merge", *recipe.study.merges} & set(recipe.study.arms):
        # The sum of several adapters' factors isn't the sum of what they do.
        raise UserError("merging needs whole weights; leave out 'merge' or model.lora", key="study.arms")
    context = getattr(load_config(resolve(recipe.spoken.name)).get_text_config(), "max_position_embeddings", None)
    if context is not None and context < 1:  # as some name one that has no end
        context = None
    if recipe.engine.sampler == "vllm" and recipe.engine.vllm.max_model_len:
        context = min(context or recipe.engine.vllm.max_model_len, recipe.engine.vllm.max_model_len)
    chat = load_chat(recipe.spoken)
    form = think_form(chat)
    for name, task in recipe.tasks.items():
        if isinstance(task.thinking, int) and form is None:
            raise UserError(
                'neither the chat template nor the vocabulary of the model knows thoughts; use "auto"',
                key=f"tasks.{name}.thinking",
            )
        if form is not None and task.thinking == "auto" and task.max_tokens is None and form.opens:
            _log.warning(
                "%s: the model thinks first, within its max_tokens; tasks.%s.thinking = 512 gives room", name, name
            )
        if held := [text for text in task.stop if any(token in text for token in chat.tokenizer.all_special_tokens)]:
            raise UserError(f"{held[0]!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")
    return Room(chat, context, form)


def check_turns(recipe: Recipe, turns: Mapping[TaskName, Turns], room: Room) -> None:
    """Raises UserError where a task has turns and the policy, or the model's chat template, can't take a second one."""
    for name, own in turns.items():
        key = f"tasks.{name}.turns"
        if recipe.model.policy != "torch" and not hasattr(POLICIES.find(recipe.model.policy, "model.policy"), "follow"):
            why = f"the policy {recipe.model.policy} can't be spoken to again: it has no method follow; use turns = 1"
            raise UserError(why, key=key)
        thinking = recipe.tasks[name].thinking
        try:
            marks = len(ask_further(room.chat, room.form, "", thinking, closed=False).tokens)
        except UserError as exc:
            raise UserError(f"{exc.message}; use turns = 1", key=key) from None
        if marks >= own.message_tokens:
            why = f"leaves no room for words: the chat template's own marks between two answers take {marks} tokens"
            raise UserError(why, key=f"tasks.{name}.message_tokens")


def screen(
    recipe: Recipe,
    tasks: Mapping[TaskName, Task],
    rewards: Mapping[TaskName, Reward],
    room: Room,
    turns: Mapping[TaskName, Turns],
) -> tuple[dict[TaskName, Task], dict[TaskName, Refusals]]:
    """The tasks without the rows that can't be used, and these rows: those that `rewards` can't score, and those whose
    prompt leaves no room for an answer.

    Raises UserError for all such rows of a task that doesn't skip them."""
    screened: dict[TaskName, Task] = {}
    refused: dict[TaskName, Refusals] = {}
    for name, task in tasks.items():
        # Nobody wrote the prompts of reasoning-gym, so nobody could shorten them.
        skip = recipe.tasks[name].skip_refused or isinstance(task, GymTask)
        rows = task if isinstance(task, RowTask | WithTestSet) else None
        spec, places = recipe.tasks[name], {} if rows is None else rows.places
        warmed = recipe.warmup.steps > 0
        checks = _Checks(name, rewards[name], room, task.max_tokens, spec, warmed, turns.get(name), places)
        screened[name], unusable = screened_by(task, checks.fault, skip)
        refused[name] = unusable if rows is None else joined((rows.refused, unusable))
    return screened, refused
