"""Math answers in the ways that people and models write them: a property for each kind, with values by hand."""

from __future__ import annotations

import asyncio
import math as pymath
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.isolation import shutdown
from omni_thinker.rewards.math import Math
from omni_thinker.rewards.validate import group_of
from omni_thinker.types import Problem, Score

PLACES = ["\\boxed{%s}", "#### %s", "The answer is %s.", "Answer: %s", "<think>17, 19</think>\\boxed{%s}", "A: %s"]
places = st.sampled_from(PLACES)
whole = st.integers(1, 10**6)
digit = st.integers(1, 9)
DIGITS = {
    "full-width": "０１２３４５６７８９",
    "Arabic": "٠١٢٣٤٥٦٧٨٩",
    "Persian": "۰۱۲۳۴۵۶۷۸۹",
    "Devanagari": "०१२३४५६७८९",
    "Bengali": "০১২৩৪৫৬৭৮৯",
    "Thai": "๐๑๒๓๔๕๖๗๘๙",
    "bold": "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
}
DASHES = "-−–—‐‑‒﹣－"
UNITS = [
    "\\text{ cm}",
    "\\text{ cm}^2",
    "\\text{ units}^{3}",
    "\\,\\mathrm{m/s}^2",
    "\\ \\mu\\text{m}",
    "~\\text{km}",
    "\\ \\Omega",
    "\\,\\text{kg}\\cdot\\text{m}",
    "^\\circ",
    "\\%",
    "\\,^\\circ\\text{C}",
    "\\,\\mathrm{cm^2}",
    " cm²",
    " µm",
    " Ω",
    " m^2",
    " m/s^2",
]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()


def score(text: str, gold: str) -> Score:
    return asyncio.run(Math().score(group_of([text]), Problem("p", "math", "", gold)))[0]


def value(text: str, gold: str) -> float | None:
    return score(text, gold).value


def filled(place: str, answer: str) -> str:
    return place.replace("%s", answer)


@given(st.integers(1, 10**6), places, st.sampled_from(["", "-"]))
def test_leading_decimal_point_counts(number: int, place: str, sign: str) -> None:
    text = filled(place, f"{sign}.{number}")
    assert value(text, f"{sign}0.{number}") == 1.0
    assert value(text, f"{sign}{number}") == 0.0


@given(whole, places, st.sampled_from(["\\$%d", "$%d", "\\$%d.00", "$\\$%d$", "\\text{\\$}%d"]))
def test_gold_with_a_dollar_sign_is_a_number(number: int, place: str, form: str) -> None:
    gold = form % number
    assert Math().check(Problem("p", "math", "", gold)) is None
    for answer in (str(number), f"\\${number}", f"${number}", f"{number} dollars"):
        assert value(filled(place, answer), gold) == 1.0, answer
    assert value(filled(place, str(number + 1)), gold) == 0.0
    assert value(gold, gold) == 1.0


@given(whole, places, st.sampled_from(["\\approx %d", "~%d", "%d \\pmod{12}", "x \\equiv %d \\pmod 7", "%d (mod 30)"]))
def test_number_about_or_modulo_is_that_number(number: int, place: str, form: str) -> None:
    assert value(filled(place, form % number), str(number)) == 1.0
    assert value(filled(place, form % (number + 1)), str(number)) == 0.0


