"""vLLM in processes of its own, which this one starts: its engine's loop, step by step."""

import atexit
import json
import logging
import multiprocessing
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.engine import ADAPTER, EngineGone, draw_options
from omni_thinker.policy.vllm.streams import Ask, Piece
from omni_thinker.policy.vllm.worker import EXTENSION
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.types import SamplingParams

_T = TypeVar("_T")
_Box = queue.SimpleQueue[tuple[Any, Exception | None]]
_LOOK_S = 0.5
"""How often an engine that is waited for is looked after, in seconds."""
_DEATH_S = 0.5
"""For how long a death may go unnoticed, in seconds."""
MOST_RANK = 512
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MOST_RANK)
"""Ranks that vLLM makes room for."""
_engines: dict[str, "LocalEngine"] = {}


def local_engine(model: str, spec: VllmSpec, dtype: str, lora_rank: int) -> "LocalEngine":
    """The engine of a model. A start takes a minute, and weights are always given: so all policies of a process share
    one. Raises UserError where it can't be started."""
    key = json.dumps([model, spec.model_dump(), dtype, lora_rank])
    if (known := _engines.get(key)) is not None and known.alive:
        return known
    for engine in _engines.values():  # of another model, or a dead one: there is memory for one
        engine.close()
    _engines.clear()
    _engines[key] = LocalEngine(model, spec, dtype, lora_rank)
    return _engines[key]


class LocalEngine:
    """Implements the Engine protocol."""

    def __init__(self, model: str, spec: VllmSpec, dtype: str, lora_rank: int) -> None:
        """`lora_rank`: of adapters, 0 for none."""
        self.log = Path(tempfile.gettempdir()) / f"omni-thinker-vllm-{os.getpid()}.log"
        self.alive = True
        self._adapter: Any = None
        self._timeout_s, self._worker = spec.timeout_s, _Worker()
        before = set(multiprocessing.active_children())
        options = _engine_options(model, spec, dtype, lora_rank)
        with _environment(_quiet(self.log, spec)), _output_to(self.log):
            try:
                from vllm.engine.arg_utils import EngineArgs
                from vllm.v1.engine.llm_engine import LLMEngine

                self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**options), enable_multiprocessing=True)
            except Exception as exc:  # whatever hundred packages may raise
                self.alive = False
                why = _cause(self.log) or _first(exc)
                raise UserError(f"vLLM can't be started: {why}; its log is {self.log}", key="engine.vllm") from exc
        logging.getLogger("vllm").setLevel(
            logging.CRITICAL
        )  # the workers' own stays as it was; what ends is told below
        self._processes = set(multiprocessing.active_children()) - before
        atexit.register(self.close)
        self.call("omni_end_with", os.getpid())
        self.longest = int(self._engine.vllm_config.model_config.max_model_len)

    def begin(self, asks: Sequence[Ask], params: SamplingParams, stop_ids: frozenset[int], adapter: int) -> None:
        from vllm import SamplingParams as Options
        from vllm.sampling_params import RequestOutputKind

        for ask in asks:
            options = Options(
                **draw_options(ask, params, stop_ids), detokenize=False, output_kind=RequestOutputKind.DELTA
            )
            prompt = {"prompt_token_ids": list(ask.prompt)}
            lora = self._adapter if adapter else None
            self._do(self._engine.add_request, ask.key, prompt, options, lora_request=lora)

    def poll(self) -> list[Piece]:
        pieces = []
        for output in self._do(self._engine.step):
            for drawn in output.outputs:
                tokens = list(drawn.token_ids)
                logprobs = [own[token].logprob for token, own in zip(tokens, drawn.logprobs or (), strict=True)]
                pieces.append(Piece(output.request_id, tokens, logprobs, bool(output.finished)))
        return pieces

    def drop(self, keys: Sequence[str]) -> None:
        self._do(self._engine.abort_request, list(keys))

    def call(self, method: str, *arguments: object) -> list[Any]:
        return list(self._do(self._engine.collective_rpc, method, args=arguments))

    def add_adapter(self, folder: Path, version: int) -> int:
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._do(self._engine.remove_lora, self._adapter.lora_int_id)
        self._adapter = LoRARequest(ADAPTER.format(version=version), version, str(folder))
        self._do(self._engine.add_lora, self._adapter)
        return version

    def forget(self) -> None:
        if not self._do(self._engine.reset_prefix_cache):
            raise EngineGone("its prefix cache is in use", self.log)

    def close(self) -> None:
        self.alive = False
        with suppress(Exception):
            self._engine.engine_core.shutdown()

    def _do(self, work: Callable[..., _T], *args: Any, **options: Any) -> _T:
        """Raises EngineGone for whatever vLLM raises: it can't be told which of its faults it outlives."""
        if not self.alive:
            raise EngineGone("it has ended", self.log)
        try:
            return self._worker.do(partial(work, *args, **options), self._life, self._timeout_s)
        except Exception as exc:
            # vLLM may be the first to notice that a process of its own was killed, and doesn't say so.
            why = self._ended(_DEATH_S, killed=True) or _cause(self.log) or _first(exc)
            self.close()
            raise EngineGone(why, self.log) from exc

    def _life(self) -> None:
        """Raises RuntimeError where one of its processes has ended."""
        if how := self._ended():
            raise RuntimeError(how)

    def _ended(self, patience_s: float = 0.0, *, killed: bool = False) -> str:
        """How one of its processes has ended; empty where all are alive. killed: whether only one that was killed
        counts. An end may show a moment after what follows from it."""
        for process in self._processes:
            process.join(patience_s)
            code = process.exitcode
            if code is not None and (code < 0 or not killed):
                return f"its process ended, by signal {-code}" if code < 0 else f"its process ended ({code})"
        return ""


