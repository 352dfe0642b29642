"""The report room: a synthetic run directory in, one inert and self-contained page out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.report import tables, write_report
from omni_thinker.report.figures import series
from omni_thinker.report.frames import position
from omni_thinker.report.samples import examples
from omni_thinker.report.words import duration, number, share, shown_text
from omni_thinker.runs.read import load_run, read_result
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.logs import RENAMED
from written_run import (
    HOSTILE,
    ORDER,
    SEEDS,
    TASKS,
    accuracy,
    arm_entry,
    estimate,
    jsonl,
    plan,
    result,
    sample_lines,
    write_run,
)

VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = ["verdict", "arms", "learning", "transfer", "plan", "entropy", "health", "signals", "samples", "recipe"]


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers attributes, tables and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("id") or f"anonymous-{len(self.tables)}", [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], (tag, self.open[-5:], self.getpos())
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def html(full: Path) -> str:
    return write_report(full).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture
def bare(full: Path, tmp_path: Path) -> Path:
    for name in ("result.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((full / name).read_bytes())
    return tmp_path


def cells(page: Page, table: str) -> dict[str, list[str]]:
    return {" ".join(row[0].split()): [" ".join(cell.split()) for cell in row[1:]] for row in page.tables[table][1:]}


def test_report_has_every_section_and_balanced_tags(html: str, page: Page) -> None:
    assert page.open == []
    assert html.startswith("<!DOCTYPE html>")
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == SECTIONS
    assert {attrs["id"] for tag, attrs in page.tags if tag == "figure"} == {
        f"figure-{name}"
        for name in ("differences", "tokens", "gains", "learning", "transfer", "forecasts", "entropy", "health")
    }
    assert len(html.encode()) < 1_500_000


def test_ids_are_unique_and_links_resolve(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    used = {value for _, attrs in page.tags for name, value in attrs.items() if name == "href" and value}
    used |= {
        found
        for _, attrs in page.tags
        for value in attrs.values()
        for found in re.findall(r"url\((#[^)]*)\)", value or "")
    }
    assert used
    assert {value.removeprefix("#") for value in used} <= set(ids)


def test_report_is_self_contained_and_runs_its_own_script_alone(html: str, page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert not set(tags) & {"link", "iframe", "object", "embed", "img", "base"}
    assert tags.count("script") == 1
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[-1]
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv")) or ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy, "nothing but our script may run"
    assert "connect-src" not in policy
    for _, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "action")
            assert name not in ("href", "xlink:href") or (value or "").startswith("#")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert '<script>alert("owned")' in page.text
    assert "␀␛[31m" in page.text
    assert "\x00" not in html
    assert "\x1b" not in html


def test_arms_table_equals_values_by_hand(page: Page) -> None:
    rows = page.tables["table-arms"]
    assert [cell.strip() for cell in rows[0]] == ["Arm", *TASKS, "macro"]
    joined = " ".join(next(row for row in rows[1:] if row[0].startswith("curriculum"))[1].split())
    spread = math.sqrt(sum(estimate(accuracy("curriculum", "math", seed), 96)["stderr"] ** 2 for seed in SEEDS) / 2)
    assert joined == f"0.470 ± {spread:.3f}▲0.460–0.480"
    start = next(row for row in rows[1:] if row[0].startswith("start"))
    macro = (
        math.sqrt(
            sum(estimate(accuracy("start", task, seed), 96)["stderr"] ** 2 for seed in SEEDS for task in TASKS) / 2
        )
        / 4
    )
    assert " ".join(start[-1].split()) == f"0.372 ± {macro:.3f}0.362–0.383"


def test_arms_table_marks_the_best_arm_of_a_column(full: Path) -> None:
    run = load_run(full)
    rows = {row.arm: row.cells for row in tables.arm_rows(run)}
    assert list(rows) == ["start", "curriculum", "joint", "merge", *(f"single:{task}" for task in TASKS)]
    assert [arm for arm in rows if rows[arm][0].best] == ["single:math"]
    assert [arm for arm in rows if rows[arm][-1].best] == ["curriculum"]
    assert rows["merge"][0].versus == 0
    assert rows["single:math"][0].versus == 1


def test_comparison_of_two_arms_is_found_in_either_order(full: Path) -> None:
    run = load_run(full)
    forward, backward = run.comparison("start", "curriculum"), run.comparison("curriculum", "start")
    assert forward is not None
    assert backward is not None
    assert backward.difference == pytest.approx(0.16)
    assert forward.difference == pytest.approx(-0.16)
    assert (backward.low, backward.high) == pytest.approx((0.11, 0.21))
    assert run.comparison("curriculum", "nobody") is None


def test_figures_have_labels_with_values(html: str) -> None:
    assert "no difference shown" in html
    assert "+16.0" in html, "points above the start"
    assert "+3.0" in html, "points above joint training"
    assert "after writing" in html
    # math after math: 0.52 - 0.30
    assert "+0.220" in html


def test_plan_forecast_budget_and_health_tables_equal_values_by_hand(page: Page) -> None:
    orders = cells(page, "table-orders")
    assert orders["qa → writing → code → math"] == ["0.510", "0.460–0.550", "", "0.40"]
    assert len(orders) == 24, "all in one table, which is folded"
    assert "It takes 24 of the 24 orders" in page.text
    assert cells(page, "table-strategies")["front_greedy"] == ["math → code → qa → writing", "0.470", "0.040"]
    assert cells(page, "table-forecasts")["qa"] == [
        "1",
        "curriculum",
        "0.550",
        "0.500–0.600",
        "0.460",
        "−0.090",
        "outside",
    ]
    assert "6 of 8 outcomes on validation lie inside" in page.text
    budgets = {name.replace("\u202f", " "): row for name, row in cells(page, "table-budgets").items()}
    assert budgets["joint"] == ["48", "123\u202f456", "98\u202f765", "8 min 32 s"] or budgets["joint"] == [
        "48",
        "123 456",
        "98 765",
        "8 min 32 s",
    ]
    more = "7 000 more tokens in their evaluations"
    assert budgets[f"short probes, for the plan (14% of the tokens trained; {more})"][0] == "48"
    assert budgets[f"full probes, beside it ({more})"][0] == "96"
    probes = cells(page, "table-probes")
    assert probes["short"][1] == "48"
    assert probes["short"][-4:] == ["14.0%", "0.71", "–", "0.030"]
    assert probes["full"][-3:] == ["–", "–", "–"]
    kept = cells(page, "table-sequences")["curriculum"]
    assert kept[1:4] == ["qa → writing → code → math", "−0.020", "+0.010"]
    assert kept[4:].count("0.040") == 1
    assert "This run speaks against <A1>." in page.text
    assert "Structured stages lowered the entropy." in page.text
    assert "Against joint training the data can't tell." in page.text
    assert cells(page, "table-health")["joint"] == [
        "25.0%",
        "10.0%",
        "0.0%",
        "1.0%",
        "0.0004",
        "0.2%",
        "0.044",
        "6.00",
        "0.50",
        "4.00",
        "–",
    ]


def test_signals_table_lists_every_arm_by_task(page: Page) -> None:
    rows = [[" ".join(cell.split()) for cell in row] for row in page.tables["table-signals"][1:]]
    assert [row[0] for row in rows if row[1] == "joint"] == TASKS, "every row names its task, for those who copy it"
    first = {row[1]: row[2:4] + row[4:5] + row[6:] for row in rows[: len(rows) // len(TASKS)]}
    assert first["joint"] == ["2.00", "25.0%", "0.400", "2.000", "−0.25"]
    assert first["curriculum"] == ["8.00", "25.0%", "0.400", "2.000", "–"]
    assert all(float(row[5]) > 0 for row in rows), "entropy"
    assert "start" not in first


def test_report_shows_the_facts_and_notes_of_the_run(page: Page) -> None:
    text = " ".join(page.text.split())
    for words in (
        "four <tasks>",
        "SmolLM2-135M-Instruct (built-in), full weights",
        "96 × 2 answers",
        "28 min 20 s",
        "4.2 GB",
        "The judge is a 135M model",
        "math 0.30 (outside the target)",
    ):
        assert words in text
    assert 'name = "<four>"' in text


def test_report_shows_samples_of_arms_side_by_side(full: Path, page: Page) -> None:
    groups = examples(load_run(full))
    assert [group.task for group in groups] == TASKS
    assert all(
        len(group.examples) == 4
        and [shown.arm for shown in group.examples[0].answers] == ["start", "curriculum", "joint"]
        for group in groups
    )
    assert "abstained" in page.text
    assert "no verdict" in page.text


def test_report_folds_thoughts(html: str) -> None:
    begin = '<details class="thoughts"><summary>Thoughts</summary><pre>Hm. '
    assert html.count(begin) == html.count('class="thoughts"') == 1
    assert HOSTILE not in html


def test_run_with_missing_extras_still_makes_a_report(bare: Path) -> None:
    page = Page(write_report(bare).read_text(encoding="utf-8"))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    for words in ("no transfer.json", "no plan.json", "no samples.jsonl", "No recipe.toml"):
        assert words in page.text
    assert not list(bare.glob(".report*"))


def test_run_of_a_single_arm_makes_a_report_without_curves(tmp_path: Path) -> None:
    alone = {**arm_entry("joint", 3), "test": {"math": {"mean": 0.5, "n": 1, "stderr": None}}}
    left_out: dict[str, Any] = {
        "comparisons": [],
        "forecasts": [],
        "assumptions": [],
        "probes": [],
        "warmup": [],
        "entropy": None,
    }
    table = {**result(), "arms": {"joint": [alone]}, **left_out}
    (tmp_path / "result.json").write_text(json.dumps(table))
    (tmp_path / "metrics.jsonl").write_text("")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "This run compared no arms" in page.text
    assert "0.500 ± –" in " ".join(page.text.split())


def test_damaged_extra_files_are_reported_as_gaps(bare: Path) -> None:
    (bare / "plan.json").write_text('{"plan": {"order": 3}}')
    (bare / "transfer.json").write_text("{")
    (bare / "samples.jsonl").write_text(f'nonsense\n{json.dumps(sample_lines()[0])}\n{{"arm"')
    (bare / "recipe.toml").write_text("= broken")
    gaps = " ".join(load_run(bare).gaps)
    assert "plan.json can't be read" in gaps
    assert "transfer.json can't be read" in gaps
    assert "samples.jsonl: 1 line can't" in gaps
    assert "recipe.toml is not valid TOML" in gaps
    assert "plan.json can" in Page(write_report(bare).read_text(encoding="utf-8")).text


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_missing_result_or_metrics_is_a_user_error(bare: Path, name: str) -> None:
    (bare / name).unlink()
    with pytest.raises(UserError, match=name):
        write_report(bare)
    assert not (bare / "report.html").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"arms": {}}', '{"arms": {"joint": 3}}'])
def test_malformed_result_is_a_user_error(bare: Path, text: str) -> None:
    (bare / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json"):
        write_report(bare)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": "long"}, "seconds: should be a valid number, got 'long'"),
        (
            {"arms": {"joint": [{**arm_entry("joint", 0), "steps": 1.5}]}},
            "arms.joint.0.steps: should be a valid integer",
        ),
        (
            {"arms": {"joint": [{**arm_entry("joint", 0), "steps": -1}]}},
            "arms.joint.0.steps: should be greater than or equal to 0",
        ),
        (
            {"arms": {"joint": [{**arm_entry("joint", 0), "steps": 10**400}]}},
            "arms.joint.0.steps: should be less than or equal to 18446744073709551616",
        ),
        ({"version": 2}, "version: version 2 isn't supported, only 1; update omni-thinker to read it"),
        ({"version": 0}, "version: version 0 isn't supported, only 1; run it again"),
        ({"version": True}, "version: version True isn't supported"),
    ],
)
def test_wrong_key_or_version_of_a_result_is_refused_by_key(bare: Path, change: dict[str, Any], said: str) -> None:
    (bare / "result.json").write_text(json.dumps({**result(), **change}))
    with pytest.raises(UserError) as caught:
        write_report(bare)
    assert str(caught.value).startswith(f"{bare / 'result.json'}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"n": 10**400}, {"n": -3}, {"stderr": -0.5}])
def test_impossible_estimate_is_refused(bare: Path, changed: dict[str, Any]) -> None:
    table = result()
    table["arms"]["joint"][0]["validation"]["math"] |= changed
    (bare / "result.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"result\.json: arms\.joint\.0\.test\.math\.\w+: should be"):
        write_report(bare)


def test_report_that_is_a_folder_is_a_user_error(bare: Path) -> None:
    (bare / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html: can't be written: Is a directory"):
        write_report(bare)
    assert not list(bare.glob(".report*"))


def test_a_newer_plan_is_refused(bare: Path) -> None:
    (bare / "plan.json").write_text(json.dumps({**plan(), "version": 2}))
    with pytest.raises(UserError, match=r"plan\.json: version: .* update omni-thinker"):
        write_report(bare)


@pytest.mark.parametrize("name", ["schedulers", "short-probes"])
def test_committed_studies_load_without_gaps(repo: Path, bare: Path, name: str) -> None:
    folder = repo / "docs" / "studies" / name
    assert read_result(folder / "result.json").verdict
    for path in folder.glob("transfer*.json"):
        (bare / "transfer.json").write_bytes(path.read_bytes())
        run = load_run(bare)
        assert run.transfer is not None
        assert not run.gaps


def test_seeds_with_different_orders_get_separate_panels(bare: Path) -> None:
    rows = [json.loads(row) for row in (bare / "metrics.jsonl").read_text().splitlines()[:-1]]
    swap = {"qa": "math", "math": "qa"}
    for row in rows:
        if row["seed"] == 1 and row["arm"] == "curriculum":
            row["stage"] = swap.get(row["stage"], row["stage"])
    jsonl(bare / "metrics.jsonl", rows)
    text = write_report(bare).read_text(encoding="utf-8")
    assert "curriculum, seed 0" in text
    assert "curriculum, seed 1" in text


def test_stage_spans_equal_values_by_hand_and_resumed_steps_count_once(full: Path, bare: Path) -> None:
    spans = series.stage_spans(load_run(full))
    assert [(span.task, span.first, span.last) for span in spans[0]] == [
        (task, 12 * at, 12 * at + 11) for at, task in enumerate(ORDER)
    ]
    again = (bare / "metrics.jsonl").read_text().splitlines()[:-1]
    (bare / "metrics.jsonl").write_text("\n".join(again + again) + "\n")
    assert len(load_run(bare).records) == len(load_run(full).records)


def test_long_curves_are_binned_and_smoothed() -> None:
    slope = [(float(step), 2.0 * step) for step in range(1000)]
    binned = series.thin(slope)
    assert len(binned) <= series.MAX_POINTS
    assert all(value == pytest.approx(2 * step) for step, value in binned)
    smooth = series.smooth(slope)
    assert all(value == pytest.approx(2 * step) for step, value in smooth[2:-2])
    assert smooth[-1] == pytest.approx((999.0, 1996.0))


def test_stderr_over_seeds_includes_their_spread() -> None:
    cell = tables.over_seeds([Estimate(0.4, 96, 0.05), Estimate(0.6, 96, 0.05)])
    assert (cell.mean, cell.stderr, cell.low, cell.high) == pytest.approx((0.5, 0.05, 0.4, 0.6))
    assert math.isnan(tables.macro({"a": Estimate(0.5, 9, 0.1)}, ["a", "b"]).mean)


def test_numbers_durations_and_shares_are_formatted() -> None:
    assert duration(3.25) == "3.2 s"
    assert duration(59.6) == "1 min 00 s"
    assert duration(7300) == "2 h 01 min"
    assert share(0.0001) == "<0.1%"
    assert share(0.0) == "0.0%"
    assert share(math.nan) == "–"
    assert number(-0.5) == "−0.500"
    assert number(None) == "–"
    assert position(0.5, (0.0, 2.0)) == "25.0%"
    assert position(9, (0.0, 2.0)) == "100.0%"
    assert shown_text("x" * 4000).endswith("[1000 more characters]")


def test_metrics_of_older_runs_are_renamed(bare: Path) -> None:
    text = (bare / "metrics.jsonl").read_text()
    for old, new in RENAMED.items():
        text = text.replace(f'"{new}/', f'"{old}/')
    (bare / "metrics.jsonl").write_text(text)
    names = {name for record in load_run(bare).records for name in record.metrics}
    assert {"clip_frac/all", "mismatch_abs/all", "kl_ref/all"} <= names
    assert not {old for old in RENAMED if f"{old}/all" in names}
