"""A program that fails its tests is sent back with what went wrong."""

import ast
from collections.abc import Sequence
from typing import Any

from omni_thinker.recipe import TaskSpec
from omni_thinker.rewards.programs.cases import Tests, read_tests
from omni_thinker.rewards.programs.unit_tests import solution_in, tested
from omni_thinker.types import Problem, TaskName

AGAIN = "Write the whole program again, corrected."
_WRONG = "doesn't hold"
_SHOWN = 160


class ProgramErrors:
    """Runs an answer's program in the sandbox, against the tests that the reward `unit_tests` uses, and says the first
    error. It ends the conversation where all tests hold.

    What a test expects is never said: a program that holds the expected values would pass. Of a wrong result the call
    and what came are shown, of an exception its words."""

    def __init__(self, name: TaskName, spec: TaskSpec) -> None:
        """Any task with tests."""

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        """Raises what the sandbox raises where there is none, and Unusable for a row without tests."""
        tests = read_tests(problem)
        solution = solution_in(answers[-1], tests)
        if not solution.program.strip():
            return f"There is no program in this. {AGAIN}"
        report = await tested(solution, tests)
        if report.outcome == "passed":
            return None
        return f"{said(report.reason or report.outcome, tests)} {AGAIN}"


def said(reason: str, tests: Tests) -> str:
    """The reason of a failed test as a model may see it: without what the test expects."""
    for statement in tests.statements:
        name = " ".join(statement.split())[:80]
        if reason.startswith(f"{name}: "):
            return _of_statement(statement, reason[len(name) + 2 :])
    if tests.scripts:
        reason = reason.partition(", not ")[0]
    return f"It fails: {reason[:_SHOWN]}."


def _of_statement(statement: str, why: str) -> str:
    call = _left(statement)
    if why.startswith(_WRONG):
        _, given, got = why.partition(", got ")
        return f"{call} gives {got[:_SHOWN]}, which is wrong." if given else f"{call} is wrong."
    return f"{call} fails: {why[:_SHOWN]}."


def _left(statement: str) -> str:
    """The left side of `assert left == right`; "a test" where a statement is anything else."""
    match ast.parse(statement).body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()]))]:
            return ast.unparse(left)[:_SHOWN]
    return "a test"
