"""What a training service is asked: losses, weights, optimiser and answers as numbers, without a service."""

from __future__ import annotations

import http.server
import io
import json
import sys
import tarfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from omni_thinker.baselines.sft import gold_loss
from omni_thinker.errors import UserError
from omni_thinker.models.load import resolve
from omni_thinker.policy.make import check_engine, make_policy
from omni_thinker.policy.tinker.adapter import fetch_adapter
from omni_thinker.policy.tinker.answers import finished
from omni_thinker.policy.tinker.losses import SCALES, Row, Scale, ServiceLoss, answer_tokens, rows, service_loss
from omni_thinker.policy.tinker.moments import FORGET, Adam, Moments
from omni_thinker.policy.tinker.scales import measure
from omni_thinker.policy.tinker.states import State, read_state, write_state
from omni_thinker.policy.tokens import drawn_alone, token_batch
from omni_thinker.protocol import HasForm, LossForm, OptimParams, TrainGroup
from omni_thinker.recipe import LoraSpec, ModelSpec, Recipe, RlSpec, parse_recipe, set_key
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Sample, SampleRequest, Thoughts

MAPPED = ("grpo", "dapo", "dr_grpo", "cispo")


def _group(task: str = "a", *, forced: bool = False) -> TrainGroup:
    thoughts = Thoughts("", 1, True, (0,)) if forced else None
    samples = (Sample((7, 8, 2), (-1.0, -2.0, -0.5), "x", "stop", thoughts), Sample((9,), (-1.5,), "y", "length"))
    return TrainGroup(task, (3, 4), samples, (1.5, -0.5), (0.1, 0.3))


def test_numbers_of_a_row_are_the_advantage_times_the_weight_times_what_the_service_divides_by() -> None:
    first, second = rows([_group()], ServiceLoss("ppo"), SCALES["mean"])
    assert first.inputs == (3, 4, 7, 8)
    assert first.targets == (4, 7, 8, 2)
    # 1.5 x 0.1 x 2 sequences x 4 targets; the prompt's target teaches nothing.
    assert first.numbers["advantages"] == pytest.approx([0.0, 1.2, 1.2, 1.2])
    assert first.numbers["logprobs"] == [0.0, -1.0, -2.0, -0.5]
    assert second.numbers["advantages"] == pytest.approx([0.0, -0.5 * 0.3 * 2 * 2])
    summed, _ = rows([_group()], ServiceLoss("ppo"), SCALES["sum"])
    assert summed.numbers["advantages"] == pytest.approx([0.0, 0.15, 0.15, 0.15])
    assert (first.divisor, summed.divisor) == (8.0, 1.0)


def test_tokens_that_were_written_for_the_model_have_no_advantage_and_no_weight() -> None:
    written, _ = rows([_group(forced=True)], ServiceLoss("ppo"), SCALES["sum"])
    assert written.numbers["advantages"] == pytest.approx([0.0, 0.0, 0.15, 0.15])
    gold, _ = rows([_group(forced=True)], ServiceLoss("cross_entropy"), SCALES["sum"])
    assert gold.numbers["weights"] == pytest.approx([0.0, 0.0, 0.1, 0.1])


