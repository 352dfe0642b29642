"""`omni-thinker model info`: one screen about any model, and the same for programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_forms import FORMS, make_model, with_ends
from think_models import SWITCH

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    make_model(made)
    return made


def test_info_tells_turn_end_thoughts_date_and_system(run: Run, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(SWITCH + "{# {{ strftime_now('%Y') }} #}", "utf-8")
    code, out, err = run("model", "info", folder, "--no-prove")
    assert code == 0, err
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["turn end"] == "<|im_end|>"
    assert lines["thoughts"].startswith("<think> ... </think>; the model opens a block itself; template_options.enable")
    assert (lines["date"], lines["system turn"]) == ("not printed", "taken")
    assert lines["paths"].startswith("not tried")

    form = FORMS["another end than eos, both sides trimmed, a model, no system"]
    (folder / "chat_template.jinja").write_text(form.template, "utf-8")
    with_ends(folder, form.ends)
    code, out, err = run("model", "info", folder, "--no-prove", "--json")
    assert code == 0, err
    info = json.loads(out.splitlines()[-1])
    assert (info["turn_end"], info["system"], info["thinks"]["template"]) == ("<eot>", "none", False)


def test_info_tells_an_end_that_the_tokenizer_has_no_word_for(run: Run, folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 99999]}', "utf-8")
    code, out, err = run("model", "info", folder, "--no-prove")
    assert code == 0, err
    assert "stop tokens: <|im_end|> number 99999" in out.splitlines()


def test_info_tells_the_paths_that_were_proved(run: Run, tiny_model: Path) -> None:
    code, out, err = run("model", "info", tiny_model, "--json")
    assert code == 0, err
    paths = json.loads(out.splitlines()[-1])["paths"]
    assert paths["training"] == "written-out"
    assert paths["sampling"] in ("native", "fused")
    assert paths["left_out"] == []


def test_memory_is_weights_twice_masters_gradients_and_moments(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """106,816 numbers: 2 + 2 bytes as computed and as the start, 16 for training. LoRA: 2 bytes, 24 for a factor's."""
    monkeypatch.setattr("omni_thinker.models.load._native_bfloat16", lambda: True)
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    code, out, err = run("model", "info", copy, "--no-prove", "--json")
    assert code == 0, err
    memory = json.loads(out.splitlines()[-1])["memory_gb"]
    assert memory["whole_weights"] == round(106_816 * 20 / 1e9, 4)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    widths = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)
    assert memory["lora_rank_16"] == round((106_816 * 2 + 24 * 16 * layers * widths) / 1e9, 4)
