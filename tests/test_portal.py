"""The event loop in a thread of its own."""

from __future__ import annotations

import os
import signal
import threading

import anyio.from_thread
import pytest

from omni_thinker import portal


def test_interrupt_while_the_loop_starts_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held, opened = threading.Event(), anyio.from_thread.start_blocking_portal

    class Slow:
        """anyio's portal, which takes until `held` to start."""

        def __init__(self, name: str) -> None:
            self._inner = opened(name=name)

        def __enter__(self) -> object:
            os.kill(os.getpid(), signal.SIGINT)
            held.wait(10.0)
            return self._inner.__enter__()

    monkeypatch.setattr(portal, "start_blocking_portal", Slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            portal.open_portal("test")
        assert not held.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
        held.set()


def test_portal_runs_work_and_its_thread_ends() -> None:
    opened, end = portal.open_portal("test-portal")
    assert opened.call(threading.current_thread).name == "test-portal"
    end()
    assert "test-portal" not in {thread.name for thread in threading.enumerate() if thread.daemon}
