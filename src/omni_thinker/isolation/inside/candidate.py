"""The program's side of the sandbox: runs it, then does what the tests ask of it.

Nothing here is a secret and nothing here is trusted: a program may replace all of it, and gains the right to answer
for its own functions, which it has anyway. It never holds a test, nor what a test expects."""

import builtins
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside.wire import (
        ACCESS,
        BINARY,
        COMPARISONS,
        UNARY,
        Peer,
        encode,
        exception_named,
        receive,
    )
else:
    from wire import ACCESS, BINARY, COMPARISONS, UNARY, Peer, encode, exception_named, receive

_OPERATIONS = {**UNARY, **BINARY, **COMPARISONS, **ACCESS, "isinstance": isinstance}
_CHANGEABLE = (list, dict, set, bytearray)


class Candidate(Peer):
    """Serves the tests."""

    space: dict[str, Any]

    def run(self) -> None:
        """Answer until the tests hang up; raises Gone then."""
        while True:
            _, *message = receive(self.channel)
            self.answer(message)

    def serve(self, message: list[Any]) -> Any:
        name, *operands = message
        if name == "program":
            return self._program(operands[0])
        if name == "global":
            value = self.space[operands[0]]
            return ["m", value.__name__] if isinstance(value, types.ModuleType) else self.encode(value)
        if name == "call":
            return self._call(*operands)
        values = [self.decode(operand) for operand in operands]
        if name == "base":
            return self._base(values[0])
        if name == "exit":
            return self.encode(_exit(*values))
        if name == "await":
            import asyncio

            async def wait() -> Any:
                return await values[0]

            return self.encode(asyncio.run(wait()))
        result = _OPERATIONS[name](*values)
        if name in ("getattr", "getitem") and isinstance(result, _CHANGEABLE):
            # A part of an object stays its part: what a test appends to it is there afterwards.
            return [*self._refer(result), self._base(result)]
        return self.encode(result)

    def _base(self, value: Any) -> Any:
        node = encode(value, self._refer)
        return node[2] if node[0] == "mine" else node

    def _program(self, text: str) -> list[str]:
        """Run the program; the names that it defines."""
        module = types.ModuleType("candidate")
        sys.modules["candidate"] = sys.modules["__main__"] = module  # dataclasses look their module up here
        self.space = module.__dict__
        self.space["__builtins__"] = builtins
        exec(compile(text, "<program>", "exec", dont_inherit=True), self.space)  # noqa: S102
        return [name for name in self.space if isinstance(name, str) and not name.startswith("__")]

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


def _exit(manager: Any, kind: str | None, args: list[Any] | None) -> Any:
    cls = None if kind is None else exception_named(kind) or Exception
    return manager.__exit__(cls, None if cls is None else cls(*args or ()), None)
