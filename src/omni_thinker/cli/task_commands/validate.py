"""Every row of a recipe's tasks against its own reward."""

import asyncio
from dataclasses import dataclass, field

from omni_thinker.recipe import Recipe
from omni_thinker.rewards.validate import validate
from omni_thinker.studies.setup import prepare
from omni_thinker.tasks.refused import Refusals
from omni_thinker.types import SPLITS


@dataclass(frozen=True, slots=True)
class Validated:
    """By task: rows whose gold answer doesn't score 1 or whose wrong one does, rows that were left out, and how many
    rows there are and have no gold answer."""

    failures: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    refused: dict[str, Refusals] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    without_gold: dict[str, int] = field(default_factory=dict)

    def words(self, name: str) -> str:
        """What came out for a task, in one line."""
        failed, without = len(self.failures[name]), self.without_gold[name]
        said = f"{failed} rows fail" if failed else "all rows pass"
        if not without:
            return said
        which = "no row has" if without == self.rows[name] else f"{without} of {self.rows[name]} rows don't have"
        return f"{said}; {which} a gold answer, so only a wrong answer was tried there"


def validate_tasks(recipe: Recipe) -> Validated:
    """What every row's reward says of its gold answer and of a wrong one.

    Judged tasks are checked by their gates. Raises UserError for what `prepare` refuses."""
    setup = prepare(recipe, with_judge=False)
    done = Validated(refused={name: refused for name, refused in setup.refused.items() if refused.count})
    for name, task in setup.tasks.items():
        problems = [problem for split in SPLITS for problem in task.problems(split)]
        failed = asyncio.run(validate(problems, setup.gate_rewards[name]))
        done.failures[name] = [{"problem": failure.problem, "reason": failure.reason} for failure in failed]
        done.rows[name] = len(problems)
        done.without_gold[name] = sum(problem.answer is None for problem in problems)
    return done
