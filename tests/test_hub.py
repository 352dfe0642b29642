"""Models leave home: their cards, and uploads to a hub on this machine through the hub's own client."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from fake_hub import TOKEN, FakeHub
from omni_thinker.errors import UserError
from omni_thinker.hub.card import card, write_cards
from omni_thinker.hub.push import to_upload
from omni_thinker.runs.machine import machine
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.result import ArmRun, Comparison, Result


def arm(seed: int, mean: float, **more: Any) -> ArmRun:
    row = {"qa": Estimate(mean, 100, 0.05), "math": Estimate(0.5, 1, float("inf"))}
    spent = {"steps": 8, "samples": 64, "tokens_sampled": 1234, "tokens_trained": 1000, "seconds": 2.0}
    rest = {"stages": (), "backward_transfer": None, "forward_transfer": None, "forgetting": None}
    return ArmRun(**{"seed": seed, "test": row, "validation": row, **spent, **rest, **more})


def result(**more: Any) -> Result:
    rows = (
        Comparison("start", "joint", "qa", -0.2, -0.3, -0.1, 100, shown=True),
        Comparison("joint", "start", "macro", 0.1, 0.05, 0.15, 100, shown=True),
    )
    arms = {"start": (arm(0, 0.3, steps=0),), "joint": (arm(0, 0.5),), "single:qa": (arm(0, 0.98),)}
    table = {"name": "ours", "tasks": ("qa", "math"), "verdict": "Joint training is better.", "comparisons": rows}
    empty = {"forecasts": (), "assumptions": (), "entropy": None, "probes": (), "warmup": ()}
    told = {"notes": ("The judge is weak.",), "seconds": 10.0, "machine": machine()}
    return Result(**{**table, "arms": arms, **empty, **told, **more})


RECIPE: dict[str, Any] = {
    "name": "ours",
    "data_root": "/home/me/secret",
    "model": {"name": "builtin", "chat_template": "/home/me/chat.jinja"},
    "tasks": {
        "qa": {"source": "jsonl", "files": ["/home/me/rows.jsonl"], "test_set": {"files": ["../secret/eval.jsonl"]}},
        "math": {"source": "hf:/home/me/sets/gsm8k"},
    },
    "warmup": {"steps": 3},
    "judge": {"kind": "endpoint", "endpoint": {"base_url": "https://secret.example/v1"}, "model": "/home/me/judge"},
    "track": {"to": ["wandb"], "folder": "/home/me/track"},
    "engine": {"vllm": {"url": "http://secret:8000"}},
}


def test_card_has_scores_intervals_and_differences() -> None:
    text = card(result(), RECIPE, "joint", arm(0, 0.5))
    # 0.5 +- 1.96 x 0.05; one problem has no interval, and no comparison for the task.
    assert "| qa | 0.500 | 0.402 to 0.598 | 100 | +0.200 (+0.100 to +0.300) |" in text
    assert "| math | 0.500 | – | 1 | – |" in text
    assert "| mean of tasks | 0.500 | | | +0.100 (+0.050 to +0.150) |" in text
    assert "- RL steps: 8, after a supervised warm-up of at most 3" in text
    assert "- 1,234 tokens sampled, 1,000 trained, in 2 s" in text
    assert "- The judge is weak." in text
    assert "There was one seed" in text
    assert "0.882 to 1.000" in card(result(), RECIPE, "single:qa", arm(0, 0.98)), "cut at 1"


def test_card_is_read_by_the_hubs_library() -> None:
    data: Any = ModelCard(card(result(), RECIPE, "joint", arm(0, 0.5))).data
    assert (data.base_model, data.license, data.library_name) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "transformers"
    )  # fmt: skip
    assert [(each.dataset_name, each.metric_value) for each in data.eval_results] == [("qa", 0.5), ("math", 0.5)]


def test_card_says_nothing_of_the_machine() -> None:
    """Paths, addresses and trackers are nobody's business."""
    for name in ("builtin", "/home/me/secret/model", "~/secret/model", "./secret/model", "secret/x/model"):
        text = card(result(), {**RECIPE, "model": {**RECIPE["model"], "name": name}}, "joint", arm(0, 0.5))
        assert not re.search(r"/home|secret|wandb", text)
    assert "rows.jsonl" in text
    assert "eval.jsonl" in text
    assert "hf:gsm8k" in text


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run's directory with the models of two arms."""
    from omni_thinker.runs.json_text import write_json

    out = tmp_path / "run"
    for name in ("start", "joint", "single-qa"):
        shutil.copytree(tiny_model, out / "models" / "seed-0" / name)
    write_json(out / "result.json", result())
    (out / "recipe.toml").write_text('name = "ours"\n[model]\nname = "tiny"\n[tasks.qa]\nsource = "builtin:qa"\n')
    return out


