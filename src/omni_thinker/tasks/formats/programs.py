"""Programming problems with tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.tasks.formats.base import Format, Unusable, Values, always
from omni_thinker.tasks.paths import opened

_READS = "\n\nWrite a Python program that reads standard input and prints the output."


def _mbpp(values: Values) -> Values:
    setup = values.get("setup")
    return {"setup": "\n".join(map(str, setup))} if isinstance(setup, list | tuple) else {}


def _humaneval(values: Values) -> Values:
    """The gold program is the prompt and its completion; the tests define `check`, which is then called."""
    test, name = values["tests"], values["entry_point"]
    if not isinstance(test, str) or not isinstance(name, str):
        raise Unusable("tests" if isinstance(name, str) else "entry_point", "must be text")
    changed = {"tests": [f"{test.rstrip()}\n\ncheck({name})\n"]}
    if isinstance(values.get("answer"), str) and isinstance(values["prompt"], str):
        # The gold says which names the tests use: some of them call helpers that the prompt defines.
        return changed | {"answer": values["prompt"] + values["answer"], "entry_point": None}
    return changed


def pairs_of(value: Any) -> dict[str, Any]:
    """Inputs and outputs: {"inputs": [...], "outputs": [...]}, or a list of {"input": ..., "output": ...}. Both may be
    JSON text. Raises Unusable for anything else."""
    value = opened(value)
    if isinstance(value, Mapping):
        given, wanted = (value.get(name, value.get(name + "s")) for name in ("input", "output"))
        if value.get("fn_name"):
            raise Unusable("tests", "calls a function (fn_name), which is written in several ways; turn it into assert "
                           "statements, or into inputs, outputs and entry_point")  # fmt: skip
    elif isinstance(value, list | tuple) and all(isinstance(test, Mapping) for test in value):
        given, wanted = ([test.get(name) for test in value] for name in ("input", "output"))
    else:
        raise Unusable("tests", "must be a table of inputs and outputs, or a list of them")
    if not isinstance(given, list | tuple) or not isinstance(wanted, list | tuple) or not given:
        raise Unusable("tests", "must hold lists of inputs and outputs, with one of each at least")
    return {"tests": None, "inputs": list(given), "outputs": list(wanted)}


def _pairs(values: Values) -> Values:
    """Public tests, and private ones where these are JSON; a problem with a function has its name in `metadata`."""
    tests = pairs_of(values["tests"])
    private = opened(values.get("private"))
    if isinstance(private, list | tuple | Mapping) and private:
        more = pairs_of(private)
        tests = {"tests": None, **{name: [*tests[name], *more[name]] for name in ("inputs", "outputs")}}
    tests["answer"] = _first_of(values.get("answer"))
    metadata, starter = opened(values.get("metadata")), values.get("starter")
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    prompt = values["prompt"]
    if not isinstance(prompt, str):
        raise Unusable("prompt", f"must be text, got {type(prompt).__name__}")
    if name:
        shown = f"\n\nBegin with this:\n```python\n{starter}\n```" if isinstance(starter, str) and starter else ""
        return tests | {"prompt": prompt + shown, "entry_point": name}
    return tests | {"prompt": prompt + _READS, "entry_point": None}


def _first_of(solutions: Any) -> str | None:
    """The first of several gold programs, or the only one; None where there is none."""
    solutions = opened(solutions)
    first = solutions[0] if isinstance(solutions, list | tuple) and solutions else solutions
    return first if isinstance(first, str) and first.strip() else None


def _packed(rows: Sequence[Values]) -> str:
    """A pickle runs what it likes when it is opened, so tests in one are left alone."""
    packed = any(isinstance(opened(values.get("private")), str) and values.get("private") for values in rows)
    return "private tests are packed in a pickle and aren't opened, so the public ones alone decide" if packed else ""


MBPP = Format(
    "mbpp",
    "a column `test_list`",
    {
        "prompt": ("text", "prompt", "question"),
        "tests": ("test_list",),
        "setup": ("test_setup_code", "test_imports"),
        "answer": ("code", "canonical_solution"),
        "id": ("task_id",),
    },
    ("prompt", "tests"),
    marks=("tests",),
    take=_mbpp,
    reward=always("unit_tests"),
    template="{prompt}\nYour code should pass this test: {first_test}",
)
HUMANEVAL = Format(
    "humaneval",
    "columns `test` and `entry_point`",
    {
        "prompt": ("prompt",),
        "tests": ("test",),
        "entry_point": ("entry_point",),
        "answer": ("canonical_solution",),
        "id": ("task_id",),
    },
    ("prompt", "tests", "entry_point"),
    marks=("tests", "entry_point"),
    take=_humaneval,
    reward=always("unit_tests"),
    template="Complete this Python program. Write all of it in one block of code.\n```python\n{prompt}\n```",
)
LIVECODEBENCH = Format(
    "livecodebench",
    "pairs of input and output (`public_test_cases`, `input_output`, `public_tests`)",
    {
        "prompt": ("question_content", "question", "description", "problem", "prompt"),
        "tests": ("public_test_cases", "input_output", "public_tests"),
        "private": ("private_test_cases", "private_tests"),
        "metadata": ("metadata",),
        "starter": ("starter_code",),
        "answer": ("solutions", "solution"),
        "id": ("question_id", "problem_id"),
    },
    ("prompt", "tests"),
    marks=("tests",),
    take=_pairs,
    reward=always("unit_tests"),
    note=_packed,
)
