"""Programs: which part of a response is the program, and what the tests of a row are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.isolation.inside.outputs import difference
from omni_thinker.rewards.programs.cases import Unusable, read_tests
from omni_thinker.rewards.programs.lines import is_code, segments
from omni_thinker.rewards.programs.solution import find_solution
from omni_thinker.types import Problem

SQUARE = "def square(n):\n    return n * n\n"
DEFINITIONS = {
    "def": SQUARE,
    "decorator": "import functools\n\n@functools.cache\ndef square(n):\n    return n * n\n",
    "lambda": "square = lambda n: n * n\n",
    "annotated lambda": "from typing import Callable\nsquare: Callable[[int], int] = lambda n: n * n\n",
    "annotated global": "import functools\nsquare: object = functools.partial(pow, exp=2)\n",
    "partial": "from functools import partial\nsquare = partial(pow, exp=2)\n",
    "class": "class square(int):\n    def __new__(cls, n):\n        return int(n * n)\n",
    "several signature lines": "def square(\n    n: int,\n) -> int:\n    return n * n\n",
    "docstring with a fence": 'def square(n):\n    """Square.\n\n    ```\n    square(3)\n    ```\n    """\n'
    "    return n * n\n",
    "future": "from __future__ import annotations\ndef square(n: int) -> int:\n    return n * n\n",
}
AFTERWARDS = {
    "usage": "```python\nresult = square(4)\nprint(result)\n```",
    "test function": "```python\ndef test_square():\n    assert square(4) == 16\ntest_square()\n```",
    "test class": "```python\nimport unittest\n\nclass TestSquare(unittest.TestCase):\n"
    "    def test_it(self):\n        self.assertEqual(square(4), 16)\n```",
    "main": "```py\ndef main():\n    print(square(int(input())))\n\nmain()\n```",
    "method of that name": "```python\nclass Demo:\n    def square(self):\n        return 0\n```",
    "Java": "```java\nclass Square {\n  static int square(int n) { return 0; }\n}\n```",
    "Scala": "```scala\ndef square(n: Int) = 0\n```",
    "untagged JavaScript": "```\nfunction square(n) { return 0 }\n```",
    "shell": "```bash\npython square.py\n```",
    "output": "```\n16\n```",
    "table": "```markdown\n| n | n * n |\n| 1 | 1 |\n```",
    "prose": "It multiplies a number by itself.",
}
PROSE = (
    "Explanation:", "**Explanation**: it multiplies.", "Note: negative numbers work, too.", "- it multiplies", "* fast",
    "1. It multiplies.", "Time complexity: O(1)", "### Complexity", "Done.", "This squares a number.", "| n | n * n |",
    "square(3) returns 9.", "The result is n * n = 9", "x = 9 is the result of it", "> a remark", "$n^2$", "</answer>",
    "[DONE]", "这个函数返回平方。", "For each number, it multiplies.", "if you call it with 3, it gives 9:",
)  # fmt: skip
SPACES = st.text(" \t", max_size=3)


def run(text: str, wanted: Sequence[str] = ("square",)) -> dict[str, Any]:
    """The globals of the program in a text of ours."""
    space: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(find_solution(text, wanted).program, "<program>", "exec", dont_inherit=True), space)
    return space


@settings(max_examples=40)
@given(st.sampled_from(sorted(DEFINITIONS)), st.lists(st.sampled_from(sorted(AFTERWARDS)), max_size=4))
def test_block_that_defines_the_entry_point_wins_whatever_comes_after(form: str, after: list[str]) -> None:
    text = "\n\n".join([f"Solution:\n```python\n{DEFINITIONS[form]}```", *(AFTERWARDS[name] for name in after)])
    assert run(text)["square"](3) == 9


@settings(max_examples=40)
@given(st.permutations(sorted(AFTERWARDS)), st.integers(0, len(AFTERWARDS)))
def test_block_that_defines_the_entry_point_wins_in_any_order(others: list[str], place: int) -> None:
    blocks = [AFTERWARDS[name] for name in others]
    text = "\n\n".join([*blocks[:place], f"```python\n{SQUARE}```", *blocks[place:]])
    assert run(text)["square"](3) == 9


@given(st.integers(0, 3))
def test_last_of_several_definitions_counts(drafts: int) -> None:
    wrong = [f"```python\ndef square(n):\n    return n + {n}\n```" for n in range(drafts)]
    assert run("\n\n".join([*wrong, f"```python\n{SQUARE}```", AFTERWARDS["usage"]]))["square"](3) == 9


@settings(max_examples=60)
@given(
    form=st.sampled_from(sorted(DEFINITIONS)),
    mark=st.sampled_from("`~"),
    length=st.integers(3, 6),
    tag=st.sampled_from(["", "python", "Python", "py", " python3", 'python title="a.py"', "{.python}", "text", "a.py"]),
    prefix=st.sampled_from(["", "  ", "    ", "- ", "1. ", "> "]),
    closing=st.sampled_from(["closed", "longer", "unclosed", "prose", "token"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_fences_of_all_forms(
    form: str, mark: str, length: int, tag: str, prefix: str, closing: str, newline: str, bom: bool
) -> None:
    fence = mark * length
    end = {
        "closed": fence,
        "longer": fence + mark,
        "unclosed": "",
        "prose": f"{fence} That is it.",
        "token": f"{fence}<|end|>",
    }
    lines = [fence + tag, *DEFINITIONS[form].splitlines(), end[closing]]
    margin = prefix if prefix.strip() == ">" else " " * len(prefix)
    block = newline.join([prefix + lines[0], *(margin + line for line in lines[1:])])
    assert run(("\ufeff" if bom else "") + (f"Here:{newline}{newline}" if prefix else "") + block)["square"](3) == 9


@pytest.mark.parametrize("rest", ["", "\n", "\nIt squares.\n", "\nUse:\n```python\nprint(square(3))\n```\n"])
@pytest.mark.parametrize("start", ["", "python\n", "\n", "\ufeff"])
def test_fence_that_the_prompt_opened(start: str, rest: str) -> None:
    assert run(f"{start}{SQUARE}```{rest}")["square"](3) == 9


@pytest.mark.parametrize(
    "text",
    [
        "````python\ndef fence():\n    return '''\n```\ncode\n```\n'''\n\n" + SQUARE + "````",
        "````markdown\nText.\n```python\n" + SQUARE + "```\n````",
        "```python\ndef square(n):\n    return n * n```\nDone.",
        "```python square = lambda n: n * n```",
        "`square = lambda n: n * n`",
        "```\n```python\n" + SQUARE + "```\n```",
        "```python\nimport math\n\n```python\n" + SQUARE + "```",
        "<think>\n```python\ndef square(n): return 0\n```\n</think>\n```python\n" + SQUARE + "```",
    ],
    ids=["four ticks", "Markdown", "end of a line", "one line", "one tick", "opened twice", "not closed", "thoughts"],
)
def test_fences_as_models_write_them(text: str) -> None:
    assert run(text)["square"](3) == 9


@settings(max_examples=60)
@given(
    form=st.sampled_from(sorted(DEFINITIONS)),
    before=st.lists(st.sampled_from(PROSE), max_size=3),
    after=st.lists(st.sampled_from(PROSE), max_size=3),
    indent=st.sampled_from(["", "    ", "\t"]),
)
def test_program_without_fences_among_headings_and_prose(
    form: str, before: list[str], after: list[str], indent: str
) -> None:
    code = "\n".join(indent + line if line else "" for line in DEFINITIONS[form].splitlines())
    assert run("\n".join([*before, "", code, "", *after]))["square"](3) == 9


@given(st.sampled_from(PROSE), st.sampled_from(["", "  "]))
def test_prose_is_no_code(line: str, space: str) -> None:
    assert list(segments([space + line])) == []


STATEMENTS = (
    "import numpy as np", "from a.b import c as d, e", "x = 1", "x, y = 1, 2", "x: int = 3", "x += 1", "a[0] = b",
    "a.b = c", "@cache", "async def f():", "class A(B):", "if x is not y:", "elif x in y:", "else:",
    "for i, j in k: pass", "print(f(x))", "while not done:", "with open('a b c') as f:", "try:",
    "except (A, B) as e:", "assert x == y, 'not the same'", "raise E('a b')", "# a comment", "'a string of words'",
    '"""Doc string."""', "[f(x) for x in y if z]", "(a, b) = c", ")", "}, [", "match x:", "print('a' 'b')",
    "x = a if b else c", "del x", "f = lambda x: x + 1", "global x", "x = {'a b': 1}  # two words",
)  # fmt: skip


@pytest.mark.parametrize("line", STATEMENTS)
def test_statement_is_code(line: str) -> None:
    assert is_code(line)


HELPERS = {
    "import": ("import math\n", "math.prod([n, n])"),
    "alias": ("import math as m\n", "m.prod([n, n])"),
    "from": ("from math import (\n    prod as times,\n)\n", "times([n, n])"),
    "star": ("from math import *\n", "prod([n, n])"),
    "try": ("try:\n    import math\nexcept ImportError:\n    math = None\n", "math.prod([n, n])"),
    "function": ("def times(a, b):\n    return a * b\n", "times(n, n)"),
    "chain": ("import math\ndef times(a, b):\n    return math.prod([a, b])\n", "times(n, n)"),
    "class": ("class Times:\n    def of(self, a, b):\n        return a * b\n", "Times().of(n, n)"),
    "constant": ("POWER: int = 2\n", "n ** POWER"),
    "lambda": ("times = lambda a, b: a * b\n", "times(n, n)"),
}


@settings(max_examples=40)
@given(st.sampled_from(sorted(HELPERS)), st.booleans(), st.sampled_from(sorted(AFTERWARDS)))
def test_helpers_in_blocks_of_their_own_belong_to_the_solution(name: str, first: bool, other: str) -> None:
    helper, expression = HELPERS[name]
    blocks = [f"```python\n{helper}```", f"```python\ndef square(n):\n    return {expression}\n```"]
    text = "\n\nand\n\n".join([*(blocks if first else reversed(blocks)), AFTERWARDS[other]])
    assert run(text)["square"](3) == 9


def test_helper_that_needs_the_solution_when_it_is_defined_comes_after_it() -> None:
    base = "```python\nclass Base:\n    def f(self): return Other().g()\n```\n"
    text = base + "```python\nclass Other(Base):\n    def g(self): return 5\n```"
    assert run(text, ["Base"])["Base"]().f() == 5
    square = "from __future__ import annotations\ndef square(n):\n    return math.prod([n, n])\n"
    future = f"```python\nimport math\n```\n```python\n{square}```"
    assert run(future)["square"](3) == 9


def test_reason_names_the_blocks_that_were_taken() -> None:
    text = (
        "```python\nimport math\n```\n```python\nprint(1)\n```\n```python\ndef root(n):\n    return math.isqrt(n)\n```"
    )
    assert find_solution(text, ["root"]).place == "block 1 + 3 of 3"
    assert find_solution(f"Here you are:\n{SQUARE}", ["square"]).place == "unfenced code"
    assert find_solution("no program at all").place == "the whole text"


SCRIPT = "n = int(input())\nprint(n * n)\n"


@pytest.mark.parametrize(
    "text",
    [
        SCRIPT,
        "It reads a number:\n\nprint(int(input()) ** 2)\n\nThat is all of it.",
        f"```python\n{SCRIPT}```\nOutput:\n```\n9\n```",
        f"```python\n{SCRIPT}```\nA check:\n```python\nassert 3 * 3 == 9\nprint('right')\n```",
        f"```python\nn = int(input())\n```\nThe whole:\n```python\n{SCRIPT}```",
        "```python\ndef solve(n):\n    return n * n\n```\n```python\nprint(solve(int(input())))\n```",
        f"```python\n{SCRIPT}```\n```cpp\nint main() {{ std::cin >> n; }}\n```",
    ],
)
def test_script_is_the_block_that_reads_and_prints(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda: "3")
    exec(compile(find_solution(text, reads_input=True).program, "<program>", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip() == "9"


@given(st.text(max_size=300) | st.text(alphabet="`~> \n\t\"'#()=:.defimportx", max_size=300))
@settings(max_examples=100)
def test_finding_a_program_in_any_text_never_raises(text: str) -> None:
    for wanted, reads_input in (((), False), (("x",), False), ((), True)):
        find_solution(text, wanted, reads_input=reads_input)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "+" * 99_000, "'" * 100_000, '"\\' * 50_000, "```\n" * 25_000, "x=1\n```\n" * 12_000,
        "a," * 49_000 + "=1", "```python\nimport a as b\n```\n" * 3_500, "def f():\n    pass\n" * 6_000, "> " * 50_000,
        " " * 100_000 + "x",
    ],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_long_texts_are_read_within_2_seconds(text: str) -> None:
    begin = time.process_time()
    find_solution(text, ["f"])
    assert time.process_time() - begin < 2.0


# -- outputs ----------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.lists(st.from_regex(r"[a-z0-9.\-]{1,5}", fullmatch=True), min_size=1, max_size=4), min_size=1, max_size=4
)


@settings(max_examples=40)
@given(LINES, st.data())
def test_white_space_and_blank_lines_of_an_output_do_not_count(lines: list[list[str]], data: st.DataObject) -> None:
    wanted = "\n".join(" ".join(words) for words in lines)
    gap, newline = st.text(" \t", min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\n\n", " \n\t\n"])
    given_text = data.draw(SPACES)
    for words in lines:
        given_text += data.draw(gap).join(words) + data.draw(SPACES) + data.draw(newline)
    assert difference(given_text, wanted, 0.0) is None
    assert difference(wanted, given_text, 0.0) is None


@settings(max_examples=40)
@given(LINES, LINES)
def test_outputs_with_other_words_or_lines_differ(one: list[list[str]], other: list[list[str]]) -> None:
    text, other_text = ("\n".join(" ".join(words) for words in lines) for lines in (one, other))
    assert (difference(text, other_text, 0.0) is None) == (one == other)


@pytest.mark.parametrize(
    ("printed", "wanted", "tolerance", "same"),
    [
        ("0.30000000000000004", "0.3", 1e-09, True), ("0.30000000000000004", "0.3", 0.0, False),
        ("1.0", "1", 1e-09, True), ("1e3", "1000.0", 1e-09, True), ("1.0000001", "1.0", 1e-06, True),
        ("1.00001", "1.0", 1e-06, False), ("1000001.0", "1000000.0", 1e-06, True),
        ("1000003.0", "1000000.0", 1e-06, False), ("1000001", "1000000", 0.001, False), ("nan", "nan", 0.001, True),
        ("nan", "1.0", 1.0, False), ("1e999", "1.0", 1.0, False), ("-0.5", "0.5", 0.001, False),
        ("x 0.5", "x 0.5000001", 1e-06, True), ("1_0.0", "10.0", 0.001, False), ("12", "1 2", 0.0, False),
        ("1 2", "1\n2", 0.0, False), ("", "1", 0.0, False), ("1", "", 0.0, False), ("Yes", "YES", 0.0, False),
    ],
)  # fmt: skip
def test_numbers_of_an_output_within_the_tolerance_are_the_same(
    printed: str, wanted: str, tolerance: float, same: bool
) -> None:
    assert (difference(printed, wanted, tolerance) is None) == same


# -- the tests of a row -----------------------------------------------------------------------------------------------


def row(answer: str | None = None, **data: Any) -> Problem:
    return Problem("p1", "task", "prompt", answer, data)


@pytest.mark.parametrize(
    "data",
    [
        {"inputs": ["1", "2"], "outputs": ["1", "4"]},
        {"input": ["1", "2"], "output": ["1", "4"]},
        {"tests": [{"input": "1", "output": "1"}, {"input": "2", "output": "4", "type": "stdin"}]},
    ],
)
def test_inputs_and_outputs_are_read_in_each_form(data: dict[str, Any]) -> None:
    assert read_tests(row(**data)).scripts == (("1", "1"), ("2", "4"))
    assert read_tests(row(inputs="3", outputs="9")).scripts == (("3", "9"),)


@pytest.mark.parametrize(
    ("given_input", "output"), [([[1, 2], 3], 6), ("[1, 2]\n3\n", "6")], ids=["a list", "lines of JSON"]
)
@pytest.mark.parametrize("name", ["add", "Solution.add", "Solution().add"])
def test_arguments_of_a_function_become_statements(name: str, given_input: Any, output: Any) -> None:
    tests = read_tests(row(inputs=[given_input], outputs=[output], entry_point=name))
    space: dict[str, Any] = {}
    exec(tests.setup, space)
    exec("class Solution:\n    def add(self, numbers, n): return sum(numbers) + n", space)
    exec(tests.statements[0], space)
    exec("class Solution:\n    def add(self, numbers, n): return sum(numbers)", space)
    with pytest.raises(AssertionError):
        exec(tests.statements[0], space)
    assert tests.limits.usual_imports
    assert "Solution" in tests.entry_points


def test_results_of_a_function_may_be_tuples_and_near_numbers() -> None:
    space: dict[str, Any] = {}
    exec(read_tests(row(inputs=[[1]], outputs=[2], entry_point="f", float_tolerance=1e-6)).setup, space)
    same = space["same_result"]
    assert same((1, [2, (3.0000001,)]), [1, [2, [3.0]]])
    assert not same([1, 2], [1])
    assert not same([3.1], [3.0])
    assert not same(4, 3)
    numpy = pytest.importorskip("numpy")
    assert same(numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    assert same([numpy.array([1.0])], [[1]])
    assert not same(numpy.array([1, 2]), [1, 3])
    assert not same(numpy.array([1, 2]), [1])


def test_usual_imports_are_for_rows_that_test_a_solution_class_or_ask_for_them() -> None:
    leetcode = ["assert Solution().f(1) == 1"]
    assert read_tests(row(tests=leetcode)).limits.usual_imports
    assert not read_tests(row(tests=leetcode, usual_imports=False)).limits.usual_imports
    assert not read_tests(row(tests=["assert f(1) == 1"])).limits.usual_imports
    assert read_tests(row(tests=["assert f(1) == 1"], usual_imports=True)).limits.usual_imports


def test_tests_want_what_they_use_and_do_not_bind_themselves() -> None:
    tests = [
        "import math\na = [1]\nsort(a)\nassert a == sorted([1]) and [n for n in a]",
        "def check(f): assert f(1)\ncheck(solve)",
    ]
    assert read_tests(row(tests=tests)).wanted() == {"sort", "solve"}
    assert read_tests(row(tests=tests, entry_point="solve")).wanted() == {"solve"}
    assert read_tests(row("sort: object = list.sort", tests=tests)).wanted() == {"sort"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "needs tests"),
        ({"inputs": ["1"]}, "as many outputs as inputs"),
        ({"inputs": [], "outputs": []}, "at least one"),
        ({"inputs": ["1"], "outputs": ["1"], "tests": ["assert 1"]}, "given twice"),
        ({"tests": ["assert 1", {"input": "1", "output": "1"}]}, "all be tables"),
        ({"inputs": [[1]], "outputs": ["1"]}, "entry_point"),
        ({"inputs": ["1"], "outputs": ["1"], "setup": "x = 1"}, "setup belongs"),
        ({"inputs": [[1]], "outputs": ["1"], "entry_point": ["f", "g"]}, "one entry_point"),
        ({"inputs": ["no JSON"], "outputs": ["1"], "entry_point": "f"}, "one argument a line"),
        ({"inputs": ["1"], "outputs": ["1"], "float_tolerance": -1}, "float_tolerance"),
        ({"inputs": ["1"], "outputs": ["1"], "packages": ["os"]}, "packages as a list of these: numpy"),
        ({"inputs": ["1"], "outputs": ["1"], "packages": [["numpy"]]}, "packages as a list of these: numpy"),
        ({"inputs": ["1"], "outputs": ["1"], "entry_point": "class"}, "needs entry_point as a name"),
        ({"inputs": ["1"], "outputs": ["1"], "entry_point": "Solution().None"}, "needs entry_point as a name"),
        ({"inputs": ["1"], "outputs": ["1"], "usual_imports": "yes"}, "usual_imports as true or false"),
        ({"tests": ["assert 1"], "timeout": 0}, "timeout"),
        ({"tests": ["assert 1"], "setup": ["x"]}, "isn't Python"),
    ],
)
def test_rows_that_cannot_be_tested_say_why(data: dict[str, Any], message: str) -> None:
    with pytest.raises(Unusable, match=message):
        read_tests(row(**data))
