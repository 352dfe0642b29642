"""Figures as inline SVG, and the colours that mean the same thing in every plot."""

import io
import re
from typing import Any, cast

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Tol's "muted": it holds for colour-blind readers, as the arms' colours do (Okabe and Ito), and no hue serves twice.
TASK_COLOURS = ("#CC6677", "#332288", "#999933", "#44AA99", "#882255", "#5BA8C9", "#117733", "#AA4499")
TASK_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
INK, FAINT, GRID = "#222222", "#717171", "#dddddd"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, and drawn in the reader's own font
    "font.family": "DejaVu Sans", "font.size": 9,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 8.5,
    "axes.labelcolor": INK, "axes.edgecolor": "#999999", "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.unicode_minus": True,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.color": "#555555", "ytick.color": "#555555",
    "legend.frameon": False, "legend.fontsize": 8.5,
    "text.parse_math": False, "text.usetex": False,  # names of tasks and arms are no formulas
}  # fmt: skip


def task_colour(tasks: list[str], task: str) -> str:
    return TASK_COLOURS[tasks.index(task) % len(TASK_COLOURS)] if task in tasks else INK


def task_marker(tasks: list[str], task: str) -> str:
    return TASK_MARKERS[tasks.index(task) % len(TASK_MARKERS)] if task in tasks else "o"


def style() -> Any:
    """The look of all figures, for the length of a `with`: the caller's own settings come back after it."""
    return matplotlib.rc_context(cast(Any, _STYLE))  # matplotlib's stubs list every key; ours is a plain dict


def signed(value: float, digits: int = 3) -> str:
    """`+0.120` or `−0.120`; a rounded zero has no minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def plain(axes: Axes, *, grid: str = "y") -> None:
    """Light grid behind the data, no tick marks."""
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y" if grid == "y" else "x", color=GRID, linewidth=0.7)
    axes.tick_params(length=0)


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an <svg> element that can stand beside others in one page.

    Every id gets `name` as a prefix: matplotlib numbers its ids from 1 in each figure."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = stream.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A <style> in an inline SVG would style the whole page; the page's own sheet sets the same.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    # Hundredths of a point are enough and make a lighter page. Coordinates only, never a text.
    text = re.sub(r'\b[dxy]="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group(0)), text)
    text = re.sub(r"\n\s*", "\n", text)
    size = re.search(r'viewBox="[^"]+"', text)
    # One point of type is the same size in every figure, and a wide one may be scrolled rather than shrunk.
    width = round(figure.get_figwidth() * 96)
    look = f"max-width:{width}px;min-width:{max(340, round(width * 0.65))}px"
    head = f'<svg {size.group(0) if size else ""} style="{look}" role="img" aria-label="{escape(label)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).strip()
    return Markup(text)  # noqa: S704 - our own drawing; matplotlib escapes its texts
