"""The tests' side of the sandbox: runs them against a program that lives in another process.

What the program returns arrives as plain data or as a handle. We never call the program's `__eq__` (or its order or
arithmetic) against a value of the test: it could return True. Between two handles, the program's classes decide."""

import ast
import builtins
import collections
import importlib
import reprlib
import socket
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import outputs, usual
    from omni_thinker.isolation.inside.values import Violation, is_array
    from omni_thinker.isolation.inside.wire import (
        ACCESS,
        BINARY,
        COMPARISONS,
        UNARY,
        Gone,
        Peer,
        Proxy,
        exception_named,
    )
else:
    import outputs
    import usual
    from values import Violation, is_array
    from wire import ACCESS, BINARY, COMPARISONS, UNARY, Gone, Peer, Proxy, exception_named

_LEFT = "_left_of_the_assert"
_WIDEST = 256
_MODULE = "__main__"
"""Module name that the tests run under."""
_OPERATIONS = {**UNARY, **BINARY, **COMPARISONS, **ACCESS}
_CHANGEABLE = (list, dict, set, tuple, bytearray, collections.deque)
_ANYTHING = ("bool", "hash", "iter", "len", "next", "repr", "str")
"""What a program may do with whatever a test hands over, besides calling it."""


class OtherModule(TypeError):
    """The program's global is a module of another name, or none that tests may have."""


