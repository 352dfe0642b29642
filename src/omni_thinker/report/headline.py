"""What a study showed, in a line and three numbers."""

import math
from dataclasses import dataclass

from omni_thinker.arms import is_single
from omni_thinker.report.figures.contrasts import Contrast, against_joint, against_start, detectable
from omni_thinker.report.tables import macro_cell
from omni_thinker.report.words import number, points
from omni_thinker.runs.read import RunData


@dataclass(frozen=True)
class Tile:
    """A number that answers a question. about: what to know of it, in a few words."""

    name: str
    value: str
    about: str


@dataclass(frozen=True)
class Headline:
    line: str
    tiles: tuple[Tile, ...]


def headline(run: RunData) -> Headline:
    """The line, and the tiles: best arm, joint training, and the difference that would have been seen."""
    return Headline(_line(run), tuple(tile for tile in (_best(run), _joint(run), _power(run)) if tile))


def _line(run: RunData) -> str:
    if left := run.result.seeds_left:
        return f"No verdict yet: {left} of {left + len(run.seeds)} seeds are to come"
    against, gains = against_joint(run), against_start(run)
    if not against and not gains:
        return "This run compared no arms"
    if not any(row.mean for runs in run.result.arms.values() for arm in runs for row in arm.test.values()):
        return "Every score on the test split is 0, so no arm can be told from another"
    return _against(against, "joint training") if against else _against(gains, "the start")


def _against(contrasts: list[Contrast], control: str) -> str:
    """The best that was shown, else the worst, else that nothing was."""
    ahead = [each for each in contrasts if each[1].shown and each[1].difference > 0]
    behind = [each for each in reversed(contrasts) if each[1].shown and each[1].difference < 0]
    if not ahead and not behind:
        return f"No arm was shown to differ from {control}"
    first, more = (ahead or behind)[0], len(ahead or behind) - 1
    words = f"{first[0]}{f' and {more} more' if more else ''}"
    by = f"{'by ' if not more else 'by up to '}{points(abs(first[1].difference))} points"
    return f"{words} beat {control} {by}" if ahead else f"No arm beat {control}; {words} fell short {by}"


def _best(run: RunData) -> Tile | None:
    """Of the arms that train or merge all tasks; where there is none, of all."""
    means = {arm: _macro(run, arm) for arm in run.arms}
    known = {arm: pair for arm, pair in means.items() if math.isfinite(pair[0])}
    whole = {arm: pair for arm, pair in known.items() if arm != "start" and not is_single(arm)} or known
    if not whole or not any(mean for mean, _ in whole.values()):
        return None
    best = max(whole, key=lambda arm: whole[arm][0])
    lead = dict(against_joint(run)).get(best)
    words = "" if lead is None or (lead.shown and lead.difference > 0) else "; its lead isn't shown"
    return Tile("Best arm", number(whole[best][0]), f"{best}{_error(whole[best][1])}{words}")


def _joint(run: RunData) -> Tile | None:
    for arm, name in (("joint", "Joint training"), ("start", "Start")):
        if arm in run.arms and math.isfinite(_macro(run, arm)[0]):
            mean, stderr = _macro(run, arm)
            return Tile(name, number(mean), f"macro accuracy{_error(stderr)}")
    return None


def _power(run: RunData) -> Tile | None:
    reach = detectable(against_joint(run) or against_start(run))
    if not math.isfinite(reach):
        return None
    return Tile("Detectable difference", f"{points(reach)} points", "seen nine times in ten")


def _macro(run: RunData, arm: str) -> tuple[float, float]:
    cell = macro_cell(run, arm)
    return cell.mean, cell.stderr


def _error(stderr: float) -> str:
    return f" ± {number(stderr)}" if math.isfinite(stderr) else ""
