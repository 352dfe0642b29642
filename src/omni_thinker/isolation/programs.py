"""Run a candidate program against tests in a separate, killable process."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from omni_thinker.isolation.bubblewrap import launch_programs
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    timeout: wall-clock seconds for it and all its tests (> 0). memory_mb: address space (>= 64).
    usual_imports: whether it, and its tests, find the names that LeetCode-like problems take for granted.
    packages: installed packages that it, and its tests, may import besides the standard library."""

    timeout: float = 2.0
    memory_mb: int = 256
    usual_imports: bool = False
    packages: tuple[str, ...] = ()


DEFAULT_LIMITS = Limits()


async def run_tests(
    program: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    entry_points: Sequence[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> TestReport:
    """Run `program` in one fresh process, and `setup`, then each of `tests`, in another that calls it.

    entry_points: the names that the tests take from the program. Without any they may use all that it defines (but
    for built-in functions), which a program can turn against tests that count on what it imports.
    Raises IsolationError where no sandbox can be had, ValueError without tests."""
    call = {"script": False, "tests": list(tests), "setup": setup, "entry_points": list(entry_points)}
    return await _run(program, call, limits)


async def run_script(
    program: str, cases: Sequence[tuple[str, str]], *, tolerance: float = 0.0, limits: Limits = DEFAULT_LIMITS
) -> TestReport:
    """Run `program` as a script, in a fresh process for each case: (what it reads, what it should print).

    What it should print is compared in another process. White space and blank lines don't count; numbers with a
    decimal point may be apart by `tolerance`, absolutely or relative. Raises as `run_tests`."""
    call = {"script": True, "tests": [list(case) for case in cases], "tolerance": tolerance}
    return await _run(program, call, limits)


async def _run(program: str, call: Mapping[str, Any], limits: Limits) -> TestReport:
    total = len(call["tests"])
    if not total:
        raise ValueError("a program without tests can't pass")
    if limits.timeout <= 0 or limits.memory_mb < 64:
        raise ValueError(f"timeout must be > 0 and memory_mb >= 64, got {limits.timeout} and {limits.memory_mb}")
    request = {"program": program, **call, **asdict(limits)}
    pool, deadline = _pool(limits.packages), limits.timeout + _GRACE_S
    try:
        reply = await pool.call(request, deadline)
        if _is_broken(reply):  # killed from outside, say: a fresh sandbox decides
            reply = await pool.call(request, deadline)
        return _report(reply, total)
    except (WorkerTimeout, WorkerDied) as exc:
        return _overrun(exc, total)


def _pool(packages: tuple[str, ...] = ()) -> WorkerPool:
    return shared_pool(" ".join(("programs", *packages)), lambda: WorkerPool(launch_programs(packages).command))


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
