"""The curriculum of a study: its plan from a transfer matrix, and the plan of the rest after each stage."""

from collections.abc import Sequence

from omni_thinker.recipe import Recipe
from omni_thinker.runs.schema.plan import Plan
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.result import joint_shares
from omni_thinker.studies.session import Session
from omni_thinker.studies.training import Stage
from omni_thinker.transfer.forecast import in_order
from omni_thinker.transfer.hierarchical import Evidence
from omni_thinker.transfer.plan import make_plan
from omni_thinker.transfer.search import Objective


def plan_curriculum(recipe: Recipe, matrix: TransferMatrix) -> Plan:
    """The plan that a recipe asks for, and its joint training beside it."""
    study = recipe.study
    return make_plan(
        matrix,
        forecaster=study.forecaster,
        strategy=study.strategy,
        order=study.order,
        objective=Objective(study.objective),
        shares=joint_shares(recipe),
    )


class Replanner:
    """Called after each stage: what was seen sharpens the forecast, and the stages to come are put in the order that
    it prefers now."""

    def __init__(self, session: Session, matrix: TransferMatrix, scheduler: Stages) -> None:
        self._session, self._matrix, self._scheduler = session, matrix, scheduler
        self._evidence: list[Evidence] = []

    def __call__(self, ended: Sequence[Stage]) -> None:
        done = tuple(stage.task for stage in ended)
        self._evidence.append(Evidence(in_order(done), ended[-1].evaluation.estimates()))
        remaining = self._scheduler.left(len(done))
        if len(remaining) < 2:
            return
        study = self._session.recipe.study
        plan = make_plan(
            self._matrix,
            forecaster=study.forecaster,
            objective=Objective(study.objective, fixed={task: n for n, task in enumerate(done, 1)}),
            evidence=self._evidence,
            shares=joint_shares(self._session.recipe),
        )
        new = plan.sequence.order[len(done) :]
        if new != remaining:
            self._session.progress.say(f"planned again after {done[-1]}: {' -> '.join(new)}")
            self._scheduler.reorder(len(done), new)