@given(st.integers(1, 10**4), places)
def test_percent_is_its_hundredth_or_itself(number: int, place: str) -> None:
    answer = filled(place, f"{number / 100:.2f}\\%")
    assert value(answer, f"{number / 10_000:.4f}") == 1.0
    assert value(answer, f"{number / 100:.2f}") == 1.0
    assert value(answer, f"{number / 10_000 + 1:.4f}") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{5}\nor\n\\boxed{6}", "\\[\\boxed{5}\\]\nor\n\\[\\boxed{6}\\]", "The answer is 6 (or 5).",
        "The answer is 6, maybe 5", "The answer is 6 or perhaps 5", "The answer is 6, alternatively 5",
    ],
)  # fmt: skip
def test_several_numbers_are_wrong_however_they_are_joined(text: str) -> None:
    assert value(text, "6") == 0.0
    assert value(text.replace("5", "6"), "6") == 1.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("\\boxed{(3, 4)}", 1.0), ("\\boxed{3, 4}", 1.0), ("The answer is $\\left(3, 4\\right)$.", 1.0),
        ("3, 4", 1.0), ("\\boxed{y = 4, x = 3}", 1.0), ("\\boxed{(4, 3)}", 0.0), ("\\boxed{4, 3}", 0.0), ("4, 3", 0.0),
        ("\\boxed{x = 4, y = 3}", 0.0), ("\\boxed{3}", 0.0),
    ],
)  # fmt: skip
def test_values_of_several_names_are_in_their_order(text: str, right: float) -> None:
    assert value(text, "x = 3, y = 4") == right
    assert value("\\boxed{5, 3}", "n = 3, 5") == 1.0, "the values of one name have none"


@given(st.integers(10, 300), st.integers(1, 5))
def test_tiny_values_are_compared_by_their_ratio(power: int, more: int) -> None:
    gold = f"\\frac{{1}}{{2^{{{power}}}}}"
    assert value(f"\\boxed{{2^{{-{power}}}}}", gold) == 1.0
    assert value(f"\\boxed{{2^{{-{power + more}}}}}", gold) == 0.0
    assert value(f"\\boxed{{3.5 \\times 10^{{-{power + more}}}}}", f"3.5 \\times 10^{{-{power}}}") == 0.0


@pytest.mark.parametrize(
    "form", ["\\frac{\\sqrt{2}}{10^{%d}}", "\\pi \\cdot 10^{-%d}", "10^{-%d}x", "(\\sqrt{3} \\cdot 10^{-%d}, 1)"]
)
def test_tiny_values_that_math_verify_compares_are_too(form: str) -> None:
    assert value(f"\\boxed{{{form % 12}}}", form % 12) == 1.0
    assert value(f"\\boxed{{{form % 13}}}", f"{form % 12} ") == 0.0


