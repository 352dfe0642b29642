"""The names that LeetCode-like problems take for granted. Loaded by scripts of the sandbox: standard library alone."""

import builtins
import importlib
from typing import Any

_MODULES = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json",
    "math", "operator", "random", "re", "string", "sys", "time", "typing",
)  # fmt: skip
_OPENED = (
    "operator", "string", "random", "functools", "itertools", "math", "bisect", "heapq", "collections", "copy", "typing"
)  # fmt: skip
"""Modules whose names are there without a prefix; the later one wins."""
_NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
class Node:
    def __init__(self, val=None, *links, **named):
        self.val = val
        for name, link in zip(("left", "right", "next"), links):
            setattr(self, name, link)
        for name, link in named.items():
            setattr(self, name, link)
"""


def _names() -> dict[str, Any]:
    modules = {name: importlib.import_module(name) for name in _MODULES}
    names: dict[str, Any] = {}
    for opened in _OPENED:
        module = modules[opened]
        public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        names |= {name: getattr(module, name) for name in public if not hasattr(builtins, name)}
    return {**names, **modules}


_NAMES = _names()
_CODE = compile(_NODES, "<usual names>", "exec", dont_inherit=True)


def provide(space: dict[str, Any]) -> None:
    """Put the names into the globals of a program or of tests; the classes of nodes are made anew, as their own."""
    space.update(_NAMES)
    exec(_CODE, space)  # noqa: S102
