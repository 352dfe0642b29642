"""Killable worker processes; the only place where model output is executed or read by scorers that aren't ours."""

from omni_thinker.isolation.bubblewrap import Launch, allow_weak_sandbox, launch
from omni_thinker.isolation.pool import (
    IsolationError,
    WorkerDied,
    WorkerPool,
    WorkerTimeout,
    aclose,
    call_pool,
    shared_pool,
    shutdown,
    use_workers,
)
from omni_thinker.isolation.programs import TestReport, run_tests, run_tests_sync
from omni_thinker.isolation.scorers import TextEvaluated, WalledScorer

__all__ = [
    "IsolationError",
    "Launch",
    "TestReport",
    "TextEvaluated",
    "WalledScorer",
    "WorkerDied",
    "WorkerPool",
    "WorkerTimeout",
    "aclose",
    "allow_weak_sandbox",
    "call_pool",
    "launch",
    "run_tests",
    "run_tests_sync",
    "shared_pool",
    "shutdown",
    "use_workers",
]
