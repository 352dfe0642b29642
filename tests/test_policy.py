"""The torch policy: updates, state that resumes bit for bit, export, LoRA, and agreement with its own sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossReport, LossTerms, OptimParams, TokenBatch, TrainGroup
from omni_thinker.recipe import LoraSpec, ModelSpec, RlSpec, parse_recipe
from omni_thinker.rl.evaluate import evaluate
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Group, Problem, SampleRequest, SamplingParams, Score
from scripted import Scripted, in_turns

OPTIM = OptimParams(lr=1e-3)
LORA = LoraSpec(rank=4, alpha=8)


def _policy(folder: Path, dtype: str = "float32", lora: LoraSpec | None = None) -> TorchPolicy:
    return TorchPolicy(ModelSpec.model_validate({"name": str(folder), "dtype": dtype, "lora": lora}))


def _groups(policy: TorchPolicy, seed: int = 0) -> list[TrainGroup]:
    """Sampled groups with made-up advantages."""
    prompts = ("How much is 2 + 2?", "Hi")
    requests = [SampleRequest(policy.encode_prompt(p), 6, seed + i) for i, p in enumerate(prompts)]
    drawn = policy.sample(requests, SamplingParams(3))
    return [TrainGroup("t", g.prompt, g.samples, (1.0, -0.5, -0.5), (1 / 36,) * 3) for g in drawn]


def _backward(policy: TorchPolicy, groups: Sequence[TrainGroup], beta: float = 0.0) -> LossReport:
    return policy.forward_backward(groups, make_loss(RlSpec(kl_beta=beta)), reference=beta > 0)


def _step(policy: TorchPolicy, groups: Sequence[TrainGroup], optim: OptimParams = OPTIM) -> None:
    _backward(policy, groups)
    assert policy.optim_step(optim).applied


def _weights(policy: TorchPolicy) -> dict[str, torch.Tensor]:
    return {name: m.detach().clone() for name, m in zip(policy._names, policy._masters, strict=True)}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _logits(model: torch.nn.Module, groups: Sequence[TrainGroup]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(groups[0].prompt)])).logits
    return logits


# -- agreement with the sampler -----------------------------------------------------------------------------


def test_fresh_samples_have_no_mismatch_and_no_clipped_tokens(tiny_model: Path) -> None:
    policy = _policy(tiny_model)
    stats = _backward(policy, _groups(policy)).stats["t"]
    assert stats.mismatch / stats.tokens < 1e-4
    assert stats.clipped == 0.0
    assert 1.0 < stats.entropy / stats.tokens < math.log(512)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_learner_at_any_temperature_sees_fresh_samples_as_on_policy(tiny_model: Path, temperature: float) -> None:
    """Otherwise the ratio compares two different distributions, and on-policy samples look off-policy."""
    problems = [Problem(str(n), "t", f"How much is {n} + 1?") for n in range(4)]
    spec = RlSpec(temperature=temperature, group_size=4, problems_per_step=2, kl_every=0)
    learner = Learner(_policy(tiny_model), spec, make_streams({"t": problems}, 0), {"t": Scripted(in_turns)}, {"t": 6})
    metrics = learner.step({"t": 2}, 0).metrics
    assert metrics["mismatch_abs/all"] < 1e-4
    assert metrics["clip_frac/all"] == 0.0


def test_encoded_answer_ends_with_a_stop_token_and_decodes_back(tiny_model: Path) -> None:
    policy = _policy(tiny_model)
    answer = policy.encode_answer("Paris is right")
    assert answer[-1] in policy.stop_ids
    assert policy.decode(answer) == "Paris is right"
    assert policy.decode(policy.encode_prompt("Hi")).startswith("user\nHi")


# -- updates ------------------------------------------------------------------------------------------------


def test_update_raises_logprobs_of_samples_with_positive_advantage(tiny_model: Path) -> None:
    policy = _policy(tiny_model)
    groups = _groups(policy)
    signs = torch.tensor([a for g in groups for s, a in zip(g.samples, g.advantages, strict=True) for _ in s.tokens])
    before = policy.logprobs(groups)
    _step(policy, groups)
    assert float(((policy.logprobs(groups) - before) * signs).sum()) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_updates_at_lr_1e_6_accumulate_in_fp32_masters(tiny_model: Path, dtype: str) -> None:
    """At lr 1e-6 no bf16 weight would ever change, but the fp32 masters accumulate the updates."""
    policy = _policy(tiny_model, dtype)
    start, groups = _weights(policy), _groups(policy)
    _step(policy, groups, OptimParams(lr=1e-6))
    moved = [(m - start[n]).abs() for n, m in _weights(policy).items()]
    assert max(float(d.max()) for d in moved) == pytest.approx(1e-6, rel=0.2)
    assert {p.dtype for p in policy._params} == {getattr(torch, dtype)}
    assert {m.dtype for m in policy._masters} == {torch.float32}
    for param, master in zip(policy._params, policy._masters, strict=True):
        assert torch.equal(param, master.to(param.dtype))


def test_accumulated_updates_reach_the_bf16_weights(tiny_model: Path) -> None:
    policy = _policy(tiny_model, "bfloat16")
    groups, before = _groups(policy), [p.detach().clone() for p in policy._params]
    largest = max(range(len(before)), key=lambda i: float(before[i].abs().mean()))
    for _ in range(3):
        _step(policy, groups, OptimParams(lr=5e-4))  # norms weigh 1.0: one bf16 step there is 4e-3 or 8e-3
    moved = (policy._masters[largest].detach() - before[largest].float()).abs().max()
    assert 1e-3 < float(moved) < 4e-3
    changed = [not torch.equal(a, p) for a, p in zip(before, policy._params, strict=True)]
    assert sum(changed) > len(changed) // 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_reported(tiny_model: Path, bad: float) -> None:
    policy = _policy(tiny_model)
    groups, start = _groups(policy), _weights(policy)

    def broken(batch: TokenBatch) -> LossTerms:
        return LossTerms((batch.logprobs_N * bad).sum(), torch.zeros_like(batch.logprobs_N, dtype=torch.bool))

    policy.forward_backward(groups, broken)
    report = policy.optim_step(OPTIM)
    assert not report.applied
    assert not math.isfinite(report.grad_norm)
    assert _equal(_weights(policy), start)
    # Nothing of it is left: the next step is that of a policy that never saw it.
    _step(policy, groups)
    fresh = _policy(tiny_model)
    _step(fresh, groups)
    assert _equal(_weights(policy), _weights(fresh))


def test_gradient_is_clipped_to_max_grad_norm(tiny_model: Path) -> None:
    policy = _policy(tiny_model)
    _backward(policy, _groups(policy))
    norm = math.sqrt(sum(float(g.float().square().sum()) for g in policy._updates.gradients() if g is not None))
    report = policy.optim_step(OptimParams(lr=0.0, max_grad_norm=norm / 3))
    assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    # The first moment is (1 - beta1) times the gradient that was applied.
    moments = [policy._updates.optimizer.state[m]["exp_avg"] for m in policy._masters]
    applied = math.sqrt(sum(float(m.square().sum()) for m in moments)) / 0.1
    assert applied == pytest.approx(norm / 3, rel=1e-3)


def test_weight_decay_shrinks_weights_by_lr_times_decay(tiny_model: Path) -> None:
    plain, decayed = _policy(tiny_model), _policy(tiny_model)
    groups, start = _groups(plain), _weights(plain)
    _step(plain, groups)
    _step(decayed, groups, OptimParams(lr=1e-3, weight_decay=0.5))
    for name, weight in _weights(decayed).items():
        torch.testing.assert_close(_weights(plain)[name] - weight, 1e-3 * 0.5 * start[name], atol=1e-6, rtol=1e-2)


# -- state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_state_continues_bit_for_bit(
    tiny_model: Path, tmp_path: Path, dtype: str, lora: LoraSpec | None
) -> None:
    policy = _policy(tiny_model, dtype, lora)
    groups = _groups(policy)
    for _ in range(2):
        _step(policy, groups)
    policy.save_state(tmp_path / "deep" / "state")
    saved = _weights(policy)
    _step(policy, groups)
    other = _policy(tiny_model, dtype, lora)
    other.load_state(tmp_path / "deep" / "state")
    assert _equal(_weights(other), saved)
    assert _groups(other, seed=9) != _groups(_policy(tiny_model, dtype, lora), seed=9), "the weights are published"
    _step(other, groups)
    assert _equal(_weights(other), _weights(policy))
    # Moments matter: without them the step differs.
    policy.load_weights(tmp_path / "deep" / "state")
    _step(policy, groups)
    assert not _equal(_weights(other), _weights(policy))


def test_state_saved_before_the_first_step_restores_without_moments(tiny_model: Path, tmp_path: Path) -> None:
    policy = _policy(tiny_model)
    groups = _groups(policy)
    policy.save_state(tmp_path / "state")
    _step(policy, groups)
    after = _weights(policy)
    policy.load_state(tmp_path / "state")
    _step(policy, groups)
    assert _equal(_weights(policy), after)


def test_load_weights_resets_the_optimizer(tiny_model: Path, tmp_path: Path) -> None:
    policy = _policy(tiny_model)
    groups, start = _groups(policy), _weights(policy)
    policy.save_weights(tmp_path / "deep" / "weights")
    _step(policy, groups)
    first = _weights(policy)
    _backward(policy, groups)  # a gradient that must not survive
    policy.load_weights(tmp_path / "deep" / "weights")
    assert _equal(_weights(policy), start)
    _step(policy, groups)
    assert _equal(_weights(policy), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_folder_loads_in_transformers_with_equal_logits(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    policy = _policy(tiny_model, dtype)
    groups = _groups(policy)
    _step(policy, groups)
    policy.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", attn_implementation="sdpa").eval()
    assert model.dtype == getattr(torch, dtype)
    assert torch.equal(_logits(model, groups), _logits(policy.model, groups))
    assert not torch.equal(_logits(model, groups), _logits(_policy(tiny_model, dtype).model, groups))
    again = _policy(tmp_path / "out", dtype)
    assert again.encode_prompt("Hi") == policy.encode_prompt("Hi")
    assert again.stop_ids == policy.stop_ids
    assert _groups(again, seed=5) == _groups(policy, seed=5)


# -- the start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
def test_kl_ref_is_zero_before_training_and_positive_after(tiny_model: Path, lora: LoraSpec | None) -> None:
    policy = _policy(tiny_model, lora=lora)
    groups = _groups(policy)
    policy.mark_start()
    assert _backward(policy, groups, beta=0.1).stats["t"].kl == 0.0
    policy.reset_optimizer()
    for _ in range(3):
        _step(policy, groups, OptimParams(lr=1e-2))
    report = _backward(policy, groups, beta=0.1)
    assert report.stats["t"].kl / report.stats["t"].kl_tokens > 1e-4
    assert report.stats["t"].kl_tokens == report.stats["t"].tokens


@pytest.mark.parametrize("lora", [None, LORA])
def test_kl_ref_is_zero_right_after_mark_start(tiny_model: Path, lora: LoraSpec | None) -> None:
    """After a warm-up the start is the warmed-up model, not the one that was downloaded."""
    policy = _policy(tiny_model, lora=lora)
    groups = _groups(policy)
    for _ in range(3):
        _step(policy, groups, OptimParams(lr=1e-2))
    policy.mark_start()
    stats = _backward(policy, groups, beta=0.1).stats["t"]
    assert stats.kl / stats.kl_tokens == pytest.approx(0.0, abs=1e-6)


def test_kl_without_mark_start_raises(tiny_model: Path) -> None:
    policy = _policy(tiny_model)
    with pytest.raises(RuntimeError, match="mark_start"):
        _backward(policy, _groups(policy), beta=0.1)


# -- LoRA ---------------------------------------------------------------------------------------------------


def test_lora_starts_at_the_base_and_trains_only_factors(tiny_model: Path) -> None:
    base, policy = _policy(tiny_model), _policy(tiny_model, lora=LORA)
    groups = _groups(base)
    assert torch.equal(_logits(policy.model, groups), _logits(base.model, groups))
    assert policy._proven.paths(40).layout == "written-out", "the wrapped model trains in the fast layout too"
    assert [[s.tokens for s in g.samples] for g in _groups(policy)] == [[s.tokens for s in g.samples] for g in groups]
    assert policy._names
    assert all("lora_" in name for name in policy._names)
    assert {p.dtype for p in policy._params} == {torch.float32}
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    _step(policy, groups)
    _step(policy, groups)
    assert all(torch.equal(p, frozen[n]) for n, p in policy.model.named_parameters() if n in frozen)
    assert not torch.equal(_logits(policy.model, groups), _logits(base.model, groups))
    model: Any = policy.model
    with model.disable_adapter():
        assert torch.equal(_logits(policy.model, groups), _logits(base.model, groups))


def test_lora_export_is_merged_and_training_continues(tiny_model: Path, tmp_path: Path) -> None:
    policy = _policy(tiny_model, lora=LORA)
    groups = _groups(policy)
    for _ in range(3):
        _step(policy, groups, OptimParams(lr=1e-2))
    logits, weights = _logits(policy.model, groups), _weights(policy)
    policy.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(_logits(model, groups), logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, _logits(_policy(tiny_model).model, groups), atol=1e-2)
    assert torch.equal(_logits(policy.model, groups), logits)
    assert _equal(_weights(policy), weights)
    _step(policy, groups)
    assert not _equal(_weights(policy), weights)


@pytest.mark.parametrize("lora", [None, LORA])
def test_activation_checkpointing_gives_the_same_update(tiny_model: Path, lora: LoraSpec | None) -> None:
    plain = _policy(tiny_model, lora=lora)
    spec = ModelSpec(name=str(tiny_model), dtype="float32", lora=lora, activation_checkpointing=True)
    lean = TorchPolicy(spec)
    groups = _groups(plain)
    for policy in (plain, lean):
        _step(policy, groups)
    for name, weight in _weights(plain).items():
        torch.testing.assert_close(_weights(lean)[name], weight, atol=1e-6, rtol=1e-6)


# -- what recipes say of sampling ---------------------------------------------------------------------------


class _Words:
    """Keeps the texts that it was asked to score."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        self.texts += [sample.text for sample in group.samples]
        return [Score.of(float(len(sample.text) % 2)) for sample in group.samples]

    def check(self, problem: Problem) -> str | None:
        return None

    def wrong_answer(self, problem: Problem) -> str:
        return ""


