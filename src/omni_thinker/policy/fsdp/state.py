"""A training's state by torch.distributed.checkpoint: every rank writes its shards and reads those that are its own
then, on however many ranks.

The folder has safetensors files, so that nothing in it is unpickled, and one of JSON with the optimiser's steps."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from omni_thinker.errors import UserError
from omni_thinker.policy.fsdp.updates import ShardUpdates

_STEPS = "steps.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(path: Path, params: dict[str, Any], updates: ShardUpdates) -> None:
    """Write the folder `path`. All ranks call it, and wait for each other. Raises OSError where one of them can't."""
    path.mkdir(parents=True, exist_ok=True)
    tensors, steps = dict[str, Any](params), dict[str, float]()
    for place, (name, param) in enumerate(params.items()):
        moments = updates.moments(place)
        if moments:
            steps[name] = float(moments["step"])
            tensors |= {f"{name}@{key}": _like(param, moments[key]) for key in _MOMENTS}
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        save({key: tensor.detach() for key, tensor in tensors.items()}, storage_writer=writer)
    except CheckpointException as exc:  # no Exception, so nothing else would take it for one
        raise _cause(exc) from None
    if dist.get_rank() == 0:
        (path / _STEPS).write_text(json.dumps(steps) + "\n", "utf-8")
    dist.barrier()


@torch.no_grad()
def load_state(path: Path, params: dict[str, Any], updates: ShardUpdates) -> None:
    """Read what `save_state` wrote into the params and the optimiser. Raises UserError where it isn't that."""
    try:
        steps = json.loads((path / _STEPS).read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise UserError(f"is no checkpoint of the trainer fsdp: {exc}", file=path) from None
    tensors: dict[str, Any] = {name: param.detach() for name, param in params.items()}
    for name, param in params.items():
        if name in steps:
            tensors |= {f"{name}@{key}": _like(param, torch.zeros_like(param.to_local())) for key in _MOMENTS}
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))
    except CheckpointException as exc:
        raise UserError(f"can't be read as a checkpoint of this model: {_cause(exc)}", file=path) from None
    updates.reset()
    for place, name in enumerate(params):
        if name in steps:
            moments = {key: tensors[f"{name}@{key}"].to_local() for key in _MOMENTS}
            updates.remember(place, {"step": torch.tensor(float(steps[name])), **moments})


def _cause(exc: CheckpointException) -> Exception:
    """What the first rank met that met something."""
    found = next((failure[0] for _, failure in sorted(exc.failures.items())), None)
    return found if isinstance(found, Exception) else OSError(str(exc))


def _like(param: Any, local: torch.Tensor) -> DTensor:
    """A rank's shard of what has the shape of `param`."""
    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
