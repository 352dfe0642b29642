"""A recipe: everything a study needs, in one TOML file. Imports no torch.

Unknown keys are refused. Relative paths are taken from the folder that the command runs in, or from `data_root`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from omni_thinker.errors import UserError
from omni_thinker.recipe_schedulers import PLAIN, SchedulerSpec, plain
from omni_thinker.recipe_types import MOST, Count, NonNegative, Positive, PositiveFloat, Share, Table

_TASK_NAME_LENGTH = 64
_TASK_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_-]{{0,{_TASK_NAME_LENGTH - 1}}}")
RESERVED = ("all", "macro")
"""What metrics and comparisons call all tasks together."""


class LoraSpec(Table):
    """Train low-rank factors instead of all weights (arXiv 2106.09685)."""

    rank: Annotated[int, Field(gt=0, le=4096, strict=True)] = 16
    alpha: Positive = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class ModelSpec(Table):
    """`name`: `builtin`, `tiny` (random, for tests), a Hugging Face folder, or a hub name."""

    name: str = "builtin"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where torch finds one."""
    system: str = ""
    lora: LoraSpec | None = None
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them (arXiv 1604.06174): a third more
    work for a fraction of the memory."""


class RewardSpec(Table):
    """`gate`: parts that must all be 1, else the reward is 0. `sum`: parts and their weights."""

    gate: tuple[str, ...] = ("finished",)
    sum: dict[str, PositiveFloat] = Field(min_length=1)


class TaskSpec(Table):
    """One task.

    `source`: `builtin:NAME`, `jsonl`, `hf:NAME_OR_FOLDER`, `reasoning_gym:NAME` or `python:MODULE:CLASS`.
    """

    source: str
    weight: PositiveFloat = 1.0
    max_tokens: Positive | None = None
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None
    difficulty: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    pools: tuple[Annotated[float, Field(ge=0.0, le=10.0)], ...] = ()
    """Generated tasks: difficulties in place of `difficulty`, a pool of like size for each. Training draws most from
    the pool that has most to teach (rows name theirs in the field `difficulty_pool`)."""
    seed: Count = 0
    reward: RewardSpec | None = None
    files: tuple[str, ...] = ()
    """jsonl: rows of all files, one object a line, `.gz` allowed."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Which field of a row is `prompt`, `answer`, `choices`, `tests`, `setup`, `reference`, `context` ...;
    dots descend (`meta.setup`)."""
    splits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Values of the row's `split` field that make up `train`, `validation` and `test`. A split that is not
    named is carved out of train by content hash."""
    template: str = "{prompt}"
    """The user's turn; `{prompt}`, `{options}`, `{context}` and `{first_test}` are filled in one pass."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on to the source."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """An answer ends where one of these texts does, and is scored without it."""
    allow_evaluating_scorers: bool = False
    """reasoning-gym: take sets whose scorer runs answers as Python beside the expected answer. That stays inside the
    sandbox and touches no other score, but an answer can award itself one."""


class WarmupSpec(Table):
    """Supervised steps on gold answers of the train split, until each task scores within `target`."""

    steps: Count = 40
    batch: Positive = 16
    lr: PositiveFloat = 3e-5
    check_every: Positive = 5
    check_problems: Positive = 32
    target: tuple[Share, Share] = (0.2, 0.6)


class RlSpec(Table):
    """One GRPO step (arXiv 2402.03300) and its variants."""

    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"] = "grpo"
    normaliser: Literal["auto", "sample", "token", "task_token", "constant"] = "auto"
    group_size: Annotated[int, Field(ge=2, le=MOST, strict=True)] = 8
    problems_per_step: Positive = 8
    temperature: PositiveFloat = 1.0
    lr: PositiveFloat = 1e-5
    lr_warmup_steps: Count = 2
    weight_decay: NonNegative = 0.0
    max_grad_norm: PositiveFloat = 1.0
    eps_low: PositiveFloat = 0.2
    eps_high: PositiveFloat = 0.2
    kl_beta: NonNegative = 0.0
    minibatches: Positive = 1
    """Optimiser steps per batch of samples; above 1 the later ones are off-policy and clipped."""
    refill_rounds: Count = 1
    """How often zero-variance groups are replaced by fresh problems of the same task within a step."""
    refill_most: Positive = 1
    """Problems drawn for one that is replaced: as many as it lately took to find one with signal, at most this many
    (arXiv 2602.05547). Both at 8 keep the trained mix at the asked one; both at 1 are cheap."""
    kl_every: Count = 4
    """Measure the KL to the start every so many steps (0: never). It costs one extra forward pass."""
    score_deadline_s: PositiveFloat = 1800.0
    """What isn't scored so long after the last sample of a step is an error."""
    max_error_rate: Share = 0.2
    """Stop when more than this share of a step's scores are errors."""


