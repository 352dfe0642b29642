"""Everything that is checked before step 0: tasks, rewards and every row that will be used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from omni_thinker.baselines.adapters import unmergeable
from omni_thinker.engine.hidden_states import last_states
from omni_thinker.errors import UserError
from omni_thinker.judging.base import Costly, Counting, Criterion, Judge, Verdict
from omni_thinker.judging.cache import JudgeCache
from omni_thinker.judging.client import ChatClient
from omni_thinker.judging.guards import LengthGuard
from omni_thinker.judging.likelihood import LikelihoodJudge
from omni_thinker.judging.limits import Meter
from omni_thinker.judging.pairwise import EndpointJudge
from omni_thinker.judging.trained import TrainedJudge
from omni_thinker.models.home import home
from omni_thinker.models.load import (
    chat_prompt_ids,
    compute_dtype,
    empty_model,
    load_model,
    load_tokenizer,
    model_info,
)
from omni_thinker.policy.lora import add_lora
from omni_thinker.recipe import EndpointSpec, JudgeSpec, ModelSpec, Recipe, TaskSpec
from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.hybrid import GatesOnly
from omni_thinker.rewards.registry import make_reward, measuring
from omni_thinker.rl.stream import stable_seed
from omni_thinker.studies.scheduled import check_schedulers
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.registry import check_splits, make_task
from omni_thinker.types import SPLITS, Problem, SamplingParams, Score, Split, TaskName

Pools = Mapping[TaskName, Sequence[Problem]]


@dataclass(frozen=True, slots=True)
class Bench:
    """The tasks of a recipe with their rewards and the problems of each split that the study uses."""

    recipe: Recipe
    tasks: Mapping[TaskName, Task]
    rewards: Mapping[TaskName, Reward]
    measures: Mapping[TaskName, Reward]
    """Rewards as evaluations use them: against a reference where training ranks within a group."""
    forms: Mapping[TaskName, Reward]
    """Rewards that ask only what needs no judge: the gates of judged tasks, the reward itself elsewhere."""
    pools: Mapping[Split, Pools]
    judge: Judge | None

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
    def judged(self) -> list[TaskName]:
        return [name for name, task in self.tasks.items() if not task.verifiable]

    @property
    def compared(self) -> list[TaskName]:
        """Tasks whose problems need a reference."""
        return [name for name, reward in self.measures.items() if getattr(reward, "compares", False)]


def make_tasks(recipe: Recipe) -> dict[TaskName, Task]:
    """The tasks of a recipe. Raises UserError for the first that can't be made."""
    return {name: make_task(name, _rooted(spec, recipe.data_root)) for name, spec in recipe.tasks.items()}


def evaluation_params(recipe: Recipe) -> SamplingParams:
    """How answers are drawn in evaluations."""
    spec = recipe.evaluation
    return SamplingParams(spec.samples, spec.temperature, spec.top_k, spec.top_p, spec.min_p)


def prepare(recipe: Recipe, *, with_judge: bool = True) -> Bench:
    """Make and check everything. Raises UserError for the first thing that is wrong."""
    context = _check_model(recipe)
    tasks = make_tasks(recipe)
    judged = any(not task.verifiable for task in tasks.values())
    judge = make_judge(recipe.judge, recipe.model.system) if judged and with_judge else None
    rewards: dict[TaskName, Reward] = {}
    measures: dict[TaskName, Reward] = {}
    forms: dict[TaskName, Reward] = {}
    for name, task in tasks.items():
        reward = make_reward(task.reward, judge=judge or _NoJudge())
        forms[name] = GatesOnly(reward) if reward.judged else reward
        rewards[name] = reward if judge is not None or not reward.judged else forms[name]
        measures[name] = rewards[name]
        if judge is not None and measuring(task.reward) is not task.reward:
            measures[name] = make_reward(measuring(task.reward), judge=judge)
    for name, task in tasks.items():
        check_splits(task)
        check_rows(task, rewards[name])
    _check_stops(recipe)
    if context is not None:
        _check_lengths(tasks.values(), recipe.model, context)
    pools = _pools(recipe, tasks)
    sizes = {name: len(own) for name, own in pools["train"].items()}
    check_schedulers(recipe, sizes, [name for name, task in tasks.items() if not task.verifiable])
    return Bench(recipe, tasks, rewards, measures, forms, pools, judge)


class _NoJudge:
    """Stands where no judge is wanted: only gates are asked then, so that it is never called."""

    name = "none"
    caveat = "No judge."
    local = False

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        return [Verdict("error", None, "no judge") for _ in responses]

    async def rate(self, prompt: str, responses: Sequence[str], rubric: Sequence[Criterion]) -> list[Score]:
        return [Score.error("no judge") for _ in responses]

    def metrics(self) -> Mapping[str, float]:
        return {}


