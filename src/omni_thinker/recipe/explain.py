"""What pydantic found wrong with a table, in one line that names the key."""

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean

Loc = tuple[int | str, ...]


def refusal(exc: ValidationError, known: Callable[[Loc], Sequence[str]], prefix: str = "") -> UserError:
    """The first fault. known: the keys of the table that a fault lies in. prefix: where the whole table lies."""
    first = exc.errors()[0]
    key = ".".join([*([prefix] if prefix else []), *(str(word) for word in first["loc"])])
    message = f"{first['msg']} (got {_shown(first['input'])})"
    if first["type"] == "extra_forbidden":
        names = known(first["loc"])
        message = "unknown key" + (did_you_mean(str(first["loc"][-1]), names) if names else "")
    return UserError(message, key=key or None)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return "a deeply nested value"
    except ValueError:  # a whole number with more digits than Python writes out
        return "a huge number"
