"""Probes that are cheaper than whole stages: sketches, gradients, adapters and entropies."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from forecasting import after_a_run
from matrices import AFTER, MATRIX, START, matrix
from omni_thinker.baselines.adapters import Adapter
from omni_thinker.baselines.merge import merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.engine.sketch import DIMENSIONS, sketch
from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import LoraSpec, ModelSpec, ProbeKind, Recipe, builtin_recipe
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.gradient import add_policy_gradient
from omni_thinker.runs.schema.base import Estimate, dump
from omni_thinker.runs.schema.transfer import Entropies, TransferMatrix
from omni_thinker.studies.units import expert_kind, plan_work, probe_kinds, probe_lengths, probed_tasks, single_tasks
from omni_thinker.transfer.forecast import in_order
from omni_thinker.transfer.gradient import Gradients, first_order
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from omni_thinker.transfer.matrix import load_matrix, parse_matrix, pool
from omni_thinker.transfer.metrics import to_frame
from omni_thinker.transfer.probe import agreement, extrapolate
from omni_thinker.types import Problem, SampleRequest, SamplingParams, Score

# -- sketches ---------------------------------------------------------------------------------------------------------


def test_sketches_preserve_inner_products() -> None:
    torch.manual_seed(0)
    a = [torch.randn(300, 64), torch.randn(4000)]
    b = [0.5 * x + torch.randn_like(x) for x in a]
    told = float(sketch(a, 5)[0] @ sketch(b, 5)[0])
    true = sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
    lengths = [sum(float(x.square().sum()) for x in own) ** 0.5 for own in (a, b)]
    assert abs(told - true) < 4 * lengths[0] * lengths[1] / DIMENSIONS**0.5
    assert abs(float(sketch(a, 5)[0] @ sketch(b, 6)[0])) < abs(told) / 4, "other signs, other sketch"


def test_sketches_are_linear_and_repeatable() -> None:
    a, b = [torch.randn(50, 8)], [torch.randn(50, 8)]
    assert torch.allclose(sketch([a[0] + b[0]], 1)[0], sketch(a, 1)[0] + sketch(b, 1)[0], atol=1e-5)
    assert torch.equal(sketch(a, 1), sketch(a, 1))
    assert not sketch([None, torch.zeros(3, 3)], 1).any()


def test_direction_is_scaled_to_rows_of_equal_norm() -> None:
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-20, 4e-20]])
    made = sketch([rows], 1, dimensions=7)[1]
    # Two rows of mean square 1, so four numbers whose squares add up to 4; seven buckets hold six weights apart.
    assert float(made.square().sum()) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 5000])
def test_long_tensors_are_sketched_without_bias(rows: int) -> None:
    ones = torch.ones(rows, 1100)
    found = sketch([ones], 2, dimensions=5)
    assert float(found[0].abs().max()) < 5 * (rows * 1100 / 5) ** 0.5
    assert torch.allclose(found[0], found[1], rtol=1e-5)


# -- gradients --------------------------------------------------------------------------------------------------------


def _scored(policy: TorchPolicy, task: str, rewards: list[list[float | None]]) -> list[ScoredGroup]:
    requests = [SampleRequest(policy.encode_prompt(f"{task} {n}"), 5, n) for n in range(len(rewards))]
    groups = policy.sample(requests, SamplingParams(len(rewards[0])))
    return [
        ScoredGroup(
            Problem(str(n), task, ""),
            group,
            tuple(Score.abstain("no") if value is None else Score.of(value) for value in own),
        )
        for n, (group, own) in enumerate(zip(groups, rewards, strict=True))
    ]


def test_the_policy_gradient_is_the_slope_of_the_mean_score(tiny_model: Path) -> None:
    """By importance weights: the mean of A x p'/p over samples has the accuracy's slope."""
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    scored = _scored(policy, "t", [[1.0, 0.0, 0.5, None], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
    assert add_policy_gradient(policy, scored, 1.0) > 0
    gradients = [master.grad.clone() for master in policy._masters if master.grad is not None]
    square = sum(float(g.double().square().sum()) for g in gradients)

    def surrogate() -> float:
        total, count = 0.0, 11  # scored samples, those of the group without signal too
        for group in scored:
            values = group.values
            samples = [s for s, score in zip(group.group.samples, group.scores, strict=True) if score.value is not None]
            for sample, value in zip(samples, values, strict=True):
                others = (sum(values) - value) / (len(values) - 1)
                part = add_group(policy, group, sample)
                total += (value - others) * float(np.exp(part - sum(sample.logprobs))) / count
        return total

    before, size = surrogate(), 1e-3 / square**0.5
    with torch.no_grad():
        for master in policy._masters:
            if master.grad is not None:
                master -= size * master.grad
    policy._updates.publish()
    assert surrogate() - before == pytest.approx(size * square, rel=0.05)


def add_group(policy: TorchPolicy, group: ScoredGroup, sample: Any) -> float:
    """Log-prob of one sample now."""
    from omni_thinker.protocol import TrainGroup

    own = TrainGroup("t", group.group.prompt, (sample,), (1.0,), (1.0,))
    return float(policy.logprobs([own]).double().sum())


def test_group_without_signal_adds_no_gradient(tiny_model: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    assert add_policy_gradient(policy, _scored(policy, "t", [[1.0, 1.0]]), 1.0) == 0
    assert not policy.sketch_gradient(0).any()


def test_a_sketch_clears_the_gradient(tiny_model: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    scored = _scored(policy, "t", [[1.0, 0.0]])
    add_policy_gradient(policy, scored, 1.0)
    first = policy.sketch_gradient(3)
    assert first.any()
    add_policy_gradient(policy, scored, 1.0)
    assert torch.allclose(policy.sketch_gradient(3), first)


def test_first_order_effects_equal_values_by_hand() -> None:
    """Two tasks share one direction, and b's gradient opposes a's."""
    along = np.array([[1.0, 0.0], [1.0, 0.0]])
    gradients = {"a": Gradients(along, along), "b": Gradients(-0.5 * along, -along)}
    start = {"a": Estimate(0.5, 10**9, 0.0), "b": Estimate(0.5, 10**9, 0.0)}
    found = first_order(start, gradients, {"a": 0.1, "b": 0.1})

    def moved(change: float) -> float:
        return float(1 / (1 + np.exp(-change / 0.25)) - 0.5)

    assert found.effect("a", "a") == pytest.approx(moved(0.1), abs=1e-6)
    assert found.effect("a", "b") == pytest.approx(moved(-0.05), abs=1e-6)
    assert found.effect("b", "a") == pytest.approx(moved(-0.1), abs=1e-6)
    assert found.effect("b", "b") == pytest.approx(moved(0.05), abs=1e-6)
    # No noise between batches: what is left is the sketch's error and the doubt in a straight line.
    slope = (0.5 + moved(0.1)) * (0.5 - moved(0.1)) / 0.25
    assert found.after["a"]["a"].stderr == pytest.approx(slope * np.hypot(0.1 / 2**0.5, 0.05), rel=1e-6)


def test_first_order_effect_of_pure_noise_is_0_on_average() -> None:
    """On pure noise, multiplying a batch with itself would look like a gain."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(200):
        noise = {task: rng.normal(size=(4, 50)) for task in "ab"}
        own = {task: Gradients(value, value) for task, value in noise.items()}
        start = {task: Estimate(0.5, 10**9, 0.0) for task in "ab"}
        gains.append(first_order(start, own, dict.fromkeys("ab", 1e-3)).effect("a", "a"))
    assert abs(np.mean(gains)) < 4 * np.std(gains) / 200**0.5
    with pytest.raises(ValueError, match="two batches"):
        first_order(start, {task: Gradients(value[:1], value[:1]) for task, value in noise.items()}, {})


