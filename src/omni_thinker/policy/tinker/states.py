"""Small local files that name states at a service: what checkpoints and weights of a remote policy are made of.

They are safetensors files without tensors, so whatever copies, counts or checks a run's weights needn't know them."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.moments import Moments

_STATE, _COUNTED, _SINCE = "tinker_state", "adam_counted", "adam_since"


@dataclass(frozen=True, slots=True)
class State:
    """A state that the service has saved, and where its optimiser was then."""

    path: str
    moments: Moments


def write_state(state: State, file: Path) -> None:
    """Name `state` in `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    steps = {_COUNTED: str(state.moments.counted), _SINCE: str(state.moments.since)}
    save_file({}, file, metadata={_STATE: state.path, **steps})


def read_state(file: Path) -> State:
    """The state that a file names. Raises UserError where it names none."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
        return State(said[_STATE], Moments(int(said[_COUNTED]), int(said[_SINCE])))
    except (SafetensorError, OSError, KeyError, ValueError) as exc:
        raise UserError(f"names no state of a training service: {exc}", file=file) from None
