"""How long something takes on a machine that does other things as well."""

from __future__ import annotations

import time
from collections.abc import Callable


def quickest(call: Callable[[], object], within: float, tries: int = 3) -> float:
    """Seconds of the quickest of up to `tries` calls: what a call needs, without what its neighbours took from it.

    Ends with the first that took less than `within` seconds.
    """
    best = float("inf")
    for _ in range(tries):
        begin = time.monotonic()
        call()
        best = min(best, time.monotonic() - begin)
        if best < within:
            break
    return best