@given(st.floats(0, 1), st.floats(-100, 100), st.floats(0, 0.3))
def test_first_order_accuracies_stay_within_0_and_1(start: float, gradient: float, stderr: float) -> None:
    rows = np.full((2, 3), gradient)
    own = dict.fromkeys("ab", Gradients(rows, rows))
    found = first_order({task: Estimate(start, 20, stderr) for task in "ab"}, own, {"a": 1.0, "b": 0.0})
    for row in found.after.values():
        for cell in row.values():
            assert 0 <= cell.mean <= 1
            assert np.isfinite(cell.stderr)
            assert cell.stderr >= stderr
    assert abs(found.effect("b", "a")) < 1e-12


# -- agreement, extrapolation -----------------------------------------------------------------------------------------


def test_agreement_of_matrices_equals_values_by_hand() -> None:
    half = matrix(START, [[(a + s) / 2 for a, s in zip(row, START, strict=True)] for row in AFTER])
    found = agreement(half, MATRIX)
    assert found is not None
    assert found.cells == 9
    assert [found.rank, found.rank_off_diagonal] == pytest.approx([1.0, 1.0])
    effects = [abs(MATRIX.effect(i, j)) for i in "abc" for j in "abc"]
    assert found.mean_difference == pytest.approx(sum(effects) / 18)
    backwards = matrix(START, [[2 * s - a for a, s in zip(row, START, strict=True)] for row in AFTER])
    turned = agreement(backwards, MATRIX)
    assert turned is not None
    assert turned.rank == pytest.approx(-1.0)
    still = agreement(matrix(START, [START] * 3), MATRIX)
    assert still is not None
    assert still.rank is None, "all alike: there are no ranks"
    assert agreement(TransferMatrix(("x",), {}, {"x": {}}), TransferMatrix(("x",), {}, {"x": {}})) is None


