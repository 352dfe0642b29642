"""Settings of one task beside those of another, in one batch and one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import Loss, LossReport, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec, TaskRlSpec, builtin_recipe
from omni_thinker.rl.batch import ScoredGroup, build_batches, learnability
from omni_thinker.rl.loop import Learner, StepResult
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.stream import make_streams
from omni_thinker.rl.updates.balance import DISCOUNT, MOST, Balance, weighed
from omni_thinker.rl.updates.passes import add_gradient
from omni_thinker.types import Group, Problem, Sample, Score
from scripted import Scripted, in_turns

TASKS = ("a", "b")


class Counting(TorchPolicy):
    """Remembers its passes: the tasks of each and its temperature."""

    def __init__(self, name: str = "tiny") -> None:
        super().__init__(ModelSpec(name=name, dtype="float32"))
        self.passes: list[tuple[str, float]] = []
        self.recomputed: list[str] = []

    def forward_backward(
        self, batch: Sequence[TrainGroup], loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        self.passes.append(("".join(sorted({group.task for group in batch})), temperature))
        return super().forward_backward(batch, loss, temperature=temperature, reference=reference)

    def logprobs(self, groups: Sequence[TrainGroup], **kwargs: Any) -> torch.Tensor:
        self.recomputed += sorted({group.task for group in groups})
        return super().logprobs(groups, **kwargs)


def _learner(
    policy: TorchPolicy, own: Mapping[str, Mapping[str, Any]], *, best_of_a: float = 1.0, **settings: Any
) -> Learner:
    pools = {task: [Problem(f"{task}{n}", task, str(n)) for n in range(20)] for task in TASKS}
    spec = RlSpec.model_validate({"kl_every": 0, "group_size": 4, "lr": 1e-4, **settings})
    rewards, lengths = {"a": Scripted(lambda _, n: best_of_a * (n % 2)), "b": Scripted(in_turns)}, {"a": 6, "b": 9}
    specs = {task: TaskRlSpec.model_validate(dict(table)) for task, table in own.items()}
    return Learner(policy, spec, make_streams(pools, 0), rewards, lengths, own=specs)


def _step(policy: TorchPolicy, own: Mapping[str, Mapping[str, Any]], **settings: Any) -> StepResult:
    return _learner(policy, own, **settings).step({"a": 2, "b": 2}, 0)


# -- a step -------------------------------------------------------------------------------------------------


def test_tasks_are_sampled_and_trained_each_at_its_own_temperature_and_group_size() -> None:
    policy = Counting()
    result = _step(policy, {"b": {"group_size": 2, "temperature": 0.5}})
    sizes = {group.problem.task: len(group.group.samples) for group in result.groups}
    assert sizes == {"a": 4, "b": 2}
    assert policy.passes == [("a", 1.0), ("b", 0.5)]
    for task in TASKS:  # in fp32 sampler and trainer agree, if both are at the task's temperature
        assert result.metrics[f"mismatch_abs/{task}"] < 1e-4
    assert result.metrics["entropy/b"] < result.metrics["entropy/a"]
    assert [group.problem.task for group in result.groups] == ["a", "a", "b", "b"]


def test_equal_settings_are_one_pass_and_one_task_of_its_own_leaves_the_other_as_it_was() -> None:
    policy = Counting()
    plain = _step(policy, {})
    assert policy.passes == [("ab", 1.0)]
    spelled_out = Counting()
    _step(spelled_out, {"a": {"loss": "grpo", "kl_beta": 0.0}, "b": {"group_size": 4}})
    assert spelled_out.passes == [("ab", 1.0)]
    for one, other in zip(policy._masters, spelled_out._masters, strict=True):
        assert torch.equal(one, other)
    other_b = _step(Counting(), {"b": {"temperature": 0.5}})
    for name in ("entropy/a", "completion_length/a", "reward/a", "tokens_trained/a"):
        assert other_b.metrics[name] == pytest.approx(plain.metrics[name])


def test_kl_and_reference_are_one_tasks_own() -> None:
    policy = Counting()
    policy.mark_start()
    metrics = _step(policy, {"b": {"kl_beta": 0.1}}).metrics
    assert "kl_ref/b" in metrics
    assert "kl_ref/a" not in metrics


def test_only_tasks_with_importance_weights_are_recomputed() -> None:
    policy = Counting()
    metrics = _step(policy, {"b": {"importance_cap": 2.0}}, minibatches=2).metrics
    assert policy.recomputed == ["b", "b"]
    assert "importance/b" in metrics
    assert "importance/a" not in metrics
    assert metrics["mismatch_abs/all"] > 0, "that of all is of all tokens"


# -- the batch ----------------------------------------------------------------------------------------------


def _scored(task: str, values: Sequence[float]) -> ScoredGroup:
    samples = tuple(Sample((1,) * (n + 2), (-1.0,) * (n + 2), "", "stop") for n in range(len(values)))
    return ScoredGroup(Problem("p", task, "p"), Group((1,), samples), tuple(map(Score.of, values)))


def test_advantages_are_each_tasks_own_and_weights_are_over_the_whole_batch() -> None:
    groups = [_scored("a", [1.0, 0.0]), _scored("b", [1.0, 0.0]), _scored("a", [0.5, 1.0])]
    specs = {"a": RlSpec(advantage="dr_grpo"), "b": RlSpec(advantage="rloo")}
    [batch] = build_batches(groups, RlSpec(), 10, own=specs)
    assert [group.advantages for group in batch] == [(0.5, -0.5), (1.0, -1.0), (-0.25, 0.25)]
    assert [group.weights for group in batch] == [pytest.approx((1 / 12, 1 / 18))] * 3
    assert learnability(groups, RlSpec(), own=specs) == {"a": pytest.approx(0.375), "b": 1.0}


def test_batch_scale_is_over_the_groups_of_its_own_estimator() -> None:
    groups = [_scored("a", [1.0, 0.0]), _scored("b", [1.0, 0.0]), _scored("a", [1.0, 0.0])]
    specs = {"a": RlSpec(advantage="reinforce_pp"), "b": RlSpec(advantage="dr_grpo")}
    [batch] = build_batches(groups, RlSpec(), 10, own=specs)
    alone = build_batches([groups[0], groups[2]], specs["a"], 10)[0]
    assert [batch[0].advantages, batch[2].advantages] == [group.advantages for group in alone]


def test_truncated_answers_are_masked_in_their_own_task_alone() -> None:
    def cut(group: ScoredGroup) -> ScoredGroup:
        first, *rest = group.group.samples
        return replace(group, group=Group((1,), (replace(first, stop="length"), *rest)))

    groups = [cut(_scored(task, [1.0, 0.0, 0.5])) for task in TASKS]
    specs = {"a": RlSpec(truncated="mask"), "b": RlSpec()}
    [batch] = build_batches(groups, RlSpec(), 10, own=specs)
    assert [len(group.samples) for group in batch] == [2, 3]


def test_joint_gradient_is_the_sum_of_each_tasks_own(tiny_model: Path) -> None:
    policy = Counting(str(tiny_model))
    policy.mark_start()
    rng = torch.Generator().manual_seed(0)

    def group(task: str) -> TrainGroup:
        samples = tuple(
            Sample(tuple(torch.randint(3, 512, (n,), generator=rng).tolist()), (-6.0,) * n, "", "stop") for n in (3, 5)
        )
        return TrainGroup(task, (5, 6, 7), samples, (1.0, -0.7), (0.2, 0.1))

    batch = [group(task) for task in ("a", "b", "a", "c")]
    own: dict[str, dict[str, Any]] = {
        "a": {"loss": "cispo"}, "b": {"loss": "gspo", "temperature": 0.7, "kl_beta": 0.1},
        "c": {"eps_high": 0.5, "entropy_beta": 0.1, "top_entropy": 0.5},
    }  # fmt: skip
    specs = {task: RlSpec.model_validate(table).between(False) for task, table in own.items()}
    report = add_gradient(policy, batch, specs, measure_kl=False)
    joint = [master.grad.clone() for master in policy._masters if master.grad is not None]
    assert [tasks for tasks, _ in policy.passes] == ["a", "b", "c"]
    assert set(report.stats) == set(report.sketches) == {"a", "b", "c"}
    policy.reset_optimizer()
    losses = []
    for task, spec in specs.items():
        mine = [group for group in batch if group.task == task]
        if task == "c":
            losses.append(add_gradient(policy, mine, specs, measure_kl=False).loss)
        else:
            loss = make_loss(spec)
            losses.append(
                policy.forward_backward(mine, loss, temperature=spec.temperature, reference=spec.kl_beta > 0).loss
            )
    assert report.loss == pytest.approx(sum(losses), abs=1e-6)
    for one, master in zip(joint, policy._masters, strict=True):
        torch.testing.assert_close(master.grad, one, atol=1e-6, rtol=1e-5)


# -- the recipe ---------------------------------------------------------------------------------------------


def test_a_recipe_sets_them_by_task() -> None:
    recipe = builtin_recipe(
        ["rl.loss=dapo", "tasks.math.rl.group_size=16", "tasks.math.rl.loss=gspo", "tasks.qa.rl.kl_beta=0.1"]
    )
    math, qa, coding = (recipe.rl_of(task) for task in ("math", "qa", "coding"))
    assert (math.group_size, math.loss, math.clip) == (16, "gspo", (3e-4, 4e-4))
    assert (qa.group_size, qa.loss, qa.kl_beta, qa.clip) == (8, "dapo", 0.1, (0.2, 0.28))
    assert coding == recipe.rl


@pytest.mark.parametrize(
    ("setting", "key", "words"),
    [
        ("tasks.math.rl.delta=1.1", "tasks.math.rl.delta", "above 1 + eps_high"),
        ("tasks.math.rl.group_sise=4", "tasks.math.rl.group_sise", "group_size"),
        ("tasks.math.rl.lr=1e-3", "tasks.math.rl.lr", "unknown key"),
        ("tasks.math.rl.group_size=1", "tasks.math.rl.group_size", "greater than or equal to 2"),
    ],
)
def test_faults_of_a_tasks_settings_name_its_key(setting: str, key: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        builtin_recipe([setting])
    assert caught.value.key == key
    assert words in str(caught.value)


# -- balance ------------------------------------------------------------------------------------------------


def _group(task: str, weights: Sequence[float], length: int) -> TrainGroup:
    samples = tuple(Sample((1,) * length, (0.0,) * length, "", "stop") for _ in weights)
    return TrainGroup(task, (1,), samples, (0.0,) * len(weights), tuple(weights))


def _share(batch: Sequence[TrainGroup], task: str) -> float:
    sizes = {
        t: sum(w * s.drawn for g in batch if g.task == t for w, s in zip(g.weights, g.samples, strict=True))
        for t in {g.task for g in batch}
    }
    return sizes[task] / sum(sizes.values())


def test_balance_of_tokens_equals_values_by_hand() -> None:
    # Weights times tokens: a has 0.1 x 2 + 0.1 x 2 = 0.4, b 0.1 x 16 = 1.6. Asked: 3 to 1, of 2 in all.
    batch = [_group("a", [0.1, 0.1], 2), _group("b", [0.1], 16)]
    factors = Balance("tokens").factors(batch, {"a": 3, "b": 1, "c": 5})
    assert factors == {"a": pytest.approx(1.5 / 0.4), "b": pytest.approx(0.5 / 1.6)}
    assert _share(weighed(batch, factors), "a") == pytest.approx(0.75)
    assert Balance("none").factors(batch, {"a": 3, "b": 1}) == {"a": 1.0, "b": 1.0}
    assert Balance("tokens").factors(batch[:1], {"a": 3, "b": 1}) == {"a": 1.0}


def test_balance_of_gradients_equals_values_by_hand() -> None:
    balance, batch = Balance("gradient"), [_group("a", [0.1], 2), _group("b", [0.1], 2)]
    shares = {"a": 1, "b": 1}
    assert balance.factors(batch, shares) == {"a": 1.0, "b": 1.0}
    balance.observe({"a": 8.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    factors = balance.factors(batch, shares)
    assert factors == {"a": pytest.approx(5 / 8), "b": pytest.approx(5 / 2)}
    balance.observe({"a": 5.0, "b": 10.0}, factors)  # norms at factor 1: 8 and 4
    b = DISCOUNT * 2 + (1 - DISCOUNT) * 4
    assert balance.factors(batch, shares)["b"] == pytest.approx((8 + b) / 2 / b)
    again = Balance("gradient")
    again.restore(balance.state())
    assert again.factors(batch, shares) == balance.factors(batch, shares)
    balance.observe({"a": 1e9}, {"a": 1.0})
    assert max(balance.factors(batch, shares).values()) == MOST
    with pytest.raises(UserError, match="each task's gradient"):
        balance.observe({}, factors)


@given(
    groups=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 1), st.integers(1, 9)), min_size=1, max_size=8),
    data=st.data(),
)
def test_balance_of_tokens_holds_shares_and_the_whole_in_any_order(groups: Any, data: st.DataObject) -> None:
    batch = [_group(task, [weight], length) for task, weight, length in groups]
    shares = {"a": 1, "b": 2, "c": 5}
    factors = Balance("tokens").factors(batch, shares)
    moved = Balance("tokens").factors(data.draw(st.permutations(batch)), shares)
    assert moved == {task: pytest.approx(factor) for task, factor in factors.items()}
    present = {group.task for group in batch}
    if all(1 / MOST < factor < MOST for factor in factors.values()):
        for task in present:
            expected = shares[task] / sum(shares[t] for t in present)
            assert _share(weighed(batch, factors), task) == pytest.approx(expected)


def test_balance_of_gradients_evens_norms_out_and_resumes_exactly() -> None:
    own = {"a": {"advantage": "dr_grpo"}, "b": {"advantage": "grpo"}}

    def run(steps: Sequence[int], learner: Learner) -> list[dict[str, float]]:
        return [dict(learner.step({"a": 2, "b": 2}, step).metrics) for step in steps]

    settings: dict[str, Any] = {"balance": "gradient", "lr": 1e-6, "best_of_a": 0.2}
    whole = run(range(4), _learner(Counting(), own, **settings))
    assert (whole[0]["balance/a"], whole[0]["balance/b"]) == (1.0, 1.0)

    def ratio(row: dict[str, float]) -> float:
        return row["gradient/b"] / row["gradient/a"]

    assert ratio(whole[0]) > 1.5
    assert abs(ratio(whole[3]) - 1) < 0.5 * (ratio(whole[0]) - 1)

    policy = Counting()
    first = _learner(policy, own, **settings)
    run(range(2), first)
    second = _learner(policy, own, **settings)
    second.restore(first.state())
    later = run(range(2, 4), second)
    for one, other in zip(whole[2:], later, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }
    assert "balance" not in _learner(policy, own).state()
