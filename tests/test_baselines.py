"""What RL is compared with: merging by hand, and a warm-up that knows when to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.sft import WarmupReport, gold_batch, gold_loss, warm_up
from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossReport, OptimParams, OptimReport, TokenBatch, TrainBatch
from omni_thinker.recipe import ModelSpec, WarmupSpec
from omni_thinker.rl.stream import ProblemStream, make_streams
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.types import Chat, Problem

# -- task arithmetic ----------------------------------------------------------------------------------------


def task_arithmetic(start: Path, experts: Sequence[Path], scale: float, out: Path) -> None:
    merge(start, [Weights(path) for path in experts], MergeRule(scale=scale), out)


def _save(path: Path, **tensors: list[float] | torch.Tensor) -> Path:
    save_file({k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in tensors.items()}, path)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return _save(tmp_path / "start", w=[1.0, 2.0], b=[0.5])


@pytest.mark.parametrize(
    ("scale", "w", "b"), [(1.0, [2.0, 1.0], [0.0]), (0.5, [1.5, 1.5], [0.25]), (2.0, [3.0, 0.0], [-0.5])]
)
def test_task_arithmetic_equals_values_by_hand(
    start: Path, tmp_path: Path, scale: float, w: list[float], b: list[float]
) -> None:
    experts = [_save(tmp_path / "x", w=[2.0, 2.0], b=[0.25]), _save(tmp_path / "y", w=[1.0, 1.0], b=[0.25])]
    task_arithmetic(start, experts, scale, tmp_path / "deep" / "out")
    merged = load_file(tmp_path / "deep" / "out")
    assert {k: v.tolist() for k, v in merged.items()} == {"w": w, "b": b}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings on this system")
def test_merging_releases_every_mapped_file_before_saving(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of mapped files count as memory of the process: four experts would count four times."""
    experts = [_save(tmp_path / name, w=[2.0, 2.0], b=[0.25]) for name in ("x", "y")]
    mapped: list[str] = []

    def at_the_end(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
        mapped.append(Path("/proc/self/maps").read_text("utf-8"))

    monkeypatch.setattr("omni_thinker.baselines.merge.save_file", at_the_end)
    task_arithmetic(start, experts, 1.0, tmp_path / "out")
    assert len(mapped) == 1
    assert str(tmp_path) not in mapped[0]


def test_merging_no_expert_or_the_start_itself_gives_the_start(start: Path, tmp_path: Path) -> None:
    for experts in ([], [start], [start, start]):
        task_arithmetic(start, experts, 1.0, tmp_path / "out")
        assert {k: v.tolist() for k, v in load_file(tmp_path / "out").items()} == {"w": [1.0, 2.0], "b": [0.5]}


def test_merging_one_expert_at_scale_1_gives_that_expert(start: Path, tmp_path: Path) -> None:
    expert = _save(tmp_path / "x", w=[3.0, -4.0], b=[0.0])
    task_arithmetic(start, [expert], 1.0, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out")["w"], torch.tensor([3.0, -4.0]))


def test_merging_bf16_weights_sums_in_fp32_and_saves_bf16(tmp_path: Path) -> None:
    """Many small deltas that bf16 sums would lose: one step of bf16 at 1.0 is 2**-7."""

    def bf16(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.bfloat16)

    start = _save(tmp_path / "s", w=bf16(1.0))
    experts = [_save(tmp_path / f"e{i}", w=bf16(1.0 + 2**-7)) for i in range(8)]
    task_arithmetic(start, experts, 0.25, tmp_path / "out")
    merged = load_file(tmp_path / "out")["w"]
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [1.0 + 2**-6]


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": [1.0, 2.0]},
        {"w": [1.0, 2.0], "b": [0.5], "c": [0.0]},
        {"w": [1.0, 2.0], "bias": [0.5]},
        {"w": [1.0, 2.0, 3.0], "b": [0.5]},
        {"w": [1.0], "b": [0.5]},  # would broadcast
        {"w": [1.0, 2.0], "b": [0.5, 0.5]},
    ],
)
def test_experts_with_other_tensors_or_shapes_are_refused(
    start: Path, tmp_path: Path, tensors: dict[str, list[float]]
) -> None:
    good, bad = _save(tmp_path / "good", w=[1.0, 2.0], b=[0.5]), _save(tmp_path / "bad", **tensors)
    with pytest.raises(UserError) as caught:
        task_arithmetic(start, [good, bad], 1.0, tmp_path / "out")
    assert str(bad) in str(caught.value)
    assert not (tmp_path / "out").exists()


