"""Keys of long runs: whether they go together, and how many problems interim validations have. Imports no torch."""

from math import floor

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


def interim_problems(rl: RlSpec, tasks: int, group_size: int, validation: int) -> int:
    """Validation problems of each of `tasks` tasks in an interim validation; 0 where there are none.

    group_size: the smallest of the tasks. validation: problems of each task on validation. A count, not a time, bounds
    what these cost: steps must not depend on how fast a machine is.

    Raises UserError where they would draw more than the share of all answers that they may."""
    if not rl.evaluate_every:
        for key, asked in (("keep", rl.keep == "best"), ("patience", rl.patience > 0)):
            if asked:
                raise UserError("needs interim validations (rl.evaluate_every)", key=f"rl.{key}")
        return 0
    trained = rl.evaluate_every * rl.problems_per_step * group_size
    most = min(validation, floor(rl.evaluate_share * trained / tasks + 1e-9))
    wanted = rl.evaluate_problems or max(1, most)
    if wanted > validation:
        raise UserError(
            f"validation has {validation} problems (evaluation.validation_problems)", key="rl.evaluate_problems"
        )
    if wanted > most:
        raise UserError(
            f"{wanted} problems of each of {tasks} tasks every {rl.evaluate_every} steps are "
            f"{wanted * tasks / trained:.0%} of the {trained} answers trained on, more than {rl.evaluate_share:.0%}; a "
            "higher rl.evaluate_every or rl.evaluate_share allows them",
            key="rl.evaluate_problems" if rl.evaluate_problems else "rl.evaluate_every",
        )
    return wanted
