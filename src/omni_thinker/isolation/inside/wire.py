"""What goes between the tests and a candidate program: plain data, and handles for everything else.

The tests run in one process and the program in another, so that nothing a program reads, patches or writes can touch
a verdict; a call of the program's function is a message. Values are rebuilt from JSON, never unpickled. Loaded by
scripts of the sandbox, so the standard library alone."""

import builtins
import collections
import copy
import datetime
import decimal
import fractions
import functools
import json
import operator
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

MOST_BYTES = 32 << 20
"""Largest message, in bytes."""
_DEEPEST = 200
_LENGTH = 4
_SMALL = 1 << 53
# What may be named instead of sent: types of plain data, and functions that do nothing but compute.
_NAMES = (
    "abs", "all", "any", "bin", "bool", "bytes", "bytearray", "chr", "complex", "dict", "divmod", "float", "frozenset",
    "hash", "hex", "int", "len", "list", "map", "max", "min", "oct", "ord", "pow", "range", "repr", "reversed", "round",
    "set", "slice", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
_NAMED = {name: getattr(builtins, name) for name in _NAMES}


def _parts(table: dict[Any, Any]) -> Iterator[Any]:
    return (entry for item in dict.items(table) for entry in item)


def _paired(parts: list[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


# How values are written: [tag, ...]. None, bools, strings, floats and small ints are themselves. Besides these tables:
#   n named tuple: name, fields, items         g  one of `_NAMES`
#   q deque: maxlen, items                     DD defaultdict: name of its factory, keys and values in turn
#   mine, yours: the number of a handle, and the plain value of one that has it behind it
# tag: (type, its items, the value of them); items are written by tags in their turn.
_NESTED: dict[str, tuple[type, Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "t": (tuple, iter, tuple),
    "l": (list, iter, list),
    "s": (set, iter, set),
    "z": (frozenset, iter, frozenset),
    "d": (dict, _parts, _paired),
    "O": (collections.OrderedDict, _parts, lambda parts: collections.OrderedDict(_paired(parts))),
    "C": (collections.Counter, _parts, lambda parts: collections.Counter(_paired(parts))),
    "S": (slice, lambda value: (value.start, value.stop, value.step), lambda parts: slice(*parts)),
}
# tag: (type, what follows the tag, the value of that)
_SIMPLE: dict[str, tuple[type, Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "i": (int, lambda v: [hex(v)], lambda fields: int(fields[0], 16)),
    "b": (bytes, lambda v: [bytes.hex(v)], lambda fields: bytes.fromhex(fields[0])),
    "B": (bytearray, lambda v: [bytearray.hex(v)], lambda fields: bytearray.fromhex(fields[0])),
    "c": (complex, lambda v: [v.real, v.imag], lambda fields: complex(fields[0], fields[1])),
    "D": (decimal.Decimal, lambda v: [decimal.Decimal.__str__(v)], lambda fields: decimal.Decimal(fields[0])),
    "F": (fractions.Fraction, lambda v: [hex(v.numerator), hex(v.denominator)],
          lambda fields: fractions.Fraction(int(fields[0], 16), int(fields[1], 16))),
    "r": (range, lambda v: [hex(v.start), hex(v.stop), hex(v.step)],
          lambda fields: range(*(int(number, 16) for number in fields))),
    "datetime": (datetime.datetime, lambda v: [v.isoformat()],
                 lambda fields: datetime.datetime.fromisoformat(fields[0])),
    "date": (datetime.date, lambda v: [v.isoformat()], lambda fields: datetime.date.fromisoformat(fields[0])),
    "time": (datetime.time, lambda v: [v.isoformat()], lambda fields: datetime.time.fromisoformat(fields[0])),
    "P": (datetime.timedelta, lambda v: [v.days, v.seconds, v.microseconds],
          lambda fields: datetime.timedelta(*fields)),
    "e": (type(...), lambda v: [], lambda fields: ...),
}  # fmt: skip
_NESTED_TAGS = {kind: tag for tag, (kind, _, _) in _NESTED.items()}
_SIMPLE_TAGS = {kind: tag for tag, (kind, _, _) in _SIMPLE.items()}


class Gone(Exception):
    """The other side has ended."""


class Violation(Exception):
    """The other side sent what it may not send."""


def send(channel: socket.socket, message: Any) -> None:
    """One message. Raises Violation where it is too long, Gone where nobody reads."""
    try:
        data = json.dumps(message, separators=(",", ":")).encode()
    except RecursionError:
        raise Violation("a value nested too deeply") from None
    if len(data) > MOST_BYTES:
        raise Violation("a value of more than 32 MiB")
    try:
        channel.sendall(len(data).to_bytes(_LENGTH, "big") + data)
    except OSError:
        raise Gone from None


def receive(channel: socket.socket) -> Any:
    """The next message. Raises Violation or Gone."""
    size = int.from_bytes(_exactly(channel, _LENGTH), "big")
    if size > MOST_BYTES:
        raise Violation("a value of more than 32 MiB")
    try:
        return json.loads(_exactly(channel, size))
    except (ValueError, RecursionError):
        raise Violation("malformed message: not JSON") from None


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            chunk = channel.recv(size - len(data))
        except OSError:
            raise Gone from None
        if not chunk:
            raise Gone
        data += chunk
    return bytes(data)


def encode(value: Any, refer: Callable[[Any], Any], depth: int = 0) -> Any:
    """`value` as JSON; `refer` gives the handle of what isn't plain data.

    An instance of a subclass of a plain type is a handle with its plain value behind it. Raises Violation for what is
    nested too deeply."""
    if depth > _DEEPEST:
        raise Violation("a value nested too deeply")
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str or kind is float or (kind is int and -_SMALL < value < _SMALL):
        return value
    if (tag := _SIMPLE_TAGS.get(kind)) is not None:
        return [tag, *_SIMPLE[tag][1](value)]
    if (tag := _NESTED_TAGS.get(kind)) is not None:
        return [tag, *(encode(item, refer, depth + 1) for item in _NESTED[tag][1](value))]
    if kind is collections.deque:
        return ["q", value.maxlen, *(encode(item, refer, depth + 1) for item in value)]
    if kind is collections.defaultdict and _NAMED.get(getattr(value.default_factory, "__name__", "")) is not None:
        factory = value.default_factory.__name__
        return ["DD", factory, *(encode(entry, refer, depth + 1) for entry in _parts(value))]
    if issubclass(kind, tuple) and isinstance(fields := getattr(kind, "_fields", None), tuple):
        return ["n", kind.__name__, list(fields), *(encode(item, refer, depth + 1) for item in tuple.__iter__(value))]
    if isinstance(value, (type, type(len))):
        name: str = getattr(value, "__name__", "")
        return ["g", name] if _NAMED.get(name) is value else refer(value)
    for base, plain in _PLAIN.items():
        if isinstance(value, base):
            return [*refer(value), encode(plain(value), refer, depth + 1)]
    return refer(value)


# The plain value of an instance of a subclass, whatever the subclass says.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__index__,
    float: float.__pos__,
    str: lambda value: "".join(str.__iter__(value)),
    bytes: lambda value: bytes(bytes.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    collections.deque: lambda value: list(collections.deque.__iter__(value)),
}


def decode(node: Any, resolve: Callable[[list[Any]], Any], depth: int = 0) -> Any:
    """The value of `node`; `resolve` finds what a handle stands for. Raises Violation for anything else."""
    if not isinstance(node, list):
        if isinstance(node, dict):
            raise Violation("malformed message: a value is a JSON object")
        return node
    if depth > _DEEPEST + 1 or not node:
        raise Violation("a value nested too deeply" if node else "malformed message: a value without a tag")
    tag, fields = node[0], node[1:]

    def inner(nodes: list[Any]) -> list[Any]:
        return [decode(item, resolve, depth + 1) for item in nodes]

    try:
        if tag in _NESTED:
            return _NESTED[tag][2](inner(fields))
        if tag in _SIMPLE:
            return _SIMPLE[tag][2](fields)
        if tag == "g":
            return _NAMED[fields[0]]
        if tag == "n":
            return _named_tuple(fields[0], tuple(fields[1]))(*inner(fields[2:]))
        if tag == "q":
            return collections.deque(inner(fields[1:]), fields[0])
        if tag == "DD":
            return collections.defaultdict(_NAMED[fields[0]], _paired(inner(fields[1:])))
        return resolve(node)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, ArithmeticError, AttributeError) as exc:
        raise Violation(f"malformed value: {exc}"[:200]) from None


@functools.cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)


UNARY = {
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "invert", "index")},
    **{kind.__name__: kind for kind in (int, float, complex, bool, len, str, repr, iter, next, hash, reversed)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
BINARY = {name: getattr(operator, name) for name in _BINARY}
COMPARISONS = {name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")}
IN_PLACE = {f"i{name.rstrip('_')}": getattr(operator, f"i{name.rstrip('_')}") for name in BINARY}
ACCESS = {
    **IN_PLACE,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "round": round,
    "format": format,
}


class Proxy:
    """An object on the other side. Everything that is done to it is asked for there.

    `_based`: it is an instance of a subclass of a plain type, and has a plain value, too."""

    def __init__(self, peer: "Peer", number: int, based: bool = False) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_based", based)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.request("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.request("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.request("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.request("setitem", self, key, value)

    def __delattr__(self, name: str) -> None:
        self._peer.request("delattr", self, name)

    def __delitem__(self, key: Any) -> None:
        self._peer.request("delitem", self, key)

    def __contains__(self, item: Any) -> bool:
        return item in self._peer.plain(self) if self._based else any(item is x or item == x for x in iter(self))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Proxy) and bool(self._peer.request("isinstance", value, self))

    def __enter__(self) -> Any:
        return self._peer.request("getattr", self, "__enter__")()

    def __exit__(self, kind: Any, exc: BaseException | None, trace: Any) -> bool:
        return bool(self._peer.request("exit", self, exc and type(exc).__name__, exc and list(exc.args)))

    def __round__(self, digits: Any = None) -> Any:
        return self._peer.request("round", self, digits)

    def __format__(self, form: str) -> str:
        return str(self._peer.request("format", self, form))

    def __deepcopy__(self, memo: Any) -> Any:
        return self._peer.request("deepcopy", self)

    def __await__(self) -> Any:
        yield from ()  # an iterator, as Python asks
        return self._peer.request("await", self)


def _add_operators() -> None:
    def unary(name: str) -> Any:
        return lambda self: self._peer.request(name, self)

    def binary(name: str, reflected: bool) -> Any:
        def operation(self: Proxy, other: Any) -> Any:
            return self._peer.binary(name, *((other, self) if reflected else (self, other)))

        return operation

    def in_place(name: str) -> Any:
        return lambda self, other: self._peer.request(name, self, other)

    for name in UNARY.keys() - {"deepcopy"}:
        setattr(Proxy, f"__{name}__", unary(name))
    for name in BINARY:
        bare = name.rstrip("_")
        setattr(Proxy, f"__{bare}__", binary(name, False))
        setattr(Proxy, f"__r{bare}__", binary(name, True))
        setattr(Proxy, f"__i{bare}__", in_place(f"i{bare}"))
    for name in COMPARISONS:
        setattr(Proxy, f"__{name}__", binary(name, False))


_add_operators()


class Peer(ABC):
    """One end of the channel: asks the other for things, and answers it meanwhile."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._given: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._proxies: dict[int, Proxy] = {}

    def ask(self, *message: Any) -> Any:
        """What the other side answers to an encoded message. Raises what it says was raised there."""
        send(self.channel, ["?", *message])
        while True:
            received = receive(self.channel)
            if not isinstance(received, list) or not received:
                raise Violation("malformed message: it has no kind")
            kind, *fields = received
            if kind == "?":
                self.answer(fields)
            elif kind == "=" and len(fields) == 1:
                return fields[0]
            elif kind == "!" and len(fields) == 5:
                raise self.rebuilt(*fields)
            else:
                raise Violation("malformed message: neither question, answer nor exception")

    def answer(self, message: list[Any]) -> None:
        """Serve one question of the other side."""
        try:
            send(self.channel, ["=", self.serve(message)])
        except Gone:
            raise
        except BaseException as exc:  # SystemExit above all: it ends nothing here
            send(self.channel, ["!", *self.described(exc)])

    @abstractmethod
    def serve(self, message: list[Any]) -> Any:
        """The encoded answer to a question of the other side; what it raises is told there."""

    def request(self, name: str, *operands: Any) -> Any:
        return self.decode(self.ask(name, *map(self.encode, operands)))

    def binary(self, name: str, left: Any, right: Any) -> Any:
        return self.request(name, left, right)

    def call(self, target: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.request("call", target, list(args), kwargs)

    # -- values with handles

    def encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def decode(self, node: Any) -> Any:
        return decode(node, self._resolve)

    def plain(self, value: Any) -> Any:
        """The plain value behind a handle that has one, as it is now; anything else as it is."""
        return self.decode(self.ask("base", self.encode(value))) if isinstance(value, Proxy) and value._based else value

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Proxy):
            return ["yours", value._number]
        key = id(value)
        if key not in self._numbers:
            self._numbers[key] = len(self._given)
            self._given[len(self._given)] = value  # kept alive, so that its id stays its own
        return ["mine", self._numbers[key]]

    def _resolve(self, node: list[Any]) -> Any:
        whose, number, *base = node
        if whose == "yours":
            return self._given[number]
        if whose != "mine" or not isinstance(number, int):
            raise Violation("malformed message: unknown tag")
        if number not in self._proxies:
            self._proxies[number] = Proxy(self, number, bool(base))
        return self._proxies[number]

    # -- exceptions

    def described(self, exc: BaseException) -> list[Any]:
        """[its classes down to the first built-in one, that one's name, arguments, attributes, what it says]"""
        try:
            text = str(exc)[:200]
        except BaseException:  # a hostile __str__
            text = ""
        lineage, known = self.lineage(type(exc))
        try:
            details = [self.encode(list(exc.args)), self.encode(dict(vars(exc)))]
            json.dumps(details)
        except BaseException:
            details = [["l"], ["d"]]
        return [lineage, known, *details, text]

    def lineage(self, cls: type[BaseException]) -> tuple[list[Any], str]:
        """[number and name of the class, of its parent, ...], and the first built-in one's name."""
        classes: list[Any] = []
        for parent in cls.__mro__:
            if exception_named(parent.__name__) is parent:
                return classes, parent.__name__
            classes.append([Peer._refer(self, parent)[1], parent.__name__])
        return classes, "Exception"

    def rebuilt(self, lineage: Any, known: Any, args: Any, attributes: Any, text: Any) -> BaseException:
        """The exception that the other side described."""
        return (exception_named(str(known)) or Exception)(str(text)[:300])


def exception_named(name: str) -> type[BaseException] | None:
    builtin = getattr(builtins, name, None)
    return builtin if isinstance(builtin, type) and issubclass(builtin, BaseException) else None
