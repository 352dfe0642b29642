"""Regular expressions in a worker process: one can take forever on a text made for it, or by bad luck."""

import re
from typing import Any


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """{"pattern", "text"} -> {"matches": bool}; the whole text must match, `.` matches newlines."""
    return {"matches": re.fullmatch(request["pattern"], request["text"], re.DOTALL) is not None}
