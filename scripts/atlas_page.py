"""The tables and pictures of docs/studies/atlas, from the rows of an atlas.

    python scripts/atlas_page.py docs/studies/atlas/atlas.jsonl --out docs/studies/atlas

Writes who-helps-whom.svg, forecast-outcome.svg, gain-over-joint.svg and priors.json into the folder, and the tables
into its README.md, between the two marks. Learning the priors takes minutes, five times over for held-out tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from atlas_pictures import KINDS, NAMES, forecast_against_outcome, gain_over_joint, who_helps_whom
from atlas_truths import (
    MATTERS,
    WAYS,
    Features,
    Number,
    Planned,
    difference,
    entropy_slope,
    gains,
    noise,
    number,
    order_matters,
    planned,
    predictors,
    probe_facts,
    slope,
    stage_facts,
)
from omni_thinker.runs.read import read_atlas
from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.schema.base import dump
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.transfer.priors.cases import matrices_of
from omni_thinker.transfer.priors.held_out import LEARNED, Said, held_out
from omni_thinker.transfer.priors.learn import learn_from
from omni_thinker.transfer.priors.named import HAND

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="what scripts/atlas_features.py wrote")
    chosen = parser.parse_args()
    rows = read_atlas(chosen.atlas)
    known = json.loads(chosen.features.read_text("utf-8")) if chosen.features else {"tasks": {}, "pairs": {}}
    page = chosen.out / "README.md"
    head, _, rest = page.read_text("utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    said = held_out(rows, on_group=_tell)
    priors = learn_from(rows, name=LEARNED)
    (chosen.out / "priors.json").write_text(json.dumps(dump(priors), indent=1) + "\n", "utf-8")
    tables = "\n".join(lines(rows, said, priors, Features(known["tasks"], known["pairs"])))
    page.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{tail}", "utf-8")
    who_helps_whom(matrices_of(rows), chosen.out / "who-helps-whom.svg")
    forecast_against_outcome([one for one in said if one.forecaster == LEARNED], chosen.out / "forecast-outcome.svg")
    gain_over_joint(planned(rows), chosen.out / "gain-over-joint.svg")


def lines(rows: Sequence[AtlasRow], said: Sequence[Said], priors: Priors, features: Features) -> Iterator[str]:
    """The page's tables, line by line."""
    yield from _runs(rows)
    yield from _forecasts(said)
    yield from _learned(priors)
    yield from _truths(rows)
    yield from _plans(planned(rows))
    yield "| known of a task beforehand | of the trained one | of the evaluated one | of how near they are |"
    yield "| --- | ---: | ---: | ---: |"
    for known in predictors(matrices_of(rows), features):
        ranks = (known.trained, known.evaluated, known.near)
        yield f"| {known.name} | {' | '.join('-' if rank is None else f'{rank:+.2f}' for rank in ranks)} |"
    yield ""


def _runs(rows: Sequence[AtlasRow]) -> Iterator[str]:
    whole = [row for row in rows if row.whole]
    yield "| kind | runs | RL steps | evaluations |"
    yield "| --- | ---: | ---: | ---: |"
    for kind in ("start", "single", *KINDS):
        own = [row for row in whole if row.kind == kind]
        steps = sum(row.steps for row in own if kind != "merge")
        yield f"| {kind} | {len(own)} | {steps} | {sum(row.kind == kind for row in rows)} |"
    yield ""


def _forecasts(said: Sequence[Said]) -> Iterator[str]:
    """Errors on held-out tasks, with paired differences from the learned priors, over runs."""
    yield "| forecaster | runs | mean error | above the learned priors' | inside the 80 % interval |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for kind in (*KINDS, "all"):
        for name in dict.fromkeys(one.forecaster for one in said):
            own = [one for one in said if one.forecaster == name and kind in (one.case.kind, "all")]
            if not own:
                continue
            inside = fmean(one.inside for one in own)
            above = "" if name == LEARNED else str(_above(said, name, kind) or "-")
            yield f"| {name} | {kind} | {fmean(one.error for one in own):.3f} | {above} | {inside:.0%} |"
    yield ""


