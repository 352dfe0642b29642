"""reasoning_gym's generators and scorers. A script for isolation/scoring.py, inside the wall; never imported."""

import json
from typing import TYPE_CHECKING, Any

import reasoning_gym  # noqa: TID253  (this script runs in a process of its own, and only where it is wanted)

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import guard
else:
    import guard  # as the sandbox's server has loaded it

_MOST_SETS = 64
_sets: dict[str, Any] = {}


def prepare(settings: dict[str, Any]) -> None:
    """Make the set {"gym", "config"}, once."""
    key = json.dumps(settings, sort_keys=True)
    if key not in _sets:
        if len(_sets) >= _MOST_SETS:
            _sets.pop(next(iter(_sets)))
        _sets[key] = reasoning_gym.create_dataset(settings["gym"], **settings["config"])


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """One of

    {"set", "indices"} -> {"entries": [...]}: problems of the set, as JSON
    {"set", "answer", "entry"} -> {"score": float}
    {"set"} -> {"evaluates": str | None}: where its scorer runs text as code"""
    chosen = _sets[json.dumps(request["set"], sort_keys=True)]
    if "indices" in request:
        return {"entries": [json.loads(json.dumps(dict(chosen[index]), default=str)) for index in request["indices"]]}
    if "answer" in request:
        return {"score": float(chosen.score_answer(request["answer"], request["entry"]))}
    return {"evaluates": guard.evaluates(chosen.score_answer)}