def test_every_model_folder_gets_a_card_once(run: Path) -> None:
    shutil.rmtree(run / "models" / "seed-0" / "joint")
    cards = write_cards(run)
    assert [path.parent.name for path in cards] == ["start", "single-qa"]
    before = [path.stat().st_mtime_ns for path in cards]
    assert write_cards(run) == cards
    assert [path.stat().st_mtime_ns for path in cards] == before
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(cards[0].parent)


def test_a_card_that_somebody_changed_stays(run: Path) -> None:
    start, joint, _ = write_cards(run)
    start.write_text(start.read_text("utf-8").replace("---\n", "---\nlicense: mit\n", 1), "utf-8")
    edited, before = start.read_text("utf-8"), joint.read_text("utf-8")
    (run / "result.json").write_text((run / "result.json").read_text().replace('"ours"', '"theirs"'))
    write_cards(run)
    assert start.read_text("utf-8") == edited
    assert joint.read_text("utf-8") != before, "one that nobody changed follows the result"


@pytest.mark.parametrize("text", [None, "{", 'tasks = "x"', "model = 3", "[tasks]\nmath = 3", b"\xff"])
def test_cards_of_a_damaged_recipe_are_refused_in_a_line(run: Path, text: str | bytes | None) -> None:
    file = run / "recipe.toml"
    file.unlink()
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"recipe\.toml: (can't be read|isn't the recipe of a run)"):
        write_cards(run)


def test_what_links_elsewhere_is_not_uploaded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("of nobody else")
    link = run / "models" / "seed-0" / "joint" / "notes.txt"
    link.symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"notes\.txt: is a link to another folder"):
        to_upload(run, "joint")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


def pushed(hub: FakeHub, home: Path, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the library reads its settings as it is imported."""
    code = "from omni_thinker.cli.app import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(home), "HF_ENDPOINT": hub.url}
    environment |= {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, "push", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_push_uploads_the_whole_folder_with_its_card(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    folder = run / "models" / "seed-0" / "single-qa"
    done = pushed(hub, tmp_path / "hf", run, "me/mine", "--arm", "single:qa", "--message", "first", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["commit"] == f"{hub.url}/me/mine/commit/{'1' * 40}"
    assert hub.repos["me/mine"] == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert b"ours: single:qa, seed 0" in hub.repos["me/mine"]["README.md"]
    assert hub.private == {"me/mine": True}
    assert hub.messages == ["first"]
    again = pushed(hub, tmp_path / "hf", folder, "me/mine", "--public")
    assert again.returncode == 0, again.stderr
    assert hub.private == {"me/mine": True}, "a repository that is there stays as it is"


def test_dry_run_shows_files_and_card_and_asks_nobody(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    done = pushed(hub, tmp_path / "hf", run, "me/mine", "--arm", "joint", "--dry-run")
    assert done.returncode == 0, done.stderr
    size = (run / "models" / "seed-0" / "joint" / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in done.stdout
    assert "# ours: joint, seed 0" in done.stdout
    assert not hub.requests


def test_push_that_the_hub_refuses_or_cannot_take_ends_in_one_line(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    folder = run / "models" / "seed-0" / "joint"
    write_cards(run)
    refused = pushed(hub, tmp_path / "hf", folder, "me/mine", token="hf_wrong")
    assert refused.returncode == 2
    assert "me/mine: the hub refused" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    hub.url = "http://127.0.0.1:9"
    away = pushed(hub, tmp_path / "hf", folder, "me/mine")
    assert away.returncode == 2
    assert "me/mine: the hub can't be reached" in away.stderr
    assert len(away.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "me/mine"], "--arm: say which arm; there are start, joint, single:qa"),
        (["{run}", "me/mine", "--arm", "jiont"], "no arm 'jiont'"),
        (["{run}", "me/mine", "--arm", "joint", "--seed", "3"], "--seed: no seed 3; there are 0"),
        (["{run}", "a/b/c", "--arm", "joint"], "REPO: isn't a repository's name"),
        (["{run}/models", "me/mine"], "isn't a model's folder"),
        (["{run}/models/seed-0/joint", "me/mine"], "has no model card"),
        (["{run}/models/seed-0/joint", "me/mine", "--arm", "joint"], "has no arms"),
    ],
)
def test_what_cannot_be_pushed_is_named(
    arguments: list[str], words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from omni_thinker.cli.app import main

    monkeypatch.setattr(sys, "argv", ["omni-thinker", "push", *(word.format(run=run) for word in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