def _above(said: Sequence[Said], name: str, kind: str) -> Number | None:
    """Mean error of a forecaster above that of the learned priors, over runs."""
    by_run: dict[str, list[float]] = {}
    learned = {(one.case.id, one.task): one.error for one in said if one.forecaster == LEARNED}
    for one in said:
        if one.forecaster == name and kind in (one.case.kind, "all"):
            by_run.setdefault(one.case.id, []).append(one.error - learned[one.case.id, one.task])
    return number(list(by_run.values()), lambda runs: fmean(gap for run in runs for gap in run))


def _learned(priors: Priors) -> Iterator[str]:
    yield "| prior | by hand | learned |"
    yield "| --- | ---: | ---: |"
    for name in ("dilution", "retention", "merged"):
        by_hand, learned = (getattr(own, name) for own in (HAND, priors))
        yield f"| {name} (mean share kept) | {by_hand[0] / sum(by_hand):.2f} | {learned[0] / sum(learned):.2f} |"
    for name in ("shared", "shared_spread", "own", "own_spread", "specific_spread"):
        yield f"| {name} | {getattr(HAND, name)[0]:.2f} | {getattr(priors, name)[0]:.2f} |"
    for name in ("response", "curve", "recovery"):
        yield f"| {name} | {getattr(HAND, name):.2f} | {getattr(priors, name):.2f} |"
    yield f"| luck | {HAND.luck[0]:.2f}, {HAND.luck[1]:.2f} | {priors.luck[0]:.2f}, {priors.luck[1]:.2f} |"
    yield ""


def _truths(rows: Sequence[AtlasRow]) -> Iterator[str]:
    matrices = matrices_of(rows)
    spreads, facts = noise(matrices), stage_facts(rows)
    gained = list(gains(matrices).values())
    others = [fact for fact in facts if not fact.own]
    own = [fact for fact in facts if fact.own]
    yield "| question | answer with its 95 % interval |"
    yield "| --- | --- |"
    yield f"| gain of a task from its single run | {number(gained, fmean) or '-'} over {len(gained)} tasks |"
    yield f"| spread of what one task does to another, common to two seeds | {spreads.common or '-'} |"
    yield f"| the same without what any training does | {spreads.common_specific or '-'} |"
    yield f"| spread between seeds, with the noise of evaluations | {spreads.seeds or '-'} |"
    yield f"| A1: change of another task per change expected, {len(others)} later cells | {slope(others) or '-'} |"
    yield f"| A2: change of the own task per change expected, {len(own)} stages | {slope(own) or '-'} |"
    yield f"| own gain in log-odds per nat of entropy that earlier stages added | {entropy_slope(facts) or '-'} |"
    for probe in probe_facts(rows):
        yield (
            f"| {probe.steps} of {probe.whole} steps of single runs against all | rank correlation {probe.rank:.2f}, "
            f"between different tasks {probe.rank_others:.2f}, mean difference {probe.away:.3f} |"
        )
    yield ""


def _plans(sets: Sequence[Planned]) -> Iterator[str]:
    if not sets:
        return
    yield f"| {len(sets)} task sets: mean accuracy at the end | against joint in even shares |"
    yield "| --- | ---: |"
    for way in WAYS:
        if way != "even":
            yield f"| {NAMES[way]} | {difference(sets, way, 'even') or '-'} |"
    yield f"| planned order against its reverse | {difference(sets, 'plan', 'reverse') or '-'} |"
    yield f"| planned order against a random one | {difference(sets, 'plan', 'random') or '-'} |"
    yield f"| share of sets whose orders differ by more than {100 * MATTERS:g} points | {order_matters(sets) or '-'} |"
    yield ""


def _tell(group: Sequence[str], priors: Priors) -> None:
    print(f"learned without {', '.join(group)}: {dump(priors)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
