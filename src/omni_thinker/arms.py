"""The arms of a study: one table of what each is, and how names are built and read."""

from collections.abc import Sequence
from dataclasses import dataclass

SINGLE, PROBE, LORA = "single:", "probe:", "lora:"
"""Prefixes of the names of runs on one task alone: an arm, a separate probe, a probe with adapters."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of arm. Kinds are ordered as in `ARMS`.

    subject, object: how sentences name it. about: one line on what it is. staged: it trains one task after another.
    trained: it spends the budget of RL steps; the others cost nothing of their own, or what their parts cost."""

    name: str
    subject: str
    object: str
    about: str
    colour: str
    staged: bool = False
    trained: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("start", "The start", "the start", "the model before any RL", "#6e6e6e"),
        Arm("curriculum", "The planned curriculum", "the planned curriculum",
            "RL on one task after another, in the planned order", "#0072B2", staged=True, trained=True),
        Arm("curriculum_net", "The planned curriculum, after the cost of its probe,",
            "the planned curriculum after the cost of its probe",
            "the planned curriculum on the steps that its probe left over: what a plan is worth after its cost",
            "#6A8FBF", staged=True, trained=True),
        Arm("reverse", "The reverse of the plan", "its reverse",
            "RL on one task after another, in the reverse of the planned order", "#56B4E9", staged=True, trained=True),
        Arm("joint", "Joint training", "joint training", "RL on all tasks mixed in every step", "#D55E00",
            trained=True),
        Arm("joint_planned", "Joint training in planned shares", "joint training in planned shares",
            "RL on all tasks mixed in every step, in the shares that are forecast to end best", "#A6761D",
            trained=True),
        Arm("merge", "The merged experts", "merging the single-task experts",
            "weights of the single-task arms merged by task arithmetic; no RL of its own", "#009E73"),
        Arm("single", "Single-task training", "single-task training", "RL on one task alone", "#B0699A", trained=True),
    )
}  # fmt: skip
QUESTIONS = (
    ("curriculum", "start"),
    ("joint", "start"),
    ("curriculum", "reverse"),
    ("curriculum", "joint"),
    ("curriculum_net", "joint"),
    ("joint_planned", "joint"),
    ("curriculum", "merge"),
    ("joint", "merge"),
)
"""The pairs that a study is run for, in the order in which its verdict answers them."""
RENAMED = {"charged": "curriculum_net"}
"""Arm names in the files of earlier versions, and today's names."""
SCHEDULED_COLOURS = ("#E69F00", "#8C564B", "#7F7F00", "#5E4FA2", "#1B9E9E", "#C51B7D")
"""Colours of scheduled arms in their order, from the first again where there are more arms than colours."""
RANKED = ("start", "curriculum", "curriculum_net", "reverse", "joint", "joint_planned", "merge")
"""The order in which tables list arms; single tasks and scheduled arms follow."""
STAGED = frozenset(name for name, arm in ARMS.items() if arm.staged)
SHARED = frozenset(name for name, arm in ARMS.items() if arm.trained and name != "single")
"""Arms that train all tasks within one budget."""


def is_single(arm: str) -> bool:
    """Whether an arm trains one task alone."""
    return arm.startswith(SINGLE)


def task_of(arm: str) -> str:
    """The task of `single:TASK`, `probe:TASK` or `lora:TASK`; empty for other arms."""
    return next((arm.removeprefix(mark) for mark in (SINGLE, PROBE, LORA) if arm.startswith(mark)), "")


def kind_of(arm: str) -> Arm | None:
    """The table's entry of an arm; None for one that a scheduler makes."""
    return ARMS["single"] if is_single(arm) else ARMS.get(RENAMED.get(arm, arm))


def is_scheduled(arm: str) -> bool:
    """Whether a scheduler makes it."""
    return kind_of(arm) is None and not task_of(arm)


def in_order(arms: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Arms as tables list them: `RANKED`, single tasks in the order of `tasks`, then scheduled ones by name."""
    rank = [*RANKED, *(SINGLE + task for task in tasks)]
    place = {name: rank.index(new) for name in arms if (new := RENAMED.get(name, name)) in rank}
    return sorted(arms, key=lambda arm: (place.get(arm, len(rank)), arm))


def rivals(arms: Sequence[str], control: str = "joint") -> list[str]:
    """Arms that are compared with `control`: all but the start and single tasks, which answer other questions."""
    return [arm for arm in arms if arm not in ("start", control) and not is_single(arm)]


def colour_of(arm: str, arms: Sequence[str] = ()) -> str:
    """Its colour in every figure. arms: all of the run, which tell scheduled ones apart."""
    if (kind := kind_of(arm)) is not None:
        return kind.colour
    scheduled = sorted(name for name in {*arms, arm} if is_scheduled(name))
    return (
        SCHEDULED_COLOURS[scheduled.index(arm) % len(SCHEDULED_COLOURS)] if arm in scheduled else ARMS["single"].colour
    )
