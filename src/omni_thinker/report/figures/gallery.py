"""Every figure of a run by name: for the page, wide and narrow, and for files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from omni_thinker.errors import UserError
from omni_thinker.report.figures import contrasts, curves, plots, spending, traces
from omni_thinker.report.figures.svg import NARROW, WIDE, Room, style, to_svg
from omni_thinker.runs.read import RunData

FORMATS = ("svg", "png", "pdf")


class Drawn(NamedTuple):
    """How a figure is drawn, and what it shows, for those who can't see it."""

    draw: Callable[[RunData, Room], Figure | None]
    label: str


GALLERY = {
    "differences": Drawn(contrasts.joint, "Every arm against joint training, with simultaneous intervals"),
    "tokens": Drawn(spending.tokens, "Tokens against macro accuracy, arm by arm"),
    "gains": Drawn(contrasts.start, "Every arm against the start, with intervals"),
    "learning": Drawn(plots.learning, "Learning curves by task"),
    "interim": Drawn(curves.interim, "Accuracy on interim validations by task"),
    "transfer": Drawn(plots.transfer, "Effect of training on one task upon every task"),
    "forecasts": Drawn(plots.forecasts, "Forecast against outcome"),
    "entropy": Drawn(traces.entropy, "Entropy by task and stage"),
    "health": Drawn(traces.health, "Health of training over steps"),
}


def on_page(run: RunData, name: str) -> Markup | None:
    """The figure as a page shows it."""
    draw, label = GALLERY[name]
    return drawn_twice(partial(draw, run), name, label)


def drawn_twice(draw: Callable[[Room], Figure | None], name: str, label: str) -> Markup | None:
    """A figure wide and narrow: the page's sheet shows the one that fits."""
    drawn = Markup("")
    for room, look, prefix in ((WIDE, "wide", name), (NARROW, "narrow", f"{name}-narrow")):
        if (figure := draw(room)) is None:
            return None
        drawn += Markup('<div class="{}">{}</div>').format(look, to_svg(figure, prefix, label))
    return drawn


@dataclass(frozen=True)
class Picture:
    """A figure that notebooks show by themselves. label: what it shows, in words."""

    figure: Figure
    label: str

    def _repr_svg_(self) -> str:
        return as_file(self.figure, "svg").decode()

    def save(self, path: str | Path) -> None:
        """Write it as what the path ends in, one of FORMATS. Raises UserError for another."""
        file = Path(path)
        form = file.suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise UserError(f"must end in .{', .'.join(FORMATS)}", file=file)
        file.write_bytes(as_file(self.figure, form))


def pictures(run: RunData) -> dict[str, Picture]:
    """Every figure that the run has data for, by name."""
    drawn = {name: (draw(run, WIDE), label) for name, (draw, label) in GALLERY.items()}
    return {name: Picture(figure, label) for name, (figure, label) in drawn.items() if figure is not None}


def as_file(figure: Figure, form: str) -> bytes:
    """The figure as `svg`, `png` or `pdf`, on white paper."""
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=form, dpi=200)
    return stream.getvalue()
