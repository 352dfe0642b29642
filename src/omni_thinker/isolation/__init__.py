"""Killable worker processes; the only place where model output is executed or read by scorers that aren't ours."""

from omni_thinker.isolation.bubblewrap import Launch, allow_weak_sandbox, launch, weak_allowed
from omni_thinker.isolation.pool import WorkerPool, call_pool, shared_pool, shutdown, use_workers
from omni_thinker.isolation.programs import Limits, TestReport, run_script, run_tests
from omni_thinker.isolation.scorers import TextEvaluated, WalledScorer
from omni_thinker.isolation.worker import IsolationError, WorkerDied, WorkerTimeout

__all__ = [
    "IsolationError", "Launch", "Limits", "TestReport", "TextEvaluated", "WalledScorer", "WorkerDied", "WorkerPool",
    "WorkerTimeout", "allow_weak_sandbox", "call_pool", "launch", "run_script", "run_tests", "shared_pool", "shutdown",
    "use_workers", "weak_allowed",
]  # fmt: skip
