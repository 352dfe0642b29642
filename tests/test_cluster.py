"""Studies on a Ray cluster of two nodes: the bits of a study in one process, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judge_server import JudgeServer
from omni_thinker.errors import UserError
from omni_thinker.models.tiny import make_tiny
from omni_thinker.recipe import load_recipe
from omni_thinker.recipe.cluster import ClusterSpec
from omni_thinker.studies.crews.cluster import _fitting
from omni_thinker.studies.crews.connect import _reach, connect
from omni_thinker.studies.crews.make import Where
from omni_thinker.studies.study import run_study
from test_faults_study import QUICK, begin, journalled, wait_for
from test_judging_shared import most_within
from test_resume import traces
from test_study_parallel import again, journal, uncounted

ray = pytest.importorskip("ray", reason="needs the extra ray")
STUDY = (*QUICK, "--set", "study.seeds=[0, 3]", "--set", "study.steps=8")
WAIT_S = 400


class TwoNodes:
    """A head that works on no unit, and nodes of one core."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address: str = self._cluster.address
        self.nodes = [self.add(), self.add()]

    def add(self, **needs: Any) -> Any:
        return self._cluster.add_node(**{"num_cpus": 1, **needs})

    def add_without(self, *paths: Path) -> subprocess.Popen[bytes]:
        """A node of one core on which these files and folders are hidden."""
        hidden = [
            word
            for path in paths
            for word in (("--tmpfs", str(path)) if path.is_dir() else ("--ro-bind", "/dev/null", str(path)))
        ]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--address", self.address, "--num-cpus", "1"]
        self.wait_for_cores(2)  # one that was killed counts for a while
        process = subprocess.Popen(
            ["bwrap", "--dev-bind", "/", "/", *hidden, "--die-with-parent", *command, "--block"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.wait_for_cores(3)
        return process

    def wait_for_cores(self, wanted: float) -> None:
        until = time.monotonic() + 100
        while self.cores() != wanted:
            assert time.monotonic() < until
            time.sleep(0.2)

    def cores(self) -> float:
        """Of all nodes that are there."""
        look = "sum(node['Resources'].get('CPU', 0) for node in ray.nodes() if node['Alive'])"
        script = f"import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print({look})"
        command = [sys.executable, "-c", script, self.address]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])

    def kill(self, node: Any) -> None:
        """As if its power were cut."""
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order would be other numbers
    monkeypatch.setenv("RAY_health_check_failure_threshold", "2")
    cluster = TwoNodes()
    yield cluster
    cluster.end()


@pytest.fixture(scope="module")
def calm(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study in one process."""
    out = tmp_path_factory.mktemp("calm") / "run"
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        errors = out.parent / "err"
        code = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *STUDY).wait(WAIT_S)
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    assert code == 0, errors.read_text("utf-8")[-2000:]
    return out


def in_training(out: Path) -> Callable[[], bool]:
    """Two units have a checkpoint and haven't ended: one on each node."""

    def ready() -> bool:
        path = out / "journal.jsonl"
        rows = (
            [json.loads(line.partition(" ")[2]) for line in path.read_text("utf-8").splitlines()]
            if path.exists()
            else []
        )
        kinds: dict[str, set[str]] = {}
        for row in rows:
            kinds.setdefault(row["unit"], set()).add(row["kind"])
        return sum("checkpoint" in seen and "end" not in seen for seen in kinds.values()) >= 2

    return ready


def same(out: Path, calm: Path) -> None:
    assert uncounted(traces(out)) == uncounted(traces(calm))
    assert journal(out) == journal(calm)


@pytest.mark.timeout(1200)
def test_study_on_a_cluster_that_loses_a_node_and_then_its_driver_ends_as_in_one_process(
    nodes: TwoNodes, repo: Path, tmp_path: Path, calm: Path
) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    cluster = ("--cluster", nodes.address)
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *STUDY, *cluster)
    wait_for(process, in_training(out), WAIT_S)
    nodes.kill(nodes.nodes[1])
    wait_for(process, lambda: bool(again(out)), WAIT_S)
    told = errors.read_text("utf-8")
    assert "it is worked on again, attempt 2" in told
    wait_for(process, lambda: "train joint" in (out / "journal.jsonl").read_text("utf-8"), WAIT_S)
    process.send_signal(signal.SIGKILL)
    process.wait()
    nodes.add()
    process = begin(errors, out, "--resume", *cluster)
    assert process.wait(WAIT_S) == 0, errors.read_text("utf-8")[-2000:]
    same(out, calm)
    where = [json.loads(line.partition(" ")[2]) for line in (out / "journal.jsonl").read_text("utf-8").splitlines()]
    assert all(row["value"]["where"] for row in where if row["kind"] == "end")