class EvalSpec(Table):
    """How accuracy is measured: the mean score of `samples` answers to each problem."""

    validation_problems: Positive = 48
    test_problems: Positive = 96
    samples: Positive = 2
    temperature: NonNegative = 1.0
    top_k: Count = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Filters of the distribution; 0, 1 and 0 filter nothing. Training draws without: its ratios compare whole
    distributions."""
    keep_samples: Positive = 4
    """Rollouts per task written to samples.jsonl at each evaluation."""


class BudgetSpec(Table):
    """What judging may cost in all. Nothing set: no bound."""

    requests: Positive | None = None
    tokens: Positive | None = None
    money: PositiveFloat | None = None
    """In the currency of `price`."""
    when_reached: Literal["stop", "abstain"] = "stop"
    """`stop`: the run ends after the step, with what it has. `abstain`: it goes on without verdicts."""


class PriceSpec(Table):
    """Money per million tokens."""

    input: NonNegative = 0.0
    output: NonNegative = 0.0


class EndpointSpec(Table):
    """An OpenAI-compatible server: hosted, or vLLM, llama.cpp, Ollama, transformers serve."""

    base_url: str
    """Such as https://host/v1. Without https only on this machine, or with `allow_http`."""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. Keys are never part of a recipe."""
    api_key_file: str = ""
    allow_http: bool = False
    concurrency: Positive = 16
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    timeout_s: PositiveFloat = 60.0
    """For one attempt."""
    deadline_s: PositiveFloat = 300.0
    """For one question with all its attempts."""
    attempts: Positive = 6
    patience_s: NonNegative = 900.0
    """How long a server that has answered before may be away (no connection, or status 502 to 504) before questions
    are given up."""
    temperature: NonNegative = 0.0
    max_tokens: Positive = 256
    structured: Literal["auto", "schema", "text"] = "auto"
    """Whether a JSON schema is asked for; `auto` gives that up where the server refuses it."""
    verdict: Literal["text", "logprobs"] = "text"
    """`text`: a sentence and a verdict. `logprobs`: one digit, weighed by the server's log-probs, where it tells them;
    cheap, and without a word of reason."""
    prompt: str = ""
    """For pairs; default: pairwise-v1, or pairwise-digit-v1 with log-probs."""
    ranking_prompt: str = "ranking-v1"
    rubric_prompt: str = "rubric-v1"
    both_seats: bool = True
    """Ask twice, with the answers in either order; verdicts that differ are ties. Costs two requests a verdict."""
    strip_markdown: bool = False
    """Show both answers without markup, so that it can't count."""
    budget: BudgetSpec = BudgetSpec()
    price: PriceSpec = PriceSpec()
    cache: str = ""
    """The file of replies; default: judge.sqlite in the cache folder. "none": no cache."""


class JudgeSpec(Table):
    """Who compares a response with the reference.

    `builtin`: the built-in model, trained to judge. `likelihood`: the more likely text under a frozen `model` wins.
    `endpoint`: a model behind an API is asked.
    """

    kind: Literal["builtin", "likelihood", "endpoint"] = "builtin"
    endpoint: EndpointSpec | None = None
    model: str = "builtin"
    margin: NonNegative = 0.1
    """Log-odds of being the better one (builtin) or nats per token (likelihood); smaller differences are ties."""
    longest_win: Annotated[float, Field(ge=1.0)] | None = None
    """Length-controlled preference: a win by a text more than this many times as long as the other is a tie."""
    reference_temperature: NonNegative = 1.0
    """At which the starting model writes the references that rows don't bring along. At the sampling temperature the
    start is as likely to win as to lose, so a preference above one half means better than the start."""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> JudgeSpec:
        if self.kind == "endpoint" and self.endpoint is None:
            raise ValueError("a judge of kind 'endpoint' needs [judge.endpoint] with base_url and model")
        return self


ProbeKind = Literal["full", "short", "lora", "gradient"]
ARMS = ("start", "single", "curriculum", "charged", "reverse", "joint", "merge")


