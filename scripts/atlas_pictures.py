"""The three pictures of an atlas's page: who helps whom, forecast against outcome, what planning gains over joint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from atlas_truths import WAYS, Planned, difference, effects
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.priors.cases import Seat
from omni_thinker.transfer.priors.held_out import Said

matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "atlas", "font.size": 9, "axes.titlesize": 10})
KINDS = ("mixture", "sequence", "merge")
COLOURS = {"mixture": "#D55E00", "sequence": "#0072B2", "merge": "#009E73"}
NAMES = {
    "plan": "planned order",
    "reverse": "its reverse",
    "random": "a random order",
    "even": "joint, even shares",
    "shares": "joint, planned shares",
}


def who_helps_whom(matrices: Mapping[Seat, TransferMatrix], path: Path) -> None:
    """Mean effect of each single run on each task, in points; tasks that help most come first."""
    tasks, effects_S_I_J = effects(matrices)
    mean = 100 * effects_S_I_J.mean(axis=0)
    others = np.where(np.eye(len(tasks), dtype=bool), np.nan, mean)
    order = np.argsort(-np.nanmean(others, axis=1))
    shown = mean[np.ix_(order, order)]
    size = 3.0 + 0.26 * len(tasks)
    figure = Figure(figsize=(size + 1.0, size))
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="PuOr_r", vmin=-30, vmax=30)
    names = [tasks[k] for k in order]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("evaluated on")
    axes.set_ylabel("trained on")
    for a, row in enumerate(shown):
        for b, value in enumerate(row):
            dark = abs(value) > 18
            axes.text(b, a, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if dark else "#222222")
    figure.colorbar(image, ax=axes, shrink=0.6, label="points of accuracy gained")
    _save(figure, path)


def forecast_against_outcome(said: Sequence[Said], path: Path) -> None:
    """Each held-out accuracy, as the learned priors forecast it and as it came, by kind of run."""
    figure = Figure(figsize=(9.0, 3.4))
    panels = figure.subplots(1, len(KINDS), sharex=True, sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        own = [one for one in said if one.case.kind == kind]
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        axes.scatter([one.mean for one in own], [one.seen for one in own], s=9, alpha=0.55, color=COLOURS[kind])
        error = fmean(one.error for one in own) if own else float("nan")
        axes.set_title(f"{kind}s: {len(own)} accuracies, mean error {error:.3f}", loc="left")
        axes.set_xlabel("forecast")
    panels[0].set_ylabel("outcome")
    _save(figure, path)


def gain_over_joint(sets: Sequence[Planned], path: Path) -> None:
    """What each way ended above joint training in even shares: every task set as a dot, the mean with its interval."""
    figure = Figure(figsize=(7.0, 2.8))
    axes = figure.subplots()
    ways = [way for way in WAYS if way != "even"]
    for place, way in enumerate(ways):
        gaps = [100 * (own.ways[way] - own.ways["even"]) for own in sets if {way, "even"} <= set(own.ways)]
        axes.scatter(gaps, [place - 0.18] * len(gaps), s=14, color="#0072B2", alpha=0.6)
        if told := difference(sets, way, "even"):
            axes.plot([100 * told.low, 100 * told.high], [place + 0.12] * 2, color="#222222", linewidth=2)
            axes.plot(100 * told.value, place + 0.12, "o", color="#222222")
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(ways)), [NAMES[way] for way in ways])
    axes.invert_yaxis()
    axes.set_xlabel("points above joint training in even shares, mean over a set's tasks")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