def test_stop_texts_of_a_task_apply_in_training_and_evaluation(tiny_model: Path) -> None:
    policy, problems = _policy(tiny_model), [Problem(str(n), "t", f"Say {n}") for n in range(4)]
    free = _Words()
    evaluate(policy, {"t": problems}, {"t": free}, {"t": 30}, params=SamplingParams(4), seed=1)
    letters = [letter for text in free.texts for letter in text]
    stop = max(set(letters), key=letters.count)
    stops = {"t": (stop,)}
    stopped = _Words()
    evaluate(policy, {"t": problems}, {"t": stopped}, {"t": 30}, params=SamplingParams(4), seed=1, stops=stops)
    Learner(
        policy,
        RlSpec(group_size=4, problems_per_step=4, refill_rounds=0, kl_every=0),
        make_streams({"t": problems}, 0),
        {"t": stopped},
        {"t": 30},
        stops,
    ).step({"t": 4}, 0)
    assert len(stopped.texts) == 32
    assert not any(stop in text for text in stopped.texts)


def test_recipe_sets_sampling_filters_and_stop_texts() -> None:
    recipe = parse_recipe(
        {
            "tasks": {"t": {"source": "builtin:math", "stop": ["\n\n"]}},
            "evaluation": {"samples": 3, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        },
        "a recipe",
    )
    assert recipe.evaluation.sampling == SamplingParams(3, 0.7, 20, 0.9, 0.1)
    assert recipe.tasks["t"].stop == ("\n\n",)


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.0), ("top_k", -1)])
def test_filters_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"evaluation.{key}"):
        parse_recipe({"tasks": {"t": {"source": "builtin:math"}}, "evaluation": {key: value}}, "a recipe")


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"tasks\.t\.stop"):
        parse_recipe({"tasks": {"t": {"source": "builtin:math", "stop": [""]}}}, "a recipe")
