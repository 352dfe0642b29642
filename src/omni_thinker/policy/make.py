"""From a recipe's model to the policy that trains it."""

from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.plugins import Registry
from omni_thinker.protocol import Policy
from omni_thinker.recipe import EngineSpec, ModelSpec

POLICIES = Registry("policy", {"torch": "omni_thinker.policy.torch_policy:TorchPolicy"})
"""What `model.policy` may name, besides `python:MODULE:CLASS`."""


def make_policy(
    spec: ModelSpec, engine: EngineSpec | None = None, *, folder: str | Path | None = None, seed: int = 0
) -> Policy:
    """CLASS(spec, folder=, seed=), with the engines of `engine` where the class is ours.

    folder: weights to begin with in place of the recipe's model. seed: for what the policy draws itself, such as LoRA's
    factors.

    Raises UserError where there is no such class, or it can't be made."""
    if spec.policy == "torch" and engine is not None and engine.trainer == "fsdp":
        from omni_thinker.policy.fsdp.policy import FsdpPolicy  # its distributed parts take time to import

        return FsdpPolicy(spec, engine.fsdp, folder=folder, seed=seed)
    policy_class = POLICIES.find(spec.policy, "model.policy")
    try:
        policy: Policy = policy_class(spec, folder=folder, seed=seed)
    except TypeError as exc:
        raise UserError(f"{spec.policy} can't be made from (spec, folder=, seed=): {exc}", key="model.policy") from exc
    return policy
