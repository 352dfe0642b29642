"""Every benchmark of speed in turn, each held against what is committed for this kind of processor.

    python benchmarks/suite.py [--only grpo] [--update] [--table]

A ratio more than 10 % under the committed one, one under its goal, or a peak above the peer's where that is promised,
fails with the row's name and exit code 1. `--update` commits to what was measured: it rewrites the row's JSON.
`--table` prints what is committed as Markdown.
A row takes minutes; nothing else may run beside it. How our own costs grow is measured by `scaling.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.runs.machine import machine
from peers import PEER_PYTHON

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TOLERANCE = 0.1
"""How far a ratio may fall under the committed one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `goal`: the ratio that is promised, 0 where none is. `memory`: the share of the peer's peak that
    ours may not exceed, 0 where nothing is promised."""

    name: str
    script: str
    options: str
    goal: float
    memory: float = 0.0
    rounds: int = 2

    @property
    def peer(self) -> str:
        return self.options.split()[1]


_SHORT = "--prompts 8 --prompt-tokens 70 --group 8 --completion-tokens 32"
_ANSWERS = "--prompts 8 --prompt-tokens 200 --group 8 --completion-tokens 512"
_EARLIER = "9b8a2db"
"""A commit of ours that later ones are compared with."""
_LONG = "--prompts 4 --prompt-tokens 300 --group 16 --completion-tokens 32"
ROWS = (
    Row("grpo-short", "grpo_step.py", f"--peer trl {_SHORT}", 6.0, memory=1.0),
    Row("grpo-long", "grpo_step.py", f"--peer trl {_LONG}", 10.0, memory=1.0, rounds=1),
    Row("grpo-answers-512", "grpo_step.py", f"--peer trl {_ANSWERS}", 8.0, memory=0.5, rounds=1),
    Row("sampling-64", "sampling.py", "--peer generate --sequences 64", 4.0, rounds=3),
    Row("sampling-256", "sampling.py", "--peer generate --sequences 256", 4.0),
    Row("continuous-64", "sampling.py", "--peer continuous --sequences 64", 0.0),
    Row("vllm-64", "sampling.py", "--peer vllm --sequences 64", 3.0),
    Row("vllm-256", "sampling.py", "--peer vllm --sequences 256", 3.0),
    Row("vllm-64-answers-512", "sampling.py", "--peer vllm --sequences 64 --completion-tokens 512", 2.0, rounds=1),
    Row("vllm-128-answers-512", "sampling.py", "--peer vllm --sequences 128 --completion-tokens 512", 2.0, rounds=1),
    Row("training-short", "training.py", f"--peer padded {_SHORT}", 2.3),
    Row("training-long", "training.py", f"--peer padded {_LONG}", 4.0, rounds=1),
    Row("earlier-start", "earlier.py", f"--peer {_EARLIER} --what start", 1.67),
    Row("earlier-quickstart", "earlier.py", f"--peer {_EARLIER} --what quickstart", 1.67, memory=0.73),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--update", action="store_true", help="commit to what is measured")
    parser.add_argument("--table", action="store_true", help="print the committed results as Markdown")
    parser.add_argument("--rounds", type=int, default=0, help="instead of each row's own number")
    chosen = parser.parse_args()
    folder = RESULTS / processor_name(machine().cpu)
    if chosen.table:
        _print_table(folder)
        return
    rows = [row for row in ROWS if chosen.only in row.name]
    if not rows:
        parser.error(f"no row has {chosen.only!r} in its name; there are {', '.join(row.name for row in ROWS)}")
    failures: list[str] = []
    for row in rows:
        if row.peer == "vllm" and not os.environ.get(PEER_PYTHON):
            print(f"{row.name:15} skipped: {PEER_PYTHON} names no interpreter with vllm", flush=True)
            continue
        result = _measure(row, chosen.rounds or row.rounds)
        file = folder / f"{row.name}.json"
        found = problems(row, result, _committed(file))
        failures += found
        print(_line(row, result) + "".join(f"  FAILED: {problem}" for problem in found), flush=True)
        if chosen.update:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if failures:
        sys.exit("\n".join(failures))


def problems(row: Row, result: dict[str, Any], committed: dict[str, Any] | None) -> list[str]:
    """What is wrong with a row, in words that name it; `committed` is None where this processor has no result yet."""
    found, ratio = [], float(result["ratio"])
    if committed is not None and ratio < (1 - TOLERANCE) * committed["ratio"]:
        found.append(f"{row.name}: {ratio} times as fast as {row.peer}, committed are {committed['ratio']}")
    if ratio < row.goal:
        found.append(f"{row.name}: {ratio} times as fast as {row.peer}, promised are {row.goal}")
    most = row.memory * result["peer_peak_rss_mb"]
    if row.memory and result["peak_rss_mb"] > most:
        found.append(f"{row.name}: {result['peak_rss_mb']:.0f} MB, promised are at most {most:.0f}")
    return found


def processor_name(cpu: str) -> str:
    """A folder's name for a processor and its core count: ratios depend on its matrix units."""
    cores = machine().cores
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {cores} cores {_units()}".lower()).strip("-")


def _units() -> str:
    flags = Path("/proc/cpuinfo").read_text("utf-8").split() if Path("/proc/cpuinfo").exists() else []
    return next((unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags), "no bf16")


def _committed(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _measure(row: Row, rounds: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / row.script), *row.options.split(), "--rounds", str(rounds), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{row.name}: {' '.join(command)} failed")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _line(row: Row, result: dict[str, Any]) -> str:
    memory = f"{result['peak_rss_mb']:.0f} / {result['peer_peak_rss_mb']:.0f} MB"
    seconds = f"{result['ours_seconds']:7.2f} s  {row.peer:10} {result['peer_seconds']:7.2f} s"
    return f"{row.name:15} {seconds}  {result['ratio']:6.2f}  {memory}"


def _print_table(folder: Path) -> None:
    print("| row | peer | ours | peer's | ratio | promised | peak, ours / peer's |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in ROWS:
        if (found := _committed(folder / f"{row.name}.json")) is None:
            continue
        seconds = f"{found['ours_seconds']:.2f} s | {found['peer_seconds']:.2f} s"
        memory = f"{found['peak_rss_mb'] / 1000:.1f} / {found['peer_peak_rss_mb'] / 1000:.1f} GB"
        print(f"| {row.name} | {row.peer} | {seconds} | {found['ratio']:.2f} | {row.goal or '-'} | {memory} |")


if __name__ == "__main__":
    main()
