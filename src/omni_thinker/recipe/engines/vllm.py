"""The table `[engine.vllm]` of a recipe: how vLLM draws answers. Imports no torch."""

from typing import Annotated

from pydantic import Field

from omni_thinker.recipe.types import Count, Positive, Seconds, Table


class VllmSpec(Table):
    """How vLLM draws answers (arXiv 2309.06180), with `engine.sampler = "vllm"`."""

    url: str = ""
    """A server that runs already, such as `http://localhost:8000`; docs/engines-vllm.md has the command that starts it.
    Empty: vLLM is started here, in processes of its own."""
    allow_http: bool = False
    """Ask a server on another machine without encryption."""
    key_env: str = "VLLM_API_KEY"
    """Environment variable with the server's key, where it has one."""
    folder: str = ""
    """Where new weights pass through, for as long as they are being loaded. A server must see it under the same name.
    Empty: /dev/shm, or the system's folder for temporary files where that is too small."""
    max_model_len: Count = 0
    """Longest prompt and answer together, in tokens; 0: the model's context. Of an engine that is started here."""
    max_num_seqs: Positive = 256
    """Most samples that are drawn at once."""
    kv_cache_gb: Annotated[float, Field(gt=0.0, le=1e6, strict=True)] = 2.0
    """Memory for keys and values. Of an engine that is started here."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a GPU's memory that must be free at the start; the trainer needs the rest."""
    tensor_parallel_size: Positive = 1
    """GPUs that share one model."""
    enforce_eager: bool = True
    """Compile nothing and record no graphs: a start in a fraction of the time, and slower steps on a GPU."""
    timeout_s: Seconds = 600.0
    """Longest wait for a sign of life from the engine."""
    allow_stale: bool = False
    """Train on samples that older weights have drawn, with a warning; else they are an error."""
