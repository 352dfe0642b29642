"""Ranks that nobody started, that a machine has no room for, or whose rank 0 is gone; a disk that is full."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_thinker.errors import UserError, machine_error
from omni_thinker.policy import split
from omni_thinker.policy.engines import choose_engines
from omni_thinker.policy.fsdp import crew
from omni_thinker.policy.fsdp.place import KEY_VARIABLE, PARENT_VARIABLE, Place, given_place
from omni_thinker.policy.fsdp.policy import FsdpPolicy
from omni_thinker.policy.make import check_engine
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import FsdpSpec, ModelSpec, Recipe, parse_recipe, set_key

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture(scope="module", autouse=True)
def _no_ranks_left() -> Iterator[None]:
    yield
    while crew._crews:
        crew._crews.pop().end()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**values: str) -> None:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", KEY_VARIABLE):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def _recipe(*lines: str) -> Recipe:
    table: dict[str, Any] = {"model": {"name": "tiny"}, "tasks": {"math": {"source": "builtin:math"}}}
    for line in lines:
        set_key(table, line)
    return parse_recipe(table, "here")


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE: is 'two'"),
        (TORCHRUN | {"WORLD_SIZE": "-2"}, "WORLD_SIZE: is '-2'"),
        (TORCHRUN | {"RANK": "1.0"}, "RANK: is '1.0'"),
        (TORCHRUN | {"RANK": "2"}, "RANK: is 2, but WORLD_SIZE is 2"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT: is 'http'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "torchrun didn't set it; .* or unset it"),
    ],
)
def test_places_that_nobody_gave_are_one_line(values: dict[str, str], line: str, setting: Any) -> None:
    setting(**values)
    with pytest.raises(UserError, match=line):
        given_place()


def test_places_of_torchrun_and_of_a_rank_0_are_read(setting: Any) -> None:
    setting(**TORCHRUN)
    assert given_place() == Place(0, 2, 0, "127.0.0.1", 1)
    setting(WORLD_SIZE="3", RANK="2", MASTER_PORT="7", **{KEY_VARIABLE: "00"})
    assert given_place() == Place(2, 3, 2, "127.0.0.1", 7)
    for alone in ({}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0", "MASTER_PORT": "1"}, {"WORLD_SIZE": "2"}):
        setting(**alone)
        assert given_place() is None


def test_torchrun_is_refused_where_one_process_trains(setting: Any) -> None:
    setting(**TORCHRUN)
    for line, key in (
        ("model.name=tinker:tiny", "model.name"),
        ("model.policy=python:unigram_policy:UnigramPolicy", "model.policy"),
        ("engine.trainer=torch", "engine.trainer"),
        ("engine.fsdp.ranks=4", "engine.fsdp.ranks"),
    ):
        with pytest.raises(UserError, match="torchrun started 2") as error:
            choose_engines(_recipe(line))
        assert error.value.key == key
    assert choose_engines(_recipe())[0].engine.trainer == "fsdp"


@pytest.mark.parametrize(
    "lines",
    [
        ("model.policy=python:unigram_policy:UnigramPolicy", "engine.trainer=fsdp"),
        ("model.name=tinker:tiny", "engine.trainer=torch"),
        ("model.name=tinker:tiny", "engine.trainer=fsdp"),
    ],
)
def test_trainers_that_cannot_have_the_model_are_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"engine\.trainer: .*leave it out"):
        check_engine(_recipe(*lines))


def test_more_ranks_than_a_machine_has_room_for_are_refused(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setting()
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    crew.check_ranks(16, "cpu")
    crew.check_ranks(2, "cuda")
    with pytest.raises(UserError, match=r"engine\.fsdp\.ranks: 17 ranks on a machine of 4 cores; at most 16"):
        crew.check_ranks(17, "cpu")
    with pytest.raises(UserError, match=r"engine\.fsdp\.ranks: 3 ranks, but this machine has 2 GPUs"):
        crew.check_ranks(3, "cuda")
    setting(**TORCHRUN, LOCAL_WORLD_SIZE="3")
    with pytest.raises(UserError, match="2 GPUs"):
        crew.check_ranks(0, "cuda")


def test_engines_have_what_parts_of_a_study_ask_of_the_torch_policy() -> None:
    for name in ("ask", "gold", "logprobs", "entropies", "sketch_gradient", "export_adapter"):
        assert hasattr(TorchPolicy, name)
        assert hasattr(FsdpPolicy, name)
        assert name in split._EXTRAS


@pytest.mark.parametrize(
    "line",
    [
        "fsdp.timeout_s=1e30", "fsdp.timeout_s=inf", "fsdp.ranks=-1", "fsdp.ranks=4097", "fsdp.ranks=1.5",
        "vllm.timeout_s=1e30", "vllm.kv_cache_gb=1e305", "tinker.patience_s=1e30",
    ],
)  # fmt: skip
def test_settings_that_no_system_knows_are_one_line(line: str) -> None:
    with pytest.raises(UserError, match=rf"engine\.{line.partition('=')[0]}"):
        _recipe(f"engine.{line}")


# -- what is left behind ----------------------------------------------------------------------------------------------


def _environment(**values: str) -> dict[str, str]:
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests.parent / "src"), str(tests))), **values}


def test_rank_ends_with_a_rank_0_that_ends_before_they_are_connected() -> None:
    """Its store is gone then, or says nothing: torch would ask for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        values = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", KEY_VARIABLE: "00"}
        values |= {"MASTER_PORT": str(silent.getsockname()[1]), PARENT_VARIABLE: "0"}
        command = [sys.executable, "-m", "omni_thinker.policy.fsdp.follower"]
        assert subprocess.run(command, env=_environment(**values), timeout=60, check=False).returncode == 1


_AT_WORK = """
import sys, time
from multiprocessing.connection import Client
from omni_thinker.policy.fsdp import follower
from omni_thinker.policy.fsdp.place import Place
follower.ALIVE_S = follower.NEWS_S = 0.1
follower._Talk(Client(("127.0.0.1", int(sys.argv[1])), authkey=b"key"), Place(1, 2, 1, "127.0.0.1", 1))
time.sleep(60)
"""


@pytest.mark.parametrize("last", [None, ("leave", ())])
def test_rank_at_work_ends_with_rank_0(last: Any) -> None:
    """Drawing answers takes minutes, in which nothing is heard from torch."""
    with Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        command = [sys.executable, "-c", _AT_WORK, str(listener.address[1])]
        process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE)
        with listener.accept() as connection:
            assert connection.recv() == ("rank", 1)
            if last is not None:
                connection.send(last)
        said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert ("rank 0 of 2 ended early; resume the run with --resume" in said) == (last is None)


def test_checkpoint_on_a_full_disk_is_an_error_of_the_machine(tiny_model: Path, tmp_path: Path) -> None:
    policy = FsdpPolicy(ModelSpec(name=str(tiny_model), dtype="float32"), FsdpSpec(ranks=2))
    policy.save_state(tmp_path / "good")
    full = tmp_path / "full"
    full.mkdir()
    for file in (tmp_path / "good").glob("*.safetensors"):
        (full / file.name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        policy.save_state(full)
    assert "No space left on device" in str(machine_error(error.value))
