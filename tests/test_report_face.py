"""What a report says at a glance, its tables as files, and which answers won or lost."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import omni_thinker as ot
from omni_thinker.errors import UserError
from omni_thinker.report import export_report
from omni_thinker.report.figures import contrasts, spending
from omni_thinker.report.figures.plots import told_apart
from omni_thinker.report.figures.svg import DARK, sheet
from omni_thinker.report.frame import Column, Frame, to_csv, to_html, to_latex
from omni_thinker.report.frames import frames
from omni_thinker.report.headline import headline
from omni_thinker.report.orders import candidates, told_apart_words
from omni_thinker.report.samples import examples
from omni_thinker.report.tables import about
from omni_thinker.report.words import visible
from omni_thinker.runs.read import RunData, load_run
from omni_thinker.runs.schema.result import Comparison
from written_run import TASKS, result, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(folder: Path) -> RunData:
    return load_run(folder)


def with_comparisons(run: RunData, *rows: Comparison, **changes: Any) -> RunData:
    return replace(run, result=replace(run.result, comparisons=rows, **changes))


def against(arm: str, difference: float, *, shown: bool = False, control: str = "joint") -> Comparison:
    ends = (difference - 0.02, difference + 0.02)
    return Comparison(arm, control, "macro", difference, *ends, 384, 0.05, shown=shown, family="control")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([against("curriculum", 0.03), against("merge", -0.01)], "No arm was shown to differ from joint training"),
        ([against("curriculum", 0.03, shown=True)], "curriculum beat joint training by 3.0 points"),
        (
            [against("curriculum", 0.03, shown=True), against("merge", 0.05, shown=True)],
            "merge and 1 more beat joint training by up to 5.0 points",
        ),
        (
            [against("curriculum", 0.01), against("merge", -0.045, shown=True)],
            "No arm beat joint training; merge fell short by 4.5 points",
        ),
        ([against("curriculum", 0.16, shown=True, control="start")], "curriculum beat the start by 16.0 points"),
        ([], "This run compared no arms"),
    ],
)
def test_headline_says_in_a_line_what_was_shown(run: RunData, rows: list[Comparison], line: str) -> None:
    assert headline(with_comparisons(run, *rows)).line == line


def test_headline_waits_for_seeds_and_knows_when_every_score_is_zero(run: RunData) -> None:
    assert headline(with_comparisons(run, seeds_left=1)).line == "No verdict yet: 1 of 3 seeds are to come"
    nothing = {
        arm: tuple(replace(each, test={t: replace(row, mean=0.0) for t, row in each.test.items()}) for each in runs)
        for arm, runs in run.result.arms.items()
    }
    words = headline(with_comparisons(run, against("curriculum", 0.0), arms=nothing)).line
    assert words == "Every score on the test split is 0, so no arm can be told from another"


def test_three_tiles_are_best_arm_joint_training_and_what_could_be_seen(run: RunData) -> None:
    tiles = headline(with_comparisons(run, against("curriculum", 0.03), against("merge", -0.01))).tiles
    # By hand: the mean of four tasks over two seeds, 0.3625 + gain + 0.01.
    assert [(tile.name, tile.value) for tile in tiles] == [
        ("Best arm", "0.532"),
        ("Joint training", "0.503"),
        ("Detectable difference", "5.0 points"),
    ]
    assert tiles[0].about.startswith("curriculum ± ")
    assert tiles[0].about.endswith("; its lead isn't shown")
    proven = headline(with_comparisons(run, against("curriculum", 0.03, shown=True))).tiles[0]
    assert "lead" not in proven.about


def test_arms_against_joint_training_are_sorted_and_their_band_is_the_widest(run: RunData) -> None:
    rows = [against("merge", -0.01), against("curriculum", 0.03), replace(against("reverse", 0.01), detectable=0.07)]
    arms = {**run.result.arms, "reverse": run.result.arms["merge"]}
    found = contrasts.against_joint(with_comparisons(run, *rows, arms=arms))
    assert [arm for arm, _ in found] == ["curriculum", "reverse", "merge"]
    assert contrasts.detectable(found) == 0.07


def test_tokens_of_arms_count_probes_of_plans_and_experts_of_merges(run: RunData) -> None:
    points = {point.arm: point for point in spending.points(run)}
    assert points["joint"].tokens == 123456 + 98765
    assert points["joint"].extra == 0
    assert points["curriculum"].extra == 9000 + 8000 + 7000, "the probe that was planned with, evaluations included"
    assert points["merge"].tokens == 18000 + 16000, "of the whole stages"
    assert points["start"].tokens == 0


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.2))
def test_labels_are_moved_apart_in_order_and_around_their_middle(wanted: list[float], gap: float) -> None:
    places = spending.spread(sorted(wanted), gap)
    assert len(places) == len(wanted)
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted))
    apart = [at * 2 * gap for at in range(len(wanted))]
    assert spending.spread(apart, gap) == pytest.approx(apart), "nothing moves that needn't"


def test_orders_that_cannot_be_told_apart_are_said_to_be_so(run: RunData) -> None:
    assert candidates([0.96, 0.02, 0.02]) == 1
    assert candidates([0.25] * 4) == 4
    assert run.plan is not None
    # 0.40 + 23 x 0.02 = 0.86: all of them together don't reach 0.95.
    assert told_apart_words(run.plan).startswith("The orders can't be told apart: the likeliest is the best with")
    first, *others = run.plan.orders
    settled = (replace(first, probability_best=0.97), *(replace(each, probability_best=0.001) for each in others))
    assert "One order stands out" in told_apart_words(replace(run.plan, orders=settled))
    assert told_apart_words(replace(run.plan, orders=(first,))) == ""


def test_effects_that_can_be_told_from_noise_are_counted(run: RunData) -> None:
    assert run.transfer is not None
    apart, measured = told_apart(run.transfer)
    assert measured == 16
    assert apart == [(task, task) for task in TASKS], "0.22 against a standard error of about 0.1; others are below"


def test_scheduled_arms_are_explained_in_the_words_of_their_scheduler(run: RunData) -> None:
    assert about(run, "sec") == "RL on all tasks, scheduled: a bandit on learnability (arXiv 2505.14970)"
    named = replace(run, recipe={"study": {"schedulers": {"mine": {"kind": "sec"}, "own": {"kind": "python"}}}})
    assert about(named, "mine").startswith("RL on all tasks, scheduled: sec, a bandit")
    assert about(named, "own") == "RL on all tasks, scheduled: by a class of your own"
    assert "a scheduler says" in about(named, "unknown")


def test_answers_are_won_lost_or_changed_against_the_start(run: RunData) -> None:
    shown = {answer.arm: answer for answer in examples(run)[0].examples[0].answers}
    assert (shown["start"].outcome, shown["start"].differs) == ("", False)
    assert (shown["joint"].outcome, shown["joint"].differs) == ("same", True)
    better = [replace(item, score=1.0) if item.arm == "joint" else item for item in run.answers]
    outcomes = {a.arm: a.outcome for a in examples(replace(run, answers=better))[0].examples[0].answers}
    assert outcomes == {"start": "", "curriculum": "same", "joint": "won"}


def test_tables_as_csv_hold_raw_values_and_equal_result_json(run: RunData, folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(frames(run)["comparisons"]))))
    written = json.loads((folder / "result.json").read_text())["comparisons"]
    assert len(rows) == len(written)
    for row, item in zip(rows, written, strict=True):
        assert (row["arm"], row["minus"], row["task"]) == (item["a"], item["b"], item["task"])
        assert [float(row[key]) for key in ("difference", "interval_low", "interval_high")] == [
            item["difference"],
            item["low"],
            item["high"],
        ]
    header = next(csv.reader(io.StringIO(to_csv(frames(run)["arms"]))))
    assert header[:3] == ["arm", "math", "math_stderr"]


def test_frames_escape_what_a_run_wrote_in_every_form() -> None:
    columns = [Column("name", "Name & co", "text"), Column("value", "Value", "signed"), Column("at", "", "interval")]
    frame = Frame("x", "", columns, [["<b>=_&%", -0.5, (0.1, None)], ["=1+2", None, None]])
    assert "<b>" not in to_html(frame)
    assert 'data-head="Name &amp; co"' in to_html(frame)
    latex = to_latex(frame).splitlines()
    assert latex[0] == r"\begin{tabular}{lrr}"
    assert latex[4] == r"$<$b$>$=\_\&\% & $-$0.500 & 0.100---- \\"
    assert to_csv(frame).splitlines() == ["name,value,at_low,at_high", "<b>=_&%,-0.5,0.1,", "'=1+2,,,"]


@given(st.text(max_size=30), st.one_of(st.none(), st.floats()))
def test_any_text_and_number_make_a_table_in_every_form(text: str, value: float | None) -> None:
    frame = Frame("x", "", [Column("a", text, "text"), Column("b", "B")], [[text, value]])
    assert to_html(frame).count("<td") == 1
    assert to_latex(frame).count("\\\\") >= 2
    rows = list(csv.reader(io.StringIO(to_csv(frame), newline="")))
    assert len(rows) == 2
    assert rows[1][0] in (visible(text), f"'{visible(text)}")


def test_dark_pages_have_another_colour_for_every_ink_that_needs_one(folder: Path) -> None:
    assert len(set(DARK)) == len(DARK)
    for colour, dark in DARK.items():
        assert colour != dark
        assert sheet().count(f"--p{colour[1:]}:") == 2


def test_report_is_exported_as_figures_and_tables(folder: Path, tmp_path: Path) -> None:
    files = export_report(folder, tmp_path / "paper")
    names = {path.name for path in files}
    assert {"differences.svg", "differences.png", "tokens.svg", "arms.csv", "arms.tex", "comparisons.csv"} <= names
    assert (tmp_path / "paper" / "differences.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "paper" / "differences.svg").read_text()
    assert "curriculum" in text
    assert "var(--" not in text, "a file has no sheet of colours"
    assert not re.search(r"(href|src)=.http", text)
    with pytest.raises(UserError, match=r"isn't empty"):
        export_report(folder, tmp_path / "paper")


def test_run_without_joint_training_leads_with_the_start(folder: Path, tmp_path: Path) -> None:
    table = result()
    del table["arms"]["joint"]
    table["comparisons"] = [row for row in table["comparisons"] if "joint" not in (row["a"], row["b"])]
    (tmp_path / "result.json").write_text(json.dumps(table))
    (tmp_path / "metrics.jsonl").write_text("")
    alone = load_run(tmp_path)
    assert headline(alone).line == "curriculum beat the start by 16.0 points"
    assert contrasts.joint(alone) is None


def test_python_has_the_tables_and_figures_of_a_report(folder: Path, tmp_path: Path) -> None:
    tables = ot.tables(folder)
    arms = tables["arms"].set_index("arm")
    assert arms.loc["curriculum", "macro"] == pytest.approx(0.5325)
    rows = tables["comparisons"].query("arm == 'start' and minus == 'joint' and task == 'macro'")
    assert list(rows["difference"]) == pytest.approx([-0.13])
    figures = ot.figures(ot.load_run(folder))
    assert set(figures) >= {"differences", "tokens", "learning", "transfer", "forecasts", "entropy", "health"}
    assert "<svg" in figures["transfer"]._repr_svg_()
    figures["transfer"].save(tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"must end in \.svg"):
        figures["transfer"].save(tmp_path / "transfer.doc")
    beside = ot.side_by_side(folder, folder)
    assert next(iter(beside["macro"]["arm"])) == "start"