@pytest.mark.timeout(900)
def test_shared_folder_on_a_cluster_costs_little_and_goes_on_here(
    nodes: TwoNodes, repo: Path, tmp_path: Path, calm: Path
) -> None:
    out, errors = tmp_path / "run", tmp_path / "err"
    options = ("--set", "cluster.shared=true", "--cluster", nodes.address)
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *STUDY, *options)
    wait_for(process, journalled(out, '"key": "0 train joint", "kind": "move"'), WAIT_S)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 143, errors.read_text("utf-8")[-2000:]
    assert "resume with" in errors.read_text("utf-8").splitlines()[-1]
    assert begin(errors, out, "--resume").wait(WAIT_S) == 0, errors.read_text("utf-8")[-2000:]
    same(out, calm)


@pytest.mark.timeout(900)
def test_curriculum_study_whose_units_have_two_ranks(nodes: TwoNodes, repo: Path, tmp_path: Path) -> None:
    nodes.add(num_cpus=2)
    out, errors = tmp_path / "run", tmp_path / "err"
    settings = (
        *('study.arms=["start", "curriculum"]', "study.steps=8", "study.bootstrap=50", "model.dtype='float32'"),
        *("engine.trainer='fsdp'", "engine.fsdp.ranks=2", "cluster.cores=2"),
    )
    chosen = [word for setting in settings for word in ("--set", setting)]
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *chosen, "--cluster", nodes.address)
    assert process.wait(WAIT_S) == 0, errors.read_text("utf-8")[-2000:]
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert set(result["arms"]) == {"start", "curriculum"}
    assert (out / "models" / "seed-0" / "curriculum" / "config.json").exists()


@pytest.mark.timeout(900)
def test_units_of_two_nodes_stay_within_one_judges_limits(nodes: TwoNodes, repo: Path, tmp_path: Path) -> None:
    """More than 2,000 judgements by a server that fails at one request in eight."""
    rng = random.Random(3)

    def plan(number: int, body: dict[str, Any]) -> str:
        return rng.choice(["429", "500", "half", "schema", "reset", "slow"]) if rng.random() < 0.12 else "ok"

    server, rate, errors, out = JudgeServer(plan), 3000, tmp_path / "err", tmp_path / "run"
    endpoint = (
        f'judge.endpoint={{base_url="{server.url}", model="long", cache="{tmp_path}/cache", both_seats=false, '
        f'structured="text", requests_per_minute={rate}, attempts=14, budget={{requests=20000}}, '
        "price={input=2.0, output=8.0}}"
    )
    text = (repo / "recipes" / "tiny.toml").read_text("utf-8")
    writing = (
        text[text.index("[tasks.writing]") : text.index("[warmup]")] + "reward={gate=[], sum={preference=1.0}}\n\n"
    )
    recipe = tmp_path / "writing.toml"
    recipe.write_text(text[: text.index("[tasks.math]")] + writing + text[text.index("[warmup]") :], "utf-8")
    own = ("rl.problems_per_step=16", "rl.group_size=8", 'judge.kind="endpoint"', endpoint)
    shared = ('study.arms=["start", "joint"]', "study.steps=12", "study.bootstrap=50", "study.seeds=[0, 3]")
    chosen = [word for setting in (*own, *shared) for word in ("--set", setting)]
    try:
        process = begin(errors, recipe, "--out", out, *chosen, "--cluster", nodes.address)
        assert process.wait(WAIT_S) == 0, errors.read_text("utf-8")[-2000:]
        entries = [
            json.loads(line.partition(" ")[2]) for line in (out / "journal.jsonl").read_text("utf-8").splitlines()
        ]
        counts = entries[-1]["counts"]
        assert counts["tally"]["counts"][0] > 2000
        assert counts["usage"]["requests"] == len(server.times)
        assert (counts["usage"]["input_tokens"], counts["usage"]["output_tokens"]) == tuple(server.tokens)
        money = (2.0 * server.tokens[0] + 8.0 * server.tokens[1]) / 1e6
        assert counts["usage"]["money"] == pytest.approx(money)
        bucket, leak = rate / 60, (rate - rate / 60) / 61
        for seconds in (2.0, 5.0, 60.0):
            assert most_within(server.times, seconds) <= bucket + leak * (seconds + 1.0) + 5
        assert most_within(server.times, 60.0) <= rate
    finally:
        server.close()


