"""Plans for task sets that no prior was learned from, as runs of an atlas: `[atlas.chosen]` of a pool.

    python scripts/atlas_plans.py docs/studies/atlas/atlas.jsonl docs/studies/atlas/pool.toml >> chosen.toml

Tasks are parted into groups several times over; each group is a set. For each, priors are learned without its tasks,
and from the single runs of one start and seed the best order, its reverse, a random order, even shares and the best
shares are made into runs of `atlas.mixed_steps` steps. Paste the output into the pool, and run the atlas with --known.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

from omni_thinker.recipe import load_recipe
from omni_thinker.runs.read import read_atlas
from omni_thinker.transfer.forecast import Joint, Stage, evenly
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.priors.cases import Seat, cases_of, matrices_of, restricted
from omni_thinker.transfer.priors.held_out import GROUPS, grouped, learned_without
from omni_thinker.transfer.search import Objective, expected_score
from omni_thinker.transfer.shares import best_shares
from omni_thinker.types import TaskName


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--sets", type=int, default=12)
    chosen = parser.parse_args()
    rows, pool = read_atlas(chosen.atlas), load_recipe(chosen.pool, [])
    cases, matrices = cases_of(rows), matrices_of(rows)
    seats = list(matrices)
    for place, group in enumerate(sets_of(sorted(pool.tasks), chosen.sets)):
        print(f"set {place}: {', '.join(group)}", file=sys.stderr, flush=True)
        priors = learned_without(group, matrices.values(), cases)
        seat = seats[place % len(seats)]
        predict = Hierarchical(restricted(matrices[seat], group), priors=priors)
        passes = pool.atlas.mixed_steps / pool.study.steps
        for way, table in ways(predict, passes, place).items():
            print("\n".join(toml_of(f"{way}-{place:02d}", table, seat)))


def sets_of(tasks: Sequence[TaskName], count: int) -> list[tuple[TaskName, ...]]:
    """So many sets: the groups of one parting after another."""
    partings = -(-count // GROUPS)
    return [group for seed in range(partings) for group in grouped(tasks, seed=seed)][:count]


def ways(predict: Hierarchical, passes: float, seed: int) -> dict[str, Mapping[TaskName, float] | tuple[TaskName, ...]]:
    """Orders and shares by what the page calls them."""
    tasks, objective = predict.tasks, Objective()
    each = passes / len(tasks)

    def score(order: Sequence[TaskName]) -> float:
        return expected_score(predict, objective, [Stage(task, each) for task in order])

    plan = max(permutations(tasks), key=score)
    even = Joint(evenly(tasks).weights, passes)
    return {
        "plan": plan,
        "reverse": plan[::-1],
        "random": tuple(random.Random(seed).sample(list(tasks), len(tasks))),
        "even": even.weights,
        "shares": best_shares(predict, objective, passes, even).weights,
    }


def toml_of(name: str, table: Mapping[TaskName, float] | tuple[TaskName, ...], seat: Seat) -> Iterator[str]:
    """A table of `[atlas.chosen]`."""
    _, start, _, seed = seat
    mixture = isinstance(table, Mapping)
    tasks = [task for task in table if not isinstance(table, Mapping) or table[task] > 0]
    weights = [round(table[task], 4) if isinstance(table, Mapping) else 1.0 for task in tasks]
    yield f"[atlas.chosen.{name}]"
    yield f'kind = "{"mixture" if mixture else "sequence"}"'
    yield f'start = "{start}"'
    yield f"seed = {seed}"
    yield f"tasks = [{', '.join(f'{chr(34)}{task}{chr(34)}' for task in tasks)}]"
    yield f"weights = {weights}"
    yield ""


if __name__ == "__main__":
    main()
