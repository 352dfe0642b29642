"""The tables `[tasks.NAME]` of a recipe. Imports no torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator

from omni_thinker.recipe.rl import TaskRlSpec
from omni_thinker.recipe.types import Count, Positive, PositiveFloat, Table

TASK_NAME_LENGTH = 64
TASK_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_-]{{0,{TASK_NAME_LENGTH - 1}}}")
RESERVED = ("all", "macro")
"""What metrics and comparisons call all tasks together."""


class RewardSpec(Table):
    """`gate`: parts that must all be 1, else the reward is 0. `sum`: parts and their weights."""

    gate: tuple[str, ...] = ("finished",)
    """Parts that must all be 1, else the reward is 0 (docs/rewards.md lists them)."""
    sum: dict[str, PositiveFloat] = Field(min_length=1)
    """Parts and their weights; the reward is their weighted mean."""


class EvalSetSpec(Table):
    """A fixed evaluation set: rows that take the place of a task's own test problems, and are never trained on."""

    files: tuple[str, ...] = Field(min_length=1)
    """Files of rows, as in a task's `files`. Every row is a test problem, whatever split it names."""
    format: str = "auto"
    """The form of these rows."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Which field of a row is which, as in a task's `fields`; the task's own don't hold here."""
    template: str | None = None
    """The user's turn; none: the task's `template`."""


class TaskSpec(Table):
    """One task."""

    source: str
    """`builtin:NAME`, `jsonl`, `hf:NAME_OR_FOLDER`, `reasoning_gym:NAME`, `verifiers:NAME` or
    `python:MODULE:CLASS`."""
    weight: Annotated[PositiveFloat, Field(ge=1e-6, le=1e6)] = 1.0
    """Its share of joint training, in proportion to the other tasks' weights."""
    max_tokens: Positive | None = None
    """Tokens of an answer, its end included. With a budget of thoughts it counts what follows them, else all. None: 128
    for rows, the source's own for other tasks."""
    turns: Positive | None = None
    """Most answers to a problem. After each but the last an environment may speak: the checker's error message, a
    critic's words. None: the source's own; 1 for all but `verifiers:`, or 2 where `environment` is set."""
    environment: str = ""
    """Who speaks between the answers: `program_errors`, or `python:MODULE:CLASS`. Empty: the source's own."""
    message_tokens: Positive = 256
    """Most tokens of what an environment says at a time; the rest is cut off."""
    thinking: Literal["auto", "off"] | Count = "auto"
    """Thoughts of a model that thinks before it answers. `auto`: as its chat template has them. `off`: none. A number:
    after so many tokens the block of thoughts is closed for the model."""
    train: Positive | None = None
    """Most problems of the split; none: all rows, or 512 problems that a source makes."""
    validation: Positive | None = None
    """The same; none: all rows, or 64 problems. Evaluations use `evaluation.validation_problems` of them."""
    test: Positive | None = None
    """The same; none: all rows, or 128 problems. Evaluations use `evaluation.test_problems` of them."""
    difficulty: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """How hard the problems are that a source makes; none: the source's own."""
    pools: tuple[Annotated[float, Field(ge=0.0, le=10.0)], ...] = ()
    """Generated tasks: difficulties in place of `difficulty`, a pool of like size for each. Training draws most from
    the pool that has most to teach (rows name theirs in the field `difficulty_pool`)."""
    seed: Count = 0
    """Which problems a source makes, and the order of rows."""
    reward: RewardSpec | None = None
    """How answers are scored; none: as the source or the form of the rows has it."""
    files: tuple[str, ...] = ()
    """jsonl: rows of all files: one object a line (`.gz` allowed), `.json`, `.csv`, `.tsv`, `.parquet`, or a folder
    that `datasets` saved. Relative to `data_root`, or without one to the folder that the command runs in."""
    format: str = "auto"
    """Rows: the form they are in. `auto` recognises it by the first rows and says so; `plain` reads a row's fields by
    their own names. `docs/tasks.md` lists the others. Keys set in the recipe win over those of the form."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Which field of a row is `prompt`, `answer`, `choices`, `tests`, `setup`, `reference`, `context` ...;
    dots descend (`meta.setup`), figures into lists (`prompt.0.content`)."""
    splits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Values of the row's field `split` that make up `train`, `validation` and `test`. Empty: its values are these
    names. A split that no row names is carved out of train by content hash."""
    template: str = ""
    """The user's turn; `{prompt}`, `{options}`, `{context}` and `{first_test}` are filled in one pass. Empty: that of
    the rows' form, `{prompt}` for plain rows."""
    system: str | None = None
    """Words above this task's chats, in place of `model.system`; "" for none. A row's own come first."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source (docs/recipe.md)."""
    test_set: EvalSetSpec | None = None
    """Test problems from files of their own, in place of the source's. Rows and built-in tasks."""
    rl: TaskRlSpec = TaskRlSpec()
    """How RL is done on this task, where it differs from `[rl]`."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """An answer ends where one of these texts does, and is scored without it."""
    skip_refused: StrictBool = False
    """Leave out the rows that can't be used, instead of refusing the task. All are counted, the first are named."""
    allow_evaluating_scorers: StrictBool = False
    """reasoning-gym: take sets whose scorer runs answers as Python beside the expected answer. That stays inside the
    sandbox and touches no other score, but an answer can award itself one."""

    @field_validator("thinking", mode="before")
    @classmethod
    def _thinking(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not whole and value not in ("auto", "off"):
            raise ValueError('must be "auto", "off" or a number of tokens')
        return value

    def under(self, root: Path) -> "TaskSpec":
        """The same task with its files under `root`; an absolute path stays as it is."""
        moved: dict[str, Any] = {"files": tuple(str(root / file) for file in self.files)}
        if self.test_set is not None:
            files = tuple(str(root / file) for file in self.test_set.files)
            moved["test_set"] = self.test_set.model_copy(update={"files": files})
        return self.model_copy(update=moved)
