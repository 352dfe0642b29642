"""Real faults: a full disk, a folder that can't be written, memory that runs out, a model that changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_resume import traces

QUICK = (
    "--set",
    'study.arms=["start", "joint"]',
    "--set",
    "study.steps=4",
    "--set",
    "study.checkpoint_steps=1",
    "--set",
    "study.bootstrap=50",
)
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def study(*arguments: object, wrap: tuple[object, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrap, sys.executable, "-m", "omni_thinker", "study", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture(scope="module")
def undisturbed(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = study(repo / "recipes" / "tiny.toml", "--out", out, *QUICK)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


FULL = """
mkdir -p "$1"/run
head -c "$2" /dev/zero > "$1"/filler
"$3" -m omni_thinker study "$4" --out "$1"/run "${@:6}" 2> "$5"/first; echo $? > "$5"/code
rm "$1"/filler
"$3" -m omni_thinker study "$1"/run --resume 2> "$5"/second || exit 1
cp -r "$1"/run "$5"/run
"""


@needs_bwrap
@pytest.mark.parametrize(("free", "jobs"), [(40_000, ""), (700_000, ""), (1_500_000, ""), (1_500_000, "--jobs=2")])
def test_study_on_a_full_disk_resumes_to_the_same_result(
    undisturbed: Path, repo: Path, tmp_path: Path, free: int, jobs: str
) -> None:
    """A tmpfs is filled except for `free` bytes, and has room again before the resume."""
    room, size = tmp_path / "room", 64_000_000
    room.mkdir()
    wrap = ("bwrap", "--dev-bind", "/", "/", "--size", size, "--tmpfs", room, "bash", "-c", FULL, "bash")
    arguments = (room, size - free, sys.executable, repo / "recipes" / "tiny.toml", tmp_path, *QUICK, *jobs.split())
    done = subprocess.run(list(map(str, (*wrap, *arguments))), capture_output=True, text=True, check=False, timeout=280)
    assert (tmp_path / "code").read_text("utf-8") == "1\n", (tmp_path / "first").read_text("utf-8")[-2000:]
    last = (tmp_path / "first").read_text("utf-8").splitlines()[-1]
    assert last.startswith("omni-thinker: ")
    assert "No space left on device" in last
    assert "--resume" in last
    assert done.returncode == 0, (tmp_path / "second").read_text("utf-8")[-2000:]
    assert traces(tmp_path / "run") == traces(undisturbed)


@needs_bwrap
def test_resume_in_a_read_only_folder_exits_2_with_one_line(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    done = study(out, "--resume", wrap=("bwrap", "--dev-bind", "/", "/", "--ro-bind", out, out))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"omni-thinker: {out}: can't be written: Read-only file system"
    assert traces(out) == traces(undisturbed)


def test_resume_after_the_model_folder_changed_exits_2(undisturbed: Path, repo: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(undisturbed / "models" / "seed-0" / "start", model)
    done = study(repo / "recipes" / "tiny.toml", "--out", out, *QUICK, "--set", f'model.name="{model}"')
    assert done.returncode == 0, done.stderr[-2000:]
    before = traces(out)
    (model / "config.json").write_text((model / "config.json").read_text("utf-8") + " ", "utf-8")
    done = study(out, "--resume")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"omni-thinker: {model}: model.name: has changed since the run began: config.json"
    )
    assert traces(out) == before


MEMORY = """
import json, resource, sys
import torch
from omni_thinker.protocol import TrainGroup
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Sample

policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
policy.token_budget = 60_000
groups = [
    TrainGroup("t", (1, 2, 3 + g), tuple(Sample((4 + s,) * 400, (-5.0,) * 400, "", "stop") for s in range(8)),
               tuple((-1.0) ** s for s in range(8)), (1 / 800,) * 8)
    for g in range(16)
]
if sys.argv[1] == "bounded":
    policy.forward_backward(groups[:1], make_loss(RlSpec()))
    policy.reset_optimizer()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
report = policy.forward_backward(groups, make_loss(RlSpec()))
norm = float(torch.nn.utils.get_total_norm([g.float() for g in policy._updates.gradients()]))
print(json.dumps({"loss": report.loss, "norm": norm, "budget": policy.token_budget}))
"""


def test_out_of_memory_halves_the_rows_logs_it_and_gives_the_same_loss() -> None:
    def run(*arguments: str) -> tuple[dict[str, float], str]:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    free, quiet = run("free")
    bounded, said = run("bounded", "400000000")
    assert free["budget"] == 60_000
    assert "out of memory" not in quiet
    assert bounded["budget"] < free["budget"]
    assert f"out of memory: rows of {bounded['budget']} tokens from here on" in said
    assert bounded["loss"] == pytest.approx(free["loss"], abs=1e-5)
    assert bounded["norm"] == pytest.approx(free["norm"], rel=1e-4)
