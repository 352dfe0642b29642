"""Multi-task RL post-training of language models: hybrid rewards, transfer, plans, honest studies.

Implements the method of Omni-Thinker (arXiv 2507.14783).

    import omni_thinker as ot
    result = ot.study("recipes/tiny.toml", "runs/tiny")        # every arm, compared on the test split
    plan = ot.plan("runs/tiny/transfer.json")                  # what each order is forecast to end at
    print(plan.words, result["verdict"])

Names are imported when they are first used, so that the command line starts fast."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.api import (
        atlas,
        evaluate,
        figures,
        forecast,
        load_run,
        plan,
        score,
        side_by_side,
        study,
        tables,
        track,
        train,
    )
    from omni_thinker.errors import UserError
    from omni_thinker.recipe import Recipe

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "UserError",
    "atlas",
    "evaluate",
    "figures",
    "forecast",
    "load_run",
    "plan",
    "score",
    "side_by_side",
    "study",
    "tables",
    "track",
    "train",
]
_HOMES = {"Recipe": "omni_thinker.recipe", "UserError": "omni_thinker.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "omni_thinker.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
