"""What the benchmarks of speed share: ours and a peer take turns in processes of their own; medians are compared."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_thinker.runs.machine import machine

PEER_PYTHON = "OMNI_THINKER_PEER_PYTHON"
"""Environment variable that names the interpreter a peer runs in whose packages can't live beside ours (vLLM)."""
TEXT = (
    "A farmer keeps hens, ducks and geese in three sheds by the river. Every morning somebody collects the eggs, "
    "counts them twice and writes the numbers down in a small green book. Tell me how many eggs there are this week, "
    "and why "
)


def arguments(description: str | None, peers: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=peers, default=peers[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each, in turns")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument(
        "--peer-python",
        default=os.environ.get(PEER_PYTHON, ""),
        help=f"interpreter for the peer vllm (default: {PEER_PYTHON})",
    )
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser


def peak_rss_mb() -> float:
    """Of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def finish_side(seconds: Sequence[float], **more: Any) -> None:
    """What a side prints: its seconds, one for each measured round."""
    print(json.dumps({"seconds": list(seconds), "peak_rss_mb": peak_rss_mb(), **more}), flush=True)


def compare(chosen: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Run both sides in turns; the ratio is the peer's median over ours."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(chosen.rounds):
        for side in ("ours", "peer"):
            done = _run_side(chosen, side)
            if done.returncode:
                sys.stderr.write(done.stderr[-3000:])
                raise SystemExit(f"{side} failed")
            # vLLM says more on its way out.
            row = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"seconds"')))
            found[side].append(row)
            seconds = ", ".join(f"{value:.2f}" for value in row["seconds"])
            sys.stderr.write(f"round {number + 1}, {side}: {seconds} s, {row['peak_rss_mb']:.0f} MB\n")
    medians = {side: statistics.median(s for row in rows for s in row["seconds"]) for side, rows in found.items()}
    memory = {side: max(row["peak_rss_mb"] for row in rows) for side, rows in found.items()}
    result = {
        "benchmark": Path(sys.argv[0]).stem,
        "peer": chosen.peer,
        "settings": settings,
        "ratio": round(medians["peer"] / medians["ours"], 3),
        "ours_seconds": round(medians["ours"], 3),
        "peer_seconds": round(medians["peer"], 3),
        "peak_rss_mb": memory["ours"],
        "peer_peak_rss_mb": memory["peer"],
        "all": {side: [row["seconds"] for row in rows] for side, rows in found.items()},
        "more": {
            side: {k: v for k, v in rows[-1].items() if k not in ("seconds", "peak_rss_mb")}
            for side, rows in found.items()
        },
        "machine": asdict(machine()),
    }
    print(
        f"{chosen.peer}: {result['peer_seconds']} s, {memory['peer']:.0f} MB; ours: {result['ours_seconds']} s, "
        f"{memory['ours']:.0f} MB; {result['ratio']} times as fast"
    )
    if chosen.json:
        print(json.dumps(result))
    return result


def _run_side(chosen: argparse.Namespace, side: str) -> subprocess.CompletedProcess[str]:
    python, environment = sys.executable, dict(os.environ)
    if side == "peer" and chosen.peer == "vllm":
        if not chosen.peer_python:
            raise SystemExit(f"vllm needs an environment of its own: --peer-python PYTHON or {PEER_PYTHON}")
        python = chosen.peer_python
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
    command = [python, *sys.argv, "--side", side]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def prompts(count: int, tokens: int, tokenizer: Any) -> list[tuple[str, tuple[int, ...]]]:
    """User turns whose chat is about `tokens` long (exactly, where a word has one token), and their token ids."""
    found = []
    for number in range(count):
        words = f"Case {number}. " + TEXT * (tokens // 40 + 2)
        head = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)
        head = head["input_ids"] if hasattr(head, "keys") else head
        ids = tokenizer.encode(words, add_special_tokens=False)[: max(1, tokens - len(head))]
        found.append((tokenizer.decode(ids), tuple(ids)))
    return found
