"""Files of a run between the driver's machine and a node: whole or not at all, and only as long as they are needed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.studies.crews import travel
from omni_thinker.studies.crews.node import sweep
from omni_thinker.studies.crews.travel import Keeper, Travelling


class Near(Travelling):
    """Calls the keeper directly, where Ray would."""

    asked: list[str]

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.asked = [*getattr(self, "asked", []), method]
        return getattr(self._keeper, method)(*arguments)


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Keeper, Near]:
    monkeypatch.setattr(travel, "_PIECE_BYTES", 10)
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    copy.mkdir()
    keeper = Keeper(str(run))
    return run, copy, keeper, Near(copy, keeper)


@pytest.mark.parametrize("size", [0, 1, 10, 25])
def test_files_and_folders_arrive_as_they_were_sent(ends: tuple[Path, Path, Keeper, Near], size: int) -> None:
    run, copy, keeper, node = ends
    folder = copy / "models" / "a"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(size)))
    (folder / "deep" / "words").write_text("some words", "utf-8")
    node.made(folder)
    assert (run / "models" / "a" / "weights").read_bytes() == bytes(range(size))
    assert sorted(path.name for path in (run / "models" / "a").rglob("*")) == ["deep", "weights", "words"]
    other = Near(copy.parent / "other", keeper)
    other.need(copy.parent / "other" / "models" / "a")
    assert (copy.parent / "other" / "models" / "a" / "weights").read_bytes() == bytes(range(size))
    other.asked = []
    other.need(copy.parent / "other" / "models" / "a")
    assert other.asked == ["holds"], "what is there isn't read again"


def test_a_copy_that_differs_is_brought_again(ends: tuple[Path, Path, Keeper, Near]) -> None:
    run, copy, _, node = ends
    (run / "start").write_text("the weights", "utf-8")
    (copy / "start").write_text("torn", "utf-8")
    node.need(copy / "start")
    assert (copy / "start").read_text("utf-8") == "the weights"
    node.need(copy / "absent")
    assert not (copy / "absent").exists()


def test_a_damaged_piece_leaves_what_was_there(ends: tuple[Path, Path, Keeper, Near]) -> None:
    run, _, keeper, _ = ends
    (run / "joint").write_text("before", "utf-8")
    keeper.write("joint", "t", 0, b"damaged")
    with pytest.raises(UserError, match="damaged on its way"):
        keeper.finish("joint", "t", "7-00000000", "/copy")
    assert [path.name for path in run.iterdir()] == ["joint"]
    assert (run / "joint").read_text("utf-8") == "before"


def test_nothing_outside_of_the_run_is_read_or_written(ends: tuple[Path, Path, Keeper, Near]) -> None:
    run, _, keeper, _ = ends
    (run.parent / "secret").write_text("mine", "utf-8")
    for act in (
        lambda: keeper.read("../secret", 0),
        lambda: keeper.holds("/etc"),
        lambda: keeper.write("../secret", "t", 0, b"x"),
        lambda: keeper.drop("../secret"),
    ):
        with pytest.raises(UserError, match="outside of the run's directory"):
            act()
    assert (run.parent / "secret").read_text("utf-8") == "mine"


def test_what_a_unit_made_goes_and_what_it_needed_stays_for_the_next(ends: tuple[Path, Path, Keeper, Near]) -> None:
    run, copy, _, node = ends
    (run / "start").write_text("start", "utf-8")
    node.need(copy / "start")
    (copy / "a").write_text("weights of a", "utf-8")
    node.made(copy / "a")
    node.ended()
    assert [path.name for path in copy.iterdir()] == ["start"]
    node.need(copy / "a")
    node.ended()
    assert [path.name for path in copy.iterdir()] == ["a"], "the start was needed by the unit before alone"
    assert (run / "a").exists()


def test_an_adapter_names_its_base_where_the_run_has_it(ends: tuple[Path, Path, Keeper, Near]) -> None:
    run, copy, _, node = ends
    for name, base in (("ours", copy / "models" / "start"), ("hub", Path("org/model"))):
        (copy / name).mkdir()
        config = {"base_model_name_or_path": str(base), "r": 8}
        (copy / name / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        node.made(copy / name)
    read = {name: json.loads((run / name / "adapter_config.json").read_text("utf-8")) for name in ("ours", "hub")}
    assert read["ours"] == {"base_model_name_or_path": str(run / "models" / "start"), "r": 8}
    assert read["hub"]["base_model_name_or_path"] == "org/model"


def test_copies_of_processes_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f"omni-thinker-node-abc-{ended.pid}", f"omni-thinker-node-abc-{os.getpid()}", "omni-thinker-mine-1"]
    for name in names:
        (tmp_path / name).mkdir()
    sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
