"""One model shared out among processes: the same numbers as one process's."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from omni_thinker.errors import EngineLost, UserError
from omni_thinker.policy.fsdp import crew
from omni_thinker.policy.fsdp.deal import deal
from omni_thinker.policy.fsdp.policy import FsdpPolicy
from omni_thinker.policy.fsdp.talk import accept, send
from omni_thinker.policy.fsdp.tensor_files import Form, write_model
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossReport, LossTerms, OptimParams, TokenBatch, TrainGroup
from omni_thinker.recipe import FsdpSpec, LoraSpec, ModelSpec, RlSpec
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Group, Problem, SampleRequest, SamplingParams
from scripted import Scripted, in_turns

LOSS = make_loss(RlSpec(kl_beta=0.1))
PROMPTS = (
    "How much is 2 + 2?",
    "Hi",
    "Name a town that lies far away from here, please",
    "x",
    "Why?",
    "1 2 3",
    "Go on",
)
RATE = OptimParams(lr=2e-4)
"""AdamW's first steps are of this size however small a gradient is, so rounding shows in a hundredth of it."""
Policies = tuple[TorchPolicy, FsdpPolicy]


@pytest.fixture(scope="module")
def qwen3(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose head is its own, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "qwen3"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = Qwen3Config(
        vocab_size=512, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=False,
        initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_ranks_left() -> Iterator[None]:
    yield
    while crew._crews:
        crew._crews.pop().end()


def pair(folder: Path, ranks: int, *, row_tokens: int = 0, **model: Any) -> Policies:
    spec = ModelSpec.model_validate({"name": str(folder), "dtype": "float32", **model})
    return TorchPolicy(spec), FsdpPolicy(spec, FsdpSpec(ranks=ranks, row_tokens=row_tokens))


def requests(policy: TorchPolicy | FsdpPolicy) -> list[SampleRequest]:
    return [SampleRequest(policy.encode_prompt(p), 3 + 4 * (i % 4), 40 + i) for i, p in enumerate(PROMPTS)]


def batch_of(groups: Sequence[Group]) -> list[TrainGroup]:
    """Ragged groups of two tasks."""
    weight = 1 / sum(len(sample.tokens) for group in groups for sample in group.samples)
    return [
        TrainGroup("ab"[i % 2], group.prompt, group.samples, (1.0, -0.75, -0.25), (weight,) * 3)
        for i, group in enumerate(groups)
    ]


def train(policy: TorchPolicy | FsdpPolicy, batch: Sequence[TrainGroup], steps: int) -> LossReport:
    for _ in range(steps):
        report = policy.forward_backward(batch, LOSS, reference=True)
        assert policy.optim_step(RATE).applied
    return report


def weights(policy: TorchPolicy | FsdpPolicy, folder: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    policy.save_weights(folder / f"{name}.safetensors")
    return load_file(folder / f"{name}.safetensors")


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# -- dealing out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_ranks_get_tokens_that_differ_by_at_most_5_percent(ranks: int) -> None:
    generator = torch.Generator().manual_seed(ranks)
    for count in (4 * ranks, 64, 200):
        costs = torch.randint(20, 400, (count,), generator=generator).tolist()
        hands = deal(costs, ranks)
        assert sorted(place for hand in hands for place in hand) == list(range(count))
        sums = [sum(costs[place] for place in hand) for hand in hands]
        assert max(sums) <= 1.05 * min(sums), sums


def test_one_group_for_many_ranks_is_dealt_to_one() -> None:
    assert sorted(map(len, deal([7], 3))) == [0, 0, 1]


# -- numbers of one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_model", "qwen3"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_and_updates_equal_one_process(
    family: str, ranks: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    alone, shared = pair(request.getfixturevalue(family), ranks, row_tokens=128)
    groups = alone.sample(requests(alone), SamplingParams(3))
    told: list[int] = []
    drawn = shared.sample(requests(shared), SamplingParams(3), lambda place, group: told.append(place))
    assert [[s.tokens for s in g.samples] for g in drawn] == [[s.tokens for s in g.samples] for g in groups]
    assert sorted(told) == list(range(len(PROMPTS)))
    batch = batch_of(groups)
    for policy in (alone, shared):
        policy.mark_start()
        train(policy, batch, 1)  # so that the start isn't the model of now
    torch.testing.assert_close(shared.logprobs(batch), alone.logprobs(batch), atol=2e-5, rtol=0)
    torch.testing.assert_close(shared.entropies(batch), alone.entropies(batch), atol=2e-5, rtol=0)
    reports = [policy.forward_backward(batch, LOSS, reference=True) for policy in (alone, shared)]
    masters = {name: g for name, g in zip(alone._names, alone._updates.gradients(), strict=True) if g is not None}
    assert apart(masters, shared.gradients()) < 1e-6 * max(1.0, *(float(g.abs().max()) for g in masters.values()))
    assert reports[1].loss == pytest.approx(reports[0].loss, abs=1e-6)
    for task, stats in reports[0].stats.items():
        assert reports[1].stats[task].tokens == stats.tokens
        assert reports[1].stats[task].kl == pytest.approx(stats.kl, rel=1e-4)
        torch.testing.assert_close(reports[1].sketches[task], reports[0].sketches[task], atol=1e-4, rtol=1e-3)
    norms = [policy.optim_step(RATE).grad_norm for policy in (alone, shared)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for policy in (alone, shared):
        train(policy, batch, 3)
    assert apart(weights(alone, tmp_path, "alone"), weights(shared, tmp_path, "shared")) < 1e-5


def test_ranks_without_groups_change_nothing(tiny_model: Path) -> None:
    alone, shared = pair(tiny_model, 4)
    batch = batch_of(alone.sample(requests(alone)[:1], SamplingParams(3)))
    for policy in (alone, shared):
        policy.mark_start()
    reports = [policy.forward_backward(batch, LOSS, reference=True) for policy in (alone, shared)]
    assert reports[1].loss == pytest.approx(reports[0].loss, abs=1e-6)
    assert set(reports[1].stats) == set(reports[1].sketches) == {"a"}
    assert len(shared.logprobs(batch)) == batch[0].tokens
    norms = [policy.optim_step(RATE).grad_norm for policy in (alone, shared)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded", "single"])
def test_layouts_of_the_models_own_pass_give_the_same_gradient(layout: Any, tiny_model: Path) -> None:
    alone, shared = pair(tiny_model, 2, activation_checkpointing=True)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    known = shared._proven._known
    known |= {length: type(paths)(layout, paths.decoder, True) for length, paths in known.items()}
    for policy in (alone, shared):
        policy.mark_start()
        policy.forward_backward(batch, LOSS, reference=True)
    masters = {name: g for name, g in zip(alone._names, alone._updates.gradients(), strict=True) if g is not None}
    assert apart(masters, shared.gradients()) < 3e-6
    torch.testing.assert_close(shared.logprobs(batch), alone.logprobs(batch), atol=2e-5, rtol=0)


def test_bf16_is_computed_with_fp32_masters_and_gradients(tiny_model: Path, tmp_path: Path) -> None:
    alone, shared = pair(tiny_model, 2, dtype="bfloat16")
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    assert (shared.logprobs(batch) - alone.logprobs(batch)).abs().max() < 0.02
    start = weights(shared, tmp_path, "start")
    shared.forward_backward(batch, make_loss(RlSpec()))
    alone.forward_backward(batch, make_loss(RlSpec()))
    masters = {name: g for name, g in zip(alone._names, alone._updates.gradients(), strict=True) if g is not None}
    found = shared.gradients()
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    # Sums of numbers that were rounded to bf16 aren't all multiples of what bf16 can tell apart.
    assert any(bool((gradient != gradient.bfloat16()).any()) for gradient in found.values())
    cosine = sum(float((found[n] * masters[n]).sum()) for n in found)
    lengths = [sum(float(g.square().sum()) for g in gs.values()) ** 0.5 for gs in (found, masters)]
    assert cosine / (lengths[0] * lengths[1]) > 0.999
    shared.optim_step(OptimParams(lr=1e-6))  # lost to rounding, were the masters in bf16
    moved = weights(shared, tmp_path, "moved")
    assert 0.5e-6 < apart(start, moved) < 2e-6


def test_lora_factors_equal_one_process(tiny_model: Path, tmp_path: Path) -> None:
    lora = LoraSpec(rank=4, alpha=8).model_dump()
    alone, shared = pair(tiny_model, 2, dtype="bfloat16", lora=lora)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    for policy in (alone, shared):
        policy.mark_start()
        train(policy, batch, 3)
    assert apart(weights(alone, tmp_path, "alone"), weights(shared, tmp_path, "shared")) < 1e-5
    shared.export(tmp_path / "merged")
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    shared.export_adapter(tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(float(factor.abs().max()) > 0 for name, factor in factors.items() if "lora_B" in name)


def test_gradient_sketch_equals_one_process(tiny_model: Path) -> None:
    alone, shared = pair(tiny_model, 2)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    for policy in (alone, shared):
        policy.forward_backward(batch, make_loss(RlSpec()))
    one, other = alone.sketch_gradient(3), shared.sketch_gradient(3)
    torch.testing.assert_close(other[0], one[0], atol=1e-5, rtol=1e-4)
    assert not shared.gradients()


@pytest.mark.slow
def test_builtin_model_trains_three_steps_on_two_ranks(builtin_model: Path) -> None:
    policy = FsdpPolicy(ModelSpec(name=str(builtin_model)), FsdpSpec(ranks=2))
    problems = {"a": [Problem(f"a{n}", "a", f"What is {n} + {n}?") for n in range(8)]}
    problems["b"] = [
        Problem(f"b{n}", "b", f"Name a word that begins with {letter}.") for n, letter in enumerate("abcd")
    ]
    spec = RlSpec(group_size=4, problems_per_step=4, lr=1e-5, kl_every=1)
    rewards = dict.fromkeys(problems, Scripted(in_turns))
    learner = Learner(policy, spec, make_streams(problems, 0), rewards, {"a": 8, "b": 12})
    policy.mark_start()
    found = [learner.step({"a": 2, "b": 2}, step).metrics for step in range(3)]
    assert all(metrics["update_applied"] for metrics in found)
    assert found[0]["kl_ref/all"] == pytest.approx(0, abs=1e-4)
    assert found[2]["kl_ref/all"] > found[0]["kl_ref/all"]
    assert found[2]["mismatch_abs/all"] < 0.05


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_state_goes_on_with_other_numbers_of_ranks(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tiny_model), dtype="float32")
    alone = TorchPolicy(spec)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    alone.mark_start()
    train(alone, batch, 4)
    expected = weights(alone, tmp_path)
    first = FsdpPolicy(spec, FsdpSpec(ranks=2))
    first.mark_start()
    first.save_weights(tmp_path / "start.safetensors")
    train(first, batch, 2)
    first.save_state(tmp_path / "two.state")
    assert not [path for path in (tmp_path / "two.state").iterdir() if path.suffix not in (".safetensors", ".json")]
    for ranks in (2, 1, 4):
        later = FsdpPolicy(spec, FsdpSpec(ranks=ranks))
        later.load_weights(tmp_path / "start.safetensors")
        later.mark_start()
        later.load_state(tmp_path / "two.state")
        train(later, batch, 2)
        assert apart(weights(later, tmp_path, f"{ranks}"), expected) < 1e-5, ranks
    fresh = TorchPolicy(spec)
    fresh.load_weights(tmp_path / "4.safetensors")  # one format for all trainers
    assert apart(weights(fresh, tmp_path, "fresh"), expected) < 1e-5


def test_damaged_weights_and_checkpoints_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tiny_model), dtype="float32")
    (tmp_path / "none.state").mkdir()
    with pytest.raises(UserError, match="no checkpoint of the trainer fsdp"):
        FsdpPolicy(spec, FsdpSpec(ranks=1)).load_state(tmp_path / "none.state")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be read"):
        FsdpPolicy(spec, FsdpSpec(ranks=1)).load_weights(tmp_path / "bad.safetensors")


def test_export_is_a_folder_that_transformers_loads(qwen3: Path, tmp_path: Path) -> None:
    alone, shared = pair(qwen3, 2)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    for policy in (alone, shared):
        policy.mark_start()
        train(policy, batch, 1)
    shared.export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = weights(alone, tmp_path)
    assert apart({name: loaded[name] for name in expected}, expected) < 1e-5
    assert TorchPolicy(ModelSpec(name=str(tmp_path / "out"))).encode_prompt("Hi") == alone.encode_prompt("Hi")


def test_model_larger_than_a_file_is_written_as_several(qwen3: Path, tmp_path: Path) -> None:
    tensors = load_file(qwen3 / "model.safetensors")
    forms = {name: Form(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    shutil.copy(qwen3 / "config.json", tmp_path)
    write_model(tmp_path, forms, iter(tensors.items()), file_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text("utf-8"))
    assert len(set(index["weight_map"].values())) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


# -- processes --------------------------------------------------------------------------------------------------------


def test_shards_of_a_policy_that_is_gone_are_let_go_of(tiny_model: Path) -> None:
    spec = ModelSpec(name=str(tiny_model), dtype="float32")
    policies = [FsdpPolicy(spec, FsdpSpec(ranks=2)) for _ in range(2)]
    for policy in policies:
        policy.sample(requests(policy)[:1], SamplingParams(1), lambda place, group: None)
    kept = policies.pop()
    del policies, policy
    gc.collect()
    kept.reset_optimizer()
    assert list(crew._crews[-1]._hands.workers) == [kept._number]


def test_rank_that_hangs_ends_the_run_after_its_time(tiny_model: Path) -> None:
    while crew._crews:
        crew._crews.pop().end()
    policy = FsdpPolicy(ModelSpec(name=str(tiny_model), dtype="float32"), FsdpSpec(ranks=2, timeout_s=12))
    [follower] = policy._crew.processes.values()
    follower.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(EngineLost, match="rank 1 of 2 has given no sign of life for"):
        policy.save_weights(tiny_model.parent / "never.safetensors")
    assert time.monotonic() - began < 60
    with pytest.raises(EngineLost, match="have ended"):
        policy.reset_optimizer()
    crew._crews.pop().end()
    assert follower.returncode == -signal.SIGKILL


def test_connection_without_the_key_of_the_run_is_not_heard() -> None:
    with Listener(("127.0.0.1", 0), authkey=b"the run's own") as listener:
        silent: list[socket.socket] = []

        def come() -> None:
            with pytest.raises(AuthenticationError):
                Client(listener.address, authkey=b"another")
            with socket.create_connection(listener.address) as stranger:
                stranger.sendall(b"no message at all")
            silent.append(socket.create_connection(listener.address))
            send(Client(listener.address, authkey=b"the run's own"), "rank", 1)

        thread = threading.Thread(target=come)
        thread.start()
        assert list(accept(listener, 1, timeout_s=20)) == [1]
        thread.join()
        silent[0].close()


def test_ranks_that_never_come_are_an_error() -> None:
    with Listener(("127.0.0.1", 0), authkey=b"key") as listener, pytest.raises(TimeoutError, match="1 of 2 ranks"):
        accept(listener, 1, timeout_s=0.1)


def test_loss_that_other_processes_cannot_import_is_refused(tiny_model: Path) -> None:
    alone, shared = pair(tiny_model, 2)
    batch = batch_of(alone.sample(requests(alone), SamplingParams(3)))
    shared.mark_start()

    def own(batch: TokenBatch) -> LossTerms:
        return LOSS(batch)

    with pytest.raises(TypeError, match="importable"):
        shared.forward_backward(batch, own)
    shared.forward_backward(batch, LOSS, reference=True)  # nobody has heard of the other one


def test_other_number_of_ranks_than_torchruns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "none",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"engine\.fsdp\.ranks: is 4, but torchrun started 2"):
        crew.crew_of(4)
