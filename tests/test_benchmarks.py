"""The benchmarks' own logic: what fails a row, and that the script for GPUs is complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scaling
import suite

ROW = suite.Row("a-row", "sampling.py", "--peer generate --sequences 64", goal=4.0, memory=1.0)


def _result(ratio: float, ours_mb: float = 100.0) -> dict[str, Any]:
    return {"ratio": ratio, "peak_rss_mb": ours_mb, "peer_peak_rss_mb": 200.0}


def test_row_within_its_promised_ratio_has_no_problems() -> None:
    assert suite.problems(ROW, _result(4.6), {"ratio": 5.1}) == []
    assert suite.problems(ROW, _result(4.0), None) == []


@pytest.mark.parametrize(
    ("result", "committed", "word"),
    [
        (_result(4.5), {"ratio": 5.1}, "committed"),
        (_result(3.9), None, "promised"),
        (_result(5.0, ours_mb=201.0), None, "MB"),
    ],
)
def test_row_that_breaks_a_promise_is_reported_by_name(
    result: dict[str, Any], committed: dict[str, Any] | None, word: str
) -> None:
    [problem] = suite.problems(ROW, result, committed)
    assert problem.startswith("a-row: ")
    assert word in problem


def test_committed_results_belong_to_a_row_and_their_ratios_are_right(repo: Path) -> None:
    """`make bench` checks promises. Committed results must be measurements of their own row."""
    folders = [path for path in (repo / "benchmarks" / "results").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        rows = {row.name: row for row in suite.ROWS}
        for file in folder.glob("*.json"):
            result = json.loads(file.read_text("utf-8"))
            assert result["machine"]["cpu"]
            if file.stem == "scaling":
                assert set(result["rows"]) <= set(scaling.make_rows())
            else:
                assert result["peer"] == rows[file.stem].peer
                assert result["ratio"] == pytest.approx(result["peer_seconds"] / result["ours_seconds"], rel=0.01)


def test_unknown_row_exits_2_and_lists_the_known_rows(repo: Path) -> None:
    command = [sys.executable, "benchmarks/suite.py", "--only", "nothing-like-it"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "grpo-short" in done.stderr


def test_row_of_scaling_beyond_its_limit_is_reported_by_name() -> None:
    assert scaling.problems("plan-200", {"seconds": 4.9}) == []
    [problem] = scaling.problems("plan-200", {"seconds": 5.1})
    assert problem.startswith("plan-200: 5.1 seconds")


def test_scaling_resumes_where_it_ended_and_prints_its_table(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    command = [sys.executable, "benchmarks/scaling.py", "--only", "plan-2", "--out", str(out)]
    done = {"rows": {"plan-200": {"seconds": 1.0}}}
    out.write_text(json.dumps(done))
    subprocess.run(command, cwd=repo, capture_output=True, check=True)
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert rows["plan-200"] == {"seconds": 1.0}, "was measured before"
    assert rows["plan-2"]["exact"]
    assert "| plan-2 |" in scaling.markdown({"plan-2": rows["plan-2"]})


def test_lengthened_log_has_the_lines_and_keeps_the_order_of_steps(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    rows = [{"arm": "a", "kind": "train", "step": n, "seconds": 0.1, "metrics": {"x": n}} for n in (1, 2, 3)]
    log.write_text("".join(json.dumps(row) + "\n" for row in [{"arm": "a", "kind": "test", "step": 3}, *rows]))
    scaling.lengthen(log, 101)
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert len(lines) == 101
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_gpu_script_runs_every_part_on_a_cpu(repo: Path, tmp_path: Path) -> None:
    """Uses a random model on a CPU: every part runs and the numerical checks pass."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(repo / "benchmarks" / "gpu.py"), "--model", "tiny", "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text("utf-8"))
    failed = {name: part for name, part in results.items() if isinstance(part, dict) and "error" in part}
    assert not failed
    assert results["gradients, fp32, packed against padded"]["worst_relative"] < 1e-5
    assert results["decoding, fp32, against the model's own"]["same"] == 1.0
    assert results["sampler against trainer, fp32"]["mean"] < 1e-4
    assert any(name.startswith("GRPO step") for name in results)
