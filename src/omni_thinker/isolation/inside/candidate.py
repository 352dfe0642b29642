"""The program's side of the sandbox: runs it, then does what the tests ask of it.

Nothing here is a secret and nothing here is trusted: a program may replace all of it, and gains the right to answer
for its own functions, which it has anyway. It never holds a test, nor what a test expects."""

import builtins
import operator
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from omni_thinker.isolation.inside import script, usual
    from omni_thinker.isolation.inside.values import encode
    from omni_thinker.isolation.inside.wire import ACCESS, BINARY, COMPARISONS, UNARY, Peer, exception_named, receive
else:
    import script
    import usual
    from values import encode
    from wire import ACCESS, BINARY, COMPARISONS, UNARY, Peer, exception_named, receive

_OPERATIONS = {
    **UNARY,
    **BINARY,
    **COMPARISONS,
    **ACCESS,
    "isinstance": isinstance,
    "contains": operator.contains,
    "aiter": aiter,
}
_CHANGEABLE = (list, dict, set, bytearray)


class Candidate(Peer):
    """Serves the tests."""

    space: dict[str, Any]
    _loop: "asyncio.AbstractEventLoop | None" = None

    def run(self) -> None:
        """Answer until the tests hang up; raises Gone then."""
        while True:
            _, *message = receive(self.channel)
            self.answer(message)

    def serve(self, message: list[Any]) -> Any:
        name, *operands = message
        if name == "program":
            return self._program(*operands)
        if name == "script":
            return script.run(*operands)
        if name == "global":
            value = self.space[operands[0]]
            return ["m", value.__name__] if isinstance(value, types.ModuleType) else self.encode(value)
        if name == "call":
            return self._call(*operands)
        values = [self.decode(operand) for operand in operands]
        if name == "base":
            return self._base(values[0])
        if name == "has_contains":
            return hasattr(type(values[0]), "__contains__")
        if name == "exit":
            return self.encode(values[0].__exit__(*_raised(*values[1:])))
        if name in _AWAITED:
            return self.encode(self._wait_for(_AWAITED[name](*values)))
        result = _OPERATIONS[name](*values)
        if name in ("getattr", "getitem") and isinstance(result, _CHANGEABLE):
            # A part of an object stays its part: what a test appends to it is there afterwards.
            return [*self._refer(result), self._base(result)]
        return self.encode(result)

    def _wait_for(self, awaitable: Any) -> Any:
        """In one loop for the whole life of the program: another would end its generators and locks."""
        import asyncio

        async def wait() -> Any:
            return await awaitable

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(wait())

    def _base(self, value: Any) -> Any:
        node = encode(value, self._refer)
        return node[2] if node[0] == "mine" else node

    def _program(self, text: str, usual_imports: bool) -> list[str]:
        """Run the program; the names that it defines."""
        module = types.ModuleType("candidate")
        sys.modules["candidate"] = sys.modules["__main__"] = module  # dataclasses look their module up here
        self.space = module.__dict__
        self.space["__builtins__"] = builtins
        if usual_imports:
            usual.provide(self.space)
        provided = dict(self.space)
        exec(compile(text, "<program>", "exec", dont_inherit=True), self.space)  # noqa: S102
        return [
            name
            for name, value in self.space.items()
            if isinstance(name, str) and not name.startswith("__") and provided.get(name, self) is not value
        ]

    def _call(self, target: Any, args: Any, kwargs: Any) -> Any:
        """[result, arguments after the call]: lists and dicts may have been changed in place."""
        function, given, keywords = self.decode(target), self.decode(args), self.decode(kwargs)
        result = self.encode(function(*given, **keywords))
        return [result, self.encode(given), self.encode(keywords)]

    def _refer(self, value: Any) -> Any:
        handle = super()._refer(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["X", *self.lineage(value)]
        return ["W", handle[1]] if isinstance(value, types.CoroutineType) else handle


def _raised(kind: str | None, args: list[Any] | None) -> tuple[Any, Any, None]:
    """What a context manager is told about the exception of this name that ends its block."""
    cls = None if kind is None else exception_named(kind) or Exception
    return cls, None if cls is None else cls(*args or ()), None


_AWAITED: dict[str, Any] = {
    "await": lambda value: value,
    "anext": anext,
    "aenter": lambda value: value.__aenter__(),
    "aexit": lambda value, *raised: value.__aexit__(*_raised(*raised)),
}
