"""Which engines `auto` stands for, in this process."""

from omni_thinker.errors import UserError
from omni_thinker.policy.fsdp.place import given_place
from omni_thinker.recipe import Recipe


def choose_engines(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe with the trainer that a run has from here on, and a line that says why, where `auto` chose.

    Raises UserError where the trainer has no use for the processes that torchrun started."""
    place, trainer = given_place(), recipe.engine.trainer
    if place is not None and recipe.model.policy != "torch":
        raise UserError(f"is one process, but torchrun started {place.world}", key="model.policy")
    if place is not None and trainer == "auto" and recipe.remote:
        raise UserError(f"a service is asked by one process, but torchrun started {place.world}", key="model.name")
    if place is None:
        chosen = [] if trainer in ("auto", "torch") else [f"trainer {trainer}"]
        chosen += [f"sampler {recipe.engine.sampler}"] if recipe.engine.sampler == "vllm" else []
        return recipe, f"{', '.join(chosen)}, as the recipe says" if chosen else ""
    if (ranks := recipe.engine.fsdp.ranks) not in (0, place.world):
        raise UserError(f"is {ranks}, but torchrun started {place.world} processes", key="engine.fsdp.ranks")
    if trainer == "auto":
        engine = recipe.engine.model_copy(update={"trainer": "fsdp"})
        why = f"trainer fsdp: torchrun started {place.world} processes"
        return recipe.model_copy(update={"engine": engine}), why
    if trainer != "fsdp":
        raise UserError(f"{trainer!r} is one process, but torchrun started {place.world}", key="engine.trainer")
    return recipe, ""
