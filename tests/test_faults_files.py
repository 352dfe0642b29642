"""Files that are not what they were, or that fail while they are used."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from omni_thinker.cli.single_eval import _read_references
from omni_thinker.errors import UserError
from omni_thinker.judging import agreement
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, load_recipe
from omni_thinker.rl.evaluate import estimate
from omni_thinker.runs.resume import check_run
from omni_thinker.runs.rundir import RunDir
from omni_thinker.studies.setup import Setup, prepare
from omni_thinker.studies.study import LOGS
from omni_thinker.tasks import jsonl

Refused = Callable[..., str]


def test_resume_after_the_problems_changed_is_refused(repo: Path, tmp_path: Path) -> None:
    setup = prepare(load_recipe(repo / "recipes" / "tiny.toml"))

    def begin(setup: Setup, *, resume: bool) -> None:
        run = RunDir(tmp_path / "run", setup.recipe, resume=resume)
        try:
            run.open_journal(LOGS, usable=lambda _: True)
            check_run(run, setup.recipe, setup.pools, judged=setup.judge is not None)
        finally:
            run.close()

    begin(setup, resume=False)
    begin(setup, resume=True)
    train = dict(setup.pools["train"])
    first, *rest = train["math"]
    for own in ([*rest], [*rest, first], [replace(first, answer="other"), *rest]):
        changed = replace(setup, pools={**setup.pools, "train": {**train, "math": own}})
        with pytest.raises(UserError, match=r"problems have changed since the run began: math \(train\)$"):
            begin(changed, resume=True)
    begin(setup, resume=True)


def test_checkpoint_with_other_shapes_or_types_is_refused(tmp_path: Path) -> None:
    """The checksum may be right, so loading has to check shapes and types itself."""
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    name, master = policy._names[0], policy._masters[0]
    policy._updates.optimizer.state[master] = {"exp_avg": master.detach().clone()}
    path = tmp_path / "a.safetensors"
    policy.token_budget //= 4
    policy.save_state(path)
    whole = load_file(path)
    other = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    other.load_state(path)
    assert other.token_budget == policy.token_budget, "rows are cut where they were"
    for key in (name, f"{name}@exp_avg"):
        for odd in (whole[key][:1], whole[key].double()):
            save_file({**whole, key: odd.contiguous()}, path)
            with pytest.raises(UserError, match="of shape"):
                other.load_state(path)


def test_judge_cache_that_fails_warns_once_and_raises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = JudgeCache(tmp_path / "cache.sqlite")
    cache.put("a", Reply("yes", 1, 1), model="m", prompt_version="1")
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    other.execute("DROP TABLE replies")
    cache.put("b", Reply("no", 1, 1), model="m", prompt_version="1")
    assert cache.get("a") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    assert "replies are not cached" in caplog.text


def test_damaged_or_oversized_pairs_are_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    row = {"id": "1", "prompt": "p", "response_1": "a", "response_2": "b", "label": 1}
    packed = gzip.compress(json.dumps(row).encode() * 3)
    for place in (10, 12, len(packed) - 6):
        damaged = bytearray(packed)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"can't be read|line 1"):
            agreement.read_pairs(path)
    monkeypatch.setattr(agreement, "_MOST_BYTES", 100)
    path.write_bytes(gzip.compress(b"x" * 200))
    with pytest.raises(UserError, match="more than 100 bytes in all"):
        agreement.read_pairs(path)


def test_files_with_more_than_the_maximum_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_ROWS", 3)
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 3)
    assert len(list(jsonl.read_rows(path, "k"))) == 3
    path.write_text("{}\n" * 4)
    with pytest.raises(UserError, match="more than 3 lines"):
        list(jsonl.read_rows(path, "k"))


def test_references_with_unicode_line_breaks_load_and_bad_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    texts = {"a": "one\u2028two", "b": "three\x85four"}
    rows = [json.dumps({"problem": name, "reference": text}, ensure_ascii=False) for name, text in texts.items()]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    assert _read_references(path) == texts
    path.write_text('{"problem": ' + "[" * 100_000)
    with pytest.raises(UserError, match="line 1 isn't a reference"):
        _read_references(path)


def test_stop_text_with_a_special_token_exits_2_with_one_line(refused: Refused, repo: Path) -> None:
    stop = 'tasks.math.stop=["\\n", "<|im_end|>"]'
    said = refused("study", repo / "recipes" / "tiny.toml", "--set", stop, "--dry-run")
    assert "tasks.math.stop: '<|im_end|>' contains a special token" in said


def test_estimate_of_96_equal_scores_has_a_positive_stderr() -> None:
    for value in (0.1, 0.7, 1.0):
        assert 0.005 < estimate([value] * 96).stderr < 0.06


def test_override_with_5000_digits_exits_2_with_one_line(refused: Refused, repo: Path) -> None:
    said = refused("study", repo / "recipes" / "tiny.toml", "--set", "rl.lr=" + "9" * 5000, "--dry-run")
    assert "rl.lr: can't be read" in said
