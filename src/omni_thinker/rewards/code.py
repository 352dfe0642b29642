"""Programs: scored by running them against tests in the sandbox."""

import ast
import re
from functools import lru_cache
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, launch, run_tests
from omni_thinker.rewards.parts import SamplePart, data_text, valued
from omni_thinker.types import Problem, Sample, Score

_LONGEST_TEXT = 100_000
_MAX_TIMEOUT_S = 60.0
_CODE = re.compile(r"(?:async\s+def|def|class|import|from|@\w|[A-Za-z_]\w*\s*=[^=]|if\s+__name__)")
_PROSE = re.compile(r"(?:[A-Z][a-z']*,? [a-z]|```)")


def extract_code(text: str) -> str:
    """The program in a response. Works on the text alone: only the sandbox compiles what a model wrote.

    With fenced blocks: the last one that defines something, else the last one (a block that isn't closed runs to the
    end). Without: from the first line that looks like code up to the first line after it that looks like prose."""
    text = text[:_LONGEST_TEXT]
    blocks = _fenced(text)
    if blocks:
        return next((block for block in reversed(blocks) if re.search(r"^\s*(?:def|class) ", block, re.M)), blocks[-1])
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _CODE.match(line)), None)
    if start is None:
        return text
    end = next((i for i in range(start + 1, len(lines)) if _PROSE.match(lines[i])), len(lines))
    return "\n".join(lines[start:end]) + "\n"


def _fenced(text: str) -> list[str]:
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
            if inside:
                blocks.append([])
        elif inside:
            blocks[-1].append(line)
    return ["\n".join(block) + "\n" for block in blocks if block]


class UnitTests(SamplePart):
    """1 where the extracted program passes all of data["tests"], else 0.

    The tests run in another process than the program and call it from there. data["setup"] runs before them, on their
    side. data["entry_point"] (a name or a list) says what they take from the program, by default what the gold program
    defines; where neither is there they may use all that it defines, and a program can then cheat a test that counts on
    what the program itself imports.
    data["timeout"] (seconds, default 2, at most 60) bounds all of it.
    A time-out or a crash of the candidate is 0; only a sandbox that can't be had is an error.

    Raises UserError where there is no sandbox."""

    partial = False

    def __init__(self) -> None:
        try:
            launch()
        except IsolationError as exc:
            raise UserError(str(exc), key="reward") from None

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        program = extract_code(sample.text)
        if not program.strip():
            return valued(0.0, "no program")
        timeout = float(problem.data.get("timeout", 2.0))
        setup, names = data_text(problem, "setup") or "", _entry_points(problem)
        try:
            report = await run_tests(program, _tests(problem), setup=setup, entry_points=names, timeout=timeout)
        except IsolationError as exc:
            return Score.error(f"unit_tests: {exc}")
        value = report.passed / report.total if self.partial else float(report.outcome == "passed")
        return valued(value, report.reason)

    def check(self, problem: Problem) -> str | None:
        tests = problem.data.get("tests")
        if not isinstance(tests, (list, tuple)) or not tests or not all(isinstance(t, str) for t in tests):
            return "unit_tests needs data['tests'], a list of statements"
        names = problem.data.get("entry_point") or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.isidentifier() for n in names):
            return "unit_tests needs data['entry_point'] as a name or a list of names"
        used = [name for name in names if re.search(rf"\b{re.escape(name)}\b", "\n".join(map(str, tests)))]
        if names and not used:
            return f"no test uses data['entry_point'] = {', '.join(names)}"
        timeout = problem.data.get("timeout", 2.0)
        number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
        if not number or not 0 < timeout <= _MAX_TIMEOUT_S:  # no NaN is
            return f"unit_tests needs data['timeout'] as a number of seconds, over 0 and at most {_MAX_TIMEOUT_S:g}"
        for what, text in [("setup", problem.data.get("setup") or ""), *(("test", test) for test in tests)]:
            fault = _syntax(text)
            if fault:
                return f"the {what} {str(text).strip()[:60]!r} isn't Python: {fault}"
        return None if all(test.strip() for test in tests) else "unit_tests has an empty test"

    def wrong_answer(self, problem: Problem) -> str | None:
        return "def wrong_answer():\n    return None"


class PartialUnitTests(UnitTests):
    """The share of tests that the extracted program passes."""

    partial = True


def _tests(problem: Problem) -> list[str]:
    return [str(test) for test in problem.data.get("tests", ())]


def _entry_points(problem: Problem) -> list[str]:
    """The names that tests take from a program: given, or else what the gold program defines and the tests use."""
    names = problem.data.get("entry_point") or []
    if names:
        return [names] if isinstance(names, str) else [str(name) for name in names]
    return list(_defined(problem.answer or "", "\n".join([data_text(problem, "setup") or "", *_tests(problem)])))


@lru_cache(maxsize=4096)
def _defined(gold: str, tests: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(extract_code(gold))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names += [target.id for target in targets if isinstance(target, ast.Name)]
    return tuple(dict.fromkeys(name for name in names if re.search(rf"\b{re.escape(name)}\b", tests)))


def _syntax(text: Any) -> str | None:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as exc:
        return str(exc)
    return None
