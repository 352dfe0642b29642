"""Names resolve to checked folders; folders that can't work are refused with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omni_thinker.errors import UserError
from omni_thinker.models import load
from omni_thinker.models.chat import load_chat
from omni_thinker.models.home import home
from omni_thinker.models.info import model_info
from omni_thinker.models.memory import KERNELS, bound_kernel_caches
from omni_thinker.models.tiny import VOCABULARY, make_tiny, tiny_folder
from omni_thinker.recipe import ModelSpec

TEXTS = ["What is 123 + 45?\n\n12", "def f(x):\n    return x * 3", "don't — é 你好", "  spaces  ", ""]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "copy")


def test_tiny_model_is_byte_for_byte_the_same_and_leaves_the_rng_alone(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    make_tiny(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    files = sorted(path.name for path in tiny_model.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for name in files:
        assert (tiny_model / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_tiny_model_loads_in_fp32_and_gives_varied_logits(tiny_model: Path) -> None:
    tokenizer = load.load_tokenizer(str(tiny_model))
    model = load.load_model(str(tiny_model), torch.float32)
    assert len(tokenizer) == VOCABULARY
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    chat = load_chat(ModelSpec(name=str(tiny_model), system="Answer briefly."))
    ids = chat.prompt_ids("How much is 2 + 2?")
    logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), VOCABULARY)
    assert logits.std() > 0.1
    assert chat.facts.stop_ids == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("text", TEXTS)
def test_tiny_tokenizer_round_trips_text(tiny_model: Path, text: str) -> None:
    tokenizer = load.load_tokenizer(str(tiny_model))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < VOCABULARY for token in ids)


def test_name_tiny_resolves_to_one_folder_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache"
    assert load.resolve("tiny") == tiny_folder()
    assert sorted(path.name for path in tiny_folder().parent.iterdir() if not path.name.startswith(".")) == ["tiny-1"]
    assert load.resolve("tiny") == tiny_folder()


def test_home_without_its_variable_is_under_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_THINKER_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "omni-thinker"


def test_unwritable_cache_is_a_user_error_that_names_omni_thinker_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="OMNI_THINKER_HOME"):
        load.resolve("tiny")


def test_complete_cache_is_read_without_writing_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path))
    folder = tiny_folder()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for lock in folder.parent.glob(".*.lock"):
        lock.unlink()
        lock.mkdir()  # cannot be opened for writing, whoever runs this
    assert tiny_folder() == folder
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["config.json"], "no config.json; point"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer; save"),
        (["model.safetensors"], "pickled weights are not read"),
    ],
)
def test_model_folder_that_lacks_a_file_is_refused_with_a_remedy(copy: Path, gone: list[str], words: str) -> None:
    for name in gone:
        (copy / name).unlink()
    with pytest.raises(UserError, match=words) as caught:
        load.resolve(str(copy))
    assert str(copy) in str(caught.value)


def test_chat_template_inside_tokenizer_config_is_used(copy: Path) -> None:
    template = (copy / "chat_template.jinja").read_text("utf-8")
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}), "utf-8")
    assert load.load_tokenizer(str(copy)).chat_template == template


def test_broken_weights_config_or_tokenizer_are_user_errors(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="model can't be loaded"):
        load.load_model(str(copy), torch.float32)
    (copy / "config.json").write_text("{not json", "utf-8")
    with pytest.raises(UserError, match=r"config\.json can't be loaded"):
        load.load_model(str(copy), torch.float32)
    (copy / "tokenizer.json").write_text("[]", "utf-8")
    with pytest.raises(UserError, match="tokenizer can't be loaded"):
        load.load_tokenizer(str(copy))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000])
def test_name_that_no_folder_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="can't be a folder"):
        load.resolve(name)


@pytest.mark.parametrize("ends", ['"x"', "[[1]]", "-1", "2.5", "[2, null]"])
def test_ends_of_a_text_that_are_no_tokens_are_refused(copy: Path, ends: str) -> None:
    (copy / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}', "utf-8")
    with pytest.raises(UserError, match="eos_token_id: must be a token's number"):
        load.end_ids(str(copy))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "~/nowhere-at-all"])
def test_a_missing_folder_is_not_taken_for_a_hub_name(name: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load.resolve(name)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.name"):
        load.resolve(" ")


def test_hub_model_without_a_network_is_a_user_error_with_a_remedy() -> None:
    assert load.resolve("someone/some-model") == "someone/some-model"
    with pytest.raises(UserError, match="builtin"):
        load.load_tokenizer("someone/no-such-model")


def test_pickled_weights_are_never_read(copy: Path) -> None:
    model = load.load_model(str(copy), torch.float32)
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load.load_model(str(copy), torch.float32)


def test_code_in_a_folder_is_never_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n", "utf-8")
    with pytest.raises(UserError):
        load.load_model(str(copy), torch.float32)
    assert not (copy / "ran").exists()


def test_loaded_model_in_train_mode_has_no_dropout(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}), "utf-8")
    model = load.load_model(str(copy), torch.float32).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_compute_dtype_maps_names_to_torch_types() -> None:
    assert load.compute_dtype("float32") == torch.float32
    assert load.compute_dtype("bfloat16") == torch.bfloat16
    assert load.compute_dtype("auto") in (torch.float32, torch.bfloat16)


def test_model_info_counts_parameters_without_reading_weights(copy: Path) -> None:
    expected = sum(weight.numel() for weight in load.load_model(str(copy), torch.float32).parameters())
    (copy / "model.safetensors").write_bytes(b"")
    info = model_info(str(copy))
    assert info["parameters"] == expected
    assert (info["architecture"], info["layers"], info["vocabulary"]) == ("LlamaForCausalLM", 2, VOCABULARY)
    assert (info["dtype"], info["licence"]) == ("float32", "Apache-2.0")


def test_kernel_cache_limits_are_set_unless_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    bound_kernel_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == str(KERNELS)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


SHAPES = """
import torch
from omni_thinker.models.memory import bound_kernel_caches, return_free_memory

bound_kernel_caches()
weight = torch.randn(1536, 576, dtype=torch.bfloat16)

def resident():
    return_free_memory()
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

def products(counts):
    for count in counts:
        torch.nn.functional.linear(torch.randn(count, 576, dtype=torch.bfloat16), weight)

products(range(1, 301))
before = resident()
products(range(301, 901))
print((resident() - before) / 1e3)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no resident size on this system")
def test_six_hundred_shapes_take_under_120_mb() -> None:
    """Without bounds, the caches for 600 shapes of one product take about 500 MB."""
    shown = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True, timeout=280)
    assert float(shown.stdout) < 120


KEPT = """
import resource, sys, torch
from omni_thinker.models.memory import bound_free_memory, keep_freed_memory, return_free_memory

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1e3

def faults(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    [torch.ones(50_000_000) for _ in range(2)]

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):  # small blocks first find their places
    work()
print(faults(work))
before = resident()
bound_free_memory()  # far more is free than in use
print(before - resident())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no resident size on this system")
def test_freed_memory_is_reused_without_page_faults() -> None:
    """By default a tensor of 200 MB costs 50,000 page faults each time. With the setting, only the first time."""
    shown = {
        mode: [float(line) for line in subprocess.check_output([sys.executable, "-c", KEPT, mode], text=True).split()]
        for mode in ("keep", "plain")
    }
    assert shown["keep"][0] < 1_000
    assert shown["plain"][0] > 1_000
    assert shown["keep"][1] > 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_a_user_error() -> None:
    assert load.compute_device("auto").type == "cpu"
    with pytest.raises(UserError, match=r"model\.device.*no GPU"):
        load.compute_device("cuda")
