"""How often a judge agrees with people, ties left out.

    python benchmarks/judge_agreement.py DATA_FOLDER --model MODEL_FOLDER [--limit N] [--margin M] [--system TEXT]

DATA_FOLDER holds pandalm_human_pairs, llmbar and mtbench_human_pairs (.jsonl.gz; prompt, response_1, response_2,
label 1, 2 or 0 for a tie). Prints JSON. `agreement` counts decided pairs, with a 95 % Wilson interval; a judge's tie
counts as half. `balanced` is the mean of the agreement where people preferred the longer text and where they
preferred the shorter one: a judge that only counts words gets 0.5 there.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_thinker.judging import Judge, Verdict

SETS = ("pandalm_human_pairs", "llmbar", "mtbench_human_pairs")
_POINTS = {"win": 1.0, "tie": 0.5, "lose": 0.0}
Row = dict[str, Any]


def read_pairs(path: Path, limit: int | None = None) -> list[Row]:
    """The decided pairs (label 1 or 2), the first `limit` of them."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [row for row in map(json.loads, stream) if row["label"] in (1, 2)]
    # A few published rows hold a bare true instead of a text.
    texts = ("prompt", "response_1", "response_2")
    return [{**row, **{name: str(row[name]) for name in texts}} for row in rows[:limit]]


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share; (0, 1) for an empty sample."""
    if count == 0:
        return 0.0, 1.0
    z2 = 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> Row:
    """Agreement of verdicts (on response_1 against response_2) with the rows' labels."""
    scored = []
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.outcome != "error":
            first = _POINTS[verdict.outcome]
            scored.append((first if row["label"] == 1 else 1.0 - first, _longer_preferred(row)))
    points = [point for point, _ in scored]
    longer = [point for point, long in scored if long is True]
    shorter = [point for point, long in scored if long is False]
    share = _mean(points)
    both = bool(longer and shorter)
    return {
        "pairs": len(points),
        "errors": len(rows) - len(points),
        "judge_ties": sum(point == 0.5 for point in points),
        "agreement": share,
        "interval_95": wilson(share, len(points)) if share is not None else None,
        "longer_preferred": _mean(longer),
        "shorter_preferred": _mean(shorter),
        "balanced": (sum(longer) / len(longer) + sum(shorter) / len(shorter)) / 2 if both else None,
    }


def _longer_preferred(row: Row) -> bool | None:
    first, second = len(row["response_1"]), len(row["response_2"])
    return None if first == second else (first > second) == (row["label"] == 1)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


async def measure(judge: Judge, folder: Path, limit: int | None = None) -> Row:
    """The JSON document for one judge."""
    result: Row = {"judge": judge.name, "caveat": judge.caveat, "sets": {}}
    for name in SETS:
        rows = read_pairs(folder / f"{name}.jsonl.gz", limit)
        verdicts = [(await judge.compare(r["prompt"], [r["response_1"]], r["response_2"]))[0] for r in rows]
        result["sets"][name] = summarise(rows, verdicts)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--limit", type=int, default=None, help="pairs of each set")
    parser.add_argument("--margin", type=float, default=0.0)
    parser.add_argument("--system", default=None)
    options = parser.parse_args(argv)
    missing = [name for name in SETS if not (options.data / f"{name}.jsonl.gz").is_file()]
    if missing:
        print(f"{options.data}: no {missing[0]}.jsonl.gz here", file=sys.stderr)
        return 2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from omni_thinker.judging.likelihood import LikelihoodJudge

    model = AutoModelForCausalLM.from_pretrained(options.model)
    judge = LikelihoodJudge(
        model, AutoTokenizer.from_pretrained(options.model), options.margin, system=options.system, name=options.model
    )
    print(json.dumps(asyncio.run(measure(judge, options.data, options.limit)), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