@pytest.mark.timeout(600)
def test_what_a_cluster_lacks_is_one_line_before_the_first_unit(nodes: TwoNodes, repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"

    def refused(*options: str) -> str:
        command = [recipe, "--out", out, *QUICK, "--cluster", nodes.address, *options]
        assert begin(errors, *command).wait(200) == 2, errors.read_text("utf-8")[-2000:]
        line = errors.read_text("utf-8").splitlines()[-1]
        assert line.startswith("omni-thinker: ")
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        return line

    if shutil.which("bwrap"):
        model = tmp_path / "model"
        make_tiny(model)
        lacking = nodes.add_without(model)
        line = refused("--set", f"model.name={model}")
        assert f"the node {platform.node()} (" in line
        assert f"can't work on this study: {model}: " in line
        os.killpg(lacking.pid, signal.SIGKILL)
        lacking.wait()
        lacking = nodes.add_without(Path(os.path.realpath(str(shutil.which("bwrap")))))
        assert "apt-get install bubblewrap" in refused()
        os.killpg(lacking.pid, signal.SIGKILL)
        lacking.wait()
    began = time.monotonic()
    assert "no node has room for a unit, which needs 4 cores" in refused("--set", "cluster.cores=4")
    assert "2 GPUs" in refused("--set", "cluster.gpus=2")
    assert "900 GB of memory" in refused("--set", "cluster.memory_gb=900")
    assert time.monotonic() - began < 180, "not a wait for ever"


def test_a_node_with_another_version_or_without_the_shared_folder_is_named(tmp_path: Path) -> None:
    """As the node itself would say it, in a process that is on no cluster."""
    command = """
import json, ray, sys
from omni_thinker.studies.crews.node import check, versions
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
print(json.dumps([check({}, {**versions(), "torch": "0.1"}, "", None), check({}, versions(), sys.argv[1], None)]))
"""
    arguments = [sys.executable, "-c", command, str(tmp_path / "run" / "mark")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    version, folder = json.loads(done.stdout.splitlines()[-1])
    assert "the driver 0.1; install the same version on both" in version[1]
    assert f"doesn't see {tmp_path / 'run'}; use a folder that all nodes share" in folder[1]


@pytest.mark.parametrize("fault", [Exception("the node timed\nout"), RuntimeError("Version mismatch: 2.9")])
def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def init(address: str, **_: Any) -> None:
        raise ConnectionError if address == "auto" else fault

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"can be joined or started here: (the node timed out|Version mismatch)"):
        connect("auto")


OWN = """
import os
from omni_thinker.studies.crews.connect import connect
ray = connect("auto")
print(ray.get(ray.remote(lambda: 4).remote()), sorted(name for name in os.environ if name.startswith("RAY_AUTH")))
ray.shutdown()
"""


def test_a_cluster_of_our_own_leaves_no_token_behind(tmp_path: Path) -> None:
    """With the file that Ray writes by itself, clusters of `ray start` can't be joined as before."""
    done = subprocess.run(
        [sys.executable, "-c", OWN],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "4 []"
    assert not (tmp_path / ".ray").exists()


def test_a_wrong_address_leaves_no_run_directory(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be auto or HOST:PORT"):
        run_study(load_recipe(repo / "recipes" / "tiny.toml"), tmp_path / "run", where=Where(cluster="nonsense"))
    assert not (tmp_path / "run").exists()


def test_addresses_that_nobody_answers_are_refused_at_once() -> None:
    for address, words in (
        ("127.0.0.1:9", "no Ray cluster at 127.0.0.1:9"),
        ("ray://127.0.0.1:10001", "must be auto or HOST:PORT"),
        ("nowhere", "must be auto or HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster"),
    ):
        with pytest.raises(UserError, match=words):
            _reach(address)


@pytest.mark.parametrize(
    ("node", "spec", "units"),
    [
        ({"CPU": 8.0}, {}, 8),
        ({"CPU": 8.0}, {"cores": 3}, 2),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus": 1.0}, 2),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus": 0.5}, 4),
        ({"CPU": 8.0, "GPU": 2.0}, {"gpus": 0.3}, 6),
        ({"CPU": 8.0}, {"gpus": 1.0}, 0),
        ({"CPU": 8.0, "memory": 10e9}, {"memory_gb": 4.0}, 2),
    ],
)
def test_units_that_a_node_has_room_for(node: dict[str, float], spec: dict[str, Any], units: int) -> None:
    assert _fitting(node, ClusterSpec(**spec)) == units
