"""What a terminal shows of a study: arms x tasks, filled as they end, and what each running unit is at."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from omni_thinker.errors import printable
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.runs.scoreboard import Scoreboard, Standing, sparkline

MOST_ARMS, MOST_TASKS, MOST_RUNNING = 20, 8, 16
"""Rows and columns that a terminal has room for. With more tasks their mean alone is shown."""


def arms_table(
    board: Scoreboard, arms: Mapping[str, int], tasks: Sequence[str], running: Collection[str] = ()
) -> Table:
    """arms: the RL steps that each will have over all seeds. running: those that are worked on now."""
    shown = list(tasks) if len(tasks) <= MOST_TASKS else []
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm", no_wrap=True)
    for name in [*shown, MACRO]:
        table.add_column(name, justify="right", no_wrap=True)
    for _ in range(3):
        table.add_column("", no_wrap=True)
    ranked = sorted(arms, key=lambda arm: arm not in running)[:MOST_ARMS]  # those at work are never cut off
    for arm in (arm for arm in arms if arm in ranked):
        standing = board.arms.get(arm, Standing())
        table.add_row(*_row(arm, standing, tasks, shown, arms[arm], arm in running))
    if len(arms) > len(ranked):
        table.add_row(Text(f"… {len(arms) - len(ranked)} more", style="dim"))
    return table


def _row(
    arm: str, standing: Standing, tasks: Sequence[str], shown: Sequence[str], whole: int, running: bool
) -> list[RenderableType]:
    means = standing.accuracy(tasks)
    cells = [f"{mean:.3f}" if math.isfinite(mean) else "" for mean in (means if shown else means[-1:])]
    look = "bold" if running else "" if standing.split == "test" else "dim"
    done = sum(standing.steps.values())
    bar: RenderableType = ProgressBar(total=whole, completed=min(done, whole), width=16) if running and whole else ""
    rewards = [values for values in standing.rewards.values() if values]
    line = f"{sparkline(rewards[-1])} {rewards[-1][-1]:.2f}" if running and rewards else ""
    return [Text(printable(arm), look), *(Text(cell, look) for cell in cells), Text(standing.split, "dim"), bar, line]


def units_table(table: Mapping[str, Any]) -> Group:
    """Units by kind and what each running one is at, where several are at work. table: as in status.json."""
    kinds, running = Table("", "done", "running", "waiting", box=None), Table(box=None, show_header=False)
    for kind, counts in table["units"].items():
        kinds.add_row(kind, *(str(counts[state] or "") for state in ("done", "running", "waiting")))
    for unit in table["running"][:MOST_RUNNING]:
        line = Text(printable(unit["line"]), overflow="ellipsis", no_wrap=True)
        running.add_row(f"seed {unit['seed']}", unit["unit"], f"{unit['seconds']:.0f} s", line)
    return Group(kinds, running)
