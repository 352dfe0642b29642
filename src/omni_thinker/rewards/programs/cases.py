"""What the tests of a row are: statements, inputs and outputs of a script, or arguments and results of a function."""

import ast
import builtins
import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omni_thinker.isolation import Limits
from omni_thinker.rewards.parts import data_text
from omni_thinker.rewards.programs.solution import find_solution
from omni_thinker.types import Problem

PACKAGES = ("numpy",)
"""What rows may ask for besides the standard library."""
MAX_TIMEOUT_S = 60.0
_TIMEOUT_S, _SCRIPT_TIMEOUT_S = 2.0, 6.0
_MEMORY_MB, _SCRIPT_MEMORY_MB, _PACKAGES_MEMORY_MB = 256, 512, 1024
_ENTRY = re.compile(r"([^\W\d]\w*)(?:\(\))?(?:\.[^\W\d]\w*)*")
_CLASS = "Solution"
"""What LeetCode-like problems ask for."""
_LEETCODE = re.compile(rf"\b{_CLASS}\b")
_SAME = """
def same_result(given, wanted, tolerance={tolerance!r}):
    if isinstance(wanted, list) and hasattr(type(given), "tolist"):  # an array
        given = given.tolist()
    if isinstance(given, (list, tuple)) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(same_result(*pair) for pair in zip(given, wanted))
    if tolerance and isinstance(given, (int, float)) and isinstance(wanted, float):
        return abs(given - wanted) <= tolerance * max(1.0, abs(wanted))
    return given == wanted
"""


class Unusable(ValueError):
    """A row can't be tested; says why."""


@dataclass(frozen=True, slots=True)
class Tests:
    """What a program is tested by. Either `statements` or `scripts` (pairs of input and output)."""

    __test__ = False  # not a pytest class

    limits: Limits
    statements: tuple[str, ...] = ()
    setup: str = ""
    entry_points: tuple[str, ...] = ()
    scripts: tuple[tuple[str, str], ...] = ()
    tolerance: float = 0.0

    def wanted(self) -> frozenset[str]:
        """The names that the tests take from a program; none where it is a script."""
        return frozenset(self.entry_points) or _free_names(self.setup, self.statements)


def read_tests(problem: Problem) -> Tests:
    """The tests of a row. Raises Unusable."""
    data = problem.data
    pairs = _pairs(data)
    names = _entries(data)
    tolerance = _number(data, "float_tolerance", 0.0, 1.0, 0.0)
    if pairs is None:
        statements, setup = _statements(data), data_text(problem, "setup") or ""
        roots = tuple(_root(name) for name in names)
        points = roots or _defined(problem.answer or "", "\n".join([setup, *statements]))
        limits = _limits(data, script=False, leetcode=any(_LEETCODE.search(text) for text in (*statements, *roots)))
        return Tests(limits, statements, setup, points)
    if data.get("setup"):
        raise Unusable("setup belongs to tests that are statements, not to inputs and outputs")
    if names:
        return _calls(data, pairs, names, tolerance)
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise Unusable("inputs and outputs must be texts; arguments of a function need its name as entry_point")
    return Tests(_limits(data, script=True, leetcode=False), scripts=tuple(pairs), tolerance=tolerance)


def _pairs(data: Mapping[str, Any]) -> list[tuple[Any, Any]] | None:
    """Inputs and outputs in whichever way the row has them, or None where its tests are statements."""
    tests = data.get("tests")
    tables = isinstance(tests, list | tuple) and any(isinstance(test, Mapping) for test in tests)
    ways: dict[str, tuple[Any, Any]] = {}
    if tables:
        if not all(isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in tests or ()):
            raise Unusable("tests must all be statements, or all be tables with input and output")
        ways["tests"] = ([test["input"] for test in tests or ()], [test["output"] for test in tests or ()])
    for given, wanted in (("inputs", "outputs"), ("input", "output")):
        if given in data or wanted in data:
            ways[given] = (_listed(data.get(given)), _listed(data.get(wanted)))
    if not ways:
        return None
    if len(ways) > 1 or (tests and not tables):
        raise Unusable("the tests are given twice: as statements, as tables, or as inputs and outputs")
    [(name, (inputs, outputs))] = ways.items()
    if not inputs or len(inputs) != len(outputs):
        raise Unusable(
            f"{name}: needs as many outputs as inputs and at least one, got {len(outputs)} and {len(inputs)}"
        )
    return list(zip(inputs, outputs, strict=True))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _statements(data: Mapping[str, Any]) -> tuple[str, ...]:
    tests = data.get("tests")
    if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
        raise Unusable("needs tests (a list of statements, or of tables with input and output) or inputs and outputs")
    for what, text in (("setup", data.get("setup") or ""), *(("test", test) for test in tests)):
        if what == "test" and not text.strip():
            raise Unusable("has an empty test")
        if fault := _fault(text) if isinstance(text, str) else "it must be a text":
            raise Unusable(f"the {what} {str(text).strip()[:60]!r} isn't Python: {fault}")
    return tuple(tests)


