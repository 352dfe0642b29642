"""`omni-thinker plan` and `forecast`: from a file and a few words to a plan."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.read import read_atlas, read_result
from omni_thinker.runs.schema.plan import Plan
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import Joint, Merge, Stage, in_order
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from omni_thinker.transfer.matrix import load_matrix
from omni_thinker.transfer.metrics import shared, specific, transfer
from omni_thinker.transfer.plan import check_measured, forecast_json, make_plan
from omni_thinker.transfer.priors.named import HAND
from omni_thinker.transfer.search import Objective
from omni_thinker.types import TaskName

_MOST_PASSES = 1000
_MOST_SCALE = 10


def plan_file(
    path: Path,
    *,
    forecaster: str,
    strategy: str,
    order: Sequence[TaskName],
    objective: str,
    fixed: str,
    refresh_cost: float | None,
    evidence: Sequence[Path],
    level: float,
) -> Plan:
    """The plan for the matrix at `path`. Raises UserError for a bad file and for words that can't be read.

    `evidence`: run directories whose stages are taken to have begun where the matrix was measured, and at most one
    atlas.jsonl, from which the priors are learned."""
    _check_level(level)
    if refresh_cost is not None and not 0 <= refresh_cost < 1e300:
        raise UserError(f"must be 0 or more, got {refresh_cost:g}", key="--refresh-cost")
    places = _task_numbers(fixed, "--fix")
    if bad := [task for task, place in places.items() if place != int(place)]:
        raise UserError(f"places must be whole numbers, got {bad[0]}={places[bad[0]]:g}", key="--fix")
    goal = _objective(objective)
    if evidence and forecaster != Hierarchical.name:
        raise UserError(f"only {Hierarchical.name} learns from runs; {forecaster} is a formula", key="--evidence")
    if len({run.resolve() for run in evidence}) < len(evidence):
        raise UserError("names a run twice", key="--evidence")
    matrix = load_matrix(path)
    atlases = [run for run in evidence if run.suffix == ".jsonl"]
    runs = [run for run in evidence if run not in atlases]
    if runs and matrix.evaluations:
        raise UserError("can't be used with a matrix that has evaluations", key="--evidence")
    return make_plan(
        matrix,
        forecaster=forecaster,
        strategy=strategy,
        order=order,
        objective=Objective(goal.kind, goal.weights, {task: int(place) for task, place in places.items()}),
        level=level,
        refresh_cost=refresh_cost,
        evidence=[outcome for run in runs for outcome in _evidence(run, matrix.tasks)],
        priors=_learned(atlases) if atlases else HAND,
    )


def _learned(atlases: Sequence[Path]) -> Priors:
    """Priors from one atlas, said as it goes on. Raises UserError for two, and for one that is too small."""
    from omni_thinker.transfer.priors.learn import learn_from

    if len(atlases) > 1:
        raise UserError("takes one atlas.jsonl; append the rows of the other one to it", key="--evidence")
    (path,) = atlases
    try:
        rows = read_atlas(path)
        with Progress() as progress:
            progress.say(f"learning priors from {path}")
            return learn_from(rows, name=str(path), on_try=lambda score: progress.show(f"error (CRPS) {score:.4f}"))
    except UserError as exc:
        raise UserError(exc.message, file=path, key="--evidence") from None


def _evidence(run: Path, tasks: Sequence[TaskName]) -> list[Evidence]:
    """Every evaluation after a stage that a run's result.json tells. Raises UserError where there is none."""
    try:
        path = run / "result.json" if run.is_dir() else run
        arms = read_result(path).arms
    except OSError as exc:
        raise UserError(f"can't be read: {exc.strerror or exc}", file=f"{run!s:.200}", key="--evidence") from None
    except UserError as exc:
        where = f"{exc.key} " if exc.key else ""
        raise UserError(f"can't be read: {where}{exc.message}", file=exc.file, key="--evidence") from None
    evidence = []
    for arm, stages in ((arm, entry.stages) for arm, entries in arms.items() for entry in entries):
        for count, stage in enumerate(stages, 1):
            for task, cell in stage.validation.items():
                if not 0 <= cell.mean <= 1:
                    key = f"arms.{arm}.stages.{count}.{task}.mean"
                    raise UserError(f"an accuracy lies in [0, 1], got {cell.mean}", file=path, key=key)
            done = tuple(earlier.task for earlier in stages[:count])
            evidence.append(Evidence(in_order(done), stage.validation))
    if not evidence:
        raise UserError("no arm of this run was trained in stages", file=path, key="--evidence")
    if unknown := {stage.task for outcome in evidence for stage in outcome.stages} - set(tasks):
        raise UserError(f"trained on {min(unknown)!r}, which the matrix doesn't have", file=path, key="--evidence")
    return evidence


