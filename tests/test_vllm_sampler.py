"""A policy that trains in torch and samples with a real vLLM engine in processes of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.split import SplitPolicy
from omni_thinker.protocol import OptimParams
from omni_thinker.recipe import LoraSpec, RlSpec
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Group, Mark, Problem, SampleRequest, SamplingParams, Score, ThoughtRule
from vllm_models import mismatch, policy_loss, save_small, training_batch, vllm_policy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: `make test-vllm`"),
]
LORA = LoraSpec(rank=4, alpha=12)  # a scale that is no power of two


@pytest.fixture(scope="module")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_small(tiny_model, tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


@pytest.fixture
def llama(small: Callable[[str], Path]) -> SplitPolicy:
    """Its engine is shared by all tests that ask for one of the same kind; weights are always given."""
    return vllm_policy(small("llama"))


def requests(
    policy: SplitPolicy, count: int = 4, most: int = 24, first: int = 0, **options: Any
) -> list[SampleRequest]:
    prompts = [policy.encode_prompt("What is the capital of France? " * (n % 3 + 1)) for n in range(count)]
    return [SampleRequest(prompt, most, first + n, **options) for n, prompt in enumerate(prompts)]


def train(policy: SplitPolicy, groups: Sequence[Group], temperature: float = 1.0, lr: float = 3e-3) -> None:
    policy.forward_backward(training_batch(groups), policy_loss, temperature=temperature)
    assert policy.optim_step(OptimParams(lr)).applied


# A start takes a minute, and memory holds one engine: tests that share one stand together.
@pytest.mark.parametrize(("kind", "lora"), [("qwen3", None), ("qwen3", LORA), ("llama", LORA)])
def test_logprobs_equal_the_trainers_after_every_update(
    kind: str, lora: LoraSpec | None, small: Callable[[str], Path]
) -> None:
    _equal_after_updates(vllm_policy(small(kind), lora), f"{kind} {'LoRA' if lora else 'full'}")


@pytest.mark.parametrize("lora", [LORA, None])
def test_logprobs_of_the_builtin_model_equal_the_trainers(lora: LoraSpec | None, builtin_model: Path) -> None:
    policy = vllm_policy(builtin_model, lora, kv_cache_gb=0.5)
    _equal_after_updates(policy, f"builtin {'LoRA' if lora else 'full'}", lr=1e-3)


def _equal_after_updates(policy: SplitPolicy, name: str, steps: int = 6, lr: float = 3e-3) -> None:
    """All steps but the first are drawn with weights that were updated."""
    versions, differences, moved = list[int](), list[float](), list[float]()
    for step in range(steps):
        groups = policy.sample(requests(policy, first=100 * step), SamplingParams(4, 0.8))
        versions += {sample.version or 0 for group in groups for sample in group.samples}
        differences.append(mismatch(policy, groups, 0.8))
        train(policy, groups, 0.8, lr)
        moved.append(mismatch(policy, groups, 0.8))
    print(f"{name}: largest difference by step {[f'{x:.1e}' for x in differences]}")
    assert max(differences) < 1e-3
    assert min(moved[1:]) > 1e-2, "an update that is not pushed would be seen"
    assert versions == list(range(versions[0], versions[0] + steps))


@pytest.mark.parametrize("lora", [LORA, None])
def test_update_that_is_dropped_is_noticed(
    lora: LoraSpec | None, small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = vllm_policy(small("llama"), lora)
    engine: Any = policy.sampler.engine  # type: ignore[attr-defined]
    train(policy, policy.sample(requests(policy), SamplingParams(4)))
    called = engine.call
    with monkeypatch.context() as patch:
        if lora is None:
            patch.setattr(engine, "call", lambda m, *a: [None] if m == "omni_load" else called(m, *a))
        else:
            patch.setattr(engine, "add_adapter", lambda folder, version: version - 1)
        with pytest.raises(UserError, match="the sampler holds weights of version 0"):
            policy.sample(requests(policy), SamplingParams(4))
    groups = policy.sample(requests(policy), SamplingParams(4))
    assert mismatch(policy, groups, 1.0) < 1e-3


def test_logprobs_equal_the_trainers_where_head_and_embedding_are_one(llama: SplitPolicy) -> None:
    """vLLM 0.32 on a CPU keeps the head's first weights here, unless it is made to pack them again."""
    _equal_after_updates(llama, "llama full")


def test_weights_that_somebody_else_loads_are_noticed(llama: SplitPolicy, small: Callable[[str], Path]) -> None:
    """The version is the same, and the weights aren't."""
    train(llama, llama.sample(requests(llama), SamplingParams(4)))
    engine: Any = llama.sampler.engine  # type: ignore[attr-defined]

    def meddle(place: int, group: Group) -> None:
        if place == 0:
            engine.call("omni_load", str(small("llama")), llama.version)

    with pytest.raises(UserError, match="while answers were drawn the sampler got weights"):
        llama.sample([*requests(llama, 1, 2), *requests(llama, 1, 200, first=9)], SamplingParams(2), meddle)