class Tester(Peer):
    """Asks the program."""

    def __init__(self, channel: socket.socket, packages: list[str]) -> None:
        super().__init__(channel)
        self._classes: dict[int, type[BaseException]] = {}
        self._modules = {*sys.stdlib_module_names, *packages}

    # -- what tests do with the program

    def call(self, target: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reply = self._asked("call", self.encode(target), self.encode(list(args)), self.encode(kwargs))
        if not isinstance(reply, list) or len(reply) != 3:
            raise Violation("malformed message: a call is answered by three values")
        result, given, keywords = map(self.decode, reply)
        for old, new in ((list(args), given), (kwargs, keywords)):
            _restore(old, new)
        return result

    def request(self, name: str, *operands: Any) -> Any:
        return self.decode(self._asked(name, *map(self.encode, operands)))

    def binary(self, name: str, left: Any, right: Any) -> Any:
        """Between two handles the program is asked; against a value of the test's only a plain value counts."""
        if isinstance(left, Proxy) and isinstance(right, Proxy):
            return self.request(name, left, right)
        left, right = self.plain(left), self.plain(right)
        if not isinstance(left, Proxy) and not isinstance(right, Proxy):
            return _OPERATIONS[name](left, right)
        if name in ("eq", "ne"):
            return name == "ne"
        raise TypeError("a program's object can't be combined with a test's value: the program would learn it")

    def contains(self, container: Proxy, item: Any) -> bool:
        """By the plain value where there is one, else by the program's own `__contains__`, else element by element."""
        if container._based:
            return item in self.plain(container)
        if self.ask("has_contains", self.encode(container)) is True:
            return bool(self.request("contains", container, item))
        return super().contains(container, item)

    def found(self, name: str) -> Any:
        """The program's global of this name. A module is this process's own, if the name is its own, too."""
        node = self.ask("global", name)
        if isinstance(node, list) and len(node) == 2 and node[0] == "m":
            if node[1] != name or name not in self._modules:
                raise OtherModule(f"{name!r} isn't the module of that name; import it in the test's setup")
            return importlib.import_module(name)
        return self.decode(node)

    def _asked(self, name: str, *operands: Any) -> Any:
        try:
            return self.ask(name, *operands)
        except (StopIteration, StopAsyncIteration) as exc:
            if name in ("next", "anext"):
                raise
            # It would end a loop of the test's, and with it the test.
            raise RuntimeError(f"the program raised {type(exc).__name__}") from None

    # -- what the program does with what a test handed over

    def serve(self, message: list[Any]) -> Any:
        """Only handles that a test gave away are served: called, or where the test's own class made them, used."""
        name, *operands = message
        values = [self._given_away(operands[0]), *map(self.decode, operands[1:])]
        target = values[0]
        if name == "call":
            return self.encode(target(*values[1], **values[2]))
        if name == "base":
            raise TypeError("a test's object has no plain value")
        made_by_test = not isinstance(target, type) and type(target).__module__ == _MODULE
        if name not in _OPERATIONS or not (made_by_test or name in _ANYTHING):
            raise TypeError(f"programs can't do {name!r} to this object of the test's")
        if name in ("getattr", "setattr", "delattr"):
            _check_attribute(target, values[1], change=name != "getattr")
        return self.encode(_OPERATIONS[name](*values))

    def _given_away(self, node: Any) -> Any:
        if not isinstance(node, list) or len(node) != 2 or node[0] != "yours" or node[1] not in self._given:
            raise TypeError("programs can only use what a test has handed to them")
        return self._given[node[1]]

    # -- values and exceptions

    def rebuilt(self, lineage: Any, known: Any, args: Any, attributes: Any, text: Any) -> BaseException:
        base = exception_named(str(known))
        if base is None or not issubclass(base, Exception):
            return RuntimeError(f"{known}: {text}"[:300])  # SystemExit and the like end nothing here
        try:
            cls = self._class(lineage, str(known))
            given = tuple(self.decode(args))
            exc = cls.__new__(cls, *given)
            if isinstance(exc, SyntaxError):
                SyntaxError.__init__(exc, *given)  # what it says isn't made of its arguments alone
            exc.args = given
            vars(exc).update(self.decode(attributes))
            if lineage:
                exc.__dict__["_text"] = str(text)[:300]
        except Gone:
            raise
        except Exception:
            return base.__new__(base) if base is not Exception else Exception(str(text)[:300])
        return exc

    def _class(self, lineage: Any, known: str) -> type[BaseException]:
        """The local stand-in for a class of the program's exceptions, made with its parents."""
        cls: type[BaseException] = exception_named(known) or Exception
        for number, name in reversed(lineage):
            if number not in self._classes:
                says = {"__str__": lambda self: self.__dict__.get("_text", "")}
                self._classes[number] = type(str(name), (cls,), says)
            cls = self._classes[number]
        return cls

    def _refer(self, value: Any) -> Any:
        if type(value) is type(sys):
            raise TypeError("a test can't hand a module over")
        return super()._refer(value)

    def _resolve(self, node: list[Any]) -> Any:
        if node[0] == "X":
            return self._class(node[1], str(node[2]))
        if node[0] == "W":
            return self._coroutine(super()._resolve(["mine", node[1]]))
        return super()._resolve(node)

    async def _coroutine(self, proxy: Proxy) -> Any:
        return self.request("await", proxy)


def _check_attribute(target: Any, name: Any, *, change: bool) -> None:
    """Raises AttributeError for what leads from an object to the test, and for changes of what its class does."""
    if not isinstance(name, str) or name.startswith("_"):
        raise AttributeError("programs may use public attributes alone")
    of_class = getattr(type(target), name, None)
    if change and of_class is not None and not hasattr(type(of_class), "__set__"):
        raise AttributeError("programs can't replace what a test's class defines")


def _restore(old: Any, new: Any) -> None:
    """Change the mutable `old` into `new`, in place and as deep as their shapes agree."""
    if type(old) is not type(new):
        return
    if is_array(old):
        if old.shape == new.shape and old.dtype == new.dtype and old.flags.writeable:
            old[...] = new
        return
    if isinstance(old, (list, dict)) and len(old) == len(new):
        keys = range(len(old)) if isinstance(old, list) else old.keys()
        if isinstance(old, list) or old.keys() == new.keys():
            for key in keys:
                if type(old[key]) is type(new[key]) and (isinstance(old[key], _CHANGEABLE) or is_array(old[key])):
                    _restore(old[key], new[key])
                elif old[key] is not new[key]:
                    old[key] = new[key]
            return
    if isinstance(old, tuple):
        for before, after in zip(old, new, strict=False):
            _restore(before, after)
    elif isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, collections.deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)


