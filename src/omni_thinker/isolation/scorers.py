"""Scorers that aren't ours: each request in a fresh process, behind the same wall as programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_thinker.isolation.bubblewrap import launch_scorer
from omni_thinker.isolation.pool import WorkerPool, shared_pool
from omni_thinker.isolation.worker import IsolationError

_GRACE_S = 10.0
"""How long the sandbox may take over its own deadline before it is killed itself."""
_PREPARE_S = 120.0
"""How long `prepare` may take, which happens once for each settings in each sandbox."""


class TextEvaluated(IsolationError):
    """The scorer would have run text as code; it was ended before that."""


class WalledScorer:
    """Calls `handle(request) -> reply` of a file, each time in a fresh process of the sandbox.

    handler: a file. Its `prepare(settings)`, where it has one, is called beforehand in the process that the fresh ones
    are forked from, once for all requests with the same settings; it must see nothing that a model wrote.
    packages: those that the file imports, for ones that aren't among the installed packages.
    memory_mb: address space of each process (MiB, >= 64)."""

    def __init__(self, handler: Path, packages: Sequence[str] = (), memory_mb: int = 4096) -> None:
        self._handler, self._packages, self._memory_mb = handler, tuple(packages), memory_mb

    async def call(
        self,
        request: Mapping[str, Any],
        timeout: float,  # noqa: ASYNC109  (it is the sandbox's deadline, not the caller's)
        *,
        settings: Mapping[str, Any] | None = None,
        evaluates: bool = False,
    ) -> dict[str, Any]:
        """The reply to `request`, within `timeout` seconds.

        evaluates: let code made of texts run. Raises TextEvaluated where that was tried without, and IsolationError
        where no sandbox can be had, the worker is lost or late, or the handler raises."""
        line = self._line(request, timeout, settings, evaluates)
        return _read(await self._pool().call(line, timeout + _PREPARE_S + _GRACE_S))

    def call_sync(
        self,
        request: Mapping[str, Any],
        timeout: float,
        *,
        settings: Mapping[str, Any] | None = None,
        evaluates: bool = False,
    ) -> dict[str, Any]:
        """`call` for code outside an event loop."""
        line = self._line(request, timeout, settings, evaluates)
        return _read(self._pool().call_sync(line, timeout + _PREPARE_S + _GRACE_S))

    def _line(
        self, request: Mapping[str, Any], timeout: float, settings: Mapping[str, Any] | None, evaluates: bool
    ) -> dict[str, Any]:
        return {
            "request": dict(request),
            "settings": None if settings is None else dict(settings),
            "evaluates": evaluates,
            "timeout": timeout,
            "memory_mb": self._memory_mb,
        }

    def _pool(self) -> WorkerPool:
        return shared_pool(
            f"scorer {self._handler} {self._packages}",
            lambda: WorkerPool(launch_scorer("scoring.py", self._handler, self._packages).command),
        )


def _read(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("outcome") == "broken":
        raise IsolationError(str(reply.get("reason")))
    if reply.get("evaluated") is True:
        raise TextEvaluated("the scorer would have run text as code")
    answer = reply.get("reply")
    if not isinstance(answer, dict):
        raise IsolationError(str(reply.get("error", "the scorer's reply is no table")))
    if "error" in answer:
        raise IsolationError(str(answer["error"])[:300])
    return answer
