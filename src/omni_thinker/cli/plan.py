"""Commands on a transfer matrix: look at it, forecast one plan, choose a plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omni_thinker.cli.options import Forecasts, Goal, Level, names
from omni_thinker.cli.output import Json, finish

if TYPE_CHECKING:
    from omni_thinker.runs.schema.plan import Plan

BEST = 5
"""Orders that a plan is printed with."""


def plan(
    matrix: Annotated[Path, typer.Option(help="transfer.json of a study or probe.")],
    forecaster: Forecasts = "hierarchical",
    strategy: Annotated[
        str, typer.Option(help="exact, back_greedy, least_to_most_forgettable, front_greedy, reversed or random.")
    ] = "exact",
    order: Annotated[str, typer.Option(help="Forecast this order (task,task,...) instead of choosing one.")] = "",
    objective: Goal = "mean",
    fix: Annotated[str, typer.Option(help="Fixed places of tasks, where 1 is first: task=1,task=4.")] = "",
    refresh_cost: Annotated[
        float | None, typer.Option(help="Add short refresh stages whose gain per pass exceeds this.")
    ] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run whose results sharpen the forecast (repeatable), or an atlas.jsonl to learn priors from."
        ),
    ] = None,
    level: Level = 0.8,
    every: Annotated[bool, typer.Option("--all", help="Print all orders, not only the five best.")] = False,
    json_: Json = False,
) -> None:
    """Forecast where each order and joint training would end, and choose the best."""
    from omni_thinker.cli.planning import plan_file
    from omni_thinker.runs.schema.base import dump

    planned = plan_file(
        matrix,
        forecaster=forecaster,
        strategy=strategy,
        order=names(order),
        objective=objective,
        fixed=fix,
        refresh_cost=refresh_cost,
        evidence=evidence or [],
        level=level,
    )
    _tell(planned, every, level)
    finish(dump(planned), json_)


def _tell(planned: "Plan", every: bool, level: float) -> None:
    """Print a plan for people. every: all orders, not only the best."""
    from omni_thinker.report.orders import shares_text, told_apart_words
    from omni_thinker.transfer.priors.named import priors_words

    aims = {"mean": "the mean accuracy", "worst": "the worst task's accuracy", "weights": "the weighted mean accuracy"}
    aim = aims[planned.objective]
    shown = planned.orders if every else planned.orders[:BEST]
    for row in shown:
        chance = "" if row.probability_best is None else f"  best with probability {row.probability_best:.2f}"
        mark = "*" if row.order == planned.plan.order else " "
        span = f"[{row.low:.3f}, {row.high:.3f}]"
        typer.echo(f"{mark} {' -> '.join(row.order)}  {row.score:.3f} {span}{chance}")
    if left := len(planned.orders) - len(shown):
        typer.echo(f"  ... {left} more: --all")
    together = planned.joint
    mark = "*" if planned.plan.kind == "joint" else " "
    typer.echo(f"{mark} jointly  {together.score:.3f} [{together.low:.3f}, {together.high:.3f}]")
    if mixture := planned.mixture:
        span = f"[{mixture.low:.3f}, {mixture.high:.3f}]"
        typer.echo(f"  jointly in planned shares  {mixture.score:.3f} {span}: {shares_text(mixture)}")
    typer.echo(f"(* is the plan; scores are forecasts of {aim}, with {100 * level:g} % intervals)")
    if planned.plan.kind != "joint" and together.score > planned.plan.score:
        typer.echo("(joint training is no candidate with --order, --fix, --strategy or another --forecaster)")
    for name, rule in planned.strategies.items():
        typer.echo(f"{name}: {' -> '.join(rule.order)}  {rule.score:.3f}, regret {rule.regret:.3f}")
    for task, interval in planned.plan.forecast.items():
        typer.echo(f"{task}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    if planned.priors:
        typer.echo(priors_words(planned.priors))
    if words := told_apart_words(planned):
        typer.echo(words)
    typer.echo(planned.words)


def transfer(
    matrix: Annotated[Path, typer.Argument(help="transfer.json of a study or probe.")],
    csv: Annotated[Path | None, typer.Option(help="Also write it as a CSV file. It must not exist.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.svg, .png or .pdf). It must not exist.")] = None,
    json_: Json = False,
) -> None:
    """Show what RL on each task did to every task: the matrix, and its shared and specific parts."""
    from omni_thinker.cli.planning import describe_matrix, write_new
    from omni_thinker.report import plot_transfer
    from omni_thinker.transfer.matrix import load_matrix
    from omni_thinker.transfer.metrics import to_csv

    measured = load_matrix(matrix)
    table = describe_matrix(measured)
    files = {"--csv": (csv, lambda: to_csv(measured).encode())}
    files["--plot"] = (plot, lambda: plot_transfer(measured, plot.suffix.lower().removeprefix(".") if plot else ""))
    write_new({key: (path, make) for key, (path, make) in files.items() if path is not None})
    names = list(table["start"])
    width = max(12, *(len(name) + 1 for name in names))
    typer.echo("after RL on".ljust(width) + "".join(name.rjust(width) for name in names))
    for label, row in (("start", table["start"]), *table["transfer"].items(), ("shared", table["shared"])):
        form = "{:.3f}" if label == "start" else "{:+.3f}"
        cells = ("-" if row.get(name) is None else form.format(row[name]) for name in names)
        typer.echo(label.ljust(width) + "".join(cell.rjust(width) for cell in cells))
    finish(table, json_)


def forecast(
    matrix: Annotated[Path, typer.Option(help="transfer.json of a study or probe.")],
    joint: Annotated[str, typer.Option(help="Shares of a joint run, which must add up to 1: task=0.5,task=0.5.")] = "",
    order: Annotated[str, typer.Option(help="Stages in order: task,task,... The stage task:0.5 is half a pass.")] = "",
    merge: Annotated[float | None, typer.Option(help="Forecast a merge of the experts at this scale.")] = None,
    passes: Annotated[
        float | None, typer.Option(help="Length of the joint run in passes. Default: one for each task.")
    ] = None,
    forecaster: Forecasts = "hierarchical",
    objective: Goal = "mean",
    level: Level = 0.8,
    json_: Json = False,
) -> None:
    """Forecast one plan: stages (a task may come again), a joint run, or a merge."""
    from omni_thinker.cli.planning import forecast_file

    result = forecast_file(
        matrix,
        joint=joint,
        order=order,
        merge=merge,
        passes=passes,
        forecaster=forecaster,
        objective=objective,
        level=level,
    )
    for task, row in result["forecast"].items():
        typer.echo(f"{task}: {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    interval = result["interval"]
    typer.echo(f"{objective}: {result['score']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]")
    finish(result, json_)
