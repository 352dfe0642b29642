"""Characters that mean the same: digits of all scripts, full-width forms, dashes, spaces."""

import re
import unicodedata

CURRENCY = "$€£¥₹₩₽₺₫₱₦₴₪฿¢元円"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

_SAME = {
    "−": "-", "⁄": "/", "∕": "/", "∶": ":", "⋅": "·", "∙": "·", "•": "·", "∗": "*", "٫": ".", "٬": ",", "٪": "%",
    "、": ",", "。": ". ", "‹": "<", "›": ">", "\u00b5": "\u03bc", "\u2126": "\u03a9", "’": "'", "‘": "'",
    "“": '"', "”": '"',
}  # fmt: skip
# A dash between spaces is punctuation, unless it opens an answer ("is – 5"): a dash of its own width never does.
_PAUSE = re.compile(r"(?<!\s)\s+[—―]\s+|(?<![=:(,\s])(?<!\bis)(?<!\bare)\s+–\s+")


class _Folded(dict[int, str]):
    """What a character is folded to. Filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(sign: str) -> str:
    if sign in _SAME:
        return _SAME[sign]
    if sign.isascii():
        return sign
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    kind = unicodedata.category(sign)
    if 0xFF01 <= ord(sign) <= 0xFF5E:  # the full-width forms of ASCII
        return chr(ord(sign) - 0xFEE0)
    if kind == "No" and (fraction := re.fullmatch(r"(\d+)⁄(\d+)", unicodedata.normalize("NFKC", sign))):
        return f" {fraction[1]}/{fraction[2]}"
    return {"Pd": "-", "Zs": " ", "Cf": ""}.get(kind, sign)


_TABLE = _Folded()


def fold(text: str) -> str:
    """`text` with ASCII digits, signs, dashes and spaces: "４２", "٤٢" are "42", "–5" is "-5", "2½" is "2 1/2".

    A dash between spaces becomes ";". Superscripts, letters and currencies stay."""
    return text if text.isascii() else _PAUSE.sub(" ; ", text).translate(_TABLE)