@given(st.integers(2, 9), st.integers(1, 3**8), places)
def test_base_is_part_of_the_number(base: int, number: int, place: str) -> None:
    digits = "".join(str(number // base**k % base) for k in reversed(range(int(pymath.log(number, base)) + 2))).lstrip(
        "0"
    )
    gold = f"{digits}_{base}"
    for answer in (gold, f"{digits}_{{{base}}}", digits, f"{digits}_{{\\text{{{base}}}}}", f"{digits} (base {base})"):
        assert value(filled(place, answer), gold) == 1.0, answer
    for answer in (f"{digits}_{base + 1}", f"{digits}0_{base}", f"{digits}_{{1{base}}}"):
        assert value(filled(place, answer), gold) == 0.0, answer
    assert value(filled(place, f"{digits}_{base}"), digits) == 0.0, "a gold without a base is decimal"


@given(whole, places, st.sampled_from(DASHES))
def test_every_dash_before_a_number_is_a_minus(number: int, place: str, dash: str) -> None:
    text = filled(place, f"{dash}{number}")
    assert value(text, str(-number)) == 1.0
    assert value(text, str(number)) == 0.0
    assert value(f"答案是{dash}{number}", str(number)) == 0.0


@given(st.integers(1, 99), st.integers(2, 12), st.data(), places)
def test_mixed_number_is_its_sum(number: int, bottom: int, data: st.DataObject, place: str) -> None:
    top = data.draw(st.integers(1, bottom - 1))
    total = number + Fraction(top, bottom)
    gold = f"\\frac{{{total.numerator}}}{{{total.denominator}}}"
    mixed = f"{number}\\frac{{{top}}}{{{bottom}}}"
    for answer in (f"{number} {top}/{bottom}", mixed, f"{number} \\tfrac{{{top}}}{{{bottom}}}"):
        text = filled(place, answer)
        assert value(text, gold) == value(text, mixed) == 1.0, answer
        assert value(text, str(number)) == value(text, str(top)) == 0.0, answer
        assert value(filled(place, f"-{answer}"), f"-{gold}") == 1.0, answer
    assert value(f"So {number} {top}/{bottom} cups are left", str(number)) == 0.0
    assert value(filled(place, gold), mixed) == 1.0


@pytest.mark.parametrize(("sign", "part"), [("½", "0.5"), ("¼", "0.25"), ("¾", "0.75"), ("⅛", "0.125")])
def test_fraction_signs_are_fractions(sign: str, part: str) -> None:
    assert value(f"\\boxed{{2{sign}}}", f"2{part[1:]}") == 1.0
    assert value(f"She has 2{sign} cups left.", f"2{part[1:]}") == 1.0
    assert value(f"She has 2{sign} cups left.", "2") == 0.0


@given(whole, st.sampled_from(UNITS), places)
def test_unit_after_a_number_is_ignored(number: int, unit: str, place: str) -> None:
    text = filled(place, f"{number}{unit}")
    assert value(text, str(number)) == 1.0
    assert value(text, str(number + 1)) == 0.0
    gold = f"{number}{unit}"
    if "\\" in unit:
        assert value(text, gold) == value(filled(place, str(number)), gold) == 1.0
        assert value(filled(place, str(number + 1)), gold) == 0.0


@given(
    st.integers(2, 10**6),
    st.sampled_from(["x", "x^2", "\\pi", "\\sqrt{2}", "n", " x^2", "\\pi\\text{ cm}^2", "i", "(x+1)"]),
    places,
)
def test_factor_of_an_expression_is_no_answer(number: int, rest: str, place: str) -> None:
    assert value(filled(place, f"{number}{rest}"), str(number)) == 0.0
    assert value(f"The result is {number}{rest}", str(number)) == 0.0


@given(whole, st.sampled_from(["Step 2: multiply", "Final answer", "Conclusion", "2. Add them", "Part 3"]))
def test_heading_with_four_hashes_is_no_answer(number: int, title: str) -> None:
    assert value(f"#### {title}\nWe have 12 and 30.\n\nThe answer is {number}.", str(number)) == 1.0
    assert value(f"#### Step 1\n3 + 4\n\n#### Answer\n\n**{number}**", str(number)) == 1.0
    assert value(f"#### {title}\nso it is $\\frac{{{number}}}{{7}}$", f"\\frac{{{number}}}{{7}}") == 1.0
    assert value(f"#### {number + 1}\nwait\n#### {number}", str(number)) == 1.0
    assert value(f"#### Step {number}\ncut off", str(number)) == 0.0


@given(st.decimals(1, 9, places=1), st.integers(2, 8), places)
def test_scientific_notation_is_its_value(mantissa: object, power: int, place: str) -> None:
    gold = str(Fraction(str(mantissa)) * 10**power)
    raised = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(sign)] for sign in str(power))
    forms = ["\\times 10^{%d}", "\\cdot 10^%d", "× 10^%d", "x 10^%d", "* 10**%d", f"× 10{raised}"]
    for form in forms:
        text = filled(place, f"{mantissa} {form % power if '%' in form else form}")
        assert value(text, gold) == 1.0, form
        assert value(text, str(mantissa)) == 0.0, form
    assert value(filled(place, f"{mantissa} \\times 10^{{{power + 1}}}"), f"{mantissa} \\times 10^{{{power}}}") == 0.0


TORN = [
    "%d:30",
    "10:%d",
    "3:%d",
    "%d : 4",
    "2^%d",
    "x^%d",
    "x_%d",
    "%d!x",
    "7 * %d",
    "7 + %d",
    "x - %d",
    "x > %d",
    "f(%d)",
    "\\sqrt{%d}",
    "2√%d",
    "%d mod 50",
    "7 mod %d",
    "2024-03-%d",
    "3/%d/2024",
    "%d.03.2024",
    "(3, %d)",
    "5/%d",
    "3-%d",
    "%dx",
    "%d\\pi",
    "%dπ",
    "1.2.%d",
]


