"""Names of things that a recipe may ask for: ours by name, anybody's as `python:MODULE:CLASS`.

`python:` runs code of the user's own, with the user's rights."""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError

PREFIX = "python:"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The known words, with the nearest first where one is close: an ending for an error message."""
    close = difflib.get_close_matches(word, known, 1)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" known: {', '.join(known)}"


def load_class(place: str, key: str) -> type[Any]:
    """The class of `python:MODULE:CLASS`. MODULE may lie in the folder that the command runs in.

    Raises UserError, naming `key`, where there is none."""
    module_name, _, class_name = place.removeprefix(PREFIX).partition(":")
    if not module_name or not class_name.isidentifier():
        raise UserError("must be python:MODULE:CLASS", key=key)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        cls = getattr(importlib.import_module(module_name), class_name, None)
    except (Exception, SystemExit) as exc:  # a module of the user's own may raise anything
        why = str(exc) if isinstance(exc, ImportError | SyntaxError) else f"{type(exc).__name__}: {exc}"
        raise UserError(f"can't import {module_name!r} (from {here}, PYTHONPATH or packages): {why}", key=key) from None
    if not isinstance(cls, type):
        module = sys.modules[module_name]
        has = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        classes = ", ".join(name for name in has if isinstance(getattr(module, name), type)) or "none"
        raise UserError(f"module {module_name!r} has no class {class_name!r}; it has {classes}", key=key)
    return cls


class Registry:
    """Classes of one kind by name. Ours are named as MODULE:CLASS and imported where they are asked for."""

    def __init__(self, what: str, known: Mapping[str, str], base: str = "") -> None:
        """what: the kind, for messages. base: MODULE:CLASS that a class of the user's own must derive from."""
        self._what, self._known, self._base = what, dict(known), base

    @property
    def names(self) -> tuple[str, ...]:
        """Ours, sorted."""
        return tuple(sorted(self._known))

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def add(self, name: str, place: str) -> None:
        """Make a class known by a name. Raises UserError where the name is taken."""
        if name in self._known or name.startswith(PREFIX):
            raise UserError(f"a {self._what} called {name!r} exists already")
        self._known[name] = place

    def find(self, name: str, key: str) -> type[Any]:
        """The class. Raises UserError, naming `key`, for an unknown name and for a class of another kind."""
        if name in self._known:
            return load_class(self._known[name], key)
        if not name.startswith(PREFIX):
            raise UserError(f"unknown {self._what} {name!r}{did_you_mean(name, self.names)}", key=key)
        cls = load_class(name, key)
        if self._base and not issubclass(cls, load_class(self._base, key)):
            raise UserError(f"{name} isn't a {self._what}: it must derive from {self._base.replace(':', '.')}", key=key)
        return cls
