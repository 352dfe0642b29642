"""A study: measure transfer, plan, train every arm on the same budget, compare on the test split.

    warm-up -> start -> single-task arms (their first stage is the probe) -> transfer matrix -> plan
            -> curriculum, joint, merge -> test split -> comparisons, verdict, report

`units.py` makes the list of what is to be done, `dispatch/` says what comes next, a crew of `crews/` has it done, and
`walk.py` does it."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from omni_thinker.compare.intervals import MIN_PROBLEMS
from omni_thinker.errors import UserError
from omni_thinker.hub.card import write_cards
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.policy.engines import choose_engines
from omni_thinker.recipe import Recipe
from omni_thinker.runs.checkpoints import usable
from omni_thinker.runs.journal import sort_rows
from omni_thinker.runs.progress import Progress, Silent
from omni_thinker.runs.resume import check_run, dated
from omni_thinker.runs.rundir import RunDir, check_free
from omni_thinker.runs.schema.base import with_seeds
from omni_thinker.runs.schema.plan import StudyPlan
from omni_thinker.runs.schema.result import Scores
from omni_thinker.runs.schema.transfer import StudyTransfer
from omni_thinker.runs.tracking.process import tracked
from omni_thinker.runs.tracking.send import check_trackers
from omni_thinker.runs.unit_run import models_of
from omni_thinker.studies.crews.cluster import Cluster
from omni_thinker.studies.crews.make import Where, muster
from omni_thinker.studies.crews.processes import LOGS as LOGS_OF_WORKERS
from omni_thinker.studies.curriculum import plan_curriculum
from omni_thinker.studies.dispatch.board import Board
from omni_thinker.studies.dispatch.loop import Dispatcher
from omni_thinker.studies.dispatch.times import forecast, pace_from
from omni_thinker.studies.estimate import SECONDS, power_words, smallest_difference
from omni_thinker.studies.result import SeedOutcome, to_result
from omni_thinker.studies.setup import Setup, prepare
from omni_thinker.studies.units import Unit, WorkPlan, plan_work
from omni_thinker.studies.walk import SeedWalk
from omni_thinker.transfer.matrix import pool
from omni_thinker.transfer.metrics import to_csv

LOGS = ("metrics.jsonl", "samples.jsonl", "references.jsonl")
"""Files of a run that only grow."""


def run_study(recipe: Recipe, out: Path, *, resume: bool = False, where: Where | None = None) -> dict[str, Any]:
    """Run a whole study into the fresh directory `out`, or resume the one there; returns what `result.json` holds.

    where: who works on its units; this process, where nothing is said.

    Raises UserError before anything is written for whatever can be checked beforehand."""
    began = time.monotonic()
    where = where or Where()
    where.check()
    check_trackers(recipe.track)
    if not resume:
        check_free(out)
    recipe, why = choose_engines(dated(recipe, out if resume else None))
    with Progress(SECONDS) as progress:
        if why:
            progress.say(why)
        progress.show("checking tasks, rewards and every row")
        setup = prepare(recipe, resumed=out if resume else None)
        work = plan_work(recipe)
        progress.expect(work.total)
        with open_study(setup, out, resume=resume, where=where) as (run, owner), tracked(recipe.track, out):
            return _Study(run, setup, work, progress, began, owner).run(where, fresh=not resume)


@contextmanager
def open_study(setup: Setup, out: Path, *, resume: bool, where: Where) -> Iterator[tuple[RunDir, JudgeOwner | None]]:
    """The directory of a study, and the owner of a judge that several processes share, while it is worked on.

    Raises UserError where the directory holds another run."""
    with ExitStack() as stack:
        owner = None
        if setup.judge is not None and not where.alone:
            owner = stack.enter_context(closing(JudgeOwner(setup.recipe.judge)))
        run = stack.enter_context(closing(RunDir(out, setup.recipe, resume=resume)))
        run.open_journal(LOGS, usable=lambda value: usable(run.path, value), counts=owner or setup.counting)
        check_run(run, setup.recipe, setup.pools, judged=setup.judge is not None)
        yield run, owner


class _Study:
    """A study whose directory is open."""

    def __init__(
        self, run: RunDir, setup: Setup, work: WorkPlan, progress: Progress, began: float, owner: JudgeOwner | None
    ) -> None:
        """owner: of the judge that all units share, where several processes work on them."""
        self._owner = owner
        self._run, self._setup, self._work, self._progress, self._began = run, setup, work, progress, began
        self._outcomes: dict[int, SeedOutcome] = {}

    def run(self, where: Where, *, fresh: bool) -> dict[str, Any]:
        """Walk what is left, and write the result."""
        run, setup, recipe, progress = self._run, self._setup, self._setup.recipe, self._progress
        setup.keep_drawn(run.path)
        run.journal.cut()
        progress.say(f"run {recipe.name!r} into {run.path}" + (", resumed" if run.journal.resumed else ""))
        if recipe.track.to:
            progress.say(f"tracked by {', '.join(recipe.track.to)}; `omni-thinker track {run.path}` says where to look")
        if run.journal.dropped:
            progress.say(f"{run.journal.dropped} records were written after the last checkpoint; they are made again")
        if fresh and (words := power_words(setup)):
            progress.say(f"power: {words}")
        result_key = f"result of {list(recipe.study.seeds)}, {recipe.study.bootstrap}, {recipe.study.confidence}"
        if (known := run.journal.noted(result_key)) is not None:
            progress.say("this run has ended; nothing is left to do")
            run.write_json("result.json", known)  # the file may be gone, or hold a verdict over more seeds
            write_cards(run.path)
            return dict(known)
        self._walk(where)
        for name in LOGS:
            sort_rows(run.path / name, [unit.id for unit in self._work.units])
        before = sum(note != result_key for note in run.journal.notes("result of "))
        result = to_result(setup, list(self._outcomes.values()), _seconds(run, self._began), before=before)
        run.write_json("result.json", result)
        run.journal.note(result_key, result)
        write_cards(run.path)
        progress.say("the run has ended")
        return result

    def _walk(self, where: Where) -> None:
        def begun() -> None:
            for seed in self._setup.recipe.study.seeds:
                self._look(seed)

        walk_units(
            self._run, self._setup, self._work, self._progress, where, self._owner, begun=begun, on_end=self._on_end
        )

    def _on_end(self, unit: Unit) -> None:
        self._look(unit.seed)

    def _look(self, seed: int) -> None:
        """Write what is known of the study once all units of a seed have ended."""
        run, recipe = self._run, self._setup.recipe
        units, ended = self._work.of_seed(seed), run.journal.ended()
        if seed in self._outcomes or not all(unit.id in ended for unit in units):
            return
        walk = SeedWalk(self._setup, self._work, seed)
        for unit in units:
            walk.run(unit, run.unit(seed, unit.name), Silent())
        # fp32 weights of every arm; the exported folders are what a user keeps
        shutil.rmtree(models_of(run.path, seed) / "state", ignore_errors=True)
        known = self._outcomes | {seed: walk.outcome()}
        self._outcomes = {seed: known[seed] for seed in recipe.study.seeds if seed in known}
        outcomes = list(self._outcomes.values())
        _write_transfer(run, recipe, outcomes)
        _write_scores(run, outcomes)
        if left := len(recipe.study.seeds) - len(outcomes):
            run.write_json("result.json", to_result(self._setup, outcomes, _seconds(run, self._began), left=left))


def walk_units(
    run: RunDir,
    setup: Setup,
    work: WorkPlan,
    progress: Progress,
    where: Where,
    owner: JudgeOwner | None,
    *,
    begun: Callable[[], None],
    on_end: Callable[[Unit], None],
) -> None:
    """Have the units of `work` worked on that haven't ended. begun: called once there is a crew; on_end: for each unit
    that ends."""
    board = Board(run, work, progress, tuple(setup.recipe.tasks))
    try:
        crew = muster(where, setup, run, work, board, owner)
    except UserError:
        if not run.journal.resumed:
            run.discard()  # nothing was done, and the same --out is free for the next attempt
        raise
    if isinstance(crew, Cluster):
        progress.say(crew.words)
    if not where.alone:
        board.workers = lambda: crew.size
        progress.forecast = board.left
    attempts = setup.recipe.cluster.attempts
    dispatcher = Dispatcher(run, work, board, attempts=attempts, on_end=on_end, owner=owner)
    begun()
    dispatcher.walk(crew, where.order(work, progress.pace()))
    shutil.rmtree(run.path / LOGS_OF_WORKERS, ignore_errors=True)


def describe(recipe: Recipe, times: Path | None = None) -> dict[str, Any]:
    """Check everything that can be checked before step 0, and report the work ahead. Writes nothing. times: what its
    parts take (`pace_from`)."""
    check_trackers(recipe.track)
    pace = SECONDS if times is None else pace_from(times)
    recipe, _ = choose_engines(recipe)
    work, setup = plan_work(recipe), prepare(recipe)
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "problems": {
            split: {task: len(problems) for task, problems in pools.items()} for split, pools in setup.pools.items()
        },
        **({"refused": setup.left_out} if setup.left_out else {}),
        "arms": list(recipe.study.arms),
        "seeds": list(recipe.study.seeds),
        "work": work.total,
        "graph": forecast(work, pace) | {"guessed": times is None},
        "detectable": smallest_difference(setup),
        "power": power_words(setup)
        or "no forecast: that needs joint training, an arm to compare with it, and "
        f"{MIN_PROBLEMS} test problems of each task",
        "recipe": recipe.model_dump(mode="json"),
    }


def _seconds(run: RunDir, began: float) -> float:
    """Seconds that the study took so far. Where it was resumed, or seeds ran side by side, the sum over all of its
    steps and evaluations."""
    lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
    worked: float = sum(json.loads(line)["seconds"] for line in lines)
    return max(time.monotonic() - began, worked)


def _write_scores(run: RunDir, outcomes: Sequence[SeedOutcome]) -> None:
    """scores.json: each arm's score on every test problem."""
    test = {arm: tuple(o.test[arm].values for o in outcomes) for arm in outcomes[0].test}
    run.write_json("scores.json", Scores(seeds=tuple(o.seed for o in outcomes), test=test))


def _write_transfer(run: RunDir, recipe: Recipe, outcomes: Sequence[SeedOutcome]) -> None:
    """transfer.json and plan.json: pooled over the seeds so far, and each seed's own."""
    matrices = {o.seed: o.matrix for o in outcomes if o.matrix is not None}
    plans = {o.seed: o.plan for o in outcomes if o.plan is not None}
    if not matrices:
        return
    pooled = pool(list(matrices.values()))
    run.write_json("transfer.json", with_seeds(StudyTransfer, pooled, matrices))
    run.write_text("transfer.csv", to_csv(pooled))
    for kind in {probed.kind for o in outcomes for probed in o.probes[1:] if probed.matrix is not None}:
        matrices_of_kind = [p.matrix for o in outcomes for p in o.probes if p.kind == kind and p.matrix is not None]
        run.write_json(f"transfer-{kind}.json", pool(matrices_of_kind))
    first = next(iter(plans.values()))
    plan = plan_curriculum(recipe, pooled) if len(plans) > 1 else first
    run.write_json("plan.json", with_seeds(StudyPlan, plan, plans))
