"""A model proves itself: broken ones are caught or refused in one line, sound ones keep the fast paths."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.errors import UserError
from omni_thinker.policy.lora import add_lora
from omni_thinker.policy.proof import chosen
from omni_thinker.policy.proof.chosen import Proven
from omni_thinker.policy.proof.lengths import SHORT, Lengths
from omni_thinker.policy.proof.made_up import made_up
from omni_thinker.policy.proof.memory import identity
from omni_thinker.policy.proof.prove import Paths, prove
from omni_thinker.policy.proof.trials import spread_adapters
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import LoraSpec, ModelSpec
from test_policy_layouts import SMALL, make_groups, make_model
from tiny_models import tiny_config


def general() -> PreTrainedModel:
    """A Llama whose layers aren't written out here: it runs through its own forward pass."""
    return make_model("llama", hidden_act="gelu")


def patched(model: PreTrainedModel, change: Callable[..., Any]) -> PreTrainedModel:
    """The model with another forward pass: `change` gets the old one and its arguments."""
    forward, any_model = model.forward, model
    any_model.forward = lambda *args, **options: change(forward, *args, **options)
    return model


def test_sound_models_keep_the_fastest_paths() -> None:
    assert prove(make_model("llama"), longest=SHORT) == Paths("written-out", "fused", False)
    assert prove(general(), longest=SHORT) == Paths("packed", "masked", False)
    assert prove(make_model("llama").bfloat16(), longest=SHORT).layout == "written-out"
    assert prove(general().bfloat16(), longest=SHORT) == Paths("packed", "masked", False)


def test_model_that_ignores_free_masks_is_run_row_by_row() -> None:
    def without_mask(forward: Any, attention_mask: Any = None, **options: Any) -> Any:
        free = attention_mask is not None and attention_mask.dim() == 4
        return forward(attention_mask=None if free else attention_mask, **options)

    paths = prove(patched(general(), without_mask), longest=SHORT)
    assert (paths.layout, paths.decoder) == ("padded", "rows")
    assert [note.split(" (")[0] for note in paths.notes] == ["packed rows", "the masked decoder"]
    assert all("off by" in note for note in paths.notes)


def test_cache_that_forgets_a_layer_is_not_used() -> None:
    def forgetful(forward: Any, **options: Any) -> Any:
        out = forward(**options)
        if out.past_key_values is not None:
            out.past_key_values.layers[-1].values.zero_()
        return out

    paths = prove(patched(general(), forgetful), longest=SHORT)
    assert (paths.layout, paths.decoder) == ("packed", "recomputing")