# -- the gold batch -----------------------------------------------------------------------------------------


class FakePolicy:
    """A policy of words: token ids are lengths, and steps are counted."""

    def __init__(self) -> None:
        self.batches: list[TrainBatch] = []
        self.rates: list[float] = []

    def encode_prompt(self, chat: str | Chat) -> tuple[int, ...]:
        return tuple(map(len, (chat if isinstance(chat, str) else chat.text).split()))

    def encode_answer(self, text: str) -> tuple[int, ...]:
        return (*map(len, text.split()), 99)

    def sample(self, requests: Sequence[Any], params: Any, on_group: Any = None) -> list[Any]:
        raise AssertionError("a warm-up samples nothing")

    def forward_backward(
        self, batch: TrainBatch, loss: Any, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        assert loss is gold_loss
        assert not reference
        self.batches.append(batch)
        return LossReport(1.5, 10)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        self.rates.append(optim.lr)
        return OptimReport(1.0, True)

    def reset_optimizer(self) -> None: ...

    def mark_start(self) -> None: ...

    def save_weights(self, path: Path) -> None: ...

    def load_weights(self, path: Path) -> None: ...

    def save_state(self, path: Path) -> None: ...

    def load_state(self, path: Path) -> None: ...

    def export(self, path: Path) -> None: ...


def test_gold_batch_weighs_each_answer_alike_whatever_its_length() -> None:
    problems = [
        Problem("1", "a", "how many", "one two three"),
        Problem("2", "b", "what is it", None),
        Problem("3", "b", "who", "me"),
    ]
    batch = gold_batch(FakePolicy(), problems)
    assert [g.task for g in batch] == ["a", "b"], "a problem without a gold answer is left out"
    assert [g.prompt for g in batch] == [(3, 4), (3,)]
    assert [g.samples[0].tokens for g in batch] == [(3, 3, 5, 99), (2, 99)]
    assert [w for g in batch for w in g.weights] == pytest.approx([1 / 8, 1 / 4])
    assert sum(g.weights[0] * g.tokens for g in batch) == pytest.approx(1.0)
    assert gold_batch(FakePolicy(), problems[1:2]) == []


def test_gold_loss_is_the_weighted_negative_log_likelihood() -> None:
    now = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    weights = torch.tensor([0.5, 0.25, 1.0])
    terms = gold_loss(TokenBatch(now, torch.zeros(3), None, torch.ones(3), weights, torch.tensor([0, 0, 1])))
    assert float(terms.loss.detach()) == pytest.approx(0.5 + 0.5 + 0.5)
    assert not terms.clipped_N.any()
    [gradient] = torch.autograd.grad(terms.loss, now)
    assert torch.equal(gradient, -weights)


def test_gold_loss_falls_over_12_steps_and_starts_at_the_plain_value(tiny_model: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    batch = gold_batch(policy, [Problem("1", "a", "Hi", "Paris"), Problem("2", "a", "Ho", "a cat")])
    losses = []
    for _ in range(12):
        losses.append(policy.forward_backward(batch, gold_loss).loss)
        policy.optim_step(OptimParams(1e-2))
    assert losses[0] > 3.0, "a random model finds gold answers unlikely"
    assert losses[-1] < losses[0] / 3
    fresh = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    expected = sum(float(fresh.logprobs([group]).sum()) * group.weights[0] for group in batch)
    assert losses[0] == pytest.approx(-expected, rel=1e-4)


# -- the warm-up --------------------------------------------------------------------------------------------

Scores = Mapping[str, float]


def _run(curve: Sequence[Scores], **settings: Any) -> tuple[WarmupReport, FakePolicy, list[list[str]], list[int]]:
    """A warm-up whose n-th check finds `curve[n]` (the last one ever after)."""
    spec = WarmupSpec.model_validate({"steps": 20, "batch": 4, "lr": 0.3, "check_every": 2, **settings})
    policy, active, checked = FakePolicy(), list[list[str]](), list[int]()

    def check(step: int) -> dict[str, Estimate]:
        checked.append(step)
        return {t: Estimate(v, 8, 0.1) for t, v in curve[min(len(checked), len(curve)) - 1].items()}

    def on_step(step: int, loss: float, tasks: list[str]) -> None:
        assert step == len(active) + 1
        assert loss == 1.5
        active.append(tasks)

    pools = {t: [Problem(f"{t}{i}", t, "q" * (i + 1), "gold") for i in range(9)] for t in curve[0]}
    report = warm_up(policy, make_streams(pools, 0), spec, check, on_step)
    return report, policy, active, checked


def test_warm_up_takes_no_step_when_no_task_is_below_the_band() -> None:
    report, policy, active, checked = _run([{"a": 0.4, "b": 0.9}])
    assert (report.steps, report.tokens, active, checked, policy.batches) == (0, 0, [], [0], [])
    assert report.inside == {"a": True, "b": False}, "above the band is outside it too"


def test_warm_up_stops_once_all_tasks_are_inside_the_band() -> None:
    # The band is .2 to .6: a task is done at a quarter into it, .3.
    report, policy, _, checked = _run([{"a": 0.0, "b": 0.0}, {"a": 0.25, "b": 0.1}, {"a": 0.3, "b": 0.35}])
    assert checked == [0, 2, 4]
    assert report.steps == len(policy.batches) == 4
    assert report.tokens == 40
    assert report.inside == {"a": True, "b": True}
    assert report.reached["b"].mean == 0.35


def test_warm_up_pauses_a_task_inside_the_band_and_resumes_it_below() -> None:
    curve = [{"a": 0.0, "b": 0.0}, {"a": 0.5, "b": 0.0}, {"a": 0.1, "b": 0.0}, {"a": 0.5, "b": 0.4}]
    _, policy, active, _ = _run(curve)
    assert active == [["a", "b"]] * 2 + [["b"]] * 2 + [["a", "b"]] * 2
    shares = [Counter(g.task for g in batch) for batch in policy.batches]
    assert shares == [{"a": 2, "b": 2}] * 2 + [{"b": 4}] * 2 + [{"a": 2, "b": 2}] * 2


def test_warm_up_below_the_band_ends_at_its_step_limit_with_a_check() -> None:
    report, policy, _, checked = _run([{"a": 0.0, "b": 0.25}], steps=5)
    assert checked == [0, 2, 4, 5]
    assert report.steps == 5
    assert report.inside == {"a": False, "b": True}
    assert policy.rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3]), "the learning rate rises over three steps"