@pytest.mark.parametrize(
    ("loss", "asked"),
    [
        (RlSpec(loss="grpo"), ServiceLoss("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})),
        (RlSpec(loss="dapo"), ServiceLoss("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28})),
        (RlSpec(loss="grpo", eps_low=0.1), ServiceLoss("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.2})),
        (RlSpec(loss="cispo"), ServiceLoss("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 1.2})),
    ],
)  # fmt: skip
def test_each_loss_is_one_of_the_services_with_its_own_bounds(loss: RlSpec, asked: ServiceLoss) -> None:
    found = service_loss(make_loss(loss).form)
    assert found.name == asked.name
    assert found.config == pytest.approx(asked.config)


def test_a_loss_that_no_service_has_is_one_line() -> None:
    with pytest.raises(UserError, match="of tokens, not of sequences") as gspo:
        service_loss(make_loss(RlSpec(loss="gspo")).form)
    assert gspo.value.key == "rl.loss"
    with pytest.raises(UserError, match="no KL term"):
        service_loss(LossForm("clipped_ratio", 0.2, 0.2, kl_beta=0.1))


def _at_service(made: Sequence[Row], logprobs: list[torch.Tensor], loss: ServiceLoss, scale: Scale) -> torch.Tensor:
    """A service's loss, from its published formulas."""
    total = torch.zeros(())
    for row, logprob_T in zip(made, logprobs, strict=True):
        numbers = {name: torch.tensor(values) for name, values in row.numbers.items()}
        if loss.name == "cross_entropy":
            one, size = -(numbers["weights"] * logprob_T).sum(), numbers["weights"].sum()
        else:
            ratio_T, advantage_T = torch.exp(logprob_T - numbers["logprobs"]), numbers["advantages"]
            low, high = (loss.config or {})["clip_low_threshold"], (loss.config or {})["clip_high_threshold"]
            clipped_T = ratio_T.clamp(low, high)
            if loss.name == "ppo":
                one = -torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T).sum()
            else:
                one = -(clipped_T.detach() * logprob_T * advantage_T).sum()
            size = torch.tensor(float(len(row.targets)))
        total = total + one / (size if scale.tokens else 1) / (len(made) if scale.sequences else 1)
    return total


@pytest.mark.parametrize("scale", [Scale(t, s) for t in (False, True) for s in (False, True)])
@pytest.mark.parametrize("name", [*MAPPED, "gold"])
def test_the_services_loss_and_gradient_are_ours_at_every_scale(name: str, scale: Scale) -> None:
    if name == "gold" and scale == Scale(tokens=True):
        pytest.skip("a sum of means weighs gold answers as it likes, which the test below is about")
    torch.manual_seed(3)
    loss: HasForm = gold_loss if name == "gold" else make_loss(RlSpec(loss=name))  # type: ignore[arg-type]
    groups = [_group("a", forced=True), _group("b")]
    if name == "gold":  # every answer weighs the same
        groups = [
            TrainGroup(g.task, g.prompt, g.samples, (1.0, 1.0), tuple(1 / (4 * s.drawn) for s in g.samples))
            for g in groups
        ]
    asked = service_loss(loss.form)
    made = rows(groups, asked, scale)
    logprobs = [
        (torch.tensor(row.numbers.get("logprobs", [-1.0] * len(row.targets))) + 0.4 * torch.randn(len(row.targets)))
        .detach()
        .requires_grad_()
        for row in made
    ]
    theirs = _at_service(made, logprobs, asked, scale)
    theirs.backward()
    gradients = [one.grad for one in logprobs]
    ours_N = answer_tokens(made, [one.tolist() for one in logprobs])
    ours_N.logprobs_N.requires_grad_()
    tokens, _ = drawn_alone(groups, ours_N, None)
    terms = loss(token_batch(groups, tokens, None))
    terms.loss.backward()
    assert theirs.item() == pytest.approx(terms.loss.item(), rel=1e-5)
    assert bool(terms.clipped_N.any()) is (name != "gold"), "the bounds are to be met"
    flat = torch.cat([one[row.answer :] for row, one in zip(made, gradients, strict=True) if one is not None])
    torch.testing.assert_close(flat, ours_N.logprobs_N.grad, rtol=1e-5, atol=1e-7)


def test_gold_answers_of_unequal_weight_are_refused_where_the_service_would_lose_it() -> None:
    with pytest.raises(UserError, match="can't weigh gold answers unequally"):
        rows([_group()], ServiceLoss("cross_entropy"), SCALES["mean"])


class _Optax:
    """AdamW as services have it: moments, and a count that nothing sets back."""

    def __init__(self) -> None:
        self.value, self.count = torch.tensor([0.3, -2.0]), 0
        self.first = self.second = torch.zeros(2)

    def step(self, gradient: torch.Tensor, adam: Adam) -> None:
        self.count += 1
        self.first = adam.beta1 * self.first + (1 - adam.beta1) * gradient
        self.second = adam.beta2 * self.second + (1 - adam.beta2) * gradient**2
        mean = self.first / (1 - adam.beta1**self.count)
        square = self.second / (1 - adam.beta2**self.count)
        direction = mean / (torch.sqrt(square) + adam.eps) + adam.weight_decay * self.value
        self.value = self.value - adam.learning_rate * direction


def test_forgotten_moments_are_those_of_a_new_optimiser() -> None:
    torch.manual_seed(5)
    service, moments, optim = _Optax(), Moments(), OptimParams(1e-2, 0.1)
    for _ in range(7):
        service.step(torch.randn(2), moments.step(optim))
        moments = moments.stepped()
    before = service.value.clone()
    service.step(torch.zeros(2), FORGET)
    moments = moments.forgotten()
    assert torch.equal(service.value, before)
    fresh = torch.nn.Parameter(before.clone())
    reference = torch.optim.AdamW([fresh], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        fresh.grad = 1e-6 * torch.randn(2)  # small, so that epsilon counts too
        service.step(fresh.grad.clone(), moments.step(optim))
        moments = moments.stepped()
        reference.step()
        torch.testing.assert_close(service.value, fresh.detach(), rtol=1e-5, atol=1e-8)


class _Norms:
    """A trainer that divides by what a test says, and reports the norm of a gradient that is 2 for the shortest row."""

    def __init__(self, scale: Scale, reports: bool = True) -> None:
        self.scale, self.reports, self.norm = scale, reports, 0.0

    def forward_backward(self, made: Sequence[Row], _: ServiceLoss) -> None:
        each = 2.0 * (5 / len(made[0].inputs) if self.scale.tokens else 1.0)
        self.norm = each * (1 if self.scale.sequences else len(made))

    def optim_step(self, _: Adam) -> dict[str, float]:
        return {"some/grad_norm": self.norm} if self.reports else {}


@pytest.mark.parametrize("scale", [Scale(t, s) for t in (False, True) for s in (False, True)])
def test_a_services_scale_is_found_from_norms_of_gradients(scale: Scale) -> None:
    trainer: Any = _Norms(scale)
    assert measure(trainer) == scale
    silent: Any = _Norms(scale, reports=False)
    assert measure(silent) is None


def _spell(tokens: Sequence[int]) -> str:
    return "".join(chr(token) for token in tokens if token)


def test_a_stop_text_ends_a_sample_where_our_own_sampler_would_end_it() -> None:
    request = SampleRequest((1,), 20, 0, stop=("\n\n",))
    tokens = [*map(ord, "ab\n\ncd"), 0]
    sample = finished(request, tokens, [-0.1 * i for i in range(len(tokens))], frozenset({0}), _spell)
    assert sample.tokens == tuple(map(ord, "ab\n\n"))
    assert (sample.text, sample.stop, len(sample.logprobs)) == ("ab", "stop", 4)


def test_a_stop_token_ends_a_sample_whatever_the_service_drew_after_it() -> None:
    request = SampleRequest((1,), 20, 0)
    sample = finished(request, [97, 0, 98], [-1.0, -2.0, -3.0], frozenset({0}), _spell)
    assert (sample.tokens, sample.text, sample.stop) == ((97, 0), "a", "stop")
    whole = finished(request, [97, 98], [-1.0, -2.0], frozenset({0}), _spell)
    assert (whole.tokens, whole.stop) == ((97, 98), "length")


def test_a_file_names_a_state_and_where_its_optimiser_was(tmp_path: Path) -> None:
    state = State("tinker://run/weights/x", Moments(9, 2))
    write_state(state, tmp_path / "a" / "w.safetensors")
    assert read_state(tmp_path / "a" / "w.safetensors") == state
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"123")
    for name in ("other", "torn", "missing"):
        with pytest.raises(UserError, match="names no state of a training service"):
            read_state(tmp_path / f"{name}.safetensors")


def _recipe(*lines: str) -> Recipe:
    table: dict[str, Any] = {"tasks": {name: {"source": f"builtin:{name}"} for name in ("math", "qa")}}
    usual = ("model.name=tinker:tiny", "engine.tinker.url=http://127.0.0.1:1", 'study.arms=["curriculum", "joint"]')
    for line in (*usual, *lines):
        set_key(table, line)
    return parse_recipe(table, "here")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's package, as far as it must be there."""
    monkeypatch.setitem(sys.modules, "tinker", ModuleType("tinker"))
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('rl.loss = "gspo"', "rl.loss"),
        ("rl.kl_beta = 0.1", "rl.kl_beta"),
        ("rl.delta = 3.0", "rl.delta"),
        ("rl.entropy_beta = 0.01", "rl.entropy_beta"),
        ("rl.importance_cap = 2.0", "rl.importance_cap"),
        ("rl.top_entropy = 0.5", "rl.top_entropy"),
        ("rl.accumulate = 2", "rl.accumulate"),
        ('rl.balance = "gradient"', "rl.balance"),
        ('tasks.qa.rl.loss = "cispo"', "tasks.qa.rl"),
        ("rl.temperature = 0.7", "rl.temperature"),
        ("evaluation.min_p = 0.1", "evaluation.min_p"),
        ("model.lora.alpha = 16", "model.lora.alpha"),
        ('model.lora.targets = ["q_proj"]', "model.lora.targets"),
        ('model.policy = "python:a:B"', "model.policy"),
        ('engine.sampler = "torch"', "engine.sampler"),
        ("tasks.qa.thinking = 64", "tasks.qa.thinking"),
        ('study.probes = ["gradient"]', "study.probes"),
        ('study.arms = ["joint", "merge"]', "study.arms"),
        ('study.arms = ["joint", "tac"]', "study.arms"),
        ('engine.tinker.url = "http://service.example"', "engine.tinker.url"),
        ('engine.tinker.url = "https://me:word@service.example"', "engine.tinker.url"),
        ('engine.tinker.url = "https://service.example"', "engine.tinker.url"),
    ],
)
@pytest.mark.usefixtures("client")
def test_what_a_service_cannot_do_is_one_line_before_step_0(line: str, key: str) -> None:
    with pytest.raises(UserError) as error:
        check_engine(_recipe(line.replace(" = ", "=", 1)))
    assert error.value.key == key
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("client")
def test_a_recipe_that_a_service_can_do_passes() -> None:
    check_engine(_recipe())


def test_without_the_client_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinker", None)
    with pytest.raises(UserError, match=r"pip install tinker==0\.24\.1"):
        check_engine(_recipe())


def test_a_folder_of_a_served_model_needs_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    assert resolve(f"tinker:{tmp_path}") == tmp_path
    with pytest.raises(UserError, match="no weights in safetensors"):
        resolve(str(tmp_path))


def test_weights_of_this_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="begins with models of its own"):
        make_policy(ModelSpec(name="tinker:tiny", lora=LoraSpec()), folder=tmp_path)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_fetched_adapter_names_its_layers(tmp_path: Path) -> None:
    files = {"adapter_config.json": json.dumps({"r": 4, "lora_alpha": 32, "target_modules": None}).encode()}
    names = ("self_attn.k_proj", "mlp.up_proj")
    tensors = {f"base_model.model.model.layers.0.{n}.lora_A.weight": torch.zeros(4, 8) for n in names}
    save_file(tensors, tmp_path / "weights")
    files["adapter_model.safetensors"] = (tmp_path / "weights").read_bytes()
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        fetch_adapter(f"http://127.0.0.1:{server.server_port}/archive.tar.gz", tmp_path / "out", "base")
        with pytest.raises(UserError, match="holds no adapter"):
            fetch_adapter(f"http://127.0.0.1:{server.server_port}/weights", tmp_path / "out", "base")
    finally:
        server.shutdown()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["k_proj", "up_proj"]
    assert settings["base_model_name_or_path"] == "base"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
