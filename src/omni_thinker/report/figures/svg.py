"""Figures as inline SVG, and the colours that mean the same thing in every plot."""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The terminal would get a line for each character that no font has, with the character itself.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
# Tol's "muted": it holds for colour-blind readers, as the arms' colours do (Okabe and Ito), and no hue serves twice.
TASK_COLOURS = ("#CC6677", "#332288", "#999933", "#44AA99", "#882255", "#5BA8C9", "#117733", "#AA4499")
TASK_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
INK, FAINT, GRID = "#222222", "#717171", "#dddddd"
AXIS, TICK = "#999999", "#555555"
PAPER = "#ffffff"
"""What lies below a figure: the inside of hollow marks."""
WHITE = "#fefefe"
"""White on dark paper, too."""
DARK = {
    INK: "#e8e8e6", FAINT: "#a3a8ae", GRID: "#383c42", AXIS: "#6b7077", TICK: "#b0b4ba", PAPER: "#1f2226",
    "#332288": "#978ee8", "#882255": "#d772a5", "#117733": "#4fb56f", "#999933": "#bdbd55", "#aa4499": "#cf7fc2",
    "#0072b2": "#4aa8e0", "#d55e00": "#f08b3c", "#009e73": "#2fc79a", "#5e4fa2": "#9d92e2", "#8c564b": "#c48f82",
    "#7f7f00": "#b8b840", "#6e6e6e": "#a8a8a8", "#b0699a": "#cf8ebd", "#6a8fbf": "#8fb0da", "#c51b7d": "#ea6cb2",
    "#1f5fa8": "#2f74c4", "#b84a00": "#c4632a",
}  # fmt: skip
"""Colours that are hard to see on dark paper, and what is drawn there."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, and drawn in the reader's own font
    "font.family": "DejaVu Sans", "font.size": 9,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 8.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": AXIS, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.unicode_minus": True,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.color": TICK, "ytick.color": TICK,
    "legend.frameon": False, "legend.fontsize": 8.5,
    "text.parse_math": False, "text.usetex": False,  # names of tasks and arms are no formulas
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """What a figure has room for. width: in inches of 96 px; columns: panels side by side."""

    width: float
    columns: int

    @property
    def narrow(self) -> bool:
        """Whether it is that of a telephone."""
        return self.columns == 1


WIDE, NARROW = Room(10.0, 2), Room(3.55, 1)


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


def whole_steps(axes: Axes) -> None:
    """Ticks at whole steps alone."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an <svg> element that can stand beside others in one page, and follows the page's light or dark.

    Every id gets `name` as a prefix: matplotlib numbers its ids from 1 in each figure."""
    stream = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
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
    text = re.sub(r'style="[^"]*"', _with_variables, text)
    text = re.sub(r"\n\s*", "\n", text)
    size = re.search(r'viewBox="[^"]+"', text)
    # One point of type is the same size in every figure, and a wide one may be scrolled rather than shrunk.
    width = round(figure.get_figwidth() * 96)
    look = f"max-width:{width}px;min-width:{min(width, max(300, round(width * 0.65)))}px"
    head = f'<svg {size.group(0) if size else ""} style="{look}" role="img" aria-label="{escape(label)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).strip()
    return Markup(text)  # noqa: S704 - our own drawing; matplotlib escapes its texts


def _with_variables(match: re.Match[str]) -> str:
    """Colours of `DARK` become variables of the page's sheet."""
    return re.sub(
        r"#[0-9a-f]{6}", lambda c: f"var(--p{c.group(0)[1:]})" if c.group(0) in DARK else c.group(0), match.group(0)
    )


def sheet() -> str:
    """The variables, on light and on dark paper."""
    light = "".join(f"--p{colour[1:]}:{colour};" for colour in DARK)
    dark = "".join(f"--p{colour[1:]}:{on_dark};" for colour, on_dark in DARK.items())
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
