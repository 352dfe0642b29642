"""The crew that a command asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.isolation import weak_allowed
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.policy.fsdp.place import given_place
from omni_thinker.runs.resume import digests
from omni_thinker.runs.rundir import RunDir
from omni_thinker.studies.crews.cluster import Cluster
from omni_thinker.studies.crews.connect import check_address
from omni_thinker.studies.crews.here import Here
from omni_thinker.studies.crews.node import new_token
from omni_thinker.studies.crews.processes import Processes
from omni_thinker.studies.dispatch.board import Board
from omni_thinker.studies.dispatch.crew import Crew
from omni_thinker.studies.dispatch.queue import ways
from omni_thinker.studies.setup import Setup
from omni_thinker.studies.units import WorkPlan


@dataclass(frozen=True, slots=True)
class Where:
    """Where units are worked on. jobs: processes on this machine; 1: this process. cluster: the address of a Ray
    cluster, or `auto` for the one that is there, else for one on this machine."""

    jobs: int = 1
    cluster: str = ""

    @property
    def alone(self) -> bool:
        """Whether this process works on the units itself."""
        return self.jobs == 1 and not self.cluster

    def check(self) -> None:
        """Raises UserError where it can be told beforehand that nobody works there. Writes nothing."""
        if given_place() is not None and not self.alone:
            raise UserError("torchrun's processes share one model; leave out --jobs and --cluster", key="--jobs")
        if self.cluster:
            check_address(self.cluster)

    def order(self, work: WorkPlan, pace: Mapping[str, float]) -> dict[str, float]:
        """What comes first, see `Queue`: in this process the plan's order, else the longest way to the end. pace:
        seconds of each kind of work."""
        if self.alone:
            return dict.fromkeys((unit.id for unit in work.units), 0.0)
        return ways(work.units, {unit.id: unit.seconds(pace) for unit in work.units})


def muster(where: Where, setup: Setup, run: RunDir, work: WorkPlan, board: Board, owner: JudgeOwner | None) -> Crew:
    """owner: of the judge that all units share. Raises UserError where the crew can't be had."""
    if where.alone:
        return Here(setup, run, work, board.listener)
    hello = hello_of(setup, run.path, judged=owner is not None)
    if where.cluster:
        return Cluster(where.cluster, setup.recipe.cluster, hello, run.path, owner)
    return Processes(hello, run.path, where.jobs, owner)


def hello_of(setup: Setup, run: Path, *, judged: bool) -> dict[str, Any]:
    """What workers are sent before their first unit, see `Worker`. run: the run's directory. judged: whether all units
    share the judge of this process."""
    return {
        "recipe": setup.recipe.model_dump(mode="json"),
        "run": str(run.absolute()),
        "folder": str(Path.cwd()),
        "problems": digests(setup.pools),
        "weak": weak_allowed(),
        "judged": judged,
        "token": new_token(),
    }