def test_extrapolating_an_unchanged_accuracy_gives_effect_0() -> None:
    """An accuracy of 0 before and after has no effect, however short the probe."""
    own = extrapolate(matrix([0.0, 1.0], [[0.0, 1.0], [0.0, 1.0]], n=6), {"a": 0.1, "b": 0.1})
    assert [own.effect(i, j) for i in "ab" for j in "ab"] == [0.0] * 4


# -- entropies --------------------------------------------------------------------------------------------------------

ENTROPIES = Entropies({"a": 1.0, "b": 2.0, "c": 0.5}, {"a": {"a": 0.5, "b": 1.5}, "b": {"c": 0.75}})


def test_entropies_round_trip_through_a_file(tmp_path: Path) -> None:
    own = TransferMatrix(MATRIX.tasks, MATRIX.start, MATRIX.after, entropy=ENTROPIES)
    (tmp_path / "t.json").write_text(json.dumps(dump(own)))
    assert load_matrix(tmp_path / "t.json") == own
    assert ENTROPIES.change("a", "b") == -0.5
    assert ENTROPIES.change("a", "c") == ENTROPIES.change("c", "a") == 0.0


def test_pooled_and_extrapolated_entropies_equal_values_by_hand() -> None:
    more = Entropies({"a": 2.0, "b": 2.0, "c": 0.5}, {"a": {"a": 0.5, "b": 0.5}, "b": {"c": 0.25}})
    pooled = pool([TransferMatrix(MATRIX.tasks, MATRIX.start, MATRIX.after, entropy=own) for own in (ENTROPIES, more)])
    assert pooled.entropy == Entropies({"a": 1.5, "b": 2.0, "c": 0.5}, {"a": {"a": 0.5, "b": 1.0}, "b": {"c": 0.5}})
    own = TransferMatrix(MATRIX.tasks, MATRIX.start, MATRIX.after, entropy=ENTROPIES)
    half = extrapolate(own, dict.fromkeys("abc", 0.5)).entropy
    assert half is not None
    assert half.after["a"]["b"] == pytest.approx(2.0 - 0.5 / 0.679, abs=1e-3)
    assert half.after["a"]["a"] == pytest.approx(1.0 - 0.5 / 0.679, abs=1e-3)


