"""Several studies side by side: `omni-thinker compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from omni_thinker.cli import app
from omni_thinker.errors import UserError
from omni_thinker.report.several import _names, load_studies, side_by_side
from written_run import result, write_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same study twice, the second with one setting changed, an arm less, and another task."""
    first, second = (write_run(tmp_path_factory.mktemp(name)) for name in ("first", "second"))
    table = result()
    del table["arms"]["merge"]
    table["tasks"] = [*table["tasks"][:-1], "letters"]
    for runs in table["arms"].values():
        for run in runs:
            run["test"]["letters"] = run["test"].pop("writing")
    table["comparisons"] = [row for row in table["comparisons"] if "merge" not in (row["a"], row["b"])]
    (second / "result.json").write_text(json.dumps(table))
    recipe = (second / "recipe.toml").read_text()
    (second / "recipe.toml").write_text(recipe.replace("group_size = 8", "group_size = 4\nnew_key = 1"))
    return first, second


def test_studies_stand_side_by_side_with_their_own_numbers(pair: tuple[Path, Path]) -> None:
    studies = load_studies(pair)
    frames = side_by_side(studies)
    names = list(studies.runs)
    assert len(set(names)) == 2
    assert frames["macro"].header() == ["arm", names[0], f"{names[0]}_stderr", names[1], f"{names[1]}_stderr"]
    macro = {row[0]: row[1:] for row in frames["macro"].plain()}
    # By hand: the mean over tasks of START is 0.3625, over the two seeds 0.01 more, and joint training adds 0.13.
    assert macro["joint"][0] == pytest.approx(0.5025)
    assert macro["joint"] == macro["joint"][:2] * 2
    assert macro["merge"][2:] == [None, None], "an arm that a study lacks"
    differences = {row[0]: row[1:] for row in frames["against_joint"].plain()}
    assert differences["curriculum"][:3] == pytest.approx([0.03, -0.02, 0.08])
    assert differences["merge"][3:] == [None] * 3
    assert frames["settings"].plain() == [["rl.group_size", "8", "4"]], "what one of them alone has isn't a difference"
    assert "different tasks" in studies.note


def test_a_study_can_be_compared_with_itself_and_needs_another(pair: tuple[Path, Path]) -> None:
    twice = load_studies([pair[0], pair[0]])
    assert len(twice.runs) == 2
    assert "settings" not in side_by_side(twice)
    assert "different tasks" not in twice.note
    with pytest.raises(UserError, match="at least two"):
        load_studies(pair[:1])
    with pytest.raises(UserError, match=r"result\.json: missing"):
        load_studies([pair[0], pair[0].parent / "nowhere"])


def test_compare_prints_tables_and_writes_one_inert_page(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "both.html"
    monkeypatch.setattr(sys, "argv", ["omni-thinker", "compare", *map(str, pair), "--out", str(out), "--json"])
    app.main()
    printed = capsys.readouterr().out
    assert "No arm beat joint training; merge fell short by 8.0 points" in printed
    table = json.loads(printed.splitlines()[-1])
    assert table["tables"]["macro"]["rows"][0][0] == "start"
    text = out.read_text()
    assert "default-src 'none'" in text
    assert 'id="figure-studies"' in text
    assert 'id="table-against_joint"' in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    with pytest.raises(SystemExit):
        app.main()
    assert "--out: exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["schedulers", "short-probes"])
def test_committed_studies_can_be_compared(repo: Path, name: str) -> None:
    studies = repo / "docs" / "studies"
    frames = side_by_side(load_studies([studies / "equal-budgets", studies / name]))
    assert {"studies", "macro", "against_joint", "settings"} <= set(frames)


def test_names_of_studies_differ_whatever_they_are_called(tmp_path: Path) -> None:
    same, other = tmp_path / "a", tmp_path / "a (2)"
    assert _names([same, same, other]) == ["a", "a (2)", "a (2) (2)"]
    assert _names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