def _alike(ours: Sequence[Group], theirs: Sequence[Group]) -> None:
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.samples, y.samples, strict=True)]
    for a, b in pairs:
        assert (a.tokens, a.text, a.stop, a.thoughts) == (b.tokens, b.text, b.stop, b.thoughts)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def test_greedy_answers_equal_our_own_samplers(llama: SplitPolicy) -> None:
    """Stop tokens, stop texts, thoughts and their budgets mean the same, token for token."""
    greedy = SamplingParams(2, 0.0)
    trainer: Any = llama.trainer
    asked = requests(llama, 4, 40)
    plain = trainer.sample(asked, greedy)
    texts = [group.samples[0].text for group in plain]
    stops = tuple({text[9:12] for text in texts if len(text) > 12})
    assert stops
    stopped = [SampleRequest(r.prompt, r.max_tokens, r.seed, stops) for r in asked]
    close = plain[0].samples[0].tokens[6]
    rule = ThoughtRule(Mark("[", (509,), True), Mark("]", (close,), True), (510, close, 511), "open", 5)
    thinking = [SampleRequest(r.prompt, 12, r.seed, (), rule) for r in asked]
    both = [SampleRequest(r.prompt, 12, r.seed, stops, rule) for r in asked]
    for some in (asked, stopped, thinking, both):
        _alike(trainer.sample(some, greedy), llama.sample(some, greedy))
    met = [s for g in llama.sample(stopped, greedy) for s in g.samples]
    assert any(s.stop == "stop" and s.tokens[-1] not in trainer.stop_ids for s in met)
    forced = [s.forced for g in llama.sample(thinking, greedy) for s in g.samples]
    assert any(forced)


def test_filtered_logprobs_are_of_what_was_drawn_from(llama: SplitPolicy) -> None:
    """Top-k of 1 leaves one token, whose probability is 1; top-p shares the rest out."""
    [group] = llama.sample(requests(llama, 1), SamplingParams(4, 1.0, top_k=1))
    assert all(abs(x) < 1e-6 for sample in group.samples for x in sample.logprobs)
    params = SamplingParams(4, 0.7, top_p=0.5)
    groups = llama.sample(requests(llama, 2), params)
    trained: Any = llama.trainer
    flat = trained.logprobs(training_batch(groups), temperature=0.7).tolist()
    own = [x for group in groups for sample in group.samples for x in sample.logprobs]
    assert all(-1e-3 < b - a < 0.7 for a, b in zip(flat, own, strict=True)), "up to -log 0.5, and never less likely"
    assert any(b - a > 0.1 for a, b in zip(flat, own, strict=True))


def test_samples_of_a_seed_are_the_same_again_and_in_other_company(llama: SplitPolicy) -> None:
    asked = requests(llama, 4)
    first = llama.sample(asked, SamplingParams(4))
    again = llama.sample(asked, SamplingParams(4))
    assert [_tokens(group) for group in first] == [_tokens(group) for group in again]
    [alone] = llama.sample(asked[2:3], SamplingParams(2))
    assert _tokens(alone) == _tokens(first[2])[:2]
    assert len({sample.tokens for sample in first[0].samples}) == 4
    other = llama.sample(requests(llama, 4, first=50), SamplingParams(4))
    assert _tokens(other[0]) != _tokens(first[0])


def _tokens(group: Group) -> list[tuple[int, ...]]:
    return [sample.tokens for sample in group.samples]


class Slow:
    """Takes a second for the task `slow`."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        await asyncio.sleep(1.0 if problem.task == "slow" else 0.0)
        return [Score.of(place / 10) for place in range(len(group.samples))]

    def check(self, problem: Problem) -> str | None:
        return None

    def wrong_answer(self, problem: Problem) -> str:
        return ""


def test_scoring_goes_on_while_others_are_sampled(llama: SplitPolicy) -> None:
    """Short answers take a second to score, and long ones longer than that to draw."""
    pools = {task: [Problem(f"{task}{n}", task, "Say more.") for n in range(4)] for task in ("slow", "long")}
    spec = RlSpec(group_size=4, refill_rounds=0, kl_every=0)
    learner = Learner(llama, spec, make_streams(pools, 0), {"slow": Slow(), "long": Slow()}, {"slow": 2, "long": 400})
    metrics = learner.step({"slow": 1, "long": 2}, 0).metrics
    print({key: round(value, 2) for key, value in metrics.items() if key.startswith("seconds/")})
    assert metrics["seconds/sample"] > 1.0
    assert metrics["seconds/score"] < 0.5
    assert metrics["weights_version/all"] > 0


def test_prompt_and_answer_that_vllm_has_no_room_for_are_one_line(llama: SplitPolicy) -> None:
    with pytest.raises(UserError, match=r"engine\.vllm\.max_model_len: .* room for 512"):
        llama.sample(requests(llama, 1, 600), SamplingParams(1))


def test_engine_that_dies_in_mid_step_is_one_line_and_the_next_policy_has_a_new_one(
    llama: SplitPolicy, small: Callable[[str], Path]
) -> None:
    engine: Any = llama.sampler.engine  # type: ignore[attr-defined]
    [core] = [p.pid for p in engine._engine.engine_core.resources.engine_manager.processes]

    def kill(place: int, group: Group) -> None:
        if place == 0:
            os.kill(core, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(UserError, match=r"vLLM is gone: .*--resume") as caught:
        llama.sample([*requests(llama, 1, 2), *requests(llama, 2, 400, first=9)], SamplingParams(2), kill)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    with pytest.raises(UserError, match="vLLM is gone"):
        llama.sample(requests(llama), SamplingParams(2))
    after = vllm_policy(small("llama"))
    assert mismatch(after, after.sample(requests(after), SamplingParams(2)), 1.0) < 1e-3