@pytest.mark.parametrize(
    ("entropy", "key"),
    [
        (1, "entropy"),
        ({"start": {}}, "entropy"),
        ({"start": 1, "after": {}}, "entropy.start"),
        ({"start": {"x": 1}, "after": {}}, "entropy.start"),
        ({"start": {"a": -1}, "after": {}}, "entropy.start.a"),
        ({"start": {"a": float("nan")}, "after": {}}, "entropy.start.a"),
        ({"start": {}, "after": {"x": {}}}, "entropy.after"),
        ({"start": {}, "after": {"a": {"b": "much"}}}, "entropy.after.a.b"),
    ],
)
def test_bad_entropies_are_refused_by_key(entropy: Any, key: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_matrix({**dump(MATRIX), "entropy": entropy}, "t.json")
    assert f"{key}:" in str(caught.value)
    assert "t.json" in str(caught.value)


def test_entropies_without_evidence_do_not_change_the_forecast() -> None:
    own = TransferMatrix(MATRIX.tasks, MATRIX.start, MATRIX.after, entropy=ENTROPIES)
    for order in ("abc", "cba"):
        told, plain = (Hierarchical(each, 4000)(in_order(order)) for each in (own, MATRIX))
        for task in "abc":
            assert told[task].mean() == pytest.approx(plain[task].mean(), abs=0.01)


def test_entropies_with_evidence_lower_the_forecast_error() -> None:
    """In worlds where earlier stages' entropy decides later gains, knowing entropies sharpens the next forecast."""
    errors = after_a_run(40)
    assert errors["before any run, with entropies"] == pytest.approx(errors["before any run, without"], abs=0.003)
    assert errors["after two other orders, with entropies"] < 0.9 * errors["after two other orders, without"]
    assert errors["after two other orders, without"] < 0.9 * errors["before any run, without"]


def test_search_puts_a_task_first_that_entropy_loss_would_harm() -> None:
    """b lowers a's entropy, and in the evidence a then gains less, so a should come first."""
    own = matrix([0.3, 0.3], [[0.8, 0.3], [0.3, 0.8]], stderr=0.02, n=400)
    own = TransferMatrix(own.tasks, own.start, own.after, entropy=Entropies({"a": 2.0, "b": 2.0}, {"b": {"a": 1.0}}))
    low = Evidence(in_order("ba"), {"a": Estimate(0.55, 400, 0.02), "b": Estimate(0.78, 400, 0.02)})
    form = Hierarchical(own, 4000, 0, [low] * 4).set_form()
    assert form.effect_K_C[1, 0] > form.effect_K_C[0, 1] + 0.05, "a ends higher with b after it"


# -- adapters ---------------------------------------------------------------------------------------------------------


def _add_up(start: Path, adapters: Sequence[Path], scale: float, out: Path) -> None:
    merge(start, [Adapter(folder, "tiny") for folder in adapters], MergeRule(scale=scale), out)


def _adapted(folder: Path, out: Path, seed: int, **lora: Any) -> TorchPolicy:
    """A policy with random factors, written as a peft folder."""
    policy = TorchPolicy(ModelSpec(name=str(folder), dtype="float32", lora=LoraSpec(rank=4, alpha=8, **lora)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for master in policy._masters:
            master.normal_(0, 0.02)
    policy._updates.publish()
    policy.export_adapter(out)
    return policy


def test_adding_one_adapter_equals_merge_and_unload(tiny_model: Path, tmp_path: Path) -> None:
    whole = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    whole.save_weights(tmp_path / "start")
    adapted = _adapted(tiny_model, tmp_path / "a", 1)
    _add_up(tmp_path / "start", [tmp_path / "a"], 1.0, tmp_path / "deep" / "out")
    merged = dict(copy.deepcopy(adapted.model).merge_and_unload().named_parameters())  # type: ignore[operator]
    found = load_file(tmp_path / "deep" / "out")
    assert found.keys() == load_file(tmp_path / "start").keys()
    changed = 0
    for name, weight in found.items():
        assert torch.allclose(weight, merged[name].float(), atol=1e-6), name
        changed += not torch.equal(weight, load_file(tmp_path / "start")[name])
    assert changed >= 14, "every linear layer of both blocks"


def test_adding_two_adapters_equals_the_sum_of_their_changes(tiny_model: Path, tmp_path: Path) -> None:
    whole = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    whole.save_weights(tmp_path / "start")
    for seed, name in enumerate("ab"):
        _adapted(tiny_model, tmp_path / name, seed)
        _add_up(tmp_path / "start", [tmp_path / name], 1.0, tmp_path / f"{name}.one")
    _add_up(tmp_path / "start", [tmp_path / "a", tmp_path / "b"], 0.5, tmp_path / "out")
    start, one, two, both = (load_file(tmp_path / name) for name in ("start", "a.one", "b.one", "out"))
    for name, weight in both.items():
        assert torch.allclose(weight, start[name] + 0.5 * (one[name] + two[name] - 2 * start[name]), atol=1e-6)


def test_adapters_that_cannot_be_added_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    _adapted(tiny_model, tmp_path / "a", 0)
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "other")
    with pytest.raises(UserError, match="doesn't have"):
        _add_up(tmp_path / "other", [tmp_path / "a"], 1.0, tmp_path / "out")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(UserError, match="has no weights for"):
        _add_up(tmp_path / "other", [tmp_path / "a"], 1.0, tmp_path / "out")
    with pytest.raises(UserError, match=r"model\.lora\.targets.*which this model ties"):
        _adapted(tiny_model, tmp_path / "b", 0, targets=["embed_tokens", "q_proj"])
    with pytest.raises(UserError, match="has no adapter_model"):
        _add_up(tmp_path / "other", [tmp_path / "nowhere"], 1.0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_factors_depend_on_their_seed_alone(tiny_model: Path) -> None:
    spec = ModelSpec(name=str(tiny_model), dtype="float32", lora=LoraSpec(rank=4, alpha=8))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = TorchPolicy(spec, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's random numbers are used"
    torch.manual_seed(6)
    again, other = TorchPolicy(spec, seed=7), TorchPolicy(spec, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(one._masters, again._masters, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one._masters, other._masters, strict=True))


# -- which probes a study makes ---------------------------------------------------------------------------------------


def _kinds(arms: list[str], probes: list[str], **study: Any) -> tuple[ProbeKind, ...]:
    return probe_kinds(builtin_recipe(_settings(arms, probes, **study)))


def _settings(arms: list[str], probes: list[str], **study: Any) -> list[str]:
    settings = {"arms": arms, "probes": probes, **study}
    return [f"study.{key}={json.dumps(value)}" for key, value in settings.items()]


def test_probe_kinds_follow_from_arms_and_settings() -> None:
    assert _kinds(["start", "joint"], []) == ()
    assert _kinds(["start", "curriculum", "joint"], []) == ("short",)
    assert _kinds(["start", "curriculum"], [], order=["qa", "math", "coding", "writing"]) == ()
    assert _kinds(["start", "single"], []) == ("full",)
    assert _kinds(["start", "curriculum", "merge"], []) == ("full",)
    assert _kinds(["start", "curriculum", "merge"], ["lora"]) == ("lora",)
    assert _kinds(["start", "single", "merge"], ["lora"]) == ("lora", "full")
    assert _kinds(["start", "curriculum", "single"], ["gradient", "short"]) == ("gradient", "short", "full")
    assert _kinds(["start"], ["gradient"]) == ("gradient",)


def probe_work(recipe: Recipe) -> tuple[int, int]:
    """(steps, evaluations) of all probes and single-task arms."""
    units = [unit for unit in plan_work(recipe).units if unit.task]
    return sum(unit.steps for unit in units), sum(unit.evaluations for unit in units)


def test_probe_lengths_equal_values_by_hand() -> None:
    recipe = builtin_recipe(_settings(["start", "curriculum", "reverse", "joint"], ["short", "lora", "full"]))
    assert probe_lengths(recipe, "short") == dict.fromkeys(recipe.tasks, 1)  # 4 of 48 steps: 8 %
    many = builtin_recipe(_settings(["curriculum", "joint", "sec", "tac", "dump", "pac"], ["short"], probe_share=0.25))
    few = builtin_recipe(_settings(["curriculum", "joint"], ["short"], probe_share=0.25))
    assert probe_lengths(many, "short") == probe_lengths(few, "short") == dict.fromkeys(recipe.tasks, 3)
    assert probe_lengths(recipe, "lora") == probe_lengths(recipe, "short")
    assert probe_lengths(recipe, "full") == dict.fromkeys(recipe.tasks, 12)
    assert probe_work(recipe) == (4 * 12 + 4 * 1, 4 * 2 + 4)
    merging = builtin_recipe(_settings(["start", "curriculum", "merge"], ["lora"]))
    assert expert_kind(merging) == "lora"
    assert probe_lengths(merging, "lora") == dict.fromkeys(recipe.tasks, 12), "experts train as long as a stage"
    one = _settings(["start", "single"], [], single_tasks=["qa"])
    assert probed_tasks(builtin_recipe(one)) == single_tasks(builtin_recipe(one)) == ["qa"]
    beside = builtin_recipe(_settings(["start", "single"], ["full"], single_tasks=["qa"]))
    assert (len(probed_tasks(beside)), single_tasks(beside)) == (4, ["qa"])
    assert probe_work(beside) == (3 * 12 + 48, 4 + 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (_settings(["start"], ["short"], steps=2), "study.steps: 2 steps can't be shared by 4 tasks"),
        ([*_settings(["start"], ["full"]), 'tasks={"math"={"source"="builtin:math"}}'], "study.probes"),
        (_settings(["start", "joint"], [], replan=True), "study.replan: requires the arm 'curriculum'"),
        (
            _settings(["curriculum"], [], replan=True, order=["qa", "math", "coding", "writing"]),
            "study.replan: requires an empty study.order",
        ),
        (_settings(["curriculum"], [], replan=True, strategy="reversed"), "requires study.strategy = 'exact'"),
        (_settings(["curriculum"], [], replan=True, forecaster="logit"), "requires study.forecaster = 'hierarchical'"),
        (_settings(["start"], ["lora"], **{"probe_lora.rank": 10**9}), "study.probe_lora.rank"),
    ],
)
def test_impossible_probe_settings_are_refused(settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        builtin_recipe(settings)
    assert words in str(caught.value)


def test_duplicate_probe_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"study\.probes"):
        builtin_recipe(_settings(["start"], ["short", "short"]))


def test_to_frame_gives_one_row_per_cell() -> None:
    frame = to_frame(MATRIX)
    assert list(frame.columns) == ["evaluation", "task", "trained", "transfer", "mean", "n", "stderr"]
    assert len(frame) == 3 * 4
    assert frame[(frame.trained == "b") & (frame.task == "a")].transfer.item() == pytest.approx(-0.1)
