"""An event loop in a thread of its own, which other threads hand work to."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from anyio.from_thread import BlockingPortal, start_blocking_portal


def open_portal(name: str) -> tuple[BlockingPortal, Callable[[], object]]:
    """(the portal, what ends its thread).

    It is entered in a further thread: where a signal interrupts anyio's own wait for the loop, anyio waits for the
    loop's end instead, which nothing brings about."""
    portal = start_blocking_portal(name=name)
    opener = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        entered = opener.submit(portal.__enter__).result()
    finally:
        opener.shutdown(wait=False)
    return entered, lambda: portal.__exit__(None, None, None)
