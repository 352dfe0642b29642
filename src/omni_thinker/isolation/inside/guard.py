"""Nothing is evaluated while a scorer reads an answer. Loaded by scripts inside the sandbox: standard library alone.

A scorer may treat an answer as data only. `evaluates` finds by reading it whether one does more; `literals_only` makes
the harmless kind of `eval`, which reads a list or a number, unable to do more; `forbid_evaluation` ends the process at
the first attempt to run code that comes from a text (an audit hook, PEP 578, which can't be taken off again).
"""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

EVALUATED = 71
"""Exit code of a process in which text would have been run."""
_EVALUATORS = frozenset(
    (
        "exec", "compile", "__import__", "import_module", "run_path", "run_module",
        "parse_expr", "parse_latex", "sympify", "simplify", "lambdify",
        "system", "popen", "Popen", "check_output",
        "load", "loads", "unsafe_load", "full_load",
    )
)  # fmt: skip
_SAFE_LOADS = frozenset({"json", "tomllib"})
_EVENTS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"})
_DEPTH = 6
_IMPORTER = "<frozen importlib._bootstrap_external>"


def literals_only() -> None:
    """From now on `eval(text)` in this process reads Python literals and raises ValueError for anything else."""
    builtins.eval = _literal


def _literal(source: Any, *spaces: Any) -> Any:
    if spaces or not isinstance(source, str):
        os._exit(EVALUATED)
    return ast.literal_eval(source.strip())


def forbid_evaluation(allowed_names: frozenset[str] = frozenset(), allowed_file: str = "") -> None:
    """End this process with code EVALUATED as soon as code made of a text is run, or a program is started.

    Modules that are imported late may run, and so may code that uses no names but `allowed_names` and defines nothing
    (a parser hands `Integer (2 )*Integer (3 )` to `eval`), and what a file whose path ends in `allowed_file` runs: a
    library that writes its own functions.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec":
            code, caller = arguments[0], sys._getframe(1)
            own = bool(allowed_file) and caller.f_code.co_filename.endswith(allowed_file)
            if isinstance(code, CodeType) and (own or _is_arithmetic(code, allowed_names) or _is_import(caller)):
                return
        elif event not in _EVENTS:
            return
        os._exit(EVALUATED)

    sys.addaudithook(hook)


def _is_arithmetic(code: CodeType, names: frozenset[str]) -> bool:
    nested = any(isinstance(constant, CodeType) for constant in code.co_consts)
    return bool(names) and not nested and names.issuperset(code.co_names)


def _is_import(frame: FrameType | None) -> bool:
    """Whether a module is being imported, whose file is the scorer's, not the answer's."""
    while frame is not None:
        if frame.f_code.co_name == "exec_module" and frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False


def evaluates(scorer: Callable[..., Any]) -> str | None:
    """Where a scorer runs text as code, such as "parse_expr in countdown.py:221"; None where reading it shows none.

    Follows calls to methods of the same object and to functions of the same package, up to six deep. Plain
    `eval(text)` doesn't count: `literals_only` makes it harmless. What reading can't see, `forbid_evaluation` ends.
    """
    for function in _reachable(scorer):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, SyntaxError, TypeError):
            return f"{function.__qualname__}, whose source can't be read"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := _evaluator(node)):
                file = os.path.basename(function.__code__.co_filename)
                return f"{name} in {file}:{function.__code__.co_firstlineno + node.lineno - 1}"
    return None


def _evaluator(call: ast.Call) -> str | None:
    function = call.func
    if isinstance(function, ast.Name):
        name, owner = function.id, ""
    elif isinstance(function, ast.Attribute):
        name, owner = function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    else:
        return None
    if name == "eval" and owner in ("", "builtins"):
        return "eval with names" if len(call.args) + len(call.keywords) > 1 else None
    if owner == "re" or owner in _SAFE_LOADS or name not in _EVALUATORS:
        return None
    return name


def _reachable(scorer: Callable[..., Any]) -> Iterator[FunctionType]:
    owner: Any = getattr(scorer, "__self__", None)
    first: Any = getattr(scorer, "__func__", scorer)
    package = first.__module__.partition(".")[0]
    waiting: list[tuple[Any, int]] = [(first, 0)]
    seen: set[Any] = set()
    while waiting:
        function, depth = waiting.pop(0)
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        if depth == _DEPTH:
            continue
        for name in function.__code__.co_names:
            found = function.__globals__.get(name)
            if isinstance(found, type):
                found = getattr(found, "__init__", None)
            if owner is not None and found is None:
                found = getattr(getattr(type(owner), name, None), "__func__", getattr(type(owner), name, None))
            if getattr(found, "__module__", "").partition(".")[0] == package:
                waiting.append((found, depth + 1))
