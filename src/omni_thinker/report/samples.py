"""Problems with the answers of every arm, and what became of each since the start."""

from dataclasses import dataclass, field

from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.logs import Answer

PER_TASK = 6
MOST_ANSWERS = 360
"""On a page. With more, there are fewer problems of each task."""


@dataclass(frozen=True)
class Shown:
    """An arm's answer to a problem. outcome: `won` or `lost` where its score is above or below that of the start's
    answer, `same`, or empty where either has none. differs: whether its words are others than the start's."""

    arm: str
    answer: Answer
    outcome: str
    differs: bool


@dataclass(frozen=True)
class Example:
    """One problem and the answers of arms to it, the start's first."""

    task: str
    prompt: str
    answer: str
    answers: list[Shown]


@dataclass(frozen=True)
class TaskExamples:
    task: str
    examples: list[Example] = field(default_factory=list)


def example_arms(run: RunData) -> list[str]:
    """Arms that left samples, in the order of tables."""
    present = {item.arm for item in run.answers}
    return [arm for arm in run.arms if arm in present]


def examples(run: RunData) -> list[TaskExamples]:
    """A few problems per task, the first in the file that most arms answered: not picked for what they say."""
    arms = example_arms(run)
    answers = [item for item in run.answers if item.arm in arms]
    if any(item.split == "test" for item in answers):
        answers = [item for item in answers if item.split == "test"]
    seed = min((item.seed for item in answers), default=0)
    known = [*run.tasks, *sorted({item.task for item in answers} - set(run.tasks))]
    per_task = max(1, min(PER_TASK, MOST_ANSWERS // max(1, len(arms) * len(known))))
    rows = []
    for task in known:
        problems: dict[str, list[Answer]] = {}
        for item in answers:
            if item.task == task and item.seed == seed:
                problems.setdefault(item.problem, []).append(item)
        shown = [_example(task, items, arms) for items in problems.values()]
        shown.sort(key=lambda example: -len(example.answers))
        if shown:
            rows.append(TaskExamples(task, shown[:per_task]))
    return rows


def _example(task: str, items: list[Answer], arms: list[str]) -> Example:
    prompt = next((item.prompt for item in items if item.prompt), items[0].problem)
    gold = next((item.answer for item in items if item.answer), "")
    last = {arm: answer for arm in arms if (answer := _last([item for item in items if item.arm == arm])) is not None}
    start = last.get("start")
    return Example(task, prompt, gold, [_shown(arm, answer, start) for arm, answer in last.items()])


def _shown(arm: str, answer: Answer, start: Answer | None) -> Shown:
    if start is None or answer is start:
        return Shown(arm, answer, "", differs=False)
    outcome = ""
    if answer.score is not None and start.score is not None:
        outcome = "won" if answer.score > start.score else "lost" if answer.score < start.score else "same"
    return Shown(arm, answer, outcome, differs=answer.response != start.response)


def _last(items: list[Answer]) -> Answer | None:
    """The first answer of the arm's last evaluation."""
    if not items:
        return None
    final = (items[-1].split, items[-1].stage, items[-1].step)
    return next(item for item in items if (item.split, item.stage, item.step) == final)
