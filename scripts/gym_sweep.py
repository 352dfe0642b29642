"""Every set of reasoning-gym as a task: is it usable, and why not? Prints the table of docs/tasks.md.

    python scripts/gym_sweep.py [NAME ...]

Draws 64 problems for training and 16 each for validation and test, with a cache of its own. Drawing checks every gold;
`validate` then does so once more, through the reward, for eight of the test split. Seconds are processor time."""

import asyncio
import logging
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.isolation import WalledScorer
from omni_thinker.recipe import TaskSpec
from omni_thinker.rewards import make_reward, score_texts, validate
from omni_thinker.tasks.gym import GymTask
from omni_thinker.types import Split

LISTING = "from reasoning_gym import factory\n\n\ndef handle(request):\n    return {'sets': sorted(factory.DATASETS)}\n"
OPTIONS = {"composite": {"datasets": [{"name": "gcd"}, {"name": "arc_1d"}, {"name": "countdown"}]}}
TRAIN, HELD_OUT, VALIDATED = 64, 16, 8
ORDER: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True)
class Row:
    """What became of one set. `levels`: the highest difficulty, -1 where it has none."""

    name: str
    usable: bool
    note: str
    seconds: float = 0.0
    floor: str = ""
    levels: int = -1

    def __str__(self) -> str:
        levels = f"0 to {self.levels}" if self.levels >= 0 else ""
        seconds = f"{self.seconds:.1f}" if self.usable else ""
        cells = (f"`{self.name}`", "yes" if self.usable else "no", seconds, self.floor, levels, self.note)
        return f"| {' | '.join(cells)} |"


def set_names() -> list[str]:
    """All sets that the package registers, as the sandbox sees them."""
    with tempfile.TemporaryDirectory() as folder:
        handler = Path(folder) / "listing.py"
        handler.write_text(LISTING, "utf-8")
        names = WalledScorer(handler, ("reasoning_gym",)).call_sync({}, 60.0, evaluates=True)["sets"]
    return [str(name) for name in names]


def sweep(name: str) -> Row:
    """Make, draw and validate one set."""
    source, options = f"reasoning_gym:{name}", OPTIONS.get(name, {})
    spec = TaskSpec(source=source, options=options, train=TRAIN, validation=HELD_OUT, test=HELD_OUT)
    notes = []
    try:
        try:
            task = GymTask("t", spec)
        except UserError as exc:
            if not (exc.key or "").endswith("allow_evaluating_scorers"):
                raise
            notes.append("its scorer runs answers as code")
            spec = spec.model_copy(update={"allow_evaluating_scorers": True})
            task = GymTask("t", spec)
        task.problems("train")
        seconds = task.draw_seconds
        problems = [problem for split in ORDER for problem in task.problems(split)]
    except UserError as exc:
        return Row(name, False, exc.message)
    if len(problems) < TRAIN + 2 * HELD_OUT:
        notes.append(f"{len(problems)} of {TRAIN + 2 * HELD_OUT} problems")
    if any(problem.answer is None for problem in problems):
        notes.append("no gold answers")
    reward = make_reward(task.reward, judge=None)
    checked = problems[:VALIDATED]
    if failures := asyncio.run(validate(checked, reward)):
        return Row(name, False, f"{len(failures)} of {len(checked)} rows fail: {failures[0].reason}")
    floor = re.search(r"gives nothing ([\d.]+)", asyncio.run(score_texts(reward, problems[0], [""]))[0].reason or "")
    return Row(name, True, "; ".join(notes), seconds, floor[1] if floor else "", highest_level(spec))


def highest_level(spec: TaskSpec) -> int:
    """The last difficulty that can be asked for, as the message says that refuses a higher one."""
    try:
        GymTask("t", spec.model_copy(update={"difficulty": 10.0, "options": {}}))
    except UserError as exc:
        top = re.search(r"difficulties are 0 to (\d+)", exc.message)
        return int(top[1]) if top else -1
    return 10


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as home:
        os.environ["OMNI_THINKER_HOME"] = home
        rows = []
        for name in sys.argv[1:] or set_names():
            rows.append(sweep(name))
            print(rows[-1], flush=True)
    usable = sum(row.usable for row in rows)
    print(f"\n{usable} of {len(rows)} sets of reasoning-gym {version('reasoning-gym')} are usable.")


if __name__ == "__main__":
    main()
