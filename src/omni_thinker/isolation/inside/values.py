"""Plain data as JSON, and back, for what goes between the tests and a program. Loaded by scripts of the sandbox: standard
library alone. Values are rebuilt, never unpickled."""

import builtins
import collections
import datetime
import decimal
import fractions
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

_DEEPEST = 200
_SMALL = 1 << 53
_NUMBERS = re.compile(r"[<>|=]?[biufc]\d{1,2}")
"""numpy's names of types that hold numbers and nothing else."""
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
#   A array or scalar of numpy: type, shape (None for a scalar), bytes
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


class Violation(Exception):
    """The other side sent what it may not send."""


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
    if is_array(value) or _is_scalar(value):
        return ["A", value.dtype.str, list(value.shape) if is_array(value) else None, value.tobytes().hex()]
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
    type({}.keys()): set,
    type({}.items()): lambda value: _as_set(value),
}


def _as_set(pairs: Any) -> Any:
    try:
        return set(pairs)
    except TypeError:  # a value that can't be hashed: equal to no set
        return list(pairs)


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
        if tag == "A":
            return _array(*fields)
        return resolve(node)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, ArithmeticError, AttributeError) as exc:
        raise Violation(f"malformed value: {exc}"[:200]) from None


def is_array(value: Any) -> bool:
    """Whether it is an array of numpy, of numbers, that crosses as data."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and bool(_NUMBERS.fullmatch(value.dtype.str))


def _is_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    scalar = numpy is not None and isinstance(value, numpy.generic) and type(value) is value.dtype.type
    return scalar and bool(_NUMBERS.fullmatch(value.dtype.str))


def _array(kind: str, shape: list[int] | None, data: str) -> Any:
    if not _NUMBERS.fullmatch(kind):
        raise ValueError("an array of something other than numbers")
    array = sys.modules["numpy"].frombuffer(bytes.fromhex(data), kind)
    return array[0] if shape is None else array.reshape(shape).copy()


@functools.cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)
