"""What the page of an atlas says, on atlases whose truth is known."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas_features import cosines
from atlas_page import BEGIN, END, _plans, lines
from atlas_pictures import forecast_against_outcome, gain_over_joint, who_helps_whom
from atlas_plans import sets_of, toml_of, ways
from atlas_truths import (
    Features,
    StageFact,
    difference,
    effects,
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
from omni_thinker.recipe import Recipe, parse_recipe
from omni_thinker.studies.atlas.design import design
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.priors.cases import cases_of, matrices_of, restricted
from omni_thinker.transfer.priors.held_out import held_out, makers, say
from omni_thinker.transfer.priors.named import HAND
from simulated_atlas import Truth, simulated_rows


def pool(count: int = 6, **atlas: object) -> Recipe:
    tasks = {f"t{number}": {"source": "builtin:math"} for number in range(count)}
    study = {"arms": ["start", "joint"], "seeds": [0, 1], "steps": 24}
    table = {"mixtures": 8, "sequences": 8, "merges": 4, "mixed_steps": 48, "reads": [6], "sequence_stages": [2, 4]}
    return parse_recipe({"tasks": tasks, "study": study, "atlas": table | atlas}, "here")


def test_interval_of_a_mean_holds_it_and_shrinks() -> None:
    few, many = (number(list(np.random.default_rng(0).normal(0.5, 1.0, size)), lambda own: float(np.mean(own)))
                 for size in (30, 3000))  # fmt: skip
    assert few is not None
    assert many is not None
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.2 * (few.high - few.low)
    assert number([1.0, 2.0], lambda own: float(np.mean(own))) is None


def test_transfer_is_told_from_noise_between_seeds() -> None:
    loud, quiet = (noise(matrices_of(simulated_rows(pool(12), Truth(specific=spread, luck=0.05, problems=4000))))
                   for spread in (0.5, 0.0))  # fmt: skip
    assert loud.common_specific is not None
    assert quiet.common_specific is not None
    assert quiet.seeds is not None
    assert loud.common_specific.low > 0.05  # 0.5 in log-odds are some 0.1 in accuracy
    assert quiet.common_specific.value < 0.01
    assert quiet.seeds.value < 0.02


def test_assumptions_hold_in_a_world_made_of_them_and_not_elsewhere() -> None:
    def facts(truth: Truth) -> tuple[list[StageFact], list[StageFact]]:
        known = stage_facts(simulated_rows(pool(10, sequences=40), truth))
        return [fact for fact in known if fact.own], [fact for fact in known if not fact.own]

    for told in map(slope, facts(Truth(kept=1.0, luck=0.01, problems=10**6, shared=0.0))):
        assert told is not None
        assert 0.8 < told.value < 1.2
    _, others = facts(Truth(kept=1.0, luck=0.01, problems=10**6, shared=1.0, specific=0.01))
    repeated = slope(others)  # what any training brings comes once, not at every stage
    assert repeated is not None
    assert repeated.high < 0.5
    _, others = facts(Truth(kept=0.3, luck=0.01, problems=10**6))
    assert np.mean([fact.seen - fact.expected for fact in others]) < -0.1  # a later stage takes of what was gained


def test_a_feature_that_tells_who_helps_whom_is_found() -> None:
    matrices = matrices_of(simulated_rows(pool(10), Truth(problems=10**6, luck=0.01, specific=0.5)))
    tasks, known = effects(matrices)
    mean = known.mean(axis=0)
    told = {i: {j: float(mean[a, b]) for b, j in enumerate(tasks)} for a, i in enumerate(tasks)}
    rng = np.random.default_rng(0)
    luck = {i: {j: float(rng.normal()) for j in tasks} for i in tasks}
    found = {own.name: own for own in predictors(matrices, Features({}, {"told": told, "luck": luck}))}
    assert found["told"].near == pytest.approx(1.0)
    assert found["told"].trained is None
    assert abs(found["luck"].near or 0.0) < 0.3
    assert found["start accuracy"].evaluated is not None


def test_cosines_are_taken_from_what_tasks_do_not_share() -> None:
    shared = torch.tensor([100.0, 0.0, 0.0])
    own = {"a": shared + torch.tensor([0.0, 1.0, 0.0]), "b": shared - torch.tensor([0.0, 1.0, 0.0])}
    found = cosines(own)
    assert found["a"]["b"] == pytest.approx(-1.0)
    assert found["a"]["a"] == pytest.approx(1.0)


def test_entropy_without_effect_has_a_slope_around_0() -> None:
    told = entropy_slope(stage_facts(simulated_rows(pool(10, sequences=40), Truth(problems=4000))))
    assert told is not None
    assert told.low < 0 < told.high


def test_reads_of_single_runs_rank_as_the_whole_ones() -> None:
    (told,) = probe_facts(simulated_rows(pool(), Truth(problems=20000, luck=0.01)))
    assert (told.steps, told.whole) == (6, 24)
    assert told.rank > 0.9
    assert told.away < 0.05


def test_plans_are_compared_set_by_set() -> None:
    ways = {"plan": [1.0, 1.0, 1.0], "reverse": [1.0, 1.0, 1.0]}
    chosen = {
        f"{way}-{place:02d}": {
            "kind": "sequence",
            "start": "short",
            "seed": 0,
            "tasks": ["t0", "t1", "t2"] if way == "plan" else ["t2", "t1", "t0"],
            "weights": weights,
        }
        for way, weights in ways.items()
        for place in range(4)
    } | {
        f"even-{place:02d}": {
            "kind": "mixture",
            "start": "short",
            "seed": 0,
            "tasks": ["t0", "t1", "t2"],
            "weights": [1.0, 1.0, 1.0],
        }
        for place in range(4)
    }
    rows = simulated_rows(pool(chosen=chosen), Truth(kept=0.2, mixed=1.0, luck=0.01, problems=4000))
    sets = planned(rows)
    assert [own.name for own in sets] == ["00", "01", "02", "03"]
    assert set(sets[0].ways) == {"plan", "reverse", "even"}
    gap = difference(sets, "plan", "even")
    assert gap is not None
    assert gap.high < 0  # stages wear off, mixing costs nothing
    assert order_matters(sets) is not None
    assert any("planned order against its reverse" in line for line in _plans(sets))
    assert difference(sets, "shares", "even") is None


@pytest.mark.timeout(600)
def test_page_and_pictures_of_an_atlas(tmp_path: Path) -> None:
    small = pool(8, mixtures=16, sequences=16, merges=2, mixture_tasks=[2, 3], sequence_stages=[2, 3])
    rows = simulated_rows(small, Truth(kept=0.5, mixed=0.5, luck=0.05, problems=400))
    said = held_out(rows, groups=4)
    by_name = {name: np.mean([one.error for one in said if one.forecaster == name]) for name in ("hand", "atlas")}
    assert by_name["atlas"] < by_name["hand"]
    told = list(lines(rows, said, HAND, Features({"letters": {f"t{k}": float(k) for k in range(8)}}, {})))
    assert sum(line.startswith("| start accuracy") for line in told) == 1
    assert sum(line.startswith("| letters") for line in told) == 1
    assert any(line.startswith("| atlas | all |") for line in told)
    assert BEGIN not in told
    assert END not in told
    for draw, given in ((who_helps_whom, matrices_of(rows)), (forecast_against_outcome, said)):
        draw(given, tmp_path / f"{draw.__name__}.svg")  # type: ignore[arg-type]
        assert "<svg" in (tmp_path / f"{draw.__name__}.svg").read_text("utf-8")
    gain_over_joint([], tmp_path / "gain.svg")
    assert "<svg" in (tmp_path / "gain.svg").read_text("utf-8")


def test_intervals_of_the_hand_priors_cover_too_little_where_luck_is_large() -> None:
    cases = cases_of(simulated_rows(pool(), Truth(luck=1.0, problems=4000)))
    told = say(cases, "hand", makers({"hand": HAND})["hand"])
    assert np.mean([one.inside for one in told]) < 0.6
    assert set(gains(matrices_of(simulated_rows(pool(), Truth())))) == {f"t{k}" for k in range(6)}


def test_planned_sets_are_runs_that_the_atlas_takes() -> None:
    small = pool(8)
    sets = sets_of(sorted(small.tasks), 6)
    assert [len(own) for own in sets] == [2, 2, 2, 1, 1, 2]
    seat, matrix = next(iter(matrices_of(simulated_rows(small, Truth())).items()))
    predict = Hierarchical(restricted(matrix, ("t0", "t1", "t2")), 200)
    found = ways(predict, 2.0, 0)
    assert found["reverse"] == tuple(found["plan"])[::-1]
    assert isinstance(found["shares"], dict)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    words = [line for way, table in found.items() for line in toml_of(f"{way}-00", table, seat)]
    chosen = tomllib.loads("\n".join(words))["atlas"]["chosen"]
    rounds = design(pool(8, chosen=chosen))
    assert [run.name for run in rounds[-1].runs] == ["plan-00", "reverse-00", "random-00", "even-00", "shares-00"]
