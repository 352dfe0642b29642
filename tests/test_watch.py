"""The live view without a browser: what a run has logged so far, who may ask for it, and what a terminal shows."""

from __future__ import annotations

import http.client
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from omni_thinker.cli import app
from omni_thinker.cli.run_commands.final import print_result
from omni_thinker.errors import UserError
from omni_thinker.report.watch.server import Server
from omni_thinker.report.watch.state import Watched
from omni_thinker.runs.lock import Lock
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.read import load_run
from omni_thinker.runs.scoreboard import Scoreboard, expected_arms, sparkline
from omni_thinker.studies.dispatch.picture import arms_table
from written_run import SEEDS, STEPS, TASKS, accuracy, write_run

HOSTILE_RECIPE = 'name = "<img src=x>"\ntasks = 3\n[study]\narms = [1, "<b>"]\nsteps = "many"\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def line(arm: str, kind: str, step: int, *, unit: str = "", **metrics: float) -> str:
    row = {"seed": 0, "unit": unit or arm, "arm": arm, "kind": kind, "stage": None, "step": step, "seconds": 1.0}
    return json.dumps(row | {"metrics": {name.replace("__", "/"): value for name, value in metrics.items()}}) + "\n"


def test_scoreboard_reads_on_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    board = Scoreboard(path)
    assert not board.update(), "nothing was logged yet"
    whole, half = line("joint", "train", 1, reward__all=0.25), line("joint", "validation", 8, accuracy__math=0.5)
    path.write_text(whole + half[:20])
    assert board.update()
    assert board.arms["joint"].rewards == {0: [0.25]}
    assert board.arms["joint"].split == ""
    path.write_text(whole + half + "nonsense\n" + line("joint", "test", 8, accuracy__math=0.75))
    assert board.update()
    assert not board.update()
    assert board.arms["joint"].split == "test"
    assert board.arms["joint"].accuracy(["math"]) == [0.75, 0.75]
    assert board.arms["joint"].steps == {0: 1}
    path.write_text(whole)  # a run that was resumed from an earlier point
    assert board.update()
    assert board.arms["joint"].split == ""


def test_scoreboard_takes_a_probe_for_the_arm_that_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [("probe:math", "single:math"), ("probe:qa", "probe:qa"), ("lora:qa", "lora:qa"), ("warmup", "warmup")]
    path.write_text("".join(line(arm, "train", 1, unit=unit, reward__all=0.5) for arm, unit in rows))
    board = Scoreboard(path)
    board.update()
    assert list(board.arms) == ["single:math"]


def test_scoreboard_equals_what_the_run_logged(run: Path) -> None:
    board = Scoreboard(run / "metrics.jsonl")
    board.update()
    expected = [sum(accuracy("joint", task, seed) for seed in SEEDS) / len(SEEDS) for task in TASKS]
    assert board.arms["joint"].accuracy(TASKS)[:-1] == pytest.approx(expected)
    assert board.arms["joint"].steps == dict.fromkeys(SEEDS, STEPS - 1)
    assert len(board.arms["joint"].rewards[0]) == STEPS


def test_expected_arms_are_those_of_the_recipe_in_the_order_of_tables() -> None:
    recipe: dict[str, Any] = {"tasks": {"a": {}, "b": {}}, "study": {"arms": ["sec", "joint", "single", "start"]}}
    assert expected_arms(recipe) == ["start", "joint", "single:a", "single:b", "sec"]
    recipe["study"]["single_tasks"] = ["b"]
    assert expected_arms(recipe) == ["start", "joint", "single:b", "sec"]
    odd: dict[str, Any]
    for odd in ({}, {"study": 3}, {"study": {"arms": "joint"}}, {"study": {"arms": []}, "tasks": []}):
        assert expected_arms(odd) == []


@given(st.lists(st.floats(), max_size=40))
def test_sparkline_has_a_bar_for_every_known_value(values: list[float]) -> None:
    bars = sparkline(values)
    known = [value for value in values if abs(value) != float("inf") and value == value]
    assert len(bars) == min(24, len(known))


def test_sparkline_equals_bars_by_hand() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_terminal_table_is_filled_as_arms_end(run: Path) -> None:
    board = Scoreboard(run / "metrics.jsonl")
    console = Console(file=io.StringIO(), width=110)
    console.print(arms_table(board, {"start": 0, "joint": 96}, TASKS, {"joint"}))
    board.update()
    console.print(arms_table(board, {"start": 0, "joint": 96, "merge": 0}, TASKS, {"joint"}))
    assert isinstance(console.file, io.StringIO)
    before, after = console.file.getvalue().split("arm", 2)[1:]
    assert "0." not in before
    rows = {text.split()[0]: text.split() for text in after.splitlines()[1:] if text.strip()}
    assert rows["joint"][1:5] == [f"{accuracy('joint', task, 0) + 0.01:.3f}" for task in TASKS]
    assert rows["joint"][6] == "validation"
    assert "█" in " ".join(rows["joint"]), "rewards of the arm at work"
    many = [f"task{at}" for at in range(20)]
    assert len(arms_table(board, {"joint": 1}, many).columns) == 5, "only the mean of many tasks"
    crowd = {f"arm{at}": 1 for at in range(40)}
    table = arms_table(board, crowd, TASKS, {"arm39"})
    assert table.row_count == 21
    assert "arm39" in [str(cell) for cell in table.columns[0].cells], "what is at work is never cut off"