@given(st.sampled_from(TORN), st.integers(11, 29))
def test_number_is_not_torn_out_of_an_expression_a_time_or_a_date(form: str, number: int) -> None:
    found = score(f"We add 2. The result is {form % number}", str(number))
    assert found.value == 0.0
    assert found.reason


@given(st.integers(1, 12), st.integers(10, 59), places)
def test_time_is_compared_as_a_whole(hour: int, minute: int, place: str) -> None:
    gold = f"{hour}:{minute}"
    for answer in (gold, f"{hour:02d}:{minute}", f"{gold} pm", f"{gold} a.m."):
        assert value(filled(place, answer), gold) == 1.0, answer
    for answer in (f"{hour % 12 + 1}:{minute}", str(minute), str(hour), f"{minute}:{hour + 13}", f"{gold}:00"):
        assert value(filled(place, answer), gold) == 0.0, answer
    assert value(filled(place, f"{gold} pm"), f"{hour % 12 + 12}:{minute}") == 1.0
    assert value(filled(place, f"{gold} pm"), f"{gold} am") == 0.0


@given(digit, digit, digit, places)
def test_ratio_is_compared_as_a_whole(first: int, second: int, third: int, place: str) -> None:
    gold = f"{first}:{second}:{third}"
    assert value(filled(place, f"{first} : {second} : {third}"), gold) == 1.0
    assert value(filled(place, f"{first}:{second}"), gold) == 0.0
    assert value(filled(place, f"{first}:{second + 1}:{third}"), gold) == 0.0
    pair = f"{first}:{second}"
    assert value(filled(place, f"{first} to {second}"), pair) == value(filled(place, f"{first}/{second}"), pair) == 1.0


@given(st.dates(), places)
def test_date_is_compared_as_a_whole(day: object, place: str) -> None:
    text = str(day)
    year, month, number = (int(part) for part in text.split("-"))
    names = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    for answer in (text, f"{names[month - 1]} {number}, {year:04d}", f"{number} {names[month - 1][:3]} {year:04d}"):
        assert value(filled(place, answer), text) == 1.0, answer
    for answer in (str(number), str(year), str(year - month - number), f"{year:04d}-{month:02d}-{number % 28 + 1:02d}"):
        if answer != text:
            assert value(filled(place, answer), text) == 0.0, answer


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is sqrt(17)", "\\sqrt{17}"),
        ("The answer is √17.", "\\sqrt{17}"),
        ("2*sqrt(3)", "2\\sqrt{3}"),
        ("The angle is π/2", "\\frac{\\pi}{2}"),
        ("pi/2", "\\frac{\\pi}{2}"),
        ("The answer is (3, pi/2)", "(3, \\frac{\\pi}{2})"),
        ("The distance is \\sqrt{17}", "\\sqrt{17}"),
        ("The distance is 3\\sqrt{2} units", "3\\sqrt{2}"),
        ("The answer is x² + 1", "x^2+1"),
        ("x = 3 or x = 5", "3, 5"),
        ("The solutions are 3 and 5", "3, 5"),
        ("The answer is ∞", "\\infty"),
        ("The answer is (1+sqrt(5))/2", "\\frac{1+\\sqrt{5}}{2}"),
        ("x <= 5", "x \\le 5"),
        ("The area is 25 pi", "25\\pi"),
        ("\\boxed{2sqrt(3)}", "2\\sqrt{3}"),
        ("**2√3**", "2\\sqrt{3}"),
        ("The answer is **25π cm³**.", "25\\pi"),
        ("The volume is 25\\pi cm^3.", "25\\pi"),
        ("\\boxed{25π cm³}", "25\\pi"),
        ("\\boxed{\\emptyset}", "\\varnothing"),
        ("\\boxed{\\varnothing}", "\\emptyset"),
    ],
)
def test_plain_text_answers_a_gold_in_latex(text: str, gold: str) -> None:
    assert value(text, gold) == 1.0
    assert value(
        text.replace("3", "7").replace("5", "8").replace("17", "18").replace("2", "9"), gold + " "
    ) != 1.0 or not any(sign in text for sign in "2357")


