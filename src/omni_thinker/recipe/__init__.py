"""A recipe: everything a study needs, in one TOML file. Imports no torch.

Unknown keys are refused. Relative paths are taken from the folder that the command runs in, or from `data_root`."""

from omni_thinker.recipe.atlas import AtlasSpec
from omni_thinker.recipe.engines.choice import EngineSpec
from omni_thinker.recipe.engines.fsdp import FsdpSpec
from omni_thinker.recipe.judge import BudgetSpec, EndpointSpec, JudgeSpec, PriceSpec
from omni_thinker.recipe.load import builtin_recipe, load_recipe, parse_recipe, set_key
from omni_thinker.recipe.models import LoraSpec, ModelSpec
from omni_thinker.recipe.rl import EvalSpec, RlSpec, TaskRlSpec, WarmupSpec
from omni_thinker.recipe.study import MergedSpec, ProbeKind, StudySpec, scheduled_arms
from omni_thinker.recipe.tasks import RewardSpec, TaskSpec
from omni_thinker.recipe.track import TrackSpec
from omni_thinker.recipe.whole import Recipe

__all__ = [
    "AtlasSpec", "BudgetSpec", "EndpointSpec", "EngineSpec", "EvalSpec", "FsdpSpec", "JudgeSpec", "LoraSpec",
    "MergedSpec", "ModelSpec", "PriceSpec", "ProbeKind", "Recipe", "RewardSpec", "RlSpec", "StudySpec", "TaskRlSpec",
    "TaskSpec", "TrackSpec", "WarmupSpec", "builtin_recipe", "load_recipe", "parse_recipe", "scheduled_arms", "set_key",
]  # fmt: skip
