"""From a recipe's model to the policy that trains it."""

from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.plugins import Registry
from omni_thinker.protocol import Policy
from omni_thinker.recipe import EngineSpec, ModelSpec, Recipe
from omni_thinker.recipe.engines.choice import is_remote
from omni_thinker.recipe.engines.tinker import PREFIX

POLICIES = Registry("policy", {"torch": "omni_thinker.policy.torch_policy:TorchPolicy"})
"""What `model.policy` may name, besides `python:MODULE:CLASS`."""


def make_policy(
    spec: ModelSpec, engine: EngineSpec | None = None, *, folder: str | Path | None = None, seed: int = 0
) -> Policy:
    """CLASS(spec, folder=, seed=), with the engines of `engine` where the class is ours.

    folder: weights to begin with in place of the recipe's model. seed: for what the policy draws itself, such as LoRA's
    factors.

    Raises UserError where there is no such class, or it can't be made."""
    engine = engine or EngineSpec()
    if is_remote(spec, engine):
        from omni_thinker.policy.tinker.policy import TinkerPolicy

        return TinkerPolicy(spec, engine.tinker, folder=folder, seed=seed)
    trainer = _make_trainer(spec, engine, folder, seed)
    if engine.sampler != "vllm":
        return trainer
    from omni_thinker.policy.vllm.make import sampled_by_vllm

    return sampled_by_vllm(trainer, spec, engine.vllm, folder)


def _make_trainer(spec: ModelSpec, engine: EngineSpec, folder: str | Path | None, seed: int) -> Policy:
    if spec.policy == "torch" and engine.trainer == "fsdp":
        from omni_thinker.policy.fsdp.policy import FsdpPolicy  # its distributed parts take time to import

        return FsdpPolicy(spec, engine.fsdp, folder=folder, seed=seed)
    policy_class = POLICIES.find(spec.policy, "model.policy")
    try:
        policy: Policy = policy_class(spec, folder=folder, seed=seed)
    except TypeError as exc:
        raise UserError(f"{spec.policy} can't be made from (spec, folder=, seed=): {exc}", key="model.policy") from exc
    return policy


def check_engine(recipe: Recipe) -> None:
    """Raises UserError for the first key that the engines of a recipe can't do."""
    if recipe.model.policy != "torch" and recipe.engine.trainer == "fsdp":
        raise UserError("a policy of your own trains itself; leave it out", key="engine.trainer")
    if recipe.model.name.startswith(PREFIX) and not recipe.remote:
        raise UserError(
            f"is of a training service, and {recipe.engine.trainer!r} trains here; leave it out", key="engine.trainer"
        )
    if recipe.remote:
        from omni_thinker.policy.tinker.checks import check_remote

        check_remote(recipe)
    if recipe.engine.sampler == "vllm":
        from omni_thinker.policy.vllm.make import check_vllm

        check_vllm(recipe)
