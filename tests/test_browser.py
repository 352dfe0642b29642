"""The report and the live view in headless Chromium: `make test-browser`.

What a person sees equals result.json, nothing leaves the page, and keys are enough to use it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.report import write_report
from omni_thinker.report.several import load_studies
from omni_thinker.report.several_page import write_comparison
from omni_thinker.report.watch.server import Server
from omni_thinker.runs.lock import Lock
from written_run import HOSTILE, SEEDS, TASKS, accuracy, result, write_run

pytestmark = pytest.mark.browser
WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
SHOTS = os.environ.get("OMNI_THINKER_SHOTS", "")
"""A folder for pictures of the pages, to be looked at."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed (make test-browser)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync.Error as exc:
            pytest.skip(f"no Chromium: {str(exc).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"))
    write_report(folder)
    return folder


class Watcher:
    """A page, with what it asked for and what it complained of."""

    def __init__(self, browser: Any, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None
        )

    def open(self, url: str) -> Any:
        self.page.goto(url)
        return self.page

    def picture(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def watcher(browser: Any, **look: Any) -> Watcher:
    return Watcher(browser, **look)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_report_shows_result_json_and_asks_for_nothing(chromium: Any, run: Path, width: int, scheme: str) -> None:
    seen = watcher(chromium, width=width, scheme=scheme)
    page = seen.open((run / "report.html").as_uri())
    seen.picture(f"report-{width}-{scheme}")
    assert seen.asked == [(run / "report.html").as_uri()]
    assert seen.complaints == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "nothing is pushed off the page"
    for row in page.query_selector_all("#table-arms tbody tr"):
        name = row.query_selector("th").inner_text().splitlines()[0]
        for task, cell in zip(TASKS, row.query_selector_all("td"), strict=False):
            mean = sum(accuracy(name, task, seed) for seed in SEEDS) / len(SEEDS)
            assert f"{mean:.3f}" in cell.inner_text()
            head = page.evaluate("cell => getComputedStyle(cell, '::before').content", cell)
            assert (task in head) == (width == 400), "each line of a card says what it is"
    assert page.locator("#figure-differences .wide").is_visible() == (width == 1280)
    assert page.locator("#figure-differences .narrow").is_visible() == (width == 400)
    seen.context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ink_of_figures_stands_out_from_their_paper(chromium: Any, run: Path, scheme: str) -> None:
    seen = watcher(chromium, scheme=scheme)
    page = seen.open((run / "report.html").as_uri())
    paper = page.evaluate("getComputedStyle(document.querySelector('.plot')).backgroundColor")
    inks = page.evaluate("[...document.querySelectorAll('.wide svg text')].map((each) => getComputedStyle(each).fill)")
    assert len(inks) > 50
    assert min(contrast(ink, paper) for ink in set(inks) if ink != "rgb(254, 254, 254)") > 4.5
    seen.context.close()


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, from 1 to 21."""
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_model_output_runs_nothing_and_thoughts_are_folded(chromium: Any, run: Path) -> None:
    seen = watcher(chromium)
    page = seen.open((run / "report.html").as_uri())
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.evaluate("for (const fold of document.querySelectorAll('details:not(.thoughts)')) fold.open = true")
    assert dialogs == []
    assert page.locator("img").count() == 0
    assert HOSTILE[:40] in page.locator(".answer pre").all_inner_texts()[0] + "".join(
        page.locator(".answer pre").all_inner_texts()
    )
    assert not page.locator(".thoughts pre").first.is_visible()
    blocked = page.evaluate(
        "() => { const made = document.createElement('script'); made.textContent = 'window.owned = 1';"
        " document.body.append(made); return window.owned === undefined; }"
    )
    assert blocked, "the policy of the page lets no other script run"
    seen.context.close()


def test_tables_are_copied_by_keys_alone(chromium: Any, run: Path) -> None:
    seen = watcher(chromium)
    page = seen.open((run / "report.html").as_uri())
    button = page.locator("button[data-copy='arms.CSV']")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.textContent === 'copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[0].startswith("arm,math,math_stderr,")
    assert len(copied.splitlines()) == 1 + len(result()["arms"])
    page.locator("button[data-copy='arms.LaTeX']").press("Enter")
    page.wait_for_function("document.activeElement.textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()").startswith("\\begin{tabular}{l")
    with page.expect_download() as saved:
        page.locator("#figure-differences .tools button").press("Enter")
    assert saved.value.suggested_filename == "figure-differences.svg"
    text = Path(saved.value.path()).read_text()
    assert text.startswith("<svg")
    assert "var(--" not in text
    seen.context.close()


def test_answers_are_filtered_by_task_arm_and_outcome(chromium: Any, run: Path) -> None:
    seen = watcher(chromium)
    page = seen.open((run / "report.html").as_uri())
    page.select_option("[data-filter=task]", "qa")
    assert page.locator(".filters output").inner_text() == "4 problems"
    assert page.locator(".problem:visible").count() == 4, "folds open for what was asked for"
    page.select_option("[data-filter=arm]", "joint")
    assert set(page.locator(".answer:visible header span:first-child").all_inner_texts()) == {"start", "joint"}
    page.select_option("[data-filter=outcome]", "changed")
    assert page.locator(".filters output").inner_text() == "4 problems"
    page.select_option("[data-filter=outcome]", "won")
    assert page.locator(".filters output").inner_text() == "0 problems", "both scored alike"
    page.select_option("[data-filter=outcome]", "")
    page.select_option("[data-filter=task]", "")
    assert page.locator(".filters output").inner_text() == "16 problems"
    seen.context.close()


def test_arms_of_the_learning_figure_stand_out_on_demand(chromium: Any, run: Path) -> None:
    seen = watcher(chromium)
    page = seen.open((run / "report.html").as_uri())
    figure = page.locator("#figure-learning")
    button = figure.get_by_role("button", name="joint")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    lines = "[...document.querySelectorAll('#figure-learning .wide [id*=\"-arm\"]')]"
    assert page.evaluate(f"{lines}.some((line) => line.classList.contains('dim'))")
    assert not page.evaluate(f"{lines}.every((line) => line.classList.contains('dim'))")
    button.press("Enter")
    assert page.evaluate(f"{lines}.every((line) => !line.classList.contains('dim'))")
    seen.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_of_studies_fits_and_asks_for_nothing(chromium: Any, repo: Path, tmp_path: Path, width: int) -> None:
    out = tmp_path / "beside.html"
    studies = repo / "docs" / "studies"
    write_comparison(load_studies([studies / name for name in ("equal-budgets", "schedulers", "short-probes")]), out)
    seen = watcher(chromium, width=width)
    page = seen.open(out.as_uri())
    seen.picture(f"compare-{width}")
    assert seen.asked == [out.as_uri()]
    assert seen.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    joint = page.locator("#table-macro tbody tr", has_text="joint").inner_text()
    assert all(mean in joint for mean in ("0.510", "0.423", "0.447"))
    seen.context.close()


@pytest.fixture
def growing(run: Path, tmp_path: Path) -> Iterator[tuple[Path, Lock]]:
    """The run before its end: some of its logs, somebody at work."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join(line for line in lines[:150]) + "\n")
    tables = "".join(f'[tasks.{task}]\nsource = "builtin:math"\n' for task in TASKS)
    (tmp_path / "recipe.toml").write_text(
        f'name = "four"\n{tables}[study]\narms = ["start", "curriculum", "joint"]\nsteps = 48\n'
    )
    status(tmp_path, 3)
    lock = Lock(tmp_path)
    yield tmp_path, lock
    lock.release()


def status(folder: Path, done: int) -> None:
    running = [{"seed": 0, "unit": "joint", "line": "joint 7/48 <b>", "seconds": 3.0}] if done < 5 else []
    counts = {"mixtures": {"done": done, "running": len(running), "waiting": 5 - done - len(running)}}
    table = {"at": time.time(), "done": done, "units": counts, "running": running, "workers": 1, "seconds_left": 75.0}
    partial = folder / "status.tmp"
    partial.write_text(json.dumps(table))
    partial.replace(folder / "status.json")


@pytest.fixture
def served(growing: tuple[Path, Lock]) -> Iterator[Server]:
    with Server(growing[0], port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_live_view_updates_by_itself_and_ends_with_the_report(
    chromium: Any, run: Path, growing: tuple[Path, Lock], served: Server, width: int, scheme: str
) -> None:
    folder, lock = growing
    seen = watcher(chromium, width=width, scheme=scheme)
    page = seen.open(served.address)
    page.wait_for_selector("#report[data-version]", timeout=60_000)
    assert "running · 3 of 5 units done · 1 min 15 s left" in page.locator("[role=status]").inner_text().lower()
    assert page.locator("#table-live tr.best th").inner_text() == "joint"
    assert "joint 7/48 <b>" in page.locator("#live").inner_text()
    assert page.locator("#figure-learning").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("window.kept = 1")
    seen.picture(f"watch-{width}-{scheme}")
    for name in ("result.json", "metrics.jsonl", "samples.jsonl"):
        (folder / name).write_bytes((run / name).read_bytes())
    status(folder, 5)
    lock.release()
    page.wait_for_selector("#table-arms", timeout=60_000)
    assert page.evaluate("window.kept") == 1, "the page wasn't loaded again"
    assert page.locator("#table-live").count() == 0
    shown = page.locator("#table-arms tbody tr", has_text="joint").first.inner_text()
    assert f"{(accuracy('joint', 'math', 0) + accuracy('joint', 'math', 1)) / 2:.3f}" in shown
    assert page.locator("button[data-copy='arms.CSV']").count() == 1
    assert all(url.startswith(served.address) for url in seen.asked)
    assert seen.complaints == []
    seen.context.close()


def test_live_view_survives_the_death_of_the_run_and_of_the_server(
    chromium: Any, growing: tuple[Path, Lock], served: Server
) -> None:
    folder, lock = growing
    lock.release()  # as when its process was killed
    seen = watcher(chromium)
    page = seen.open(served.address)
    page.wait_for_selector("#report[data-version]", timeout=60_000)
    assert "stopped · 3 of 5 units done; it can be resumed" in page.locator("[role=status]").inner_text().lower()
    assert page.locator("#figure-learning").count() == 1
    served.shutdown()
    served.server_close()
    page.wait_for_selector("#live.lost", timeout=20_000)
    assert page.locator("#table-live").count() == 1
    assert folder.exists()
    seen.context.close()