@given(st.integers(1, 9), st.integers(1, 9), places)
def test_fraction_in_every_spelling(top: int, bottom: int, place: str) -> None:
    spellings = [f"\\frac{top}{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"\\dfrac{{{top}}}{bottom}", f"{top}/{bottom}"]
    for gold in spellings:
        assert value(gold, gold) == 1.0
        for answer in spellings:
            assert value(filled(place, answer), gold) == 1.0, (answer, gold)
        assert value(filled(place, f"\\frac{{{top}}}{{{bottom + 1}}}"), gold) == 0.0


@given(st.integers(1, 98), places)
def test_repeating_decimal_is_its_fraction(cycle: int, place: str) -> None:
    exact = Fraction(cycle, 99)
    gold = f"\\frac{{{exact.numerator}}}{{{exact.denominator}}}"
    for answer in (f"0.\\overline{{{cycle:02d}}}", f"0.({cycle:02d})", f"0.{f'{cycle:02d}' * 4}"):
        assert value(filled(place, answer), gold) == 1.0, answer
    assert value(filled(place, f"0.{cycle:02d}"), gold) == 0.0
    assert value(filled(place, gold), f"0.\\overline{{{cycle:02d}}}") == 1.0


LETTERS = [
    "%s",
    "(%s)",
    "%s.",
    "**%s**",
    "\\text{%s}",
    "\\textbf{(%s)}",
    "\\mathrm{%s}",
    "%s: the third",
    "(%s) 42",
    "option %s",
    "%s) 42",
    "%s because it fits",
]


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.sampled_from(LETTERS), places)
def test_letter_as_gold_is_answered_in_any_usual_way(gold: str, other: str, form: str, place: str) -> None:
    for written in (gold, f"({gold})", f"\\text{{({gold})}}"):
        assert Math().check(Problem("p", "math", "", written)) is None
        assert value(filled(place, form % other), written) == float(gold == other)
        assert value(form % other, written) == float(gold == other) or "because" in form or "the third" in form


@pytest.mark.parametrize(
    "text",
    [
        "B or C",
        "The answer is not C.",
        "A, B, C",
        "\\boxed{B, C}",
        "The answer is B or C",
        "\\boxed{C+1}",
        "\\boxed{C^2}",
        "Both A and C",
        "",
    ],
)
def test_several_letters_or_none_are_wrong(text: str) -> None:
    assert value(text, "C") == 0.0
    assert value("A cat sat there", "A") == value("The answer is A cat", "A") == 0.0


@given(whole, st.sampled_from(sorted(DIGITS)))
def test_digits_of_other_scripts_are_digits(number: int, script: str) -> None:
    written = "".join(DIGITS[script][int(sign)] for sign in str(number))
    for text in (
        written,
        f"\\boxed{{{written}}}",
        f"答えは{written}です。",
        f"الجواب هو {written}",
        f"उत्तर {written} है",
    ):
        assert value(text, str(number)) == 1.0, text
        assert value(text, str(number + 1)) == 0.0, text


def test_thoughts_and_answer_tags() -> None:
    assert value("<think>maybe \\boxed{41}</think> The answer is 42.", "42") == 1.0
    assert value("<think>\\boxed{42}", "42") == 0.0
    assert value("<think>9</think><answer>\\frac{2}{7}</answer>", "\\frac27") == 1.0
    assert value("<answer>3</answer> or <answer>42</answer> 7", "42") == 1.0


def test_place_of_the_answer() -> None:
    assert value("\\boxed{3} so the rest is 12. Final answer: 12", "12") == 1.0
    assert value("\\boxed{1}, \\boxed{2}", "2") == 0.0
    assert value("\\boxed{2}\n\n**Final Answer**\n\\boxed{2}", "2") == 1.0
    assert value("So $\\boxed\\frac12$.", "\\frac12") == 1.0


