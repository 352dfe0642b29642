"""Answers in plain text as LaTeX, and which of them may be worked out."""

import re

from omni_thinker.rewards.reading.characters import SUPERSCRIPTS, fold

LONGEST_ANSWER = 300
_NEARBY = 1000
"""Characters of a text that an expression is looked for in."""
_DEEPEST = 20
_HOPELESS = re.compile(
    r"""
      (?<!\d)\d{5,}+[\s)}]*+!                                                         # 10000!
    | ![\s)}]*+![\s)}]*+!                                                             # ((3!)!)!
    | \d[\s)}]*+(?:\^|\*\*)[\s({+-]*+\d++[\s)}]*+(?:\^|\*\*)[\s({+-]*+\d{2}          # 1^1^99
    | (?:\^|\*\*)[\s({+-]*+(?:[6-9]|\d\d++)[\s)}]*+(?:\^|\*\*)[\s({+-]*+[7-9]          # 1^9^9
    | \d[\s)}]*+(?:(?:\^|\*\*)[\s({+-]*+\d++[\s)}]*+){3}                            # 1^1^1^1
    | (?:\^|\*\*)[\s({+-]*+\d{7}                                                     # 1^9999999
    | (?:\\(?:sqrt|frac|left|bar|overline|hat|vec|text|mathrm)\b[\s({\[]*+){12}        # roots of roots of roots
    """,
    re.VERBOSE,
)
"""Forms that take minutes to evaluate with larger numbers, and are nobody's answer."""

_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|phi|omega"
_CALLS = "sin|cos|tan|ln|log|exp"
_SIGNS = {
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ",
}  # fmt: skip
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_ROOT = re.compile(
    r"(?<![\\A-Za-z])(?:sqrt|√)\s*(?:\(([^()]{1,100})\)|\{([^{}]{1,100})\}|([0-9]+(?:\.[0-9]+)?|[a-z])(?![a-z]))"
)
_POWER = re.compile(r"\^\s*\(([^()]{1,60})\)")
_VERB = r"\b(?:is|are|be|equals?|gives?|get|obtain|has|have)\b|:"
_LEAD = re.compile(rf".*(?:{_VERB}|(?<![<>=!])=(?!=))", re.IGNORECASE | re.DOTALL)
_LIST_LEAD = re.compile(rf".*(?:{_VERB})", re.IGNORECASE | re.DOTALL)
_REASON = re.compile(r"(?:,\s*|\s+)(?:because|since|as|so|which|where|for|when|by|from)\b.*", re.IGNORECASE | re.DOTALL)
_UNIT = re.compile(
    r"(?<=[0-9)}\]πi])(?:\s+(?!(?:or|and|not|maybe|pi)\b)[A-Za-z]{2,}(?:\^\{?[2-4]\}?|[²³])?\.?){1,3}\s*$"
)
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{3,}")


def plausible(text: str) -> bool:
    """Whether working it out may come to an end."""
    depth = 0
    for sign in re.findall(r"[({})]", text):
        depth = depth + 1 if sign in "({" else max(0, depth - 1)
        if depth > _DEEPEST:
            return False
    return _HOPELESS.search(text) is None


def to_latex(text: str) -> str:
    """An expression in plain text as LaTeX: "3 sqrt(2)", "√17", "pi/2", "x² >= 4", "9 and 10"."""
    text = fold(text).replace("$", " ")
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(SUPERSCRIPTS)}}}", text)
    for _ in range(3):
        text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    text = re.sub(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(rf"(?<![\\A-Za-z])(pi|{_GREEK}|{_CALLS})(?![A-Za-z])", r"\\\1 ", text)
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    text = _POWER.sub(r"^{\1}", text)
    text = re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)
    return re.sub(r",?\s+and\s+", ", ", text).strip(" *`\n").rstrip(".")


def without_unit(text: str) -> str:
    """An expression without the words of a unit after it: "24π cm³" is "24π"."""
    return _UNIT.sub("", text)


def expression(text: str, *, marked: bool, listed: bool) -> str | None:
    """The part of an answer that may be an expression, as LaTeX; None where words are left in it.

    marked: whether the text begins with it, as an announced one does. Of other texts it is what the last line ends in,
    after its last "is", "=" or ":". listed: whether "or" stands between the elements of a list."""
    if not marked:
        text = text.strip().rpartition("\n")[2]
        lead = (_LIST_LEAD if listed else _LEAD).match(text)
        text = text[lead.end() :] if lead else text
    text = text[:_NEARBY] if marked else text[-_NEARBY:]
    text = without_unit(_REASON.sub("", text).lstrip(" *").rstrip(" .*"))
    if listed:
        text = re.sub(r"\s+or\s+", ", ", text)
    found = to_latex(text)
    return (
        None
        if not found or len(found) > LONGEST_ANSWER or _WORD.search(re.sub(r"\\[a-z]+\{[^{}]*\}", "", found))
        else found
    )
