"""EleutherAI's lm-evaluation-harness on a model of ours: other people's tasks, beside our own numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError, printable
from omni_thinker.plugins import did_you_mean

_KEY = "--lm-eval"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the harness is asked for."""

    tasks: Sequence[str]
    """Names of its tasks, groups or tags."""
    include: Path | None = None
    """A folder with tasks of one's own, as YAML files."""
    limit: int | None = None
    """Problems of each task; None: all."""
    chat: bool = True
    """Whether questions are put as chats, where the model has a template for them."""


def check_harness(wanted: Wanted) -> Any:
    """The harness's own table of tasks. Raises UserError without its package, and for unknown tasks and folders."""
    if find_spec("lm_eval") is None:
        raise UserError("needs the package lm-eval: pip install 'omni-thinker[lm-eval]'", key=_KEY)
    from lm_eval.tasks import TaskManager

    if wanted.include is not None and not wanted.include.is_dir():
        raise UserError("no such folder of tasks", file=wanted.include, key="--lm-eval-include")
    manager = TaskManager(include_path=None if wanted.include is None else str(wanted.include))
    if unknown := [name for name in wanted.tasks if not manager.match_tasks([name])]:
        near = did_you_mean(unknown[0], manager.all_tasks).partition("known:")[0].strip("; ")
        raise UserError(
            f"lm-eval knows no task {unknown[0]!r}; {near + ' ' if near else ''}`lm-eval ls tasks` lists them", key=_KEY
        )
    return manager


def run_harness(model: str, wanted: Wanted) -> dict[str, Any]:
    """What the harness says of a model. In `tasks`: the metrics of each task with `value` and `stderr` (None where it
    gives none) by name and filter, and its number of problems `n`.

    Raises UserError where a task's data can't be had, and where a task fails or would run programs."""
    manager = check_harness(wanted)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from omni_thinker.models.load import resolve

    gpu = _on_gpu()
    lm = HFLM(pretrained=str(resolve(model)), device="cuda" if gpu else "cpu", batch_size="auto" if gpu else 8)
    chat = wanted.chat and getattr(lm.tokenizer, "chat_template", None) is not None
    try:
        found: Any = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(wanted.tasks),
            limit=wanted.limit,
            task_manager=manager,
            apply_chat_template=chat,
            log_samples=False,
            confirm_run_unsafe_code=False,
        )
    except Exception as exc:  # whatever tasks, their templates and the packages behind them raise
        raise UserError(_complaint(exc, ", ".join(wanted.tasks)), key=_KEY) from exc
    counts = found.get("n-samples", {})
    tasks = {
        task: {"n": counts.get(task, {}).get("effective"), "metrics": _metrics(row)}
        for task, row in found["results"].items()
    }
    return {"version": str(lm_eval.__version__), "chat": chat, "limit": wanted.limit, "tasks": tasks}


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    how = "as chats" if found["chat"] else "as plain text"
    lines = [f"lm-eval {found['version']}, asked {how}:"]
    for task, row in found["tasks"].items():
        for name, metric in row["metrics"].items():
            stderr = "" if metric["stderr"] is None else f" +- {metric['stderr']:.3f}"
            count = "" if row["n"] is None else f" ({row['n']} problems)"
            lines.append(f"{task} {name}: {metric['value']:.3f}{stderr}{count}")
    return lines


def _metrics(row: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """From `acc,none` and `acc_stderr,none` to one entry a metric, called `acc` or `exact_match,strict`."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr: Any = row.get(f"{metric}_stderr,{filtered}")
        known = isinstance(stderr, int | float) and math.isfinite(stderr)
        name = metric if filtered == "none" else key
        found[name] = {"value": float(value), "stderr": float(stderr) if known else None}
    return found


def _complaint(exc: Exception, tasks: str) -> str:
    """What went wrong, and what helps where that is known."""
    from datasets.exceptions import DatasetNotFoundError

    why = printable((str(exc).strip() or type(exc).__name__).splitlines()[0])
    if isinstance(exc, OSError | DatasetNotFoundError):
        return f"the data of {tasks} can't be had: {why}"
    if isinstance(exc, ValueError) and "unsafe" in why:
        return (
            f"{tasks} runs programs that the model writes, and lm-eval does so without a sandbox; use a task of your "
            'own with reward = "unit_tests"'
        )
    return f"{tasks} can't be asked: {type(exc).__name__}: {why:.300}"


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
