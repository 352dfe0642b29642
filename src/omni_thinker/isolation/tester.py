"""The tests' side of the sandbox: runs them against a program that lives in another process.

What the program returns arrives as plain data or as a handle. A handle's own idea of equality, order or arithmetic is
asked for only between two handles: against a value of the test's it would decide its own verdict.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.wire import BINARY, COMPARISONS, UNARY, Gone, Peer, Proxy, Violation, _exception
else:
    from wire import BINARY, COMPARISONS, UNARY, Gone, Peer, Proxy, Violation, _exception

_FRAMES = ("_", "gi_", "cr_", "ag_", "tb_", "f_", "co_")
"""Beginnings of the attributes that lead from an object that a test hands over to the test itself."""
_OPERATIONS = {
    **UNARY,
    **BINARY,
    **COMPARISONS,
    "getattr": lambda target, name: getattr(target, _open(name)),
    "setattr": lambda target, name, value: setattr(target, _open(name), value),
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "delitem": lambda target, key: target.__delitem__(key),
}


def _open(name: Any) -> str:
    if not isinstance(name, str) or name.startswith(_FRAMES):
        raise AttributeError("programs may use public attributes alone")
    return name


class Tester(Peer):
    """Asks the program."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self._classes: dict[int, type[BaseException]] = {}
        self._mixed: set[int] = set()

    def call(self, target: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reply = self.ask("call", self.encode(target), self.encode(list(args)), self.encode(kwargs))
        if not isinstance(reply, list) or len(reply) != 3:
            raise Violation("a message that is no message")
        result, given, named = map(self.decode, reply)
        for old, new in ((list(args), given), (kwargs, named)):
            _restore(old, new)
        return self._told(result, target._number in self._mixed)

    def request(self, name: str, *operands: Any) -> Any:
        mixed = isinstance(operands[0], Proxy) and operands[0]._number in self._mixed
        result = super().request(name, *operands)
        both = isinstance(operands[-1], Proxy) and len(operands) == 2
        return result if name in COMPARISONS and both else self._told(result, mixed)

    def binary(self, name: str, left: Any, right: Any) -> Any:
        both = isinstance(left, Proxy) and isinstance(right, Proxy)
        if name in COMPARISONS and not both:
            if name in ("eq", "ne"):
                return name == "ne"
            raise TypeError("an object of the program's can't be ordered against a value of the test's")
        return self._told(self.request(name, left, right), not both)

    def _told(self, result: Any, mixed: bool) -> Any:
        """`result`, which may be no plain value where it is `mixed`: made from a value of the test's by the program.

        In `abs(f(2) - 4) < 1e-6` the program's own object would else work out the difference.
        """
        if mixed and not isinstance(result, Proxy):
            raise TypeError("an object of the program's can't reckon with a value of the test's")
        if mixed:
            self._mixed.add(result._number)
        return result

    def serve(self, message: list[Any]) -> Any:
        """What the program does with what a test handed over (a function above all)."""
        name, *operands = message
        if name == "call":
            function, given, named = map(self.decode, operands)
            return self.encode(function(*given, **named))
        if name not in _OPERATIONS:
            raise TypeError(f"programs can't do {name!r} to what a test hands over")
        return self.encode(_OPERATIONS[name](*map(self.decode, operands)))

    def found(self, name: str) -> Any:
        """The program's global of this name. Modules are this process's own."""
        node = self.ask("global", name)
        if isinstance(node, list) and len(node) == 2 and node[0] == "m":
            if str(node[1]).partition(".")[0] not in sys.stdlib_module_names:
                raise Violation("a module that tests can't have")
            return importlib.import_module(node[1])
        return self.decode(node)

    def rebuilt(self, own: Any, known: Any, text: Any) -> BaseException:
        cls = self._classes.get(own)
        return super().rebuilt(own, known, text) if cls is None else cls(str(text)[:300])

    def _refer(self, value: Any) -> Any:
        if type(value) is type(sys):
            raise TypeError("a test can't hand a module over")
        return super()._refer(value)

    def _resolve(self, node: list[Any]) -> Any:
        if node[0] != "X":
            return super()._resolve(node)
        _, number, name, base = node
        if number not in self._classes:
            self._classes[number] = type(str(name), (_exception(base) or Exception,), {})
        return self._classes[number]


def _restore(old: Any, new: Any) -> None:
    """Change the mutable `old` into `new`, in place and as deep as their shapes agree."""
    if type(old) is not type(new):
        return
    if isinstance(old, (list, dict)) and len(old) == len(new):
        keys = range(len(old)) if isinstance(old, list) else old.keys()
        if isinstance(old, list) or old.keys() == new.keys():
            for key in keys:
                if type(old[key]) is type(new[key]) and isinstance(old[key], (list, dict, set, tuple)):
                    _restore(old[key], new[key])
                elif old[key] is not new[key]:
                    old[key] = new[key]
            return
    if isinstance(old, tuple):
        for before, after in zip(old, new, strict=False):
            _restore(before, after)
    elif isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)


def run(channel: socket.socket, request: dict[str, Any]) -> tuple[int, str | None]:
    """(tests that hold, first reason why one doesn't). Raises Gone where the program's process ends first."""
    tester = Tester(channel)
    try:
        defined = tester.ask("program", request["program"])
        if not isinstance(defined, list):
            return 0, "the program broke the channel"
        space = _space(tester, request, {name for name in defined if isinstance(name, str)})
        if request["setup"]:
            exec(compile(request["setup"], "<setup>", "exec", dont_inherit=True), space)  # noqa: S102
    except Gone:
        raise
    except BaseException as exc:  # SystemExit above all
        return 0, _why(exc)
    passed: int = 0
    reason: str | None = None
    for test in request["tests"]:
        problem = _step(test, space)
        passed += problem is None
        if problem is not None:
            reason = reason or f"{test.strip()[:80]}: {problem}"
    return passed, reason


def _space(tester: Tester, request: dict[str, Any], defined: set[str]) -> dict[str, Any]:
    """The globals of the tests. Of the program's names they get what was asked for, and modules (this process's own).

    Where nothing was asked for by name they get whatever they use; a built-in function stays what it is even then.
    """
    trees = [_tree(text) for text in (request["setup"], *request["tests"])]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    asked = set(request["entry_points"])
    space: dict[str, Any] = {"__name__": "tests"}
    for name in sorted(used & defined):
        if name in asked or not hasattr(builtins, name):
            value = tester.found(name)
            if name in asked or not asked or type(value) is type(sys):
                space[name] = value
    return space


def _tree(text: str) -> ast.AST:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])  # its step fails


def _step(test: str, space: dict[str, Any]) -> str | None:
    try:
        exec(compile(test, "<test>", "exec", dont_inherit=True), space)  # noqa: S102
    except Gone:
        raise
    except BaseException as exc:  # SystemExit above all
        return _why(exc)
    return None


def _why(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:200]
