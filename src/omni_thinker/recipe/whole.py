"""A recipe: everything a study needs. Imports no torch."""

from typing import Annotated

from pydantic import Field, model_validator

from omni_thinker.errors import UserError
from omni_thinker.recipe.atlas import AtlasSpec
from omni_thinker.recipe.cluster import ClusterSpec
from omni_thinker.recipe.engines.choice import EngineSpec, is_remote
from omni_thinker.recipe.engines.tinker import PREFIX
from omni_thinker.recipe.judge import JudgeSpec
from omni_thinker.recipe.long import check_schedule, interim_problems
from omni_thinker.recipe.models import ModelSpec
from omni_thinker.recipe.rl import EvalSpec, RlSpec, WarmupSpec, check_evaluation, check_rl
from omni_thinker.recipe.study import StudySpec, check_arms, check_budget, check_replan
from omni_thinker.recipe.tasks import RESERVED, TASK_NAME, TASK_NAME_LENGTH, TaskSpec
from omni_thinker.recipe.track import TrackSpec
from omni_thinker.recipe.types import Table


class Recipe(Table):
    """The whole of a study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "study"
    """What the run directory and the report are called."""
    data_root: str = ""
    """Folder that the tasks' `files` are relative to. Empty: the folder that the command runs in, not the recipe's."""
    model: ModelSpec = ModelSpec()
    """The model that is trained."""
    engine: EngineSpec = EngineSpec()
    """Who trains, and who draws the answers."""
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    """A table for each task; its name is 1 to 64 letters, digits, `-` and `_`."""
    warmup: WarmupSpec = WarmupSpec()
    """Supervised steps before RL."""
    rl: RlSpec = RlSpec()
    """How RL is done."""
    evaluation: EvalSpec = EvalSpec()
    """How accuracy is measured."""
    judge: JudgeSpec = JudgeSpec()
    """Who scores open-ended answers."""
    study: StudySpec = StudySpec()
    """What is trained and compared."""
    cluster: ClusterSpec = ClusterSpec()
    """What a unit needs on a cluster."""
    atlas: AtlasSpec = AtlasSpec()
    """What `omni-thinker atlas` runs."""
    track: TrackSpec = TrackSpec()
    """Experiment trackers that a study's metrics are sent to."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        """Raises UserError, which names the key; pydantic would name only the whole recipe."""
        for name in self.tasks:
            if not TASK_NAME.fullmatch(name) or name in RESERVED:
                raise UserError(
                    f"a task's name is 1 to {TASK_NAME_LENGTH} letters, digits, '-' and '_', begins with a letter, "
                    f"and is not {' or '.join(RESERVED)}",
                    key=f"tasks.{name:.80}",
                )
            if len(set(self.tasks[name].pools)) < len(self.tasks[name].pools):
                raise UserError("names a difficulty twice", key=f"tasks.{name}.pools")
        low, high = self.warmup.target
        if low >= high:
            raise UserError(f"must be a lower and a higher share, got {low:g} and {high:g}", key="warmup.target")
        check_evaluation(self.evaluation)
        check_rl(self.rl)
        for name in self.tasks:
            check_rl(self.rl_of(name), f"tasks.{name}.rl")
        study = self.study
        for key, names in (("order", study.order), ("single_tasks", study.single_tasks)):
            if unknown := [name for name in names if name not in self.tasks]:
                raise UserError(f"no task {unknown[0]!r}; there are {', '.join(self.tasks)}", key=f"study.{key}")
        if study.order and sorted(study.order) != sorted(self.tasks):
            raise UserError("must name every task once", key="study.order")
        for key, values in (
            ("seeds", study.seeds),
            ("arms", study.arms),
            ("probes", study.probes),
            ("single_tasks", study.single_tasks),
        ):
            if len(set(values)) < len(values):
                raise UserError("names one of them twice", key=f"study.{key}")
        check_budget(study)
        check_arms(study, list(self.tasks))
        measured = {"single", "curriculum", "curriculum_net", "reverse", "joint_planned", "merge"}
        staged = measured & set(study.arms) or study.probes
        if study.steps < len(self.tasks) and staged:
            raise UserError(f"{study.steps} steps can't be shared by {len(self.tasks)} tasks", key="study.steps")
        if study.probes and len(self.tasks) < 2:
            raise UserError("a transfer matrix needs two tasks or more", key="study.probes")
        if study.replan:
            check_replan(study)
        check_schedule(self.rl, study.steps)
        _ = self.interim_problems
        return self

    @property
    def remote(self) -> bool:
        """Whether the model is trained and sampled by a training service."""
        return is_remote(self.model, self.engine)

    @property
    def spoken(self) -> ModelSpec:
        """The model whose tokenizer, chat template and config are those of the trained one."""
        tokenizer = self.engine.tinker.tokenizer if self.remote else ""
        return self.model.model_copy(update={"name": PREFIX + tokenizer}) if tokenizer else self.model

    @property
    def interim_problems(self) -> int:
        """Validation problems of each task in an interim validation; 0: there are none."""
        smallest = min(self.rl_of(task).group_size for task in self.tasks)
        return interim_problems(self.rl, len(self.tasks), smallest, self.evaluation.validation_problems)

    def rl_of(self, task: str) -> RlSpec:
        """`[rl]` with what a task has of its own."""
        return self.rl.of_task(self.tasks[task].rl)

    def skipping_refused(self) -> "Recipe":
        """The same recipe, with tasks that leave out the rows that can't be used."""
        tasks = {name: spec.model_copy(update={"skip_refused": True}) for name, spec in self.tasks.items()}
        return self.model_copy(update={"tasks": tasks})
