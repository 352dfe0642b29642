"""A run directory as a study of four tasks and two seeds writes it, made by hand: every number is known."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

TASKS = ["math", "code", "qa", "writing"]
SEEDS = [0, 1]
ORDER = ["qa", "writing", "code", "math"]
STEPS = 48
START = {"math": 0.30, "code": 0.25, "qa": 0.40, "writing": 0.50}
GAIN = {"start": 0.0, "curriculum": 0.16, "joint": 0.13, "merge": 0.05}
ARMS = ["start", *(f"single:{task}" for task in TASKS), "curriculum", "joint", "merge"]
HOSTILE = (
    '</pre><script>alert("owned")</script><img src="http://evil.example/x.png" onerror=alert(1)>\x00\x1b[31m\ud800'
)


def estimate(mean: float, n: int) -> dict[str, Any]:
    return {"mean": round(mean, 4), "n": n, "stderr": round(math.sqrt(mean * (1 - mean) / n), 4)}


def accuracy(arm: str, task: str, seed: int) -> float:
    gain = GAIN.get(arm, 0.2 if arm == f"single:{task}" else -0.03)
    return START[task] + gain + 0.02 * seed


def metrics_lines(rng: random.Random) -> list[dict[str, Any]]:
    lines = []
    for seed in SEEDS:
        lines.append(line(seed, "warmup", "warmup", None, 5, {"loss": 1.2, "lr": 3e-5}))
        for arm in ("start", "joint", "merge"):
            lines.append(line(seed, arm, "validation", None, 0, evaluation(arm, seed)))
        for arm in ["curriculum", "joint", *(f"single:{task}" for task in TASKS)]:
            lines += [train_line(rng, seed, arm, step) for step in range(STEPS)]
        for task in TASKS:
            lines += [train_line(rng, seed, f"probe:{task}", step) for step in range(STEPS // 4)]
        for at, task in enumerate(ORDER):
            lines.append(
                line(seed, "curriculum", "validation", task, 12 * at + 12, evaluation("curriculum", seed, at + 1))
            )
    return lines


def line(seed: int, arm: str, kind: str, stage: str | None, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    return {"seed": seed, "arm": arm, "kind": kind, "stage": stage, "step": step, "seconds": 12.1, "metrics": metrics}


def evaluation(arm: str, seed: int, done: int = 0) -> dict[str, float]:
    """Accuracy rises once a task's stage is done; entropy falls with every stage."""
    found = {}
    for at, task in enumerate(TASKS):
        trained = arm != "curriculum" or ORDER.index(task) < done
        found[f"accuracy/{task}"] = accuracy(arm if trained else "start", task, seed) - 0.01 * done
        found[f"entropy/{task}"] = 0.5 + 0.2 * at - 0.04 * done
    return found


