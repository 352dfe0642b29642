"""Nothing is evaluated while a scorer reads an answer. Loaded by scripts inside the sandbox: standard library alone.

A scorer may treat an answer as data only. `evaluates` finds by reading it whether one plainly does more. `data_only`
sees to it in the process itself, and `forbid_evaluation` ends a process at the first attempt to run code that comes
from a text (an audit hook, PEP 578, which can't be taken off again). They are for scorers that are careless. A scorer
that is meant to get around them can. What it then runs is still inside the sandbox."""

import ast
import builtins
import dis
import inspect
import os
import resource
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

EVALUATED = 71
"""Exit code of a process in which text would have been run."""
_EVALUATORS = frozenset((
    "exec", "compile", "__import__", "import_module", "run_path", "run_module",
    "parse_expr", "parse_latex", "sympify", "simplify", "lambdify",
    "system", "popen", "Popen", "check_output",
    "load", "loads", "unsafe_load", "full_load",
))  # fmt: skip
_SAFE_LOADS = frozenset({"json", "tomllib"})
_EVENTS = frozenset((
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "code.__new__", "function.__new__", "ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle",
))  # fmt: skip
_INTERPRETERS = frozenset({"_xxsubinterpreters", "_interpreters"})
"""Modules that start interpreters, which this hook would not see."""
_ARITHMETIC = frozenset((
    "RESUME", "CACHE", "NOP", "PUSH_NULL", "LOAD_NAME", "LOAD_CONST", "LOAD_SMALL_INT", "BUILD_TUPLE",
    "PRECALL", "CALL", "CALL_KW", "KW_NAMES", "BINARY_OP", "UNARY_NEGATIVE", "UNARY_POSITIVE",
    "RETURN_VALUE", "RETURN_CONST", "NOT_TAKEN",
))  # fmt: skip
_DEPTH = 6
_IMPORTER = "<frozen importlib._bootstrap_external>"


def data_only() -> None:
    """From now on this process only reads texts: it starts no process, writes no file, and runs no code made of a text.

    `eval(text)` reads Python literals and raises ValueError for anything else."""
    builtins.eval = _literal
    for which in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        resource.setrlimit(which, (0, 0))
    forbid_evaluation()


def _literal(source: Any, *spaces: Any) -> Any:
    if spaces or not isinstance(source, str):
        os._exit(EVALUATED)
    return ast.literal_eval(source.strip())


def forbid_evaluation(
    allowed_names: frozenset[str] = frozenset(), allowed_callers: frozenset[str] = frozenset()
) -> None:
    """End this process with code EVALUATED as soon as code made of a text is run, or a program is started.

    Modules that are imported late from where modules were before may run, and so may arithmetic on `allowed_names` (a
    parser hands `Integer (2 )*Integer (3 )` to `eval`), and what a function of `allowed_callers` runs (the end of its
    file's path, a colon, its name): a library that writes its own functions."""
    trusted = tuple(os.path.join(os.path.abspath(folder), "") for folder in [*sys.path, os.path.dirname(os.__file__)])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec":
            code, caller = arguments[0], sys._getframe(1)
            if isinstance(code, CodeType) and (
                _is_caller(caller, allowed_callers)
                or _is_arithmetic(code, allowed_names)
                or _is_import(code, caller, trusted)
            ):
                return
        elif event == "compile":
            # Without names to allow, texts may become trees (`ast.parse` calls them <unknown>) and nothing else.
            if allowed_names or arguments[1] == "<unknown>" or _importing(sys._getframe(1)):
                return
        elif event == "import":
            if arguments[0] not in _INTERPRETERS:
                return
        elif event not in _EVENTS or _importing(sys._getframe(1)):
            return
        os._exit(EVALUATED)

    sys.addaudithook(hook)


def _is_caller(frame: FrameType, allowed: frozenset[str]) -> bool:
    return any(
        frame.f_code.co_filename.endswith(file) and frame.f_code.co_name == function
        for file, _, function in (entry.rpartition(":") for entry in allowed)
    )


def _is_arithmetic(code: CodeType, names: frozenset[str]) -> bool:
    """Whether code only calls `names` and adds, multiplies or negates: no loops, assignments, attributes, imports."""
    return (
        bool(names)
        and names.issuperset(code.co_names)
        and not any(isinstance(constant, CodeType) for constant in code.co_consts)
        and all(step.opname in _ARITHMETIC for step in dis.get_instructions(code))
    )


def _is_import(code: CodeType, caller: FrameType, trusted: tuple[str, ...]) -> bool:
    """Whether a module is being imported whose file was there before, or that module makes a class of its own."""
    direct = caller.f_code.co_filename.startswith("<frozen importlib")
    file = code.co_filename if direct else caller.f_code.co_filename
    return _importing(caller) and (file.startswith(trusted) or file.startswith("<frozen "))


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "exec_module" and frame.f_code.co_filename == _IMPORTER:
            return True
        frame = frame.f_back
    return False


def evaluates(scorer: Callable[..., Any]) -> str | None:
    """Where a scorer runs text as code, such as "parse_expr in countdown.py:221"; None where reading it shows none.

    Follows calls to methods of the same object and to functions of the same package, up to six deep. Plain
    `eval(text)` doesn't count: `data_only` makes it harmless. What reading can't see, `forbid_evaluation` ends."""
    for function in _reachable(scorer):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, SyntaxError, TypeError):
            return f"{function.__qualname__}, whose source can't be read"
        for node in ast.walk(tree):
            # Also without a call: `run = exec` and `map(exec, texts)` hand it on.
            bare = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in ("exec", "compile")
            name = _evaluator(node) if isinstance(node, ast.Call) else "exec" if bare else None
            if name is not None and isinstance(node, ast.expr):
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
    visited: set[Any] = set()
    while waiting:
        function, depth = waiting.pop(0)
        if not isinstance(function, FunctionType) or function in visited:
            continue
        visited.add(function)
        yield function
        if depth == _DEPTH:
            continue
        for name in _names(function.__code__):
            callee = function.__globals__.get(name)
            if isinstance(callee, type):
                callee = getattr(callee, "__init__", None)
            if owner is not None and callee is None:
                callee = getattr(getattr(type(owner), name, None), "__func__", getattr(type(owner), name, None))
            if (getattr(callee, "__module__", None) or "").partition(".")[0] == package:
                waiting.append((callee, depth + 1))


def _names(code: CodeType) -> Iterator[str]:
    """Global and attribute names that a function uses, in its lambdas and comprehensions as well."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
