"""Keys of long runs that don't go together. Imports no torch."""

from omni_thinker.errors import UserError
from omni_thinker.recipe.rl import RlSpec


def check_schedule(rl: RlSpec, steps: int) -> None:
    """Raises UserError where a schedule of the learning rate doesn't fit into the `steps` of an arm."""
    if rl.lr_schedule == "constant":
        return
    falling = rl.decay_steps(steps) if rl.lr_schedule == "wsd" else 1
    if rl.lr_warmup_steps + falling > steps:
        raise UserError(
            f"{rl.lr_warmup_steps} steps of warm-up leave no {falling} to fall in, of {steps} (study.steps)",
            key="rl.lr_warmup_steps",
        )