@pytest.mark.parametrize(
    ("text", "gold", "reason"),
    [
        ("\\boxed{7}", "7", "took '7' (boxed)"),
        ("#### 8", "7", "took '8' (heading): isn't 7"),
        ("The answer is 3x", "3", "took '3x' (announced): part of an expression"),
        ("We get 3 or 4", "4", "took '4' (last): several numbers"),
        ("17 + 1", "18", "took '17 + 1' (whole): part of an expression"),
        ("None", "18", "took 'None' (whole): no number"),
        ("\\boxed{36/2}", "18", "took '36/2' (boxed): not worked out"),
        ("The answer is not 3", "3", "took 'not 3' (announced): denied, or only a bound"),
        (" ", "3", "empty"),
        ("\\boxed{}", "3", "took '' (boxed): empty"),
        ("\\boxed{11:30}", "10:30", "took '11:30' (boxed): not as the gold is written"),
        ("\\boxed{30}", "10:30", "took '30' (boxed): no time or ratio"),
        ("\\boxed{B}", "C", "took 'B' (boxed): isn't C"),
        ("\\boxed{\\sqrt{2}}", "\\sqrt{3}", "took '\\sqrt{2}' (boxed): isn't \\sqrt{3}"),
    ],
)
def test_reason_says_what_was_taken_from_where_and_why_it_lost(text: str, gold: str, reason: str) -> None:
    assert score(text, gold).reason == reason


@pytest.mark.parametrize(
    "gold",
    [
        "\\frac{1}{2^{90}}",
        "n=3, 5, 7",
        "D = (0, 2)",
        "1 - \\frac{1}{\\mathrm{e}}",
        "\\pm 7",
        "10:30",
        "1:2:3",
        "19, 46, \\text{ and } 82",
        "\\text{13}",
        "\\frac{5}{4}",
        "3x - y + 13 = 0",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        "\\frac12",
        "-2 \\le x \\le 7",
        "x < 3",
        "(-\\infty, 3)",
        "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
        "7.41\\%",
        "x^{12}",
        "3k",
        "\\{1, 3, 5\\}",
        "60^\\circ",
        "f(x)=2x+3",
        "C",
        "12\\text{ cm}^2",
        "5.4 \\text{ cents}",
        "\\$36",
        "\\$36.50",
        "2516_8",
        "11,\\! 111,\\! 100",
        "6 - 5i",
        "(6,31,-1)",
        "\\log_2 3",
        "2.179 \\times 10^{-3}",
        "(0,2)",
        "2\\frac{2}{3}",
        "0.\\overline{3}",
        "2024-03-15",
        "March 15, 2024",
        ".5",
        "-½",
        "1,234",
        "3 : 5",
    ],
)
def test_gold_of_every_form_accepts_itself_and_not_a_wrong_answer(gold: str) -> None:
    problem = Problem("p", "math", "", gold)
    assert Math().check(problem) is None
    assert value(gold, gold) == value(f"\\boxed{{{gold}}}", gold) == 1.0
    assert value(Math().wrong_answer(problem) or "", gold) == 0.0


def test_whole_solution_as_gold_is_its_answer() -> None:
    gold = "He earns 3+4=<<3+4=7>>7 dollars\n#### 7"
    assert [value(text, gold) for text in (gold, "#### 7", "7", "#### 3")] == [1.0, 1.0, 1.0, 0.0]


@given(
    st.text(alphabet="0123456789.,:/-+^_{}()$\\ ½²×xABCπ√frac10text", max_size=80),
    st.sampled_from(["7", "C", "10:30", "101_2", "\\frac12"]),
)
@settings(max_examples=300)
def test_reading_any_text_scores_a_value_with_a_reason(text: str, gold: str) -> None:
    found = score(text, gold)
    if found.status == "value":
        assert found.reason