def _check_model(recipe: Recipe) -> int | None:
    """The model's context in tokens, None where it names none. Reads no weights.

    Raises UserError where the model, its tokenizer or its chat template is missing.
    """
    context: int | None = model_info(recipe.model.name)["context"]
    for key, wanted in (("model.lora", recipe.model.lora is not None), ("study.probes", "lora" in recipe.study.probes)):
        if wanted and find_spec("peft") is None:
            raise UserError("LoRA needs peft: pip install 'omni-thinker[lora]'", key=key)
    if "lora" in recipe.study.probes:
        adapted = add_lora(empty_model(recipe.model.name), recipe.study.probe_lora, key="study.probe_lora")
        if "merge" in recipe.study.arms and (odd := unmergeable(adapted)):
            raise UserError(f"adapters of {odd} can't be added up by the arm 'merge'", key="study.probe_lora.targets")
    if recipe.model.lora is not None and "merge" in recipe.study.arms:
        # Adding up the factors of several adapters is not adding up what they do.
        raise UserError("merging needs whole weights; leave out 'merge' or model.lora", key="study.arms")
    return context


def make_judge(spec: JudgeSpec, system: str) -> Judge:
    """The judge that a recipe asks for, with its guards."""
    judge = _bare_judge(spec, system)
    return judge if spec.longest_win is None else LengthGuard(judge, spec.longest_win)


def _bare_judge(spec: JudgeSpec, system: str) -> Judge:
    if spec.endpoint is not None and spec.kind == "endpoint":
        return make_endpoint_judge(spec.endpoint)
    if spec.kind == "builtin":
        model, tokenizer = load_model("builtin", compute_dtype("auto")), load_tokenizer("builtin")
        return TrainedJudge(model, tokenizer, spec.margin, hidden=last_states)
    tokenizer = load_tokenizer(spec.model)
    model = load_model(spec.model, compute_dtype("auto"))
    return LikelihoodJudge(model, tokenizer, spec.margin, system=system, name=f"likelihood:{spec.model}")


def make_endpoint_judge(spec: EndpointSpec) -> EndpointJudge:
    """A judge behind an API, with its cache. Asks nothing yet."""
    path = Path(spec.cache).expanduser() if spec.cache else default_cache()
    cache = None if spec.cache == "none" else JudgeCache(path)
    return EndpointJudge(ChatClient(spec, cache, Meter(spec.budget, spec.price)))


def default_cache() -> Path:
    """Where judges' replies are kept for all runs."""
    return home() / "judge.sqlite"


def check_rows(task: Task, reward: Reward) -> None:
    """Raises UserError for the first row of any split that `reward` can't score."""
    for split in SPLITS:
        for problem in task.problems(split):
            if why := reward.check(problem):
                raise UserError(f"can't score {split} row {problem.id!r}: {why}", key=f"tasks.{task.name}.reward")


def _check_stops(recipe: Recipe) -> None:
    """Raises UserError for a stop text that can't be met, since special tokens are no part of an answer's text."""
    special: Sequence[str] = load_tokenizer(recipe.model.name).all_special_tokens if _stops(recipe) else ()
    for name, text in _stops(recipe):
        if any(token in text for token in special):
            raise UserError(f"{text!r} contains a special token, which answers never have", key=f"tasks.{name}.stop")


def _stops(recipe: Recipe) -> list[tuple[TaskName, str]]:
    return [(name, text) for name, spec in recipe.tasks.items() for text in spec.stop]


def _check_lengths(tasks: Iterable[Task], model: ModelSpec, context: int) -> None:
    """Raises UserError for the first row whose prompt leaves no room for an answer in the model's context."""
    tokenizer = load_tokenizer(model.name)
    for task, split in itertools.product(tasks, SPLITS):
        for problem in task.problems(split):
            # A token is at least one byte, so short prompts need not be tokenized.
            if len(problem.prompt.encode("utf-8", "replace")) + task.max_tokens < context // 2:
                continue
            length = len(chat_prompt_ids(tokenizer, model.system, problem.prompt))
            if length + task.max_tokens > context:
                raise UserError(
                    f"{split} row {problem.id!r} has a prompt of {length} tokens; with max_tokens = {task.max_tokens} "
                    f"that is more than the model's context of {context}",
                    key=f"tasks.{task.name}.max_tokens",
                )


def _rooted(spec: TaskSpec, root: str) -> TaskSpec:
    """The task with its files under `root`; an absolute path stays as it is."""
    return spec.model_copy(update={"files": tuple(str(Path(root) / file) for file in spec.files)}) if root else spec


def _pools(recipe: Recipe, tasks: Mapping[TaskName, Task]) -> dict[Split, Pools]:
    limits = {"validation": recipe.evaluation.validation_problems, "test": recipe.evaluation.test_problems}
    return {
        split: {name: task.problems(split)[: limits.get(split)] for name, task in tasks.items()} for split in SPLITS
    }


def study_seed(seed: int, *parts: object) -> int:
    """The seed of one purpose within a run."""
    return stable_seed("study", seed, *parts)