def train_line(rng: random.Random, seed: int, arm: str, step: int) -> dict[str, Any]:
    stage = ORDER[step // 12] if arm == "curriculum" else None
    trained = [stage] if stage else TASKS if arm == "joint" else [arm.partition(":")[2]]
    metrics: dict[str, Any] = {
        "loss": 0.1,
        "grad_norm": 1 + rng.random(),
        "seconds/sample": 6.0,
        "seconds/score": 0.5,
        "seconds/train": 4.0,
    }
    metrics["reward/all"] = 0.3 + 0.4 * step / STEPS
    metrics["kl_ref/all"] = None if step % 4 else 0.001 * step
    for name, value in {
        "zero_variance": 0.2 + 0.1 * (step % 2),
        "truncated": 0.1 + 0.001 * len(arm) - 0.001 * len(arm) * (step % 2) * 2,
        "abstain_rate": 0.0,
        "error_rate": 0.01,
        "clip_frac": 0.002,
    }.items():
        metrics[f"{name}/all"] = value
    metrics |= {"mismatch_abs/all": 0.0004, "problems/all": 8, "tokens_sampled/all": 2000, "tokens_trained/all": 1500}
    for task in trained:
        metrics[f"reward/{task}"] = min(1, max(0, START[task] + 0.2 * step / STEPS + rng.gauss(0, 0.08)))
        metrics |= {f"groups_trained/{task}": 8 / len(trained), f"zero_variance/{task}": 0.5 * (step % 2)}
        metrics |= {f"advantage/{task}": 0.4, f"gradient/{task}": 1.5 + step % 2}
        if len(trained) > 1:
            metrics[f"alignment/{task}"] = -0.25
        metrics[f"entropy/{task}"] = max(0.05, 0.5 + 0.2 * TASKS.index(task) - 0.005 * step + rng.gauss(0, 0.03))
    return line(seed, arm, "train", stage, step, metrics)


def arm_entry(arm: str, seed: int) -> dict[str, Any]:
    test = {task: estimate(accuracy(arm, task, seed), 96) for task in TASKS}
    stages = [
        {
            "task": task,
            "validation": {name: estimate(accuracy(arm, name, seed), 48) for name in TASKS},
            "entropy": {"math": 0.6},
        }
        for task in (ORDER if arm == "curriculum" else [])
    ]
    trained = arm not in ("start", "merge")
    return {
        "seed": seed,
        "test": test,
        "validation": test,
        "steps": STEPS if trained else 0,
        "samples": 8 * STEPS if trained else 0,
        "tokens_sampled": 123456 if trained else 0,
        "tokens_trained": 98765 if trained else 0,
        "seconds": 512.0 if trained else 3.2,
        "stages": stages,
        "backward_transfer": -0.02 if stages else None,
        "forward_transfer": 0.01 if stages else None,
        "forgetting": {"math": 0.04} if stages else None,
    }


def comparisons() -> list[dict[str, Any]]:
    found = []
    for a, b in itertools.combinations(ARMS, 2):
        for task in [*TASKS, "macro"]:
            tasks = TASKS if task == "macro" else [task]
            by = sum(accuracy(a, name, 0) - accuracy(b, name, 0) for name in tasks) / len(tasks)
            found.append(
                {
                    "a": a,
                    "b": b,
                    "task": task,
                    "difference": by,
                    "low": by - 0.05,
                    "high": by + 0.05,
                    "n": 384,
                    "shown": abs(by) > 0.05,
                }
            )
    return found


def result() -> dict[str, Any]:
    forecasts = [
        {
            "seed": seed,
            "arm": "curriculum",
            "task": task,
            "forecast": START[task] + 0.15,
            "low": START[task] + 0.1,
            "high": START[task] + 0.2,
            "outcome": START[task] + 0.01 * seed + (0.17 if task != "qa" else 0.05),
            "inside": task != "qa",
        }
        for seed in SEEDS
        for task in TASKS
    ]
    return {
        "version": 1,
        "name": "four <tasks>",
        "tasks": TASKS,
        "verdict": "The curriculum beat the start by 0.160 [0.110, 0.210]. "
        "Against joint training no difference is shown: +0.030 [-0.020, 0.080].",
        "arms": {arm: [arm_entry(arm, seed) for seed in SEEDS] for arm in ARMS},
        "comparisons": comparisons(),
        "forecasts": forecasts,
        "probes": [
            {
                "seed": 0,
                "steps": 48,
                "tokens_sampled": 9000,
                "tokens_trained": 8000,
                "seconds": 200.0,
                "share_of_training": 0.14,
                "kind": "short",
                "planned_with": True,
                "tokens_evaluated": 7000,
                "against_full": {"cells": 16, "rank": 0.71, "rank_off_diagonal": None, "mean_difference": 0.03},
            },
            {
                "seed": 0,
                "kind": "full",
                "planned_with": False,
                "steps": 96,
                "tokens_sampled": 18000,
                "tokens_trained": 16000,
                "tokens_evaluated": 7000,
                "seconds": 400.0,
                "share_of_training": None,
                "against_full": None,
            },
        ],
        "assumptions": [
            {
                "seed": 0,
                "assumption": "A1",
                "cells": [{"where": "stage 2, code on qa", "expected": 0.1, "seen": 0.0, "stderr": None}],
                "mean_difference": 0.1,
                "p": 0.01,
                "rank_correlation": None,
                "words": "This run speaks against <A1>.",
            }
        ],
        "entropy": {
            "structured": -0.1,
            "open_ended": None,
            "by_task": {"math": -0.1},
            "words": "Structured stages lowered the entropy.",
        },
        "warmup": [
            {
                "seed": seed,
                "steps": 20,
                "tokens": 5000,
                "seconds": 90.0,
                "reached": {"math": estimate(0.3, 32)},
                "inside": {"math": False},
            }
            for seed in SEEDS
        ],
        "notes": ["The judge is a 135M model: its accuracy against people is weak."],
        "seconds": 1700.0,
        "machine": {
            "cpu": "Xeon",
            "cores": 2,
            "memory_gb": 24.0,
            "peak_rss_gb": 4.2,
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "platform": "Linux",
        },
    }


def transfer() -> dict[str, Any]:
    after = {
        i: {
            j: estimate(START[j] + (0.22 if i == j else 0.03 * (TASKS.index(i) - TASKS.index(j)) - 0.06), 48)
            for j in TASKS
        }
        for i in TASKS
    }
    return {
        "version": 1,
        "tasks": TASKS,
        "start": {task: estimate(START[task], 48) for task in TASKS},
        "after": after,
        "seeds": {},
    }


def plan() -> dict[str, Any]:
    rows = []
    for at, order in enumerate(sorted(itertools.permutations(TASKS), key=lambda item: item != tuple(ORDER))):
        score = 0.51 - 0.004 * at
        rows.append(
            {
                "kind": "sequence",
                "order": order,
                "passes": [1.0] * 4,
                "score": score,
                "low": score - 0.05,
                "high": score + 0.04,
                "probability_best": 0.4 if at == 0 else 0.02,
                "forecast": {},
            }
        )
    strategies = {
        "exact": {"order": ORDER, "score": 0.51, "regret": 0.0},
        "front_greedy": {"order": TASKS, "score": 0.47, "regret": 0.04},
    }
    best = {
        "kind": "sequence",
        "order": ORDER,
        "passes": [1.0] * 4,
        "score": 0.51,
        "low": 0.46,
        "high": 0.55,
        "forecast": {"math": {"mean": 0.5, "low": 0.4, "high": 0.6}},
        "probability_best": 0.4,
    }
    return {
        "plan": best,
        "sequence": best,
        "joint": {**best, "kind": "joint", "order": [], "passes": [], "score": 0.5, "probability_best": None},
        "orders": rows,
        "strategies": strategies,
        "exact": True,
        "upper_bound": 0.51,
        "forecaster": "logit",
        "objective": "mean",
        "level": 0.8,
        "decision": {
            "gain_over_joint": 0.01,
            "stderr": 0.03,
            "probability": 0.6,
            "settled": False,
            "more_problems": None,
        },
        "words": "Against joint training the data can't tell.",
        "seeds": {},
    }


def sample_lines() -> list[dict[str, Any]]:
    lines = []
    for arm, task, at in itertools.product(("start", "curriculum", "joint"), TASKS, range(4)):
        text = (
            HOSTILE
            if (task, at, arm) == ("qa", 0, "curriculum")
            else f"Let me think about {task}.\nThe answer of {arm} is {at}."
        )
        abstained = (task, at) == ("writing", 1)
        lines.append(
            {
                "seed": 0,
                "arm": arm,
                "split": "test",
                "stage": None,
                "step": 0,
                "task": task,
                "problem": f"{task}-{at}",
                "prompt": f"What is {at} + {at}?",
                "answer": str(2 * at),
                "reference": None,
                "response": text,
                "stop": "stop",
                "status": "abstain" if abstained else "value",
                "score": None if abstained else float(at % 2),
                "parts": {} if abstained else {"exact": float(at % 2), "finished": 1.0},
                "reason": "no verdict" if abstained else None,
                **({"thoughts": f"Hm. {HOSTILE}"} if (task, at, arm) == ("qa", 0, "joint") else {}),
            }
        )
    return lines


def jsonl(path: Path, rows: list[dict[str, Any]], torn: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn, encoding="utf-8")


def write_run(folder: Path) -> Path:
    """All files of the run, two of them with a torn last line, as a killed study leaves them."""
    (folder / "result.json").write_text(json.dumps(result()))
    jsonl(folder / "metrics.jsonl", metrics_lines(random.Random(0)), torn='{"seed": 0, "arm": "joi')
    (folder / "transfer.json").write_text(json.dumps(transfer()))
    (folder / "plan.json").write_text(json.dumps(plan()))
    jsonl(folder / "samples.jsonl", sample_lines(), torn='{"arm"')
    (folder / "recipe.toml").write_text(
        'name = "<four>"\n[model]\nname = "builtin"\n[rl]\ngroup_size = 8\n[evaluation]\nsamples = 2\n'
    )
    return folder