def run(channel: socket.socket, request: dict[str, Any]) -> tuple[int, str | None]:
    """(tests that hold, first reason why one doesn't). Raises Gone where the program's process ends first."""
    tester = Tester(channel, request["packages"])
    if request["script"]:
        return _count(request["tests"], lambda pair: _step_of_script(tester, request, *pair))
    try:
        defined = tester.ask("program", request["program"], request["usual_imports"])
        if not isinstance(defined, list):
            return 0, "the program broke the channel"
        space = _space(tester, request, {name for name in defined if isinstance(name, str)})
        if request["setup"]:
            exec(compile(request["setup"], "<setup>", "exec", dont_inherit=True), space)  # noqa: S102
    except Gone:
        raise
    except BaseException as exc:  # SystemExit above all
        return 0, _why(exc)
    return _count(request["tests"], lambda test: _step(test, space))


def _count(tests: list[Any], step: Callable[[Any], str | None]) -> tuple[int, str | None]:
    passed: int = 0
    reason: str | None = None
    for test in tests:
        problem = step(test)
        passed += problem is None
        if problem is not None and reason is None:
            name = f"input {test[0].strip()[:40]!r}" if isinstance(test, list) else " ".join(test.split())[:80]
            reason = f"{name}: {problem}"
    return passed, reason


def _step_of_script(tester: Tester, request: dict[str, Any], given: str, wanted: str) -> str | None:
    """Why the program, run as a script with this input, doesn't print what is wanted."""
    try:
        reply = tester.ask("script", request["program"], given, request["usual_imports"])
    except Gone:
        raise
    except BaseException as exc:
        return _why(exc)
    match reply:
        case [0, str(output), str()]:
            return outputs.difference(output, wanted, request["tolerance"])
        case [int(code), str(), str(errors)]:
            last = errors.strip().rpartition("\n")[2]
            return last[:200] or (f"killed by signal {code - 128}" if code > 128 else f"exit code {code}")
    return "the program broke the channel"


def _space(tester: Tester, request: dict[str, Any], defined: set[str]) -> dict[str, Any]:
    """The globals of the tests. Of the program's names they get what was asked for, and modules (this process's own).

    Where nothing was asked for by name they get whatever they use; a built-in function stays what it is even then."""
    trees = [_tree(text) for text in (request["setup"], *request["tests"])]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    entry_points = set(request["entry_points"])
    module = types.ModuleType(_MODULE)  # `if __name__ == "__main__"` and unittest.main() mean what they say
    sys.modules[_MODULE] = module
    space = vars(module)
    if request["usual_imports"]:
        usual.provide(space)
    imported = {alias.asname or alias.name for tree in trees for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip
    for name in sorted(used & defined):
        if name in entry_points or not hasattr(builtins, name):
            try:
                value = tester.found(name)
            except OtherModule:
                if name in imported:
                    continue
                raise
            if name in entry_points or not entry_points or type(value) is type(sys):
                space[name] = value
    return space


def _tree(text: str) -> ast.AST:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])  # its step fails


def _step(test: str, space: dict[str, Any]) -> str | None:
    space.pop(_LEFT, None)
    try:
        exec(compile(_kept(test), "<test>", "exec", dont_inherit=True), space)  # noqa: S102
    except Gone:
        raise
    except AssertionError as exc:
        return _why(exc) if exc.args else f"doesn't hold{_came(space.get(_LEFT))}"
    except SystemExit as exc:  # unittest.main(); programs can't raise it here
        return None if not exc.code else _why(exc)
    except BaseException as exc:
        return _why(exc)
    return None


def _kept(test: str) -> ast.Module:
    """The test; one `assert left == right` keeps what is on the left, so that a reason can show it."""
    tree = ast.parse(test, "<test>")
    match tree.body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()]) as compared)]:
            name = ast.Name(_LEFT, ast.Store())
            compared.left = ast.fix_missing_locations(ast.copy_location(ast.NamedExpr(name, left), left))
            ast.fix_missing_locations(compared)
    return tree


def _came(value: Any, depth: int = 2) -> str:
    """What came in place of what a test wanted. Plain data only: a handle could say what it likes."""
    return f", got {reprlib.repr(value)}" if _is_plain(value, depth) else ""


def _is_plain(value: Any, depth: int) -> bool:
    if type(value) in (list, tuple, set) and depth:
        return all(_is_plain(item, depth - 1) for item in value)
    return type(value) in (bool, float, str) or (type(value) is int and value.bit_length() < _WIDEST)


def _why(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:200]
