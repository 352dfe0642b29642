"""What accuracy cost: tokens against macro accuracy, arm by arm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omni_thinker.arms import RENAMED, colour_of, is_single
from omni_thinker.report.figures import series
from omni_thinker.report.figures.svg import FAINT, INK, PAPER, WIDE, Room, plain, style
from omni_thinker.report.tables import macro_cell
from omni_thinker.runs.read import RunData

PLANNED = ("curriculum", "reverse", "curriculum_net", "joint_planned")
"""Arms whose plan took probes."""
_GAP = 0.075
"""Between two labels, in heights of the panel."""


@dataclass(frozen=True)
class Point:
    """An arm. tokens: sampled and trained in its RL, mean over seeds, of a merge those of its experts. extra: of the
    probes that its plan took. accuracy: macro accuracy on the test split with its standard error."""

    arm: str
    tokens: float
    extra: float
    accuracy: float
    stderr: float


def points(run: RunData) -> list[Point]:
    """Every arm whose accuracy is known, the start at no tokens."""
    probes = _probe_tokens(run)
    rows = []
    for arm in run.arms:
        cell = macro_cell(run, arm)
        spent = _expert_tokens(run) if arm == "merge" else _tokens(run, arm)
        if math.isfinite(cell.mean):
            extra = probes if RENAMED.get(arm, arm) in PLANNED else 0.0
            rows.append(Point(arm, spent, extra, cell.mean, cell.stderr))
    return rows


def _tokens(run: RunData, arm: str) -> float:
    return series.mean(item.tokens_sampled + item.tokens_trained for item in run.result.arms[arm])


def _probe_tokens(run: RunData) -> float:
    """Of the probes that the plan was made from, their evaluations included."""
    rows = [row for row in run.result.probes if row.planned_with]
    spent = series.mean(row.tokens_sampled + row.tokens_trained + row.tokens_evaluated for row in rows)
    return spent if math.isfinite(spent) else 0.0


def _expert_tokens(run: RunData) -> float:
    """Of a whole stage on each task, after which experts are merged."""
    stages = [row.tokens_sampled + row.tokens_trained for row in run.result.probes if row.kind == "full"]
    return series.mean(stages) if stages else math.fsum(_tokens(run, arm) for arm in run.arms if is_single(arm))


def tokens(run: RunData, room: Room = WIDE) -> Figure | None:
    """Tokens against macro accuracy; None where no arm spent any."""
    rows = points(run)
    if not any(point.tokens for point in rows):
        return None
    with style():
        figure = Figure(figsize=(room.width, 3.3 if room.narrow else 3.5), layout="constrained")
        axes = figure.add_subplot()
        for point in rows:
            _mark(axes, point, colour_of(point.arm, run.arms))
        low, high = (pick([p.accuracy + sign * p.stderr for p in rows if math.isfinite(p.stderr)] or [0.0])
                     for pick, sign in ((min, -1), (max, 1)))  # fmt: skip
        margin = 0.08 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlim(left=-0.03 * max(p.tokens + p.extra for p in rows))
        axes.set_xlabel("tokens sampled and trained in RL")
        axes.set_ylabel("macro accuracy, test split")
        axes.locator_params(axis="x", nbins=3 if room.narrow else 7)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        plain(axes)
        _labels(axes, rows, run)
        return figure


def _mark(axes: Axes, point: Point, colour: str) -> None:
    axes.errorbar(point.tokens, point.accuracy, yerr=point.stderr if math.isfinite(point.stderr) else None,
                  color=colour, linewidth=1.4, alpha=0.6)  # fmt: skip
    if point.extra:
        axes.plot([point.tokens, point.tokens + point.extra], [point.accuracy] * 2, ":", color=colour, linewidth=1.6)
        axes.plot([point.tokens + point.extra], [point.accuracy], "o", markersize=5, markerfacecolor=PAPER,
                  markeredgecolor=colour, markeredgewidth=1.4)  # fmt: skip
    hollow = point.arm == "start"
    axes.plot([point.tokens], [point.accuracy], "o", markersize=8, markerfacecolor=PAPER if hollow else colour,
              markeredgecolor=colour, markeredgewidth=1.6)  # fmt: skip


def _labels(axes: Axes, rows: Sequence[Point], run: RunData) -> None:
    """Names on the right, pushed apart, each with a thin line to its point: points at equal budgets lie close."""
    low, high = axes.get_ylim()
    ranked = sorted(rows, key=lambda point: point.accuracy)
    places = spread([(point.accuracy - low) / (high - low) for point in ranked], _GAP)
    for point, place in zip(ranked, places, strict=True):
        axes.annotate(
            point.arm,
            (point.tokens + point.extra, point.accuracy),
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "alpha": 0.7, "shrinkB": 4},
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved apart until each lies `gap` above the one before, as little as it takes, around the same
    middle where they move together."""
    groups: list[list[float]] = []  # of places that touch: those wanted
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _lowest(groups[-1], gap) < _lowest(groups[-2], gap) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_lowest(group, gap) + gap * at for group in groups for at in range(len(group))]


def _lowest(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
