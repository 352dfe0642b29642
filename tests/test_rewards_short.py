"""Short answers: one property for each kind of spelling, and values by hand."""

from __future__ import annotations

import asyncio
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from omni_thinker.rewards.text import Exact, ShortAnswer, normalise
from omni_thinker.types import Group, Problem, Sample, Score

CITIES = ["Paris", "Lyon", "New York", "東京", "København", "Kraków"]
CHOICES = ["Lyon", "Nice", "Paris", "Brest", "Toulouse"]
SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = [(10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")]


def score(response: str, answer: str, part: ShortAnswer | Exact | None = None, **data: object) -> Score:
    group = Group((1,), (Sample((1,), (0.0,), response, "stop"),))
    return asyncio.run((part or ShortAnswer()).score(group, Problem("p", "qa", "", answer, data)))[0]


def spelled(number: int, link: str, hyphen: str) -> str:
    """The words of a number. `link`: "and" or nothing before its last part; `hyphen`: within forty-two."""
    for scale, name in SCALES:
        if number >= scale:
            head, rest = divmod(number, scale)
            words = f"{spelled(head, link, hyphen)} {name}"
            join = link if rest < 100 else " "
            return f"{words}{join}{spelled(rest, link, hyphen)}" if rest else words
    if number < 20:
        return SMALL[number]
    return TENS[number // 10 - 2] + (f"{hyphen}{SMALL[number % 10]}" if number % 10 else "")


# -- numbers ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**14) | st.integers(0, 5000), st.sampled_from([" and ", " "]), st.sampled_from(["-", " ", "‑"]))
def test_any_spelled_number_is_its_figure(number: int, link: str, hyphen: str) -> None:
    words = spelled(number, link, hyphen)
    assert normalise(words) == str(number)
    assert normalise(words.title()) == str(number)
    assert normalise(f"{words} people") == f"{number} people"
    assert score(words, f"{number:,}").value == 1.0
    assert score(words, str(number + 1)).value == 0.0


@given(st.integers(0, 10**9), st.integers(0, 5), st.sampled_from(SCALES[:4]), st.sampled_from(["", "$", "€"]))
def test_figures_with_a_magnitude_are_the_whole_number(
    whole: int, places: int, scale: tuple[int, str], sign: str
) -> None:
    digits = str(whole).rjust(places + 1, "0")
    figure = digits if not places else f"{digits[:-places]}.{digits[-places:]}"
    value = normalise(f"{sign}{figure} {scale[1]}")
    assert value.startswith(sign)
    left, _, right = value.removeprefix(sign).partition(".")
    assert int(left + right.ljust(places, "0")) == whole * scale[0], "both times 10 ** places"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("3 million", "3000000"), ("2.5 billion", "2500000000"), ("$1.25 million", "$1250000"), ("1,500 million", "1500000000"),
        ("half a million", "500000"), ("two and a half million", "2500000"), ("three point one four", "3.14"),
        ("minus five", "-5"), ("negative 7", "-7"), ("10 minus 5", "10 minus 5"), ("fifty percent", "50%"),
        ("50 %", "50%"), ("50 per cent", "50%"), ("twenty-first", "21st"), ("one hundred and third", "103rd"),
        ("eleventh", "11th"), ("one third", "1/3"), ("three-quarters", "3/4"), ("nineteen eighty-four", "1984"),
        ("twenty, thirty", "20 30"), ("forty, two", "40 2"), ("one-two", "one-two"), ("two thousand, five hundred", "2500"),
        ("million million", "1000000 1000000"), ("no one", "no one"), ("no one hundred", "no 100"), ("some one", "some one"),
        ("one-way", "one-way"), ("million", "1000000"), ("millions", "millions"), (".5", "0.5"), ("-.5", "-0.5"), ("5.", "5"),
        ("...5", "5"), ("2½", "2 1/2"), ("10²", "10^2"), ("H₂O", "h2o"), ("٣٬٠٠٠", "3000"), ("٣٫٥", "3.5"), ("٥٠٪", "50%"),
    ],
)  # fmt: skip
def test_numbers_have_one_normal_form(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


@given(
    st.lists(
        st.sampled_from([*SMALL, *TENS, *(name for _, name in SCALES), "and", "minus", "half", "point", "percent", "per",
                         "cent", "first", "thirds", "no", "5", "2.5", "1,000", "forty-two", "x", "one,", "twenty,"]),
        max_size=9,
    )
)  # fmt: skip
def test_normal_form_of_any_number_words_is_final(words: list[str]) -> None:
    once = normalise(" ".join(words))
    assert normalise(once) == once


def test_numbers_of_thousands_of_digits_are_left_alone() -> None:
    for text in ("9" * 5000 + " million", "1" + ",000" * 2000 + " million", "0." + "1" * 5000 + " thousand"):
        assert score(text, "5").value == 0.0


# -- words ------------------------------------------------------------------------------------------------------------


@given(st.text(string.ascii_lowercase, min_size=2, max_size=8), st.sampled_from(["A", "a"]))
def test_last_letter_a_is_no_article(word: str, letter: str) -> None:
    assume(word not in ("an", "the"))
    assert score(word, f"{word} A").value == 0.0
    assert score(f"{word} {letter}", f"{word} A").value == 1.0
    assert score(f"the {word} {letter}", f"{word} A").value == 1.0


@pytest.mark.parametrize(
    ("response", "answer", "value"),
    [
        ("vitamin deficiency", "Vitamin A deficiency", 0.0), ("vitamin a deficiency", "Vitamin A deficiency", 1.0),
        ("What a Wonderful World", "What A Wonderful World", 1.0), ("THIS IS A TEST", "this is test", 1.0),
        ("Tale of Two Cities", "A Tale of Two Cities", 1.0), ("“The Godfather”", "Godfather", 1.0),
        ("The", "the", 1.0), ("A", "B", 0.0), ("anything", "A", 0.0), ("Oréal", "L'Oréal", 0.0),
    ],
)  # fmt: skip
def test_articles_are_dropped_where_they_say_nothing(response: str, answer: str, value: float) -> None:
    assert score(response, answer).value == value


@given(st.sampled_from(CITIES), st.sampled_from("。、！？…·،؛؟।॥«»„“”‘’「」『』《》（）【】¿¡՞"), st.booleans())
def test_punctuation_of_any_script_at_the_edges_is_no_part_of_an_answer(city: str, sign: str, both: bool) -> None:
    response = f"{sign}{city}{sign}" if both else f"{city}{sign}"
    assert score(response, city).value == 1.0
    assert score(city, response).value == 1.0
    assert score(response, "Lima").value == 0.0


@given(st.integers(0, 10**9), st.sampled_from("٠۰०০๐༠០０𝟎"))
def test_digits_of_any_script_are_the_same_number(number: int, zero: str) -> None:
    other = "".join(chr(ord(zero) + int(digit)) for digit in str(number))
    assert score(other, str(number)).value == 1.0
    assert score(other, str(number + 1)).value == 0.0


@given(st.text("abcxyzäöüßéñçİIiœæøåðþλσςжщ", min_size=1, max_size=12))
def test_case_never_matters(word: str) -> None:
    assert normalise(word.upper()) == normalise(word.lower()) == normalise(word.title())


@given(st.sampled_from(CITIES), st.sampled_from("\u200b\u200d\ufeff\u00ad\u200e\u2060"), st.integers(0, 4))
def test_characters_that_cannot_be_seen_do_not_matter(city: str, unseen: str, place: int) -> None:
    assert score(city[:place] + unseen + city[place:], city).value == 1.0


@pytest.mark.parametrize(
    ("given_text", "gold"),
    [("102", "10²"), ("21/2", "2½"), ("5", ".5"), ("5", "-5"), ("50", "50%"), ("C", "C#"), ("5‰", "5")],
)
def test_signs_that_change_a_meaning_are_kept(given_text: str, gold: str) -> None:
    assert score(given_text, gold).value == 0.0
    assert score(gold, gold).value == 1.0


# -- where the answer stands ------------------------------------------------------------------------------------------

LEADS = ["", "Answer: ", "Answer：", "Ａｎｓｗｅｒ： ", "**Answer:** ", "**Answer**: ", "*Answer:* ", "### Answer\n", "# Answer: ",
         "The answer is ", "The answer is: ", "So the answer is ", "Final answer: ", "**Final Answer:**\n", "My answer is ",
         "The correct answer is ", "ANSWER = ", "答案：", "答案是", "> "]  # fmt: skip
WRAPS = ["{}", "**{}**", "*{}*", "`{}`", "\"{}\"", "({})", "[{}]", "{}.", "**{}.**", "\\boxed{{{}}}", "$\\boxed{{{}}}$",
         "\\boxed{{\\text{{{}}}}}", "\\text{{{}}}", "<answer>{}</answer>", "{}\n", "{}!", "__{}__", "{}</s>",
         "{}<|im_end|>"]  # fmt: skip
THOUGHTS = ["", "<think>Lyon? No.</think>\n", "Lima, or {}.\n</think>\n\n", "<thinking>\n\\boxed{{Lima}}\n</thinking>"]


@given(st.sampled_from(LEADS), st.sampled_from(WRAPS), st.sampled_from(THOUGHTS), st.sampled_from(CITIES))
def test_leads_marks_and_thoughts_are_no_part_of_an_answer(lead: str, wrap: str, thoughts: str, city: str) -> None:
    response = thoughts.format(city) + lead + wrap.format(city)
    assert score(response, city).value == 1.0
    assert score(response, "Lima").value == 0.0
    assert score(f"{response} or Lima", city).value == 0.0
    assert score(f"{response} or Lima", "Lima").value == 0.0


@pytest.mark.parametrize(
    "response",
    ["Paris or Lyon", "Paris / Lyon", "not Paris", "The answer is not Paris", "It could be Paris", "Paris Paris",
     "Paris? No, Lyon", "Paris, Lyon", "Answer: Paris\nAnswer: Lyon", "\\boxed{Paris} \\boxed{Lyon}", "Answer:", "...",
     "<think>Paris", "<think>The answer is Paris</think>", "The answer island Paris", "Answer: Lyon\n</think>\nParis?! Rome"],
)  # fmt: skip
def test_hedges_lists_and_thoughts_alone_are_wrong(response: str) -> None:
    assert score(response, "Paris", choices=CHOICES, letters_ok=True).value == 0.0


@given(st.lists(st.sampled_from(string.ascii_letters), min_size=2, max_size=5), st.sampled_from(["", " of it", " 7"]))
def test_dots_between_initials_do_not_count(letters: list[str], rest: str) -> None:
    plain = "".join(letters) + rest
    for dotted in (".".join(letters) + rest, ".".join(letters) + "." + rest):
        assert score(dotted, plain).value == score(plain, dotted).value == 1.0
        assert score(dotted, f"{plain}x").value == 0.0


def test_gold_that_begins_like_a_lead_accepts_itself() -> None:
    assert score("The answer is blowing in the wind", "The answer is blowing in the wind").value == 1.0


LETTERS = ["{l}", "({l})", "{l}.", "{l})", "**{l}**", "[{l}]", "Option {l}", '"{l}"', "{l}!"]
LABELS = ["{l}) {t}", "({l}) {t}", "{l}. {t}", "{l}: {t}", "**{l}) {t}**", "**{l})** {t}", "[{l}] {t}", "Option {l}: {t}",
          "{l})\n{t}"]  # fmt: skip


@given(
    st.sampled_from(LEADS[:8]), st.sampled_from(LETTERS + LABELS), st.integers(0, 4), st.integers(0, 4),
    st.integers(0, 4), st.sampled_from([0, 32, 0xFEE0]),
)  # fmt: skip
def test_letter_counts_with_letters_ok_and_only_with_its_own_text(
    lead: str, form: str, gold: int, place: int, named: int, shift: int
) -> None:
    response = lead + form.format(l=chr(ord("A") + place + shift), t=CHOICES[named])
    agree = place == gold and (form in LETTERS or named == gold)
    found = score(response, CHOICES[gold], choices=CHOICES, letters_ok=True)
    assert found.value == float(agree)
    assert score(response, CHOICES[gold], choices=CHOICES).value == 0.0


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("Lyon", "took 'Lyon' (whole): not the gold answer 'Paris'"), ("", "empty"), ("...", "took '...' (whole): empty"),
        ("<think>Paris", "no answer after the thoughts"), ("**Answer:** Lyon", "took 'Lyon' (announced): not the gold answer 'Paris'"),
        ("\\boxed{Lyon}", "took 'Lyon' (boxed): not the gold answer 'Paris'"), ("**Answer: Lyon**.", "took 'Lyon.' (announced): not the gold answer 'Paris'"),
        ("A: Paris", "took 'A: Paris' (whole): not the gold answer 'Paris': its letter and its text disagree"), ("Answer: Paris", "took 'Paris' (announced)"),
        ("c", "took 'c' (whole), an option's letter"),
    ],
)  # fmt: skip
def test_reason_says_what_was_taken_and_why_it_lost(response: str, reason: str) -> None:
    assert score(response, "Paris", choices=CHOICES, letters_ok=True).reason == reason


@pytest.mark.parametrize(
    ("response", "answer", "value", "reason"),
    [
        ("<think>[2]</think>\n[1]", "[1]", 1.0, "took '[1]' (whole)"), ("<think>[1]", "[1]", 0.0, "took '' (whole): no literal"),
        ("```\n[1]\n```", "[1]", 1.0, "took '[1]' (block)"), ("[2]", "[1]", 0.0, "took '[2]' (whole): not the gold value"),
        ("so\n</think>some  text", "some text", 1.0, "took 'some text' (whole)"),
        ("Some text", "some text", 0.0, "took 'Some text' (whole): not the gold text"),
    ],
)  # fmt: skip
def test_exact_reads_what_follows_the_thoughts(response: str, answer: str, value: float, reason: str) -> None:
    found = score(response, answer, Exact())
    assert (found.value, found.reason) == (value, reason)
