"""What a training service can't do, refused before step 0."""

from collections.abc import Iterator

from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.service import check_service
from omni_thinker.recipe import LoraSpec, ModelSpec, Recipe

_ALPHA = 32
"""Of every adapter at a service, whatever its rank."""


def check_remote(recipe: Recipe) -> None:
    """Raises UserError for the first key of a recipe that a training service can't do, and as `check_service` does."""
    check_adapter(recipe.model)
    for wrong, key, why in _refused(recipe):
        if wrong:
            raise UserError(why, key=key)
    check_service(recipe.engine.tinker)


def check_adapter(model: ModelSpec) -> LoraSpec:
    """The adapter that is trained. Raises UserError for one that no service makes."""
    lora = model.lora or LoraSpec()
    if lora.alpha != _ALPHA:
        raise UserError(f"a training service has alpha = {_ALPHA} at every rank", key="model.lora.alpha")
    if lora.targets != "all-linear":
        raise UserError("a training service adapts all linear layers; leave it out", key="model.lora.targets")
    return lora


def _refused(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    rl, study = recipe.rl, recipe.study
    yield recipe.model.policy != "torch", "model.policy", "a policy of your own trains itself; leave it out"
    yield recipe.engine.sampler != "auto", "engine.sampler", "a training service samples itself; leave it out"
    yield (
        rl.loss == "gspo",
        "rl.loss",
        "a training service clips ratios of tokens, not of sequences; use grpo, dapo, dr_grpo or cispo",
    )
    for part in ("importance_cap", "delta", "off_policy_kl", "entropy_beta"):
        yield bool(getattr(rl, part)), f"rl.{part}", "a training service's losses have no such part; leave it out"
    yield rl.balance == "gradient", "rl.balance", 'a training service keeps gradients to itself; use "tokens" or "none"'
    yield rl.accumulate > 1, "rl.accumulate", "a training service gets a step's gradient at once; leave it out"
    yield rl.top_entropy < 1, "rl.top_entropy", "a training service trains all tokens; leave it out"
    for name, task in recipe.tasks.items():
        own = bool(task.rl.model_dump(exclude_none=True))
        yield own, f"tasks.{name}.rl", "a training service has one loss for all tasks; set it in [rl]"
    yield rl.kl_beta > 0, "rl.kl_beta", "a training service's losses have no KL term; set it to 0"
    yield rl.temperature != 1.0, "rl.temperature", "a training service computes log-probs at temperature 1; set it to 1"
    yield recipe.evaluation.min_p > 0, "evaluation.min_p", "a training service has top_k and top_p alone; set it to 0"
    merging = bool({"merge", *study.merges} & set(study.arms))
    yield (merging, "study.arms", "merging needs weights, which lie at the service; leave out 'merge'")
    for kind in ("lora", "gradient"):
        yield kind in study.probes, "study.probes", f'a training service has no "{kind}" probes; use "short" or "full"'
    for name, spec in study.schedulers.items():
        yield (spec.kind == "tac", f"study.schedulers.{name}", "needs gradients, which a training service keeps")
    yield "tac" in study.arms, "study.arms", "tac needs gradients, which a training service keeps"
    for name, task in recipe.tasks.items():
        budget = isinstance(task.thinking, int)
        yield budget, f"tasks.{name}.thinking", 'a training service can\'t end thoughts; use "auto" or "off"'