class StudySpec(Table):
    """Arms at equal budget: every trained arm spends `steps` RL steps in all."""

    steps: Positive = 48
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = ("start", "single", "curriculum", "joint", "merge")
    """Those named here, those of `schedulers`, and kinds of scheduler that need no settings: uniform, proportional,
    round_robin, sec, dump, tscl, pac, worst_task, tac, serial, first."""
    schedulers: dict[str, SchedulerSpec] = Field(default_factory=dict)
    """Arms of one's own: a name, and the scheduler that says which task comes next."""
    single_budget: Literal["full", "stage"] = "full"
    """`full`: a single-task arm trains as long as the others. `stage`: it is the probe (steps / tasks)."""
    probes: tuple[ProbeKind, ...] = ()
    """How transfer is measured; the first kind makes the matrix that is planned with, others are measured beside it.

    `full`: a whole stage on each task alone. `short`: the first steps of one, what a stage would show is extrapolated.
    `lora`: the same with low-rank adapters, which are kept; whole stages where the arm `merge` is made of them.
    `gradient`: no runs at all, a straight line along each task's policy gradient. Empty: `full` where the arms `single`
    or `merge` need whole stages anyway, else `short`."""
    probe_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.13
    """Short, LoRA and gradient probes take at most this share of all training steps, each kind by itself. Of trained
    tokens it may be a tenth more, as not every step trains on as many; so the default stays under 15 % of these."""
    probe_lora: LoraSpec = LoraSpec()
    probe_lora_lr: PositiveFloat = 10.0
    """Learning rate of LoRA probes, in multiples of rl.lr: adapters want about ten times that of whole weights."""
    forecaster: Literal["hierarchical", "additive", "relative", "logit", "naive"] = "hierarchical"
    strategy: Literal["exact", "back_greedy", "least_to_most_forgettable", "front_greedy", "reversed", "random"] = (
        "exact"
    )
    objective: Literal["mean", "worst"] = "mean"
    order: tuple[str, ...] = ()
    """Fixes the curriculum's order, instead of planning it."""
    replan: bool = False
    """After each stage of the curriculum, plan the rest anew with what was seen (hierarchical forecaster)."""
    single_tasks: tuple[str, ...] = ()
    """Which tasks get a single-task arm; empty: all."""
    merge_scale: PositiveFloat = 1.0
    """Task arithmetic (arXiv 2212.04089): start + scale x sum of (expert - start)."""
    checkpoint_steps: Count = 0
    """Steps between two points that a killed study goes on from; 0: as few as keep their cost under 2 % of the time."""
    bootstrap: Annotated[Positive, Field(ge=50)] = 4000
    """Resamples of a study of one seed."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class Recipe(Table):
    """The whole of a study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "study"
    data_root: str = ""
    """Folder that the tasks' `files` are relative to; empty: the folder that the command runs in."""
    model: ModelSpec = ModelSpec()
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    warmup: WarmupSpec = WarmupSpec()
    rl: RlSpec = RlSpec()
    evaluation: EvalSpec = EvalSpec()
    judge: JudgeSpec = JudgeSpec()
    study: StudySpec = StudySpec()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Raises UserError, which names the key; pydantic would name only the whole recipe."""
        for name in self.tasks:
            if not _TASK_NAME.fullmatch(name) or name in RESERVED:
                raise UserError(
                    f"a task's name is 1 to {_TASK_NAME_LENGTH} letters, digits, '-' and '_', begins with a letter, "
                    f"and is not {' or '.join(RESERVED)}",
                    key=f"tasks.{name:.80}",
                )
            if len(set(self.tasks[name].pools)) < len(self.tasks[name].pools):
                raise UserError("names a difficulty twice", key=f"tasks.{name}.pools")
        low, high = self.warmup.target
        if low >= high:
            raise UserError(f"takes a lower and a higher share, got {low:g} and {high:g}", key="warmup.target")
        study = self.study
        for key, named in (("order", study.order), ("single_tasks", study.single_tasks)):
            if unknown := [name for name in named if name not in self.tasks]:
                raise UserError(f"no task {unknown[0]!r}; there are {', '.join(self.tasks)}", key=f"study.{key}")
        if study.order and sorted(study.order) != sorted(self.tasks):
            raise UserError("names every task once", key="study.order")
        for key, values in (
            ("seeds", study.seeds),
            ("arms", study.arms),
            ("probes", study.probes),
            ("single_tasks", study.single_tasks),
        ):
            if len(set(values)) < len(values):
                raise UserError("names one twice, which would count it twice", key=f"study.{key}")
        _check_arms(study, list(self.tasks))
        staged = {"single", "curriculum", "charged", "reverse", "merge"} & set(study.arms) or study.probes
        if study.steps < len(self.tasks) and staged:
            raise UserError(f"{study.steps} steps can't be shared by {len(self.tasks)} tasks", key="study.steps")
        if study.probes and len(self.tasks) < 2:
            raise UserError("a transfer matrix takes two tasks or more", key="study.probes")
        if study.replan:
            _check_replan(study)
        return self


def scheduled_arms(study: StudySpec) -> dict[str, SchedulerSpec]:
    """Arms that a scheduler makes, in the order that they are named in."""
    return {
        name: study.schedulers[name] if name in study.schedulers else plain(name)
        for name in study.arms
        if name not in ARMS
    }


def _check_arms(study: StudySpec, tasks: list[str]) -> None:
    """Raises UserError for arms that nothing makes, and schedulers of tasks that aren't there."""
    for name in study.schedulers:
        # Files of single-task arms and probes begin with these.
        taken = name in (*ARMS, *RESERVED, "state", "warmup") or name.startswith(("single-", "probe-", "lora-"))
        if taken or not _TASK_NAME.fullmatch(name):
            raise UserError("can't be the name of an arm", key=f"study.schedulers.{name}")
    for name in study.arms:
        if name not in ARMS and name not in study.schedulers and name not in PLAIN:
            known = ", ".join((*ARMS, *study.schedulers, *PLAIN))
            raise UserError(f"no arm {name!r:.80}; there are {known}", key="study.arms")
    for name, spec in study.schedulers.items():
        named = spec.tasks if spec.kind == "first" else ()
        if spec.kind == "sequence":
            named = tuple(stage.partition(":")[0] for stage in spec.stages)
            if any(not _is_length(stage.partition(":")) for stage in spec.stages):
                raise UserError(
                    "a stage is `task` or `task:length` with a length above 0", key=f"study.schedulers.{name}"
                )
        if unknown := [task for task in named if task not in tasks]:
            raise UserError(f"no task {unknown[0]!r:.80}; there are {', '.join(tasks)}", key=f"study.schedulers.{name}")


