"""How often an answer is right after an error message, before and after training, from a run's samples.

    omni-thinker study recipes/turns.toml --out run
    python scripts/turn_success.py run --arm joint

For each seed and for all: of the test problems whose first answer was sent back, the share whose second is right, of
the start and of the arm, and their difference with its 95 % interval (BCa bootstrap over problems, start and arm of one
problem together). The recipe must keep a sample of every test problem (`evaluation.keep_samples`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

SOLVED = 1 - 1e-9
Counts = NDArray[np.float64]
"""[problems, 4]: whether the start's second turn was reached, and right; the same of the arm."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--arm", default="joint")
    chosen = parser.parse_args()
    rows = [json.loads(line) for line in (chosen.run / "samples.jsonl").read_text("utf-8").splitlines()]
    for name, counts in counted(rows, chosen.arm).items():
        low, high = interval(counts)
        before, after = shares(counts)
        asked, right, asked_after, right_after = counts.sum(0).astype(int)
        print(
            f"{name}: start {before:.3f} ({right} of {asked}), {chosen.arm} {after:.3f} ({right_after} of "
            f"{asked_after}), difference {after - before:+.3f} [{low:+.3f}, {high:+.3f}]"
        )


def counted(rows: Iterable[dict[str, Any]], arm: str) -> dict[str, Counts]:
    """Counts of each seed, and of all seeds where there are several."""
    found: dict[int, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if row["split"] != "test" or row["arm"] not in ("start", arm) or row["score"] is None or not row["turns"]:
            continue
        place = 0 if row["arm"] == "start" else 2
        counts = found.setdefault(row["seed"], {}).setdefault((row["task"], row["problem"]), [0.0] * 4)
        reached = len(row["turns"]) >= 3
        counts[place : place + 2] = [float(reached), float(reached and row["score"] >= SOLVED)]
    seeds = {f"seed {seed}": np.array(list(own.values())) for seed, own in sorted(found.items())}
    return seeds if len(seeds) < 2 else {**seeds, "all": np.concatenate(list(seeds.values()))}


def shares(counts: Counts, axis: int = 0) -> Any:
    """Success after an error message: of the start and of the arm."""
    sums = np.moveaxis(counts.sum(axis), -1, 0)
    return np.stack([sums[1] / np.maximum(sums[0], 1), sums[3] / np.maximum(sums[2], 1)])


def interval(counts: Counts) -> tuple[float, float]:
    """Of the difference, at 95 %."""

    def difference(*columns: Counts, axis: int = -1) -> Any:
        before, after = shares(np.stack(columns, -1), axis % columns[0].ndim)
        return after - before

    found = bootstrap(tuple(counts.T), difference, paired=True, vectorized=True, n_resamples=4999, rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


if __name__ == "__main__":
    main()