def test_final_table_equals_result_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(load_run(run))
    printed = capsys.readouterr().out
    row = next(text.split() for text in printed.splitlines() if text.startswith("curriculum"))
    assert row[1:] == [f"{accuracy('curriculum', task, 0) + 0.01:.3f}▲" for task in TASKS] + ["0.532▲"]
    assert "No arm beat joint training; merge fell short by 8.0 points: best arm 0.532" in printed


def test_final_table_prints_where_the_encoding_has_no_triangles(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_result(load_run(run))
    out.seek(0)
    assert "0.470?" in out.read()


def test_guesses_are_scaled_by_what_was_measured() -> None:
    progress = Progress({"a": 10.0, "b": 100.0, "c": 1.0})
    progress.expect({"a": 4, "b": 2, "c": 1})
    assert progress.left() == pytest.approx(241)
    progress.unit("a", 1.0)  # a tenth of what was guessed
    assert progress.pace() == pytest.approx({"a": 1.0, "b": 10.0, "c": 0.1})
    assert progress.left() == pytest.approx(3 + 20 + 0.1)
    progress.unit("b", 30.0)
    assert progress.pace()["b"] == 30.0
    assert progress.pace()["c"] == pytest.approx(31 / 110)


@pytest.fixture
def served(run: Path) -> Iterator[Server]:
    with Server(run, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: Server, path: str, host: str = "", method: str = "GET") -> tuple[int, str, dict[str, str]]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_server_answers_its_own_machine_alone(served: Server) -> None:
    code, text, headers = ask(served, "/")
    assert code == 200
    assert "connect-src 'self'" in text
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    for name in ("localhost", f"localhost:{served.server_address[1]}", "[::1]:80"):
        assert ask(served, "/live", name)[0] == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost@evil"):
        assert ask(served, "/live", name)[0] == 403, "a name that somebody else made point here"
    for path in ("/result.json", "/../../etc/passwd", "/%2e%2e/recipe.toml", "/report/"):
        assert ask(served, path)[0] == 404
    assert ask(served, "/", method="POST")[0] == 501


def test_server_listens_on_loopback_unless_told_otherwise(run: Path, served: Server) -> None:
    assert served.server_address[0] == "127.0.0.1"
    assert served.address == f"http://127.0.0.1:{served.server_address[1]}/"
    known = Path("/proc/net/if_inet6")
    if known.exists() and known.read_text():  # some machines have no IPv6
        with Server(run, host="::1", port=0) as six:
            assert six.address.startswith("http://[::1]:")
    with pytest.raises(UserError, match="--port"):
        Server(run, port=served.server_address[1])
    with pytest.raises(UserError, match="--host"):
        Server(run, host="203.0.113.7")


def test_page_of_an_ended_run_is_its_report(served: Server, run: Path) -> None:
    code, text, headers = ask(served, "/report")
    assert code == 200
    assert headers["X-Version"]
    assert 'id="table-arms"' in text
    assert "<html" not in text
    assert ask(served, f"/report?have={headers['X-Version']}")[:2] == (204, ""), "sent once"
    assert ask(served, "/report?have=0")[1] == text, "drawn once"
    assert 'id="table-live"' not in ask(served, "/live")[1]


def test_damaged_and_hostile_runs_are_shown_and_stop_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Watched(tmp_path)
    (tmp_path / "recipe.toml").write_text(HOSTILE_RECIPE)
    (tmp_path / "status.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("[\n" + line("<script>", "train", 3, reward__all=0.5))
    with Server(tmp_path, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, text, _ = ask(server, "/live")
        assert code == 200
        assert "&lt;script&gt;" in text
        assert "<script>" not in text
        assert "isn&#39;t what a run writes" in text
        code, text, _ = ask(server, "/")
        assert "<img" not in text
        assert ask(server, "/report")[:2] == (200, "")
        (tmp_path / "result.json").write_text('{"arms": 3}')
        code, text, _ = ask(server, "/report")
        assert code == 200
        assert "result.json" in text
        server.shutdown()


def test_a_study_that_begins_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.toml").write_text('name = "begins"\n[tasks.qa]\nsource = "builtin:qa"\n')
    held = Lock(tmp_path)
    with Server(tmp_path, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The lock is another process's in truth; this one asks for its own.
        monkeypatch.setattr("omni_thinker.studies.dispatch.status.holder", lambda folder: "process 1")
        code, text, _ = ask(server, "/live")
        assert code == 200
        assert "starting" in text
        monkeypatch.setattr("omni_thinker.studies.dispatch.status.holder", lambda folder: 1 / 0)
        code, text, _ = ask(server, "/live")
        assert (code, text) == (500, "this page can't be made: ZeroDivisionError: division by zero")
        server.shutdown()
    held.release()


def test_watch_of_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["omni-thinker", "watch", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    assert "holds no run" in capsys.readouterr().err
