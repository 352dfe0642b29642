"""Forecasts against what happened: published runs, and made-up worlds in which the truth is known.

    .venv/bin/python benchmarks/forecasting.py --data ../shared/data/transfer [--simulations 500]

Prints the tables of docs/forecasting.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import Column, TransferMatrix
from omni_thinker.transfer.forecast import Array, Joint, evenly, in_order, measured
from omni_thinker.transfer.forecasters import FORECASTERS, make_forecaster
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from simulated_learners import WORLDS, World, seen

Row = Mapping[str, Any]


def read(path: Path) -> list[Row]:
    """JSON lines, gzipped or not."""
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def exactly(mean: float) -> Estimate:
    """A published figure without its error."""
    return Estimate(float(np.clip(mean, 0.0, 1.0)), 0, 0.0)


def guru(folder: Path, key: str) -> tuple[TransferMatrix, Array]:
    """Five single-domain RL runs, forecasting the mix of all; 14 evaluations."""
    rows = read(folder / "guru_rl_matrix.jsonl")
    runs = {max(row["train_examples"], key=row["train_examples"].get): row for row in rows if "mix" not in row["run"]}
    mix = next(row for row in rows if "mix" in row["run"])
    begun = [row for row in runs.values() if row["first"]["step"] == 0]
    columns = tuple(
        Column(
            name,
            name.split("/")[0],
            exactly(float(np.mean([row["first"]["scores"][name] for row in begun]))),
            {i: exactly(row[key]["scores"][name]) for i, row in runs.items()},
        )
        for name in sorted(mix[key]["scores"])
    )
    truth = np.array([mix[key]["scores"][column.name] for column in columns])
    return TransferMatrix(tuple(runs), {}, {i: {} for i in runs}, columns), truth


def against_truth(cases: Sequence[tuple[TransferMatrix, Joint, Array]]) -> dict[str, tuple[float, float, float]]:
    """forecaster -> (mean absolute error, share inside the 80 % interval, rank correlation of changes)."""
    found = {}
    for name in FORECASTERS:
        errors: list[float] = []
        inside: list[bool] = []
        changes: list[tuple[float, float]] = []
        for matrix, plan, truth in cases:
            predict = make_forecaster(name, matrix, draws=400)
            draws = predict.by_column(plan)
            means = draws.mean(axis=1)
            low, high = np.quantile(measured(predict, draws), [0.1, 0.9], axis=1)
            start = np.array([column.start.mean for column in predict.columns])
            errors += np.abs(means - truth).tolist()
            inside += ((truth >= low) & (truth <= high)).tolist()
            changes += list(zip((means - start).tolist(), (truth - start).tolist(), strict=True))
        ours, theirs = zip(*changes, strict=True)
        rank = float(spearmanr(ours, theirs).statistic) if len(set(ours)) > 1 else float("nan")
        found[name] = (float(np.mean(errors)), float(np.mean(inside)), rank)
    return found


def grouping(folder: Path) -> list[tuple[TransferMatrix, Joint, Array]]:
    """Losses of all 31 subsets of five tasks: those of three and more from the single tasks and the pairs.

    The start is a task trained alone, "after i" is it trained with i; accuracy stands for 1 - loss.
    """
    rows = [row for row in read(folder / "task_grouping.jsonl") if row["meta"]["setting"] == "results"]
    known = {frozenset(row["trained_together"]): row["losses"] for row in rows}
    cases = []
    for subset, losses in known.items():
        if len(subset) < 3:
            continue
        tasks = tuple(sorted(subset))

        def cell(i: str, j: str) -> Estimate:
            return exactly(1 - known[frozenset({i, j})][j])

        matrix = TransferMatrix(
            tasks, {j: cell(j, j) for j in tasks}, {i: {j: cell(i, j) for j in tasks} for i in tasks}
        )
        cases.append((matrix, evenly(tasks), np.array([1 - losses[j] for j in tasks])))
    return cases


def regmix(folder: Path) -> list[tuple[TransferMatrix, Joint, Array]]:
    """Pre-training mixtures of 17 domains: test mixtures from the 512 that are given.

    No domain was trained alone: "after i" is the mean of the ten mixtures with most of i, the start of j the mean of
    those without j. Accuracy stands for 1 - loss / 10.
    """
    rows = read(folder / "regmix_1m.jsonl.gz")
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    domains = tuple(domain for domain in train[0]["mixture"] if domain in train[0]["losses"])

    def mean(chosen: Sequence[Row], j: str) -> Estimate:
        return exactly(float(np.mean([1 - row["losses"][j] / 10 for row in chosen])))

    most = {i: sorted(train, key=lambda row: -row["mixture"][i])[:10] for i in domains}
    start = {j: mean([row for row in train if row["mixture"][j] == 0.0] or train, j) for j in domains}
    matrix = TransferMatrix(domains, start, {i: {j: mean(most[i], j) for j in domains} for i in domains})
    cases = []
    for row in test[:64]:
        weights = {domain: row["mixture"][domain] for domain in domains}
        total = sum(weights.values())
        if total > 0:
            plan = Joint({domain: weight / total for domain, weight in weights.items()}, passes=1.0)
            cases.append((matrix, plan, np.array([1 - row["losses"][j] / 10 for j in domains])))
    return cases


def simulated(simulations: int) -> dict[str, dict[str, float]]:
    """world -> coverage of nominal 80 % (sequences, joint), mean errors, false claims that one order beats another."""
    table: dict[str, dict[str, list[float]]] = {}
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        world = World.drawn(WORLDS[seed % len(WORLDS)], rng)
        own = world.measured(96, rng)
        order = [int(k) for k in rng.permutation(len(world.tasks))]
        predict = Hierarchical(own, 600, seed)
        stages = in_order([world.tasks[k] for k in order])
        row = table.setdefault(world.kind, {})
        for label, plan, truth in (
            ("sequence", stages, world.sequence(order)),
            ("joint", evenly(world.tasks), world.joint()),
        ):
            reached = world.with_luck(truth, rng)
            shown = np.array([seen(float(p), 96, rng).mean for p in reached])
            draws = predict.by_column(plan)
            low, high = np.quantile(measured(predict, draws, seed), [0.1, 0.9], axis=1)
            row.setdefault(f"inside, {label}", []).extend(((shown >= low) & (shown <= high)).astype(float).tolist())
            if label == "sequence":
                row.setdefault("error, hierarchical", []).append(float(np.abs(draws.mean(axis=1) - reached).mean()))
                for name in ("naive", "additive", "logit"):
                    other = make_forecaster(name, own, draws=1).by_column(plan)[:, 0]
                    row.setdefault(f"error, {name}", []).append(float(np.abs(other - reached).mean()))
        row.setdefault("false claims", []).append(float(_false_claim(world, predict)))
    return {kind: {name: float(np.mean(values)) for name, values in row.items()} for kind, row in table.items()}


def after_a_run(simulations: int) -> dict[str, float]:
    """In worlds where entropy matters: mean error of a second order's forecast, before a first order was run and after,
    with its evaluations as evidence; with what is known of entropies, and without."""
    errors: dict[str, list[float]] = {}
    for seed in range(simulations):
        rng = np.random.default_rng([seed, 1])
        world = World.drawn("entropy", rng)
        known = world.measured(96, rng)
        orders = [[int(k) for k in rng.permutation(len(world.tasks))] for _ in range(3)]
        evidence = []
        for order in orders[:2]:
            for place in range(1, len(order) + 1):
                part = world.with_luck(world.sequence(order[:place]), rng)
                done = in_order([world.tasks[k] for k in order[:place]])
                accuracy = {task: seen(float(p), 96, rng) for task, p in zip(world.tasks, part, strict=True)}
                evidence.append(Evidence(done, accuracy))
        truth = world.sequence(orders[2])
        stages = in_order([world.tasks[k] for k in orders[2]])
        for label, own in (("with entropies", known), ("without", replace(known, entropy=None))):
            for told, words in (((), "before any run"), (evidence, "after two other orders")):
                forecast = Hierarchical(own, 2000, seed, told).by_column(stages).mean(axis=1)
                errors.setdefault(f"{words}, {label}", []).append(float(np.abs(forecast - truth).mean()))
    return {label: float(np.mean(own)) for label, own in errors.items()}


def _false_claim(world: World, predict: Hierarchical) -> bool:
    """Whether the best of all orders is said, at 95 %, to beat the worst, and doesn't."""
    scores: dict[tuple[int, ...], Array] = {
        order: predict.by_column(in_order([world.tasks[k] for k in order])).mean(axis=0)
        for order in permutations(range(len(world.tasks)))
    }
    best, worst = (pick(scores, key=lambda order: float(scores[order].mean())) for pick in _ends)
    claimed = float((scores[best] > scores[worst]).mean()) > 0.95
    return claimed and world.sequence(best).mean() <= world.sequence(worst).mean() + 1e-9


_ends: tuple[Callable[..., Any], Callable[..., Any]] = (max, min)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=500)
    chosen = parser.parse_args()
    sets: dict[str, list[tuple[TransferMatrix, Joint, Array]]] = {}
    for key in ("last", "best_mean"):
        matrix, truth = guru(chosen.data, key)
        sets[f"Guru mix, {key}"] = [(matrix, evenly(matrix.tasks), truth)]
    sets["task grouping"] = grouping(chosen.data)
    sets["RegMix 1M"] = regmix(chosen.data)
    print("| | " + " | ".join(FORECASTERS) + " |\n| --- |" + " --- |" * len(FORECASTERS))
    for label, cases in sets.items():
        found = against_truth(cases)
        shown = (f"{error:.4f} ({inside:.0%}, {rank:.2f})" for error, inside, rank in found.values())
        print(f"| {label} | " + " | ".join(shown) + " |", flush=True)
    worlds = simulated(chosen.simulations)
    names = list(next(iter(worlds.values())))
    print("\n| world | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for kind, row in worlds.items():
        print(f"| {kind} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    print()
    for label, error in after_a_run(chosen.simulations // 5).items():
        print(f"entropy matters, {label}: error {error:.4f}")


if __name__ == "__main__":
    main()
