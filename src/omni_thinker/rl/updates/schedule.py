"""The learning rate of each step of an arm: a pure function of the step, so that a resumed arm has the same."""

from math import cos, pi

from omni_thinker.recipe import RlSpec


def learning_rate_of(spec: RlSpec, step: int, steps: int | None = None, place: float | None = None) -> float:
    """The learning rate, in (0, `spec.lr`] but for `lr_min` = 0 past the end.

    step: the arm's, from 0. steps: all that the arm has, or would have. place: where in these it is, from 0 to `steps`;
    by default `step`. It is another where a budget of tokens says how far an arm is.

    The warm-up reaches `lr` at its last step. From there on the formulas are those of transformers' schedulers, which
    TRL uses. Raises ValueError for a schedule that needs `steps` where there are none."""
    warmup = spec.lr_warmup_steps
    rising = min(1.0, (step + 1) / max(1, warmup))
    if rising < 1 or spec.lr_schedule == "constant":
        return spec.lr * rising
    if steps is None:
        raise ValueError(f"the schedule {spec.lr_schedule!r} needs the number of steps")
    at = float(step if place is None else place)
    return spec.lr * (spec.lr_min + (1 - spec.lr_min) * _height(spec, at, warmup, steps))


def _height(spec: RlSpec, at: float, warmup: int, steps: int) -> float:
    """Where a schedule is between its end (0) and its top (1)."""
    begin = steps - spec.decay_steps(steps) if spec.lr_schedule == "wsd" else warmup
    done = min(1.0, max(0.0, (at - begin) / max(1, steps - begin)))
    return (1 + cos(pi * done)) / 2 if spec.lr_schedule == "cosine" else 1 - done