def _entries(data: Mapping[str, Any]) -> tuple[str, ...]:
    names = data.get("entry_point") or ()
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(map(_is_entry, names)):
        raise Unusable("needs entry_point as a name (f, Solution().f) or a list of names")
    return tuple(names)


def _is_entry(name: Any) -> bool:
    return (
        isinstance(name, str)
        and _ENTRY.fullmatch(name) is not None
        and not any(keyword.iskeyword(part) for part in re.split(r"\W+", name))
    )


def _root(name: str) -> str:
    return name.partition(".")[0].removesuffix("()")


def _calls(data: Mapping[str, Any], pairs: Sequence[tuple[Any, Any]], names: Sequence[str], tolerance: float) -> Tests:
    """Statements that call a function with each input and compare what it returns."""
    if len(names) != 1:
        raise Unusable("inputs of a function need one entry_point, the function")
    name = names[0]
    points: tuple[str, ...] = (_root(name),)
    if "." in name:
        call = name if "()" in name else name.replace(".", "().", 1)
    else:  # a function, or a method of a class that has the usual name
        call, points = f"({_CLASS}().{name} if {_CLASS!r} in globals() else {name})", (_CLASS, *points)
    statements = tuple(
        f"assert same_result({call}(*{_arguments(given)!r}), {_value(wanted)!r})" for given, wanted in pairs
    )
    return Tests(_limits(data, script=False, leetcode=True), statements, _SAME.format(tolerance=tolerance), points)


def _arguments(given: Any) -> list[Any]:
    """A list of arguments; of a text, each line is one, as JSON."""
    if isinstance(given, list | tuple):
        return list(given)
    if not isinstance(given, str):
        raise Unusable(f"an input of a function is a list of its arguments, got {given!r:.60}")
    try:
        return [json.loads(line) for line in given.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise Unusable(f"an input of a function has one argument a line, as JSON, got {given!r:.60}") from None


def _value(wanted: Any) -> Any:
    try:
        return json.loads(wanted) if isinstance(wanted, str) else wanted
    except (ValueError, RecursionError):
        return wanted


def _limits(data: Mapping[str, Any], *, script: bool, leetcode: bool) -> Limits:
    usual = data.get("usual_imports", leetcode)
    if not isinstance(usual, bool):
        raise Unusable("needs usual_imports as true or false")
    packages = data.get("packages") or ()
    packages = (packages,) if isinstance(packages, str) else packages
    if not isinstance(packages, list | tuple) or not all(package in PACKAGES for package in packages):
        raise Unusable(f"needs packages as a list of these: {', '.join(PACKAGES)}")
    memory = _PACKAGES_MEMORY_MB if packages else _SCRIPT_MEMORY_MB if script else _MEMORY_MB
    timeout = _number(data, "timeout", 0.0, MAX_TIMEOUT_S, _SCRIPT_TIMEOUT_S if script else _TIMEOUT_S)
    if not timeout:
        raise Unusable("needs a timeout over 0")
    return Limits(timeout, memory, usual, tuple(dict.fromkeys(packages)))


def _number(data: Mapping[str, Any], name: str, least: float, most: float, default: float) -> float:
    value = data.get(name, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:  # no NaN is
        raise Unusable(f"needs {name} as a number from {least:g} to {most:g}, got {value!r:.40}")
    return float(value)


@lru_cache(maxsize=16384)
def _fault(text: str) -> str | None:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        return str(exc)
    return None


@lru_cache(maxsize=4096)
def _defined(gold: str, tests: str) -> tuple[str, ...]:
    """What the gold program defines and the tests use."""
    try:
        tree = ast.parse(find_solution(gold).program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return tuple(dict.fromkeys(name for name in names if re.search(rf"\b{re.escape(name)}\b", tests)))


@lru_cache(maxsize=4096)
def _free_names(setup: str, statements: tuple[str, ...]) -> frozenset[str]:
    """Names that the tests use and don't bind themselves."""
    nodes = [node for text in (setup, *statements) for node in ast.walk(ast.parse(text))]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    bound |= {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
    return frozenset(used - bound - set(dir(builtins)))
