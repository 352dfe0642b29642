"""A table once, in four forms: for the page, as CSV, as LaTeX, and as plain rows for pandas."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from omni_thinker.errors import UserError
from omni_thinker.report.words import count, duration, number, share, signed, visible

if TYPE_CHECKING:
    import pandas

ARROW = " → "


@dataclass(frozen=True, slots=True)
class Form:
    """How a kind of value is shown. page: its text; parts: endings of the columns that it fills elsewhere, and `split`
    the raw values of these."""

    page: Callable[[Any], str]
    parts: tuple[str, ...] = ("",)
    split: Callable[[Any], tuple[Any, ...]] = lambda value: (value,)
    left: bool = False


def _pair(show: Callable[[float], str], between: str) -> Callable[[Any], str]:
    return lambda value: f"{show(value[0])}{between}{show(value[1])}"


def _spread(value: tuple[float, float]) -> str:
    return number(value[0]) + (f" ± {number(value[1])}" if math.isfinite(value[0]) else "")


FORMS = {
    "text": Form(str, left=True),
    "order": Form(ARROW.join, split=lambda tasks: (ARROW.join(tasks),), left=True),
    "number": Form(number),
    "short": Form(lambda value: number(value, 2)),
    "tiny": Form(lambda value: number(value, 4)),
    "signed": Form(signed),
    "cosine": Form(lambda value: signed(value, 2)),
    "count": Form(count),
    "share": Form(share),
    "seconds": Form(duration, parts=("_seconds",)),
    "estimate": Form(_spread, parts=("", "_stderr"), split=tuple),
    "interval": Form(_pair(number, "–"), parts=("_low", "_high"), split=tuple),
    "bar": Form(lambda markup: markup, parts=(), split=lambda _: ()),  # a drawing of what another column says
    "change": Form(_pair(signed, " to "), parts=("_low", "_high"), split=tuple),
}


@dataclass(frozen=True, slots=True)
class Column:
    """key: its name in files. head: what stands above it on the page. form: of `FORMS`."""

    key: str
    head: str
    form: str = "number"
    wrap: bool = False
    """Whether its texts may be broken."""
    rule: bool = False
    """Whether a line stands to its left."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A table. name: of its file and its element. strong, aside: numbers of rows that stand out, or stand back."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    strong: frozenset[int] = field(default_factory=frozenset)
    aside: frozenset[int] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def header(self) -> list[str]:
        """Names of the plain columns."""
        return [column.key + part for column in self.columns for part in FORMS[column.form].parts]

    def plain(self) -> list[list[Any]]:
        """Raw values: numbers as they are, a missing one as None."""
        return [
            [_raw(value) for column, cell in zip(self.columns, row, strict=True) for value in _split(column, cell)]
            for row in self.rows
        ]

    def shown(self) -> list[list[str]]:
        """What a reader sees of each column that holds more than a drawing."""
        kept = [at for at, column in enumerate(self.columns) if FORMS[column.form].parts]
        return [[_shown(self.columns[at], row[at]) for at in kept] for row in self.rows]

    def lefts(self) -> list[bool]:
        """Which of these columns are set to the left."""
        return [FORMS[column.form].left for column in self.columns if FORMS[column.form].parts]


def _split(column: Column, cell: Any) -> tuple[Any, ...]:
    form = FORMS[column.form]
    return (None,) * len(form.parts) if cell is None else form.split(cell)


def _raw(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_pandas(frame: Frame) -> "pandas.DataFrame":
    """The raw values. Raises UserError where pandas, an extra, is missing."""
    try:
        from pandas import DataFrame
    except ModuleNotFoundError:
        raise UserError("tables need pandas; run: pip install pandas") from None
    return DataFrame(frame.plain(), columns=frame.header())


def to_csv(frame: Frame) -> str:
    """Comma-separated, with a header; a missing value is empty. Texts that a spreadsheet would compute are quoted by
    an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_harmless, frame.header()))
    writer.writerows([_harmless(value) for value in row] for row in frame.plain())
    return stream.getvalue()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def to_latex(frame: Frame) -> str:
    """A `tabular` with booktabs' rules, with what the page shows."""
    places = "".join("l" if left else "r" for left in frame.lefts())
    heads = (column.head for column in frame.columns if FORMS[column.form].parts)
    lines = [f"\\begin{{tabular}}{{{places}}}", "\\toprule", _line(heads), "\\midrule", *map(_line, frame.shown())]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _line(cells: Any) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$",
    "−": "$-$", "±": r"$\pm$", "–": "--", "\u202f": r"\,", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$",
    "△": r"$\triangle$", "▽": r"$\triangledown$", "<": "$<$", ">": "$>$",
} | {mark: f"\\{mark}" for mark in "&%$#_{}"}  # fmt: skip


def _latex(text: str) -> str:
    return re.sub(".", lambda mark: _LATEX.get(mark.group(0), mark.group(0)), " ".join(text.split()))


def _shown(column: Column, cell: Any) -> str:
    return "–" if cell is None else FORMS[column.form].page(cell)


def to_html(frame: Frame) -> Markup:
    """The table's element. Each cell carries its column's head, which a narrow page shows beside it."""
    heads = "".join(f"<th{_look(column)}>{escape(column.head)}</th>" for column in frame.columns)
    lines = [f'<table id="table-{escape(frame.name)}"><thead><tr>{heads}</tr></thead>', "<tbody>"]
    for at, row in enumerate(frame.rows):
        look = ' class="best"' if at in frame.strong else ' class="aside"' if at in frame.aside else ""
        cells = (_cell(n, *each) for n, each in enumerate(zip(frame.columns, row, strict=True)))
        lines.append(f"<tr{look}>" + "".join(cells) + "</tr>")
    return Markup("\n".join([*lines, "</tbody></table>"]))  # noqa: S704 - every text in it is escaped


def _cell(at: int, column: Column, cell: Any) -> str:
    tag, scope = ("td", "") if at else ("th", ' scope="row"')
    return f'<{tag}{scope} data-head="{escape(column.head)}"{_look(column)}>{escape(_shown(column, cell))}</{tag}>'


def _look(column: Column) -> str:
    left = FORMS[column.form].left
    names = [name for name, on in (("left", left), ("wrap", column.wrap), ("macro", column.rule)) if on]
    return f' class="{" ".join(names)}"' if names else ""