def describe_matrix(matrix: TransferMatrix) -> dict[str, Any]:
    """Start, transfer, and its shared and specific parts."""
    return {
        "start": {task: cell.mean for task, cell in matrix.start.items()},
        "transfer": transfer(matrix),
        "shared": shared(matrix),
        "specific": specific(matrix),
    }


def write_new(files: Mapping[str, tuple[Path, Callable[[], bytes]]]) -> None:
    """Write new files by the option that asks for each; none if one can't be. Raises UserError."""
    paths = [path for path, _ in files.values()]
    for key, (path, _) in files.items():
        try:
            if path.exists() or paths.count(path) > 1:
                raise UserError("exists already" if path.exists() else "is given twice", file=path, key=key)
            if not path.parent.is_dir():
                raise UserError("its folder doesn't exist", file=path, key=key)
        except OSError as exc:
            raise UserError(f"can't be written: {exc.strerror or exc}", file=f"{path!s:.200}", key=key) from None
    contents = {key: (path, make()) for key, (path, make) in files.items()}
    for key, (path, data) in contents.items():
        try:
            with path.open("xb") as stream:
                stream.write(data)
        except OSError as exc:
            raise UserError(f"can't be written: {exc.strerror or exc}", file=path, key=key) from None


def forecast_file(
    path: Path,
    *,
    joint: str,
    order: str,
    merge: float | None,
    passes: float | None,
    forecaster: str,
    objective: str,
    level: float,
) -> dict[str, Any]:
    """The forecast of one plan for the matrix at `path`. Raises UserError as `plan_file` does."""
    _check_level(level)
    if sum((bool(joint), bool(order), merge is not None)) != 1:
        raise UserError("give one of --joint, --order and --merge", key="--joint")
    if passes is not None and not joint:
        raise UserError("applies to --joint only; give the passes of a stage as task:passes", key="--passes")
    if passes is not None and not 0 < passes <= _MOST_PASSES:
        raise UserError(f"must be above 0 and at most {_MOST_PASSES}, got {passes:g}", key="--passes")
    if merge is not None and not 0 <= merge <= _MOST_SCALE:
        raise UserError(f"must be between 0 and {_MOST_SCALE}, got {merge:g}", key="--merge")
    matrix = load_matrix(path)
    check_measured(matrix)
    predict = make_forecaster(forecaster, matrix)
    plan: tuple[Stage, ...] | Joint | Merge
    if joint:
        plan = Joint(_task_numbers(joint, "--joint"), passes)
    elif order:
        plan = tuple(_stage(word) for word in order.split(","))
    else:
        plan = Merge(merge or 0.0)
    return forecast_json(predict, plan, _objective(objective), level)


def _check_level(level: float) -> None:
    if not 0.01 <= level <= 0.999:
        raise UserError(f"must be between 0.01 and 0.999, got {level:g}", key="--level")


def _objective(text: str) -> Objective:
    if text in ("mean", "worst"):
        return Objective(text)
    if "=" not in text:
        raise UserError(f"must be mean, worst or task=weight,..., got {text!r}", key="--objective")
    return Objective("mean", _task_numbers(text, "--objective"))


def _stage(word: str) -> Stage:
    task, colon, passes = word.strip().rpartition(":")
    if not colon:
        return Stage(word.strip())
    try:
        length = float(passes)
    except ValueError:
        raise UserError(f"{passes!r} isn't a number of passes", key="--order") from None
    if not 0 < length <= _MOST_PASSES:
        raise UserError(f"passes must be above 0 and at most {_MOST_PASSES}, got {passes}", key="--order")
    return Stage(task, length)


def _task_numbers(text: str, key: str) -> dict[TaskName, float]:
    """`a=1,b=2` as a table."""
    numbers: dict[TaskName, float] = {}
    for word in text.split(",") if text.strip() else ():
        name, equals, value = word.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or not name.strip() or not abs(number) < 1e300:
            raise UserError(f"must be task=number,..., got {word.strip()!r}", key=key)
        if name.strip() in numbers:
            raise UserError(f"names {name.strip()!r} twice", key=key)
        numbers[name.strip()] = number
    return numbers
