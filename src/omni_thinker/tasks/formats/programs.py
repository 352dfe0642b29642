"""Programming problems with tests."""

from omni_thinker.tasks.formats.base import Format, Unusable, Values, always


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


def _pairs(values: Values) -> Values:
    raise Unusable(
        "tests", "holds pairs of input and output, which unit_tests can't run; turn them into assert statements, or "
        "name a reward part of your own (python:MODULE:CLASS) with format = 'plain'"
    )  # fmt: skip


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
        "id": ("question_id", "problem_id"),
    },
    ("prompt", "tests"),
    marks=("tests",),
    take=_pairs,
    reward=always("unit_tests"),
)
