"""Run a candidate program against tests in a separate, killable process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omni_thinker.isolation.bubblewrap import launch
from omni_thinker.isolation.pool import WorkerPool, shared_pool
from omni_thinker.isolation.worker import IsolationError, WorkerDied, WorkerTimeout

Outcome = Literal["passed", "failed", "timeout", "crashed"]
_GRACE_S = 10.0
"""How long the sandbox may take over its own deadline before it is killed itself."""


@dataclass(frozen=True, slots=True)
class TestReport:
    """What became of a program. `passed` of `total` tests held.

    "passed": all. "failed": an exception or a test that doesn't hold. "timeout": killed at the deadline.
    "crashed": the program's process ended before the tests did (`os._exit`, a signal, a memory fault)."""

    __test__ = False  # not a pytest class

    passed: int
    total: int
    outcome: Outcome
    reason: str | None = None


async def run_tests(
    program: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    entry_points: Sequence[str] = (),
    timeout: float = 2.0,  # noqa: ASYNC109  (it is the sandbox's deadline, not the caller's)
    memory_mb: int = 256,
) -> TestReport:
    """Run `program` in one fresh process, and `setup`, then each of `tests`, in another that calls it.

    entry_points: the names that the tests take from the program. Without any they may use all that it defines (but
    for built-in functions), which a program can turn against tests that count on what it imports.
    timeout: wall-clock seconds for all of it (> 0). memory_mb: address space (>= 64).
    Raises IsolationError where no sandbox can be had, ValueError without tests."""
    request = _request(program, tests, setup, entry_points, timeout, memory_mb)
    try:
        reply = await _pool().call(request, timeout + _GRACE_S)
        if _is_broken(reply):  # killed from outside, say: a fresh sandbox decides
            reply = await _pool().call(request, timeout + _GRACE_S)
        return _report(reply, len(tests))
    except (WorkerTimeout, WorkerDied) as exc:
        return _overrun(exc, len(tests))


def _pool() -> WorkerPool:
    return shared_pool("programs", lambda: WorkerPool(launch().command))


def _request(
    program: str, tests: Sequence[str], setup: str, entry_points: Sequence[str], timeout: float, memory_mb: int
) -> dict[str, Any]:
    if not tests:
        raise ValueError("a program without tests can't pass")
    if timeout <= 0 or memory_mb < 64:
        raise ValueError(f"timeout must be > 0 and memory_mb >= 64, got {timeout} and {memory_mb}")
    return {
        "program": program,
        "tests": list(tests),
        "setup": setup,
        "entry_points": list(entry_points),
        "timeout": timeout,
        "memory_mb": memory_mb,
    }


def _is_broken(reply: dict[str, Any]) -> bool:
    """Whether the sandbox says that it could not do its own part; it ends with that."""
    return reply.get("outcome") == "broken"


def _report(reply: dict[str, Any], total: int) -> TestReport:
    if _is_broken(reply):
        raise IsolationError(str(reply.get("reason")))
    return TestReport(int(reply["passed"]), total, reply["outcome"], reply.get("reason"))


def _overrun(exc: IsolationError, total: int) -> TestReport:
    """The sandbox itself was lost, twice on fresh processes: that is the program's doing."""
    outcome: Outcome = "timeout" if isinstance(exc, WorkerTimeout) else "crashed"
    return TestReport(0, total, outcome, f"the sandbox was lost: {exc}")
