"""How right and how fast the verifiers are, on real cases, beside what others offer.

    python benchmarks/rewards.py DATA [--json OUT.json] [--limit N]

DATA is a folder with verifier/ (math_equivalence.jsonl, gsm8k_model_solutions.jsonl.gz) and coding/ (mbpp.jsonl.gz,
humaneval.jsonl.gz). Nothing else may run beside it: it measures seconds.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_thinker.isolation import launch, shutdown
from omni_thinker.rewards.math import Math
from omni_thinker.rewards.parts import SamplePart
from omni_thinker.rewards.programs.unit_tests import UnitTests
from omni_thinker.runs.machine import machine
from omni_thinker.types import Problem, Sample, Score

INTEGERS = 20_000
LATEX = 600
PROGRAMS = 600
ENDURANCE = 10_000
STARTS = 40
AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=int, help="rows of each set, for a quick look")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": asdict(machine())}
    for name, measure in MEASURES.items():
        began = time.perf_counter()
        results[name] = measure(options.data, options.limit)
        print(f"\n{name} ({time.perf_counter() - began:.1f} s)", flush=True)
        for key, value in results[name].items():
            if isinstance(value, list):
                for line in value:
                    print(f"    {line}")
            else:
                print(f"  {key}: {value}")
    shutdown()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


# --- right? --------------------------------------------------------------------------------------------------------


def equivalence(data: Path, limit: int | None) -> dict[str, Any]:
    """Agreement with the labels of Math-Verify's own test tables."""
    rows = read(data / "verifier/math_equivalence.jsonl", limit)
    scores = verdicts(Math(), rows)
    wrong = [
        f"{row['id']}: gold {row['reference']!r:.60} answer {row['candidate']!r:.60} label {row['label']} "
        f"got {shown(score)}"
        for row, score in zip(rows, scores, strict=True)
        if score.value != row["label"]
    ]
    return {"rows": len(rows), "agreement": 1 - len(wrong) / len(rows), "disagreements": wrong}


def solutions(data: Path, limit: int | None) -> dict[str, Any]:
    """Final answers of real model solutions to GSM8K."""
    rows = read(data / "verifier/gsm8k_model_solutions.jsonl.gz", limit)
    scores = verdicts(Math(), rows)
    accepted = [r["id"] for r, s in zip(rows, scores, strict=True) if not r["label"] and s.value == 1]
    rejected = [r["id"] for r, s in zip(rows, scores, strict=True) if r["label"] and s.value != 1]
    right = sum(row["label"] for row in rows)
    return {
        "rows": len(rows),
        "false_accepts": len(accepted) / max(1, len(rows) - right),
        "false_rejects": len(rejected) / max(1, right),
        "which": [*accepted[:10], *rejected[:10]],
    }


def references(data: Path, limit: int | None) -> dict[str, Any]:
    """Reference programs pass their tests, and fail each test whose expected value has one token changed."""
    found: dict[str, Any] = {}
    for name in ("mbpp", "humaneval"):
        problems = [coding_problem(name, row) for row in read(data / f"coding/{name}.jsonl.gz", limit)]
        scores = programs_scores(problems)
        failing = [f"{p.id}: {shown(s)}" for p, s in zip(problems, scores, strict=True) if s.value != 1]
        changed = [made for problem in problems for made in mutants(problem)]
        survivors = [
            f"{p.id}: {p.data['tests'][0]!r:.90}"
            for p, s in zip(changed, programs_scores(changed), strict=True)
            if s.value != 0
        ]
        found |= {
            f"{name}_references": len(problems), f"{name}_failing": failing,
            f"{name}_mutants": len(changed), f"{name}_survivors": survivors,
        }  # fmt: skip
    return found


def coding_problem(name: str, row: dict[str, Any]) -> Problem:
    """`answer` holds the whole program. MBPP's tests name what they use; HumanEval says what it asks for."""
    program = row["reference"] if name == "mbpp" else row["prompt"] + row["reference"]
    meta = row["meta"]
    return Problem(
        row["id"], "coding", "", program, {"tests": row["tests"], "setup": meta.get("setup", ""), "timeout": 10.0}
    )


def mutants(problem: Problem) -> Iterable[Problem]:
    """One problem for each test that compares with a constant, with that constant changed."""
    for place, test in enumerate(problem.data["tests"]):
        changer = Changer()
        tree = changer.visit(ast.parse(test))
        if changer.done:
            text = ast.unparse(ast.fix_missing_locations(tree))
            yield Problem(f"{problem.id}/{place}", "coding", "", problem.answer, {**problem.data, "tests": [text]})


class Changer(ast.NodeTransformer):
    """Changes one constant of what each `==` in an assertion expects."""

    def __init__(self) -> None:
        self.done = False

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Eq, ast.Is)):
            sides = [test.comparators[0], test.left]
            expected = next((side for side in sides if literal(side)), None)
            constants = [n for n in ast.walk(expected) if isinstance(n, ast.Constant)] if expected is not None else []
            if constants:
                constants[0].value = other(constants[0].value)
                self.done = True
        return node


def literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def other(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + b"x" if isinstance(value, bytes) else value + 7


# --- fast? -----------------------------------------------------------------------------------------------------------


def speed_math(data: Path, limit: int | None) -> dict[str, Any]:
    count = min(limit or INTEGERS, INTEGERS)
    integers = [
        {"reference": str(i), "candidate": f"So the total is {i + i % 2}.\n#### {i + i % 2}"} for i in range(count)
    ]
    latex_rows = [row for row in read(data / "verifier/math_equivalence.jsonl", None) if "\\" in row["reference"]]
    count = min(limit or LATEX, LATEX)
    # Each once: nothing is to be gained from remembering an answer.
    latex = [{**latex_rows[i % len(latex_rows)]} for i in range(count)]
    verdicts(Math(), latex[: 2 * len(latex_rows)])  # starts the workers
    found = {
        "plain integers": timed(lambda: verdicts(Math(), integers), integers),
        "LaTeX": timed(lambda: verdicts(Math(), latex), latex),
        "Math-Verify itself, integers": timed(lambda: math_verify(integers[:2000]), integers[:2000]),
        "Math-Verify itself, LaTeX": timed(lambda: math_verify(latex), latex),
    }
    found |= {
        "TRL's accuracy_reward, integers": trl_accuracy(integers[:2000]),
        "TRL's accuracy_reward, LaTeX": trl_accuracy(latex),
    }
    return found


def math_verify(rows: Sequence[dict[str, Any]]) -> None:
    from math_verify import parse, verify

    for row in rows:
        gold = row["reference"] if "$" in row["reference"] else f"${row['reference']}$"
        verify(parse(gold), parse(row["candidate"]))


def trl_accuracy(rows: Sequence[dict[str, Any]]) -> Any:
    try:
        from trl.rewards import accuracy_reward
    except ImportError:
        return "trl is not installed"
    completions = [[{"role": "assistant", "content": row["candidate"]}] for row in rows]
    return timed(lambda: accuracy_reward(completions, [row["reference"] for row in rows]), rows)


def speed_programs(data: Path, limit: int | None) -> dict[str, Any]:
    rows = read(data / "coding/mbpp.jsonl.gz", None)
    count = min(limit or PROGRAMS, PROGRAMS)
    problems = [coding_problem("mbpp", rows[i % len(rows)]) for i in range(count)]
    programs_scores(problems[:AT_ONCE])  # starts the workers
    how = launch()
    found: dict[str, Any] = {"sandbox": timed(lambda: programs_scores(problems), problems)}
    if how.strength == "bubblewrap":
        wall = how.command[: how.command.index("--") + 1]
        starts = problems[:STARTS]
        found["one bwrap start per program"] = timed(lambda: [start(wall, p) for p in starts], starts)
    return found


def start(wall: Sequence[str], problem: Problem) -> None:
    text = "\n".join([str(problem.answer), *problem.data["tests"]])
    python = Path(sys.executable).resolve()
    command = [*wall, str(python), "-I", "-S", "-B", "-c", text]
    subprocess.run(command, capture_output=True, check=False)


def endurance(data: Path, limit: int | None) -> dict[str, Any]:
    """Ten thousand items through the same workers: are the last as fast as the first, and what is left behind?"""
    count = min(limit or ENDURANCE, ENDURANCE)
    # Roots, since plain fractions are compared in this process.
    rows = [
        {"reference": f"1+\\sqrt{{{i % 97}}}/101", "candidate": f"$\\sqrt{{{i % 97}}}/101+1$"} for i in range(count)
    ]
    rates = []
    before = (descriptors(), leftovers())
    part = count // 10
    for begin in range(0, count, part):
        rates.append(timed(lambda begin=begin: verdicts(Math(), rows[begin : begin + part]), range(part)))
    return {
        "items": count,
        "first tenth": rates[0],
        "last tenth": rates[-1],
        "descriptors, before and after": (before[0], descriptors()),
        "folders, before and after": (before[1], leftovers()),
    }


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def leftovers() -> int:
    return len(list(Path(tempfile.gettempdir()).glob("omni-thinker-*")))


def timed(action: Callable[[], Any], items: Sequence[Any]) -> dict[str, float]:
    LATENCIES.clear()
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    found = {"items_per_second": round(len(items) / seconds, 1)}
    if LATENCIES:
        found["p99_ms"] = round(1e3 * sorted(LATENCIES)[int(0.99 * (len(LATENCIES) - 1))], 2)
    return found


# --- scoring ---------------------------------------------------------------------------------------------------------

LATENCIES: list[float] = []
"""Seconds of each item scored last, from when its turn came."""


def verdicts(part: SamplePart, rows: Sequence[dict[str, Any]]) -> list[Score]:
    return scored(part, [(Problem(str(i), "t", "", row["reference"]), row["candidate"]) for i, row in enumerate(rows)])


def programs_scores(problems: Sequence[Problem]) -> list[Score]:
    return scored(UnitTests(), [(problem, f"```python\n{problem.answer}\n```") for problem in problems])


def scored(part: SamplePart, pairs: Sequence[tuple[Problem, str]]) -> list[Score]:
    async def everything() -> list[Score]:
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(problem: Problem, text: str) -> Score:
            async with limit:
                began = time.perf_counter()
                score = await part.score_sample(Sample((), (), text, "stop"), problem)
                LATENCIES.append(time.perf_counter() - began)
                return score

        return list(await asyncio.gather(*(one(*pair) for pair in pairs)))

    return asyncio.run(everything())


def shown(score: Score) -> str:
    return f"{score.value if score.status == 'value' else score.status}: {score.reason}"[:120]


def read(path: Path, limit: int | None) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().split("\n") if line][:limit]


MEASURES: dict[str, Callable[[Path, int | None], dict[str, Any]]] = {
    "math equivalence": equivalence,
    "GSM8K solutions": solutions,
    "reference programs": references,
    "speed of math": speed_math,
    "speed of programs": speed_programs,
    "endurance": endurance,
}

if __name__ == "__main__":
    main()