def _is_length(stage: tuple[str, str, str]) -> bool:
    _, colon, length = stage
    try:
        return not colon or 0 < float(length) < 1e6
    except ValueError:
        return False


def _check_replan(study: StudySpec) -> None:
    """Raises UserError where there is nothing to plan anew, or nobody who would learn."""
    wrong = {
        "the arm 'curriculum'": "curriculum" not in study.arms,
        "no fixed study.order": bool(study.order),
        "study.strategy = 'exact'": study.strategy != "exact",
        "study.forecaster = 'hierarchical', which learns": study.forecaster != "hierarchical",
    }
    if needed := [name for name, lacking in wrong.items() if lacking]:
        raise UserError(f"planning anew takes {needed[0]}", key="study.replan")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file; `overrides` are `dotted.key=value` with a TOML value.

    Raises UserError naming the file and the key.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError("no such recipe file", file=path) from None
    except tomllib.TOMLDecodeError as exc:
        raise UserError(f"not valid TOML: {exc}", file=path) from None
    except IsADirectoryError:
        raise UserError("is a directory; a run in it goes on with --resume", file=path) from None
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read as a recipe: {exc}", file=path) from None
    except RecursionError:
        raise UserError("nested too deeply", file=path) from None
    for override in overrides:
        _set(table, override)
    return parse_recipe(table, path)


def builtin_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The four built-in tasks with all defaults."""
    table: dict[str, Any] = {
        "name": "builtin",
        "tasks": {name: {"source": f"builtin:{name}"} for name in ("math", "coding", "qa", "writing")},
    }
    for override in overrides:
        _set(table, override)
    return parse_recipe(table, "--set")


def parse_recipe(table: Mapping[str, Any], source: object) -> Recipe:
    """A checked Recipe from plain tables. Raises UserError naming `source` and the first bad key."""
    try:
        return Recipe.model_validate(dict(table))
    except UserError as exc:
        raise exc.within(source) from None
    except RecursionError:
        raise UserError("nested too deeply", file=source) from None
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        wrong = f"{first['msg']} (got {_shown(first['input'])})"
        message = "unknown key" + _nearest(first["loc"]) if unknown else wrong
        raise UserError(message, file=source, key=key or None) from None


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return "a deeply nested value"
    except ValueError:  # a whole number with more digits than Python writes out
        return "a huge number"


def _nearest(loc: tuple[int | str, ...]) -> str:
    """The known keys of the table that an unknown key was put in."""
    model: Any = Recipe
    for part in loc[:-1]:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            model = TaskSpec if model is Recipe or part in ("tasks",) or loc[0] == "tasks" else None
            continue
        annotation = fields[part].annotation
        model = annotation if isinstance(annotation, type) else (TaskSpec if part == "tasks" else None)
    known = getattr(model, "model_fields", None)
    return f"; known here: {', '.join(known)}" if known else ""


def _set(table: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise UserError(f"--set takes key=value, got {override!r}")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    except RecursionError:
        raise UserError("nested too deeply", key=key) from None
    except ValueError as exc:  # a whole number of too many digits
        raise UserError(f"can't be read: {exc}", key=key) from None
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{part!r} is not a table", key=key)
    table[last] = value
