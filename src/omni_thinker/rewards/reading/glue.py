"""What makes a number part of something else: an operator, a bracket, a power, a variable, a time, a date."""

import re

from omni_thinker.rewards.reading.latex import VARIABLES

_NEARBY = 60
"""Characters before a number that are looked at."""
_DENIED = re.compile(r"(?:\bnot|n't|\bnever|\bno|[<>≤≥≠±^_]|\\(?:neq?|[lg]eq?|[lg]t|pm|mp))\s*\$?\s*$", re.IGNORECASE)
_OPERAND = r"(?:[0-9]|[)\]}]|(?<![^\W\d_])(?<!['\\])[b-zB-HJ-Z])"
_BEFORE = re.compile(
    rf"""(?:
        [\^_√]\s*[{{(]?\s*[-+]?
      | (?:(?<![A-Za-z])[A-Za-z]|sqrt|sin|cos|tan|log|ln|exp|gcd|lcm|max|min|mod)[({{]\s*     # f(3)
      | \\(?:sqrt|[dtc]?frac|log|ln|sin|cos|tan|binom|bar|hat|vec|overline|times|cdot|div)(?![a-z])[^$\s]{{0,20}}\s*
      | \b(?:[bp]?mod\b[ ({{]*|[Ss]tep[ ]+)
      | (?:\S[ \t]+|[0-9)}}|]|(?<![A-Za-z<])[A-Za-z])[<>≤≥≠]=?\s*                             # x > 3
      | {_OPERAND}[ \t]*[*×·/÷+^]\s*                                                           # 5 * 3
      | [0-9][ \t]*x[ \t]*                                                                    # 5 x 3
      | [0-9](?:[-:/.]|[ ]:[ ]?)                                                             # 10:30, 2024-03-15, 1.2.3
    )[$]?$""",
    re.VERBOSE,
)
_SUBTRACTED = re.compile(rf"{_OPERAND}[ \t]*$")
_AFTER = re.compile(
    rf"""\s*(?:
        [/](?!\s*[A-Za-z]{{2}}|[-\s]*$)
      | [*^<>≤≥≠±~_×÷·](?![-\s]*$)
      | [-+](?=\s*(?:[0-9.(\\√]|[A-Za-z](?![A-Za-z])|sqrt|pi\b))
      | [(\[](?=\s*(?:[-+]?[0-9\\]|[A-Za-z]\s*[-+*/^)]|base\b))
      | (?:in\s+)?base\s*[0-9]
      | [:]\s?[0-9]
      | [!²³¹⁰-⁹√π]
      | \\(?!circ|degree|%|text|mathrm|,|;|\ |\)|\]|quad\s*$)
      | pi\b
      | \.\.
      | \.[0-9]
      | (?![mscghLNVWJ]\s*[\^²³])[A-Za-z]\s*[\^²³]                                             # 3 x^2
    )
    | \s?[xyzn](?![A-Za-z'])
    | [{VARIABLES}](?![A-Za-z])""",
    re.VERBOSE,
)
_EXCLAIMED = re.compile(r"!+(?=\s|$|\*)")


def denied(before: str) -> bool:
    """Whether the text before a number denies it, or makes it a bound ("not 3", "> 3")."""
    return _DENIED.search(before[-_NEARBY:]) is not None


def glued_before(before: str, number: str) -> bool:
    """Whether a number continues what stands before it: 2^10, f(3), 5 * 3, 12 - 5, 10:30, 2024-03-15."""
    near = before[-_NEARBY:]
    word = near.rstrip(" $")
    if (
        word[-2:].isalpha()
        and len(word) < len(near)
        and not word.casefold().endswith(("mod", "step"))
        and "\\" not in near
    ):
        return False  # "has 12": what almost all numbers of prose follow, at no cost
    return _BEFORE.search(near) is not None or (number[:1] in "+-" and _SUBTRACTED.search(near) is not None)


def glued_after(after: str, *, prose: bool = False) -> bool:
    """Whether what stands after a number continues it: 3x, 3 + 4, 3!, 10:30. In prose "!" is an exclamation."""
    if prose and (mark := _EXCLAIMED.match(after)):
        after = after[mark.end() :]
    return _AFTER.match(after) is not None