def test_warm_up_of_0_steps_checks_once_and_trains_nothing() -> None:
    report, policy, _, checked = _run([{"a": 0.0}], steps=0)
    assert (report.steps, checked, policy.batches) == (0, [0], [])


@pytest.mark.parametrize(("batch", "share"), [(4, [2, 1, 1]), (6, [2, 2, 2]), (2, [1, 1, 0])])
def test_warm_up_batch_is_shared_evenly_among_tasks(batch: int, share: list[int]) -> None:
    _, policy, _, _ = _run([{"a": 0.0, "b": 0.0, "c": 0.0}], steps=1, batch=batch)
    counts = Counter(g.task for g in policy.batches[0])
    assert [counts[t] for t in "abc"] == share


def test_warm_up_steps_take_problems_in_the_order_of_the_stream() -> None:
    _, policy, _, _ = _run([{"a": 0.0}], steps=4, batch=3, check_every=9)
    seen = [g.prompt for batch in policy.batches for g in batch]
    pool = [Problem(f"a{i}", "a", "q" * (i + 1), "gold") for i in range(9)]
    assert seen == [(len(problem.prompt),) for problem, _ in ProblemStream("a", pool, 0).take(12)]
    assert sorted(seen[:9]) == [(i + 1,) for i in range(9)]
