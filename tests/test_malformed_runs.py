"""Malformed models, journals and results: one clear line, exit code 2, nothing unpickled, no code of theirs run."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpus import DEEP, MATRICES, PICKLE, RECIPES, ROWS, TASK, ZIPPED, torch_pickle

Refused = Callable[..., str]


def _safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def _spec(**entry: Any) -> bytes:
    full = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry
    return json.dumps({"model.embed_tokens.weight": full}).encode()


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")

    return change


def _file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _only(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return change


def _shards(shard: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")

    return change


MODELS: dict[str, Callable[[Path], object]] = {
    "weights: pickle": _file("model.safetensors", PICKLE),
    "weights: torch pickle": _file("model.safetensors", torch_pickle()),
    "weights: nothing": _file("model.safetensors", b""),
    "weights: seven bytes": _file("model.safetensors", b"1234567"),
    "weights: endless head": _file("model.safetensors", _safetensors(b"{}", length=2**63)),
    "weights: head beyond the file": _file("model.safetensors", _safetensors(b"{}", length=10_000)),
    "weights: head no json": _file("model.safetensors", _safetensors(b"{nope")),
    "weights: head deep": _file("model.safetensors", _safetensors(DEEP.encode())),
    "weights: head of another": _file("model.safetensors", _safetensors(b"[]")),
    "weights: nothing in them": _file("model.safetensors", _safetensors(b"{}")),
    "weights: beyond the end": _file("model.safetensors", _safetensors(_spec(data_offsets=[0, 800]), bytes(8))),
    "weights: backwards": _file("model.safetensors", _safetensors(_spec(data_offsets=[8, 0]), bytes(8))),
    "weights: another size": _file("model.safetensors", _safetensors(_spec(shape=[1000]), bytes(8))),
    "weights: another shape": _file("model.safetensors", _safetensors(_spec(), bytes(8))),
    "weights: huge shape": _file("model.safetensors", _safetensors(_spec(shape=[2**62, 2**62]), bytes(8))),
    "weights: unknown type": _file("model.safetensors", _safetensors(_spec(dtype="F7"), bytes(8))),
    "weights: gzip": lambda folder: _file(
        "model.safetensors", gzip.compress((folder / "model.safetensors").read_bytes())
    )(folder),
    "weights: cut": lambda folder: _file("model.safetensors", (folder / "model.safetensors").read_bytes()[:-100])(
        folder
    ),
    "only a pickle": _only("pytorch_model.bin", torch_pickle()),
    "only a torch file": _only("model.pt", torch_pickle()),
    "shard that climbs": _shards("../../outside.safetensors"),
    "shard from the root": _shards("/etc/passwd"),
    "shard that is a pickle": _shards("pytorch_model.bin"),
    "shard that is absent": _shards("model-00002-of-00002.safetensors"),
    "index no json": lambda folder: (_shards("x")(folder), _file("model.safetensors.index.json", b"{")(folder)),
    "config: nothing": _file("config.json", b""),
    "config: no json": _file("config.json", b"{"),
    "config: a list": _file("config.json", b"[]"),
    "config: pickle": _file("config.json", PICKLE),
    "config: latin-1": _file("config.json", b'{"model_type": "\xe9"}'),
    "config: deep": _file("config.json", DEEP.encode()),
    "config: unknown kind": _config(model_type="oracle"),
    "config: code of its own": _config(
        model_type="oracle", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    ),
    "config: no head": _config(num_attention_heads=0),
    "config: text for layers": _config(num_hidden_layers="two"),
    "config: wider than the weights": _config(hidden_size=2**40, intermediate_size=2**40),
    "config: negative": _config(vocab_size=-5),
    "tokenizer: nothing": _file("tokenizer.json", b""),
    "tokenizer: no json": _file("tokenizer.json", b"{"),
    "tokenizer: pickle": _file("tokenizer.json", PICKLE),
    "tokenizer: another": _file("tokenizer.json", b'{"version": "1.0", "model": {"type": "Oracle"}}'),
    "tokenizer config: no json": _file("tokenizer_config.json", b"{"),
    "template: no template": _file("chat_template.jinja", b"{% for %}"),
    "template: reaches out": _file("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template: endless": _file("chat_template.jinja", b"{% for i in range(10**12) %}x{% endfor %}"),
}
CODE = "open('unpickled', 'w')\nclass Config: pass\nclass Model: pass\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", MODELS)
def test_malformed_model_folder_exits_2_with_one_line_and_runs_no_code(
    refused: Refused, tmp_path: Path, tiny_model: Path, repo: Path, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "code.py").write_text(CODE, "utf-8")
    MODELS[name](folder)
    assert str(folder) in refused("eval", folder, "--recipe", repo / "recipes" / "tiny.toml")


def _line(**row: Any) -> bytes:
    body = json.dumps({"key": "recipe", "kind": "move", "logs": {}, "counts": None, "value": None} | row).encode()
    return f"{zlib.crc32(body):08x} ".encode() + body + b"\n"


def _raw(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x} ".encode() + body + b"\n"


JOURNALS: dict[str, bytes] = {
    "emptied": b"",
    "first line damaged": b"00000000 {}\n",
    "pickle": PICKLE,
    "zeros": bytes(4096),
    "utf-16": _line().decode().encode("utf-16"),
    "whole line that is no json": _raw(b"{nope"),
    "whole line that is a list": _raw(b"[]"),
    "whole line that lacks all": _raw(b"{}"),
    "whole line that is deep": _raw(DEEP.encode()),
    "whole line with a huge number": _raw(b'{"key": ' + b"9" * 5000 + b"}"),
    "logs that are a list": _line(logs=[1]),
    "logs of text": _line(logs={"metrics.jsonl": "many"}),
    "logs of minus one": _line(logs={"metrics.jsonl": -1}),
    "logs longer than they are": _line(logs={"metrics.jsonl": 10**9}),
    "unknown kind": _line(kind="jump"),
    "key that is a list": _line(key=[]),
    "another beginning": _line(key="0 warm-up"),
    "recipe that is a list": _line(value=[]),
    "recipe of another": _line(value={"name": "another"}),
}
REPORTS: dict[str, tuple[str, bytes]] = {
    "result: nothing": ("result.json", b""),
    "result: cut": ("result.json", b'{"arms": '),
    "result: list": ("result.json", b"[]"),
    "result: deep": ("result.json", DEEP.encode()),
    "result: pickle": ("result.json", PICKLE),
    "result: utf-16": ("result.json", '{"arms": {}}'.encode("utf-16")),
    "result: arms text": ("result.json", b'{"arms": "joint"}'),
    "result: huge number": ("result.json", b'{"arms": ' + b"9" * 5000 + b"}"),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_malformed_journal_exits_2_with_one_line(refused: Refused, tmp_path: Path, repo: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(repo / "recipes" / "tiny.toml", run / "recipe.toml")
    (run / "metrics.jsonl").write_text('{"seed": 0}\n', "utf-8")
    (run / "journal.jsonl").write_bytes(JOURNALS[name])
    assert str(run) in refused("study", run, "--resume")


@pytest.mark.parametrize("name", REPORTS)
def test_malformed_file_of_a_run_makes_report_exit_2_with_one_line(refused: Refused, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(TASK, "utf-8")
    (run / "metrics.jsonl").write_text('{"seed": 0}\n', "utf-8")
    file, content = REPORTS[name]
    (run / file).write_bytes(content)
    assert file in refused("report", run)


def test_malformed_corpus_has_at_least_200_cases() -> None:
    assert len(RECIPES) + len(ROWS) + len(ZIPPED) + len(MATRICES) + len(MODELS) + len(JOURNALS) + len(REPORTS) >= 200
