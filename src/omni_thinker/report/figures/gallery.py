"""Every figure of a run by name: for the page, wide and narrow, and for files."""

import io
from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from omni_thinker.report.figures import contrasts, curves, plots, spending, traces
from omni_thinker.report.figures.svg import NARROW, WIDE, Room, style, to_svg
from omni_thinker.runs.read import RunData


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
    """The figure twice: the page's sheet shows the one that fits."""
    draw, label = GALLERY[name]
    if (wide := draw(run, WIDE)) is None:
        return None
    narrow = draw(run, NARROW)
    drawn = Markup('<div class="wide">{}</div>').format(to_svg(wide, name, label))
    if narrow is not None:
        drawn += Markup('<div class="narrow">{}</div>').format(to_svg(narrow, f"{name}-narrow", label))
    return drawn


def as_file(figure: Figure, form: str) -> bytes:
    """The figure as `svg`, `png` or `pdf`, on white paper."""
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=form, dpi=200)
    return stream.getvalue()