class _Worker:
    """A thread that does what may never end: vLLM 0.32 waits forever for a process of its own that was killed."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], _Box]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="omni-vllm", daemon=True).start()

    def do(self, work: Callable[[], _T], life: Callable[[], None], timeout_s: float) -> _T:
        """What `work` returns or raises, or what `life` raises while it is waited for, or TimeoutError."""
        box: _Box = queue.SimpleQueue()  # of this call alone: a signal may end the wait for another
        self._work.put((work, box))
        end = time.monotonic() + timeout_s
        while True:
            try:
                result, error = box.get(timeout=_LOOK_S)
            except queue.Empty:
                life()
                if time.monotonic() > end:
                    raise TimeoutError(f"no sign of life for {timeout_s:g} s") from None
                continue
            if error is not None:
                raise error
            return cast(_T, result)

    def _run(self) -> None:
        while True:
            work, box = self._work.get()
            try:
                box.put((work(), None))
            except Exception as exc:  # for whoever waits
                box.put((None, exc))


def _engine_options(model: str, spec: VllmSpec, dtype: str, lora_rank: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "max_num_seqs": spec.max_num_seqs,
        "kv_cache_memory_bytes": int(spec.kv_cache_gb * 2**30),
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "enforce_eager": spec.enforce_eager,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "worker_extension_cls": EXTENSION,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if spec.max_model_len:
        options["max_model_len"] = spec.max_model_len
    if lora_rank:
        room = next(rank for rank in _RANKS if rank >= lora_rank)
        options |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1, "max_cpu_loras": 1}
    return options


def _quiet(log: Path, spec: VllmSpec) -> dict[str, str]:
    """Environment of an engine: what it has to say goes to a file, and a progress line stays whole."""
    handler = {"class": "logging.FileHandler", "filename": str(log), "formatter": "plain"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    file = log.with_suffix(".json")
    file.write_text(json.dumps(config), "utf-8")
    environment = {
        "VLLM_LOGGING_CONFIG_PATH": str(file),
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    if spec.enforce_eager:
        environment["TORCH_COMPILE_DISABLE"] = "1"  # else the first answer waits 15 s for a compiled helper
    return environment


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables, where the user hasn't set them; as it was before, afterwards."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """What is written to the terminal goes to the log meanwhile, and for good what processes write that begin here:
    their last words would tear our lines, and what is printed for programs."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with log.open("ab") as stream:
        for number in kept:
            os.dup2(stream.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, own in kept.items():
            os.dup2(own, number)
            os.close(own)


def _cause(log: Path) -> str:
    """What the log gives as the cause: the exception that was told of last. Empty where it names none."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    found = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception): ", line)]
    return f"{found[-1]:.300}" if found else ""


def _first(exc: Exception) -> str:
    """The first line of what an exception says."""
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0]:.200}" if lines else type(exc).__name__
