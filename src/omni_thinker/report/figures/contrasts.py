"""Differences between arms with their intervals: against joint training, which a verdict goes by, and the start."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omni_thinker.arms import colour_of, rivals
from omni_thinker.report.figures.svg import AXIS, FAINT, INK, PAPER, WIDE, Room, plain, signed, style
from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.result import Comparison

Contrast = tuple[str, Comparison]


def against_joint(run: RunData) -> list[Contrast]:
    """Every rival of joint training less joint training, macro, the best first."""
    return _contrasts(run, rivals(run.arms), "joint")


def against_start(run: RunData) -> list[Contrast]:
    """Every arm less the start, macro, the best first."""
    return _contrasts(run, [arm for arm in run.arms if arm != "start"], "start")


def _contrasts(run: RunData, arms: Sequence[str], control: str) -> list[Contrast]:
    found = [(arm, item) for arm in arms if (item := run.comparison(arm, control)) is not None]
    finite = [(arm, item) for arm, item in found if math.isfinite(item.difference)]
    return sorted(finite, key=lambda each: -each[1].difference)


def detectable(contrasts: Sequence[Contrast]) -> float:
    """The difference that any of them would show nine times in ten, in [0, 1]; NaN where the data can't say."""
    known = [item.detectable for _, item in contrasts if item.detectable is not None and math.isfinite(item.detectable)]
    return max(known, default=math.nan)


def joint(run: RunData, room: Room = WIDE) -> Figure | None:
    """Every arm against joint training, in points, with the band in which a true difference may go unseen."""
    return _figure(run, room, against_joint(run), "joint training")


def start(run: RunData, room: Room = WIDE) -> Figure | None:
    """Every arm against the start, in points."""
    return _figure(run, room, against_start(run), "the start", band=False)


def _figure(
    run: RunData, room: Room, contrasts: Sequence[Contrast], control: str, *, band: bool = True
) -> Figure | None:
    if not contrasts:
        return None
    with style():
        each = 0.46 if room.narrow else 0.36
        figure = Figure(figsize=(room.width, each * len(contrasts) + 0.95), layout="constrained")
        axes = figure.add_subplot()
        if band and math.isfinite(reach := 100 * detectable(contrasts)):
            axes.axvspan(-reach, reach, color=AXIS, alpha=0.16, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        for at, (arm, item) in enumerate(contrasts):
            _row(axes, at, colour_of(arm, run.arms), item, room)
        axes.set_ylim(len(contrasts) - 0.4, -0.75 if room.narrow else -0.6)
        axes.set_yticks(range(len(contrasts)), [arm for arm, _ in contrasts])
        axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
        axes.set_xlabel(f"points above {control}" if room.narrow else f"points of macro accuracy above {control}")
        axes.locator_params(axis="x", nbins=5 if room.narrow else 9)
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
        plain(axes, grid="x")
        axes.spines["left"].set_visible(False)
        return figure


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-9 else signed(value, 0 if value == round(value) else 1)


def _row(axes: Axes, at: int, colour: str, item: Comparison, room: Room) -> None:
    middle, low, high = 100 * item.difference, 100 * item.low, 100 * item.high
    axes.plot([low, high], [at, at], color=colour, linewidth=2.4, alpha=1.0 if item.shown else 0.55)
    face = colour if item.shown else PAPER
    axes.plot([middle], [at], "o", markersize=7.5, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.6)
    words = f"{signed(middle, 1)}  [{signed(low, 1)}, {signed(high, 1)}]"
    ink = INK if item.shown else FAINT
    if room.narrow:  # above the line, since there is nothing beside it
        paper = {"facecolor": (PAPER, 0.75), "edgecolor": "none", "pad": 0.5}
        axes.annotate(words, (0.5, at - 0.2), xycoords=("axes fraction", "data"), ha="center", va="bottom",
                      fontsize=8, color=ink, bbox=paper)  # fmt: skip
        return
    axes.annotate(words if item.shown else f"{words}  no difference shown", (1.02, at),
                  xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=ink,
                  annotation_clip=False)  # fmt: skip
