"""Rows written through each tracker's own package, with no network, and read back through it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.runs.json_text import to_json
from omni_thinker.runs.schema.logs import Kind, Metrics

extras = pytest.mark.extras
NAMES = ["tensorboard", *(pytest.param(name, marks=extras) for name in ("wandb", "trackio", "mlflow"))]
RECIPE = 'name = "ours"\n[study]\nsteps = 4\n[track]\nto = []\n'
Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""Run and name of a metric: steps and values in their order."""


def row(arm: str, kind: Kind, step: int, **metrics: float) -> str:
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return to_json(
        Metrics(seed=0, unit=arm, arm=arm, kind=kind, stage=None, step=step, seconds=step / 2, metrics=values)
    )


FIRST = [
    row("joint", "train", 1, reward__all=0.25, judge__requests=3.0),
    row("joint", "interim", 1, reward__math=0.5),
    row("probe:math", "train", 1, reward__all=0.125),
]
THEN = [
    row("joint", "train", 2, reward__all=0.375, kl_ref__all=float("nan")),
    row("joint", "train", 3, reward__all=0.5),
    # The weights of an earlier step were kept, so the steps don't only rise.
    row("joint", "test", 2, reward__math=0.75),
]
WANTED: Curves = {
    "joint/seed-0": {
        "seconds": [(1, 0.5), (2, 1.0), (3, 1.5)],
        "reward/all": [(1, 0.25), (2, 0.375), (3, 0.5)],
        "judge/requests": [(1, 3.0)],
        "interim/seconds": [(1, 0.5)],
        "interim/reward/math": [(1, 0.5)],
        "test/seconds": [(2, 1.0)],
        "test/reward/math": [(2, 0.75)],
    },
    "probe-math/seed-0": {"seconds": [(1, 0.5)], "reward/all": [(1, 0.125)]},
}


def track(run: Path, name: str) -> dict[str, Any]:
    """`omni-thinker track` without a network."""
    wall = ["bwrap", "--dev-bind", "/", "/", "--unshare-net"] if shutil.which("bwrap") else []
    code = "from omni_thinker.cli.app import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(run.parent)}
    done = subprocess.run(
        [*wall, sys.executable, "-c", code, "track", str(run), "--to", name, "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=run.parent, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return table


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_two_processes_are_read_back_from_one_run_an_arm(name: str, tmp_path: Path) -> None:
    if find_spec(name) is None:
        pytest.skip(f"needs the extra {name}")
    run = tmp_path / "tiny-1"
    run.mkdir()
    (run / "recipe.toml").write_text(RECIPE, "utf-8")
    (run / "metrics.jsonl").write_text("\n".join(FIRST) + "\n", "utf-8")
    assert track(run, name)["sent"] == len(FIRST)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n".join(THEN) + "\n")
    assert track(run, name)["sent"] == len(THEN)
    assert READ[name](run / "track") == {f"tiny-1/{arm}": curves for arm, curves in WANTED.items()}


def read_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    runs = EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard")).Reload()
    return {
        run: {name: [(each.step, each.value) for each in runs.Scalars(run, name)] for name in kinds["scalars"]}
        for run, kinds in runs.Runs().items()
    }


def read_mlflow(folder: Path) -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'ours'")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.data.params["study.steps"]) == ("tiny-1", "4")
    found: Curves = {}
    for run in runs:
        if run is parent:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found[run.info.run_name] = {name: [(m.step, m.value) for m in rows] for name, rows in history.items()}
    return found


def read_trackio(folder: Path) -> Curves:
    """In another process, since it takes its folder from the environment as it is imported."""
    code = (
        "import json, trackio\n"
        "runs = trackio.Api().runs('ours')\n"
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps({r.name: [r.config, S.get_logs('ours', r.name)] for r in runs}))\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    found: Curves = {}
    for run, (config, logs) in json.loads(done.stdout.splitlines()[-1]).items():
        assert config["_Group"] == "tiny-1"
        assert config["study"]["steps"] == 4
        for log in logs:
            for name, value in log.items():
                if name not in ("step", "timestamp"):
                    found.setdefault(run, {}).setdefault(name, []).append((log["step"], value))
    return found


def read_wandb(folder: Path) -> Curves:
    """Both files of a run, in the order that `wandb sync` sends them."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Curves = {}
    steps: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3, "two arms, and the one that was resumed"
    for file in files:
        run = file.stem
        for data in wandb_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                assert (record.run.project, record.run.run_group) == ("ours", "tiny-1")
                names[run] = record.run.display_name
            if record.HasField("history"):
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                steps.setdefault(run, []).append(record.history.step.num)
                for name, value in items.items():
                    if name != "step" and not name.startswith("_"):
                        curve = found.setdefault(names[run], {}).setdefault(name, [])
                        curve.append((items["step"], value))
    assert list(steps.values()) == [[0, 1, 2, 3, 4], [0]] or list(steps.values()) == [[0], [0, 1, 2, 3, 4]]
    return found


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's format of a log, after a header of seven bytes."""
    place, block, parts = 7, 32768, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "trackio": read_trackio, "wandb": read_wandb}