def test_model_that_does_not_count_its_cache_is_told_positions() -> None:
    def from_nought(forward: Any, input_ids: torch.Tensor, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        if options.get("attention_mask") is not None:
            raise ValueError("no masks")
        return forward(input_ids=input_ids, position_ids=position_ids, **options)

    paths = prove(patched(general(), from_nought), longest=SHORT)
    assert (paths.layout, paths.decoder) == ("single", "placed-rows")


def test_padding_that_changes_a_row_is_not_used() -> None:
    def company(forward: Any, input_ids: torch.Tensor, attention_mask: Any = None, **options: Any) -> Any:
        out = forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        out.logits = out.logits * (1.0 if attention_mask is None else 0.9)
        return out

    paths = prove(patched(general(), company), longest=SHORT)
    assert (paths.layout, paths.decoder) == ("single", "rows")


def test_written_out_pass_that_forgets_positions_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.engine.llama.apply_rope", lambda x, cos, sin: x)
    paths = prove(make_model("llama"), longest=SHORT)
    assert (paths.layout, paths.decoder) == ("packed", "fused")


@pytest.mark.parametrize("forgets", [True, False])
def test_decoder_that_forgets_adapters_is_not_used(monkeypatch: pytest.MonkeyPatch, forgets: bool) -> None:
    """At the start an adapter adds nothing, so its factors must be something else while it is tried."""
    model = add_lora(make_model("llama"), LoraSpec(rank=2), seed=0)
    if forgets:
        monkeypatch.setattr("omni_thinker.sampling.decoders.weights.adapters", lambda layer: [])
    assert prove(model, longest=SHORT).decoder == ("masked" if forgets else "fused")
    assert all(not param.any() for name, param in model.named_parameters() if "lora_B" in name)


def test_factors_come_back_after_a_trial() -> None:
    model = add_lora(make_model("llama"), LoraSpec(rank=2), seed=0)
    factors = [param for name, param in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        factors[0].fill_(0.5)
    with spread_adapters(model):
        assert all(param.std() > 0.01 for param in factors)
    assert factors[0].eq(0.5).all()
    assert not factors[1].any()


def _ahead(forward: Any, **options: Any) -> Any:
    out = forward(**options)
    out.logits = out.logits + 0.05 * out.logits.roll(-1, dims=1)
    return out


def _noisy(forward: Any, **options: Any) -> Any:
    out = forward(**options)
    out.logits = out.logits + 0.01 * torch.randn_like(out.logits)
    return out


def _endless(forward: Any, **options: Any) -> Any:
    out = forward(**options)
    out.logits = out.logits / 0.0
    return out


def _failing(forward: Any, **options: Any) -> Any:
    raise TypeError("forward() wants an image\nand more")


def _undifferentiable(forward: Any, **options: Any) -> Any:
    out = forward(**options)
    out.logits = out.logits.detach()
    return out


def _steep(forward: Any, **options: Any) -> Any:
    out = forward(**options)
    if out.logits.requires_grad:
        out.logits.register_hook(lambda gradient: gradient * torch.inf)
    return out


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_ahead, "isn't causal"),
        (_noisy, "two passes over the same tokens differ by"),
        (_endless, "aren't finite"),
        (_failing, r"forward pass fails on a plain row of tokens \(TypeError: forward\(\) wants an image\)"),
        (_undifferentiable, "backward pass fails"),
        (_steep, "gradient isn't finite"),
    ],
)
def test_model_that_cannot_be_trained_is_refused_in_one_line(change: Callable[..., Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as refused:
        prove(patched(general(), change), longest=SHORT)
    assert refused.value.key == "model.name"
    assert "\n" not in str(refused.value)


def test_adapter_around_a_layer_that_takes_none_is_told_by_its_key() -> None:
    class Router(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), None

    model: Any = general()
    layer = model.model.layers[0].mlp
    router = Router(layer.up_proj.in_features, 2)
    layer.register_module("router", router)
    layer.up_proj.register_forward_hook(lambda _, given, out: out + layer.router(*given)[0].mean(-1, keepdim=True))
    assert Proven(model).paths(SHORT)
    with pytest.raises(UserError, match=r"fails on a plain row.*; name other layers in model\.lora\.targets"):
        Proven(add_lora(model, LoraSpec(rank=2)))


def test_encoder_that_sees_the_answer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """From a folder, as a study would load it."""
    config = AutoConfig.for_model("bert", **SMALL | {"vocab_size": 512})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    with pytest.raises(UserError, match="later tokens change the log-probs of earlier ones"):
        TorchPolicy(ModelSpec(name=str(tmp_path), dtype="float32"))


# -- what was measured in transformers' architectures -----------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_routers_are_as_calm_in_training_as_in_sampling(checkpointed: bool) -> None:
    """With checkpointing, which asks for training mode, an expert layer's jitter must not come along."""
    model = make_model(
        "phimoe", num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.3, input_jitter_noise=0.3
    )
    paths = prove(model, longest=SHORT, recompute=checkpointed)
    assert paths.recompute == checkpointed
    groups = make_groups([(7, (3, 6)), (5, (4,))])
    scored = answer_logprobs(model, groups, temperature=1.0, layout=paths.layout, recompute=checkpointed)
    scored.logprobs_N.sum().backward()
    with torch.no_grad():
        single = answer_logprobs(model, groups, temperature=1.0, layout="single").logprobs_N
    torch.testing.assert_close(scored.logprobs_N.detach(), single, atol=1e-4, rtol=1e-4)


def test_checkpointing_keeps_fewer_activations() -> None:
    model, groups, sizes = general(), make_groups([(7, (30, 60))]), []
    for recompute in (False, True):
        kept: list[int] = []

        def note(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            answer_logprobs(model, groups, temperature=1.0, layout="packed", recompute=recompute)
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 2
    assert not any(module.training for module in model.modules())


# -- lengths ----------------------------------------------------------------------------------------------------------


def test_lengths_change_at_windows_and_scales() -> None:
    config = AutoConfig.for_model("mistral", sliding_window=64, max_position_embeddings=4096)
    lengths = Lengths(config)
    assert lengths.tried(1) == lengths.tried(64) == SHORT
    assert lengths.tried(65) == lengths.tried(4096) == 80
    llama4 = Lengths(AutoConfig.for_model("llama4_text", attention_chunk_size=128, floor_scale=256))
    assert [llama4.tried(length) for length in (128, 129, 256, 257)] == [SHORT, 144, 144, 272]
    assert Lengths(AutoConfig.for_model("gpt2", n_positions=24)).tried(24) == 24
    assert Lengths(AutoConfig.for_model("qwen2", max_window_layers=28)).tried(4096) == SHORT


def test_groups_of_a_model_that_scales_by_place_share_no_row() -> None:
    """Its scale changes at 8192 tokens of a row, which short trials don't reach."""
    paths = prove(make_model("llama4_text", attention_chunk_size=64, floor_scale=8192), longest=SHORT)
    assert (paths.layout, paths.decoder, paths.notes) == ("padded", "rows", ())


@pytest.mark.parametrize("family", ["gemma4_text", "gemma3n_text"])
def test_layers_that_share_keys_stay_in_shared_rows(family: str) -> None:
    """Within their windows; a group leaves the batch while others go on."""
    config = tiny_config(family)
    assert config.num_kv_shared_layers == 2
    config.sliding_window = 64
    model = AutoModelForCausalLM.from_config(config).eval()
    assert prove(model, longest=SHORT) == Paths("packed", "masked", False)


def test_model_is_packed_up_to_its_window_and_not_beyond(own_home: Path) -> None:
    proven = Proven(make_model("mistral", sliding_window=64))
    assert proven.paths(64).layout == "packed"
    assert proven.paths(65).layout == "padded"
    assert proven.paths(65).decoder == "rows"
    assert Proven(make_model("mistral", sliding_window=None)).paths(10_000).layout == "written-out"


@pytest.mark.parametrize("longest", [8, 24, 40, 300])
def test_made_up_batch_has_the_asked_length_and_the_filling_token(longest: int) -> None:
    config = AutoConfig.for_model("llama", **SMALL | {"pad_token_id": 5}, image_token_id=7)
    groups = made_up(config, longest)
    assert max(len(g.prompt) + len(s.tokens) for g in groups for s in g.samples) == longest
    assert {len(g.samples) for g in groups} == {3}
    tokens = [t for g in groups for row in (g.prompt, *(s.tokens for s in g.samples)) for t in row]
    assert all(0 <= t < SMALL["vocab_size"] for t in tokens)
    assert 5 in groups[0].prompt
    assert 7 not in tokens


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_model_is_tried_once(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = general()
    first = Proven(model).paths(SHORT)
    monkeypatch.setattr(chosen, "prove", lambda *args, **options: pytest.fail("tried again"))
    assert Proven(model).paths(SHORT) == first
    [file] = (own_home / "proofs").iterdir()
    assert json.loads(file.read_text())["layout"] == "packed"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 9999, '{"layout": "x", "decoder": "y", "recompute": 1, "notes": []}', "null"]
)
def test_what_cannot_be_read_is_proved_again(own_home: Path, text: str) -> None:
    model = general()
    first = Proven(model).paths(SHORT)
    [file] = (own_home / "proofs").iterdir()
    file.write_text(text)
    assert Proven(model).paths(SHORT) == first
    assert json.loads(file.read_text())["decoder"] == "masked"


def test_identity_changes_with_weights_and_options_and_not_with_a_runs_seed() -> None:
    one, other = general(), general()
    assert identity(one, []) == identity(other, [])
    assert identity(one, [True]) != identity(one, [False])
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1
    assert identity(one, []) != identity(other, [])
    assert identity(one, []) != identity(one.bfloat16(), [])
    for name, tensor in [*one.named_parameters(), *one.named_buffers()]:
        before = identity(one, [])
        with torch.no_grad():
            place = tensor.flatten()[-2:-1]  # a place of no sample
            place.copy_(
                torch.nextafter(place.float(), torch.tensor([9.0])) if place.dtype == torch.float32 else 3 * place
            )
        assert identity(one, []) != before, name
    seeds = [identity(add_lora(make_model("llama"), LoraSpec(rank=2), seed=seed), []) for seed in (0, 1)]
    assert seeds[0] == seeds[1]


def test_cache_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "file"))
    assert Proven(general()).paths(SHORT).layout == "packed"


def test_path_that_is_left_out_is_told_once(own_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("mistral", sliding_window=8)
    with caplog.at_level(logging.WARNING):
        proven = Proven(model)
        assert proven.paths(20) == proven.paths(40)
    [line] = [record.getMessage() for record in caplog.records if "model.name" in record.getMessage()]
    assert line.startswith("model.name: training in padded rows, sampling by rows with a cache; not the model's own")
    assert "packed rows (off by" in line
