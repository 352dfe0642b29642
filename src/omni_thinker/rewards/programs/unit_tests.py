"""Programs: scored by running them against tests in the sandbox."""

from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, TestReport, launch, run_script, run_tests
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.rewards.programs.cases import PACKAGES, Tests, Unusable, read_tests
from omni_thinker.rewards.programs.solution import WHOLE, Solution, find_solution
from omni_thinker.types import Problem, Sample, Score

_LONGEST_REASON = 200


class UnitTests(SamplePart):
    """1 where the extracted program passes all tests of the row, else 0.

    data["tests"] are statements. They run in another process than the program and call it from there, after
    data["setup"]. data["entry_point"] (a name or a list) says what they take from the program, by default what the gold
    program defines; where neither is there they may use all that it defines, and a program can then cheat a test that
    counts on what the program itself imports.
    With data["inputs"] and data["outputs"], or tests that are tables of input and output, the program is a script that
    reads and prints; with an entry point, too, it is a function that is called.
    data["timeout"] (seconds, at most 60) bounds all of it. data["float_tolerance"], data["usual_imports"] and
    data["packages"] are options.
    A time-out or a crash of the candidate is 0; only a sandbox that can't be had is an error.

    Raises UserError where there is no sandbox."""

    answer_only = True
    uses_cores = True

    partial = False

    def __init__(self) -> None:
        try:
            launch()
        except IsolationError as exc:
            raise UserError(str(exc), key="reward") from None

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        tests = read_tests(problem)
        solution = solution_in(sample.text, tests)
        if not solution.program.strip():
            return valued(0.0, "no program")
        try:
            report = await tested(solution, tests)
        except IsolationError as exc:
            return Score.error(f"unit_tests: {exc}")
        value = report.passed / report.total if self.partial else float(report.outcome == "passed")
        why = "" if report.outcome == "passed" else f": {_hinted(report.reason or report.outcome)}"
        place = solution.place
        if place == WHOLE and why.startswith(": SyntaxError"):
            place += ", for want of a program"
        return valued(value, f"took {place}{why}"[:_LONGEST_REASON])

    def check(self, problem: Problem) -> str | None:
        try:
            tests = read_tests(problem)
        except Unusable as exc:
            return f"unit_tests: {exc}"
        text = "\n".join((tests.setup, *tests.statements))
        names: Any = problem.data.get("entry_point") or ()
        if names and tests.statements and not any(name in text for name in tests.entry_points):
            return f"no test uses data['entry_point'] = {', '.join(tests.entry_points)}"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        return "def wrong_answer():\n    return None"


class PartialUnitTests(UnitTests):
    """The share of tests that the extracted program passes."""

    partial = True


def _hinted(reason: str) -> str:
    """The reason, with the key that decides what may be imported."""
    return f"{reason} (packages allows {', '.join(PACKAGES)})" if "No module named" in reason else reason


def solution_in(text: str, tests: Tests) -> Solution:
    """The program of an answer that `tests` are about; an empty one where there is none."""
    return find_solution(text, tests.wanted(), reads_input=bool(tests.scripts))


async def tested(solution: Solution, tests: Tests) -> TestReport:
    """Run a program against tests in the sandbox. Raises IsolationError where there is none."""
    program = solution.program
    if tests.scripts:
        return await run_script(program, tests.scripts, tolerance=tests.tolerance, limits=tests.limits)
    return await run_tests(
        program, tests.statements, setup=tests.setup, entry_points=tests.entry_points, limits=tests.limits
    )
