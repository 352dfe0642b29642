"""The journal: a program that is killed anywhere and run again leaves what it leaves undisturbed."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.runs.files import checksum, is_whole, write_whole
from omni_thinker.runs.journal import NAME, Journal, sort_rows
from omni_thinker.runs.lock import Lock

LOG = "log.jsonl"


class Killed(BaseException):
    """What no handler catches."""


def program(folder: Path, tick: Callable[[], None]) -> list[Any]:
    """Two units, whose moves and trainings alternate, logging as they go; `tick` may kill it between any two
    effects."""
    journal = Journal(folder, [LOG], usable=lambda value: is_whole(folder / value["file"], value["sum"]))
    journal.cut()
    units = [worker(folder, journal, name, tick) for name in ("a", "b")]
    found: dict[str, list[Any]] = {}
    while len(found) < len(units):
        for number, unit in enumerate(units):
            try:
                next(unit)
            except StopIteration as end:
                found.setdefault(str(number), end.value)
    journal.note("end", found)
    return list(found.values())


def worker(folder: Path, journal: Journal, name: str, tick: Callable[[], None]) -> Generator[None, None, list[Any]]:
    """One unit: a move, and a training with a move inside."""
    unit = f"0 {name}"
    tape = journal.tape(unit)

    def log(text: str) -> str:
        tick()
        journal.append(unit, LOG, json.dumps({"seed": 0, "unit": name, "text": text}))
        tick()
        return text

    found: list[Any] = [tape.once("start", lambda: log("start"))]
    yield
    key = f"train {name}"
    known = tape.begin(key)
    weights = [own for value in known.values for own in value["weights"]]
    unwritten: list[int] = []
    weight = 0
    for step in range(7):
        yield
        if step < len(weights):
            weight = weights[step]
        else:
            weight = (weight * 31 + step + 1) % 1009
            log(f"{step} {weight}")
            unwritten.append(weight)
        if step == 3:
            found.append(tape.once(f"look {name}", partial(log, f"look {weight}")))
        if step >= len(weights) and step in (1, 4, 5):
            path = folder / f"{name}.{step}"
            write_whole(path, partial(Path.write_text, data=str(weight), encoding="utf-8"))
            tick()
            tape.checkpoint(key, {"weights": unwritten, "file": path.name, "sum": checksum(path)})
            unwritten = []
            tick()
    tape.once(key, partial(dict[str, Any], weights=unwritten))
    found.append(weight)
    tick()
    return found


def rows(folder: Path) -> str:
    """The log, unit by unit."""
    sort_rows(folder / LOG, ["0 a", "0 b"])
    return (folder / LOG).read_text("utf-8")


def never() -> None:
    """Kill nothing."""


def bomb(after: int) -> Callable[[], None]:
    left = after

    def tick() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return tick


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    found = program(folder, never)
    return rows(folder), found


@settings(max_examples=60, deadline=None)
@given(kills=st.lists(st.integers(0, 50), max_size=6), torn=st.integers(0, 60), junk=st.binary(max_size=20))
def test_program_killed_anywhere_ends_with_the_same_log_and_result(
    undisturbed: tuple[str, list[Any]],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    torn: int,
    junk: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    for after in kills:
        try:
            program(folder, bomb(after))
        except Killed:
            journal = folder / NAME
            if journal.exists():  # a line that was being written
                last = journal.read_bytes().splitlines(keepends=True)[-1:]
                with journal.open("ab") as stream:
                    stream.write(b"".join(last)[:torn].rstrip(b"\n"))
            with (folder / LOG).open("ab") as stream:
                stream.write(junk)
    found = program(folder, never)
    assert rows(folder) == undisturbed[0]
    assert found == undisturbed[1]
    assert program(folder, bomb(10**6)) == found, "nothing is left to do"


def test_torn_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, undisturbed: tuple[str, list[Any]]) -> None:
    with pytest.raises(Killed):
        program(tmp_path, bomb(36))
    (tmp_path / "a.4").write_text("7", "utf-8")
    journal = Journal(tmp_path, [LOG], usable=lambda v: is_whole(tmp_path / v["file"], v["sum"]))
    assert journal.dropped
    assert program(tmp_path, never) == undisturbed[1]
    assert rows(tmp_path) == undisturbed[0]


def test_a_log_that_was_shortened_is_refused(tmp_path: Path) -> None:
    program(tmp_path, never)
    (tmp_path / LOG).write_text("start\n", "utf-8")
    with pytest.raises(UserError, match="the file was changed"):
        program(tmp_path, never)


def test_journal_of_another_program_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, []).tape("0 a").once("one", lambda: 1)
    with pytest.raises(UserError, match="another version"):
        Journal(tmp_path, []).tape("0 a").once("other", lambda: 2)


def test_infinite_and_denormal_numbers_round_trip_through_the_journal(tmp_path: Path) -> None:
    values = [float("inf"), 0.1 + 0.2, 1e-310]
    Journal(tmp_path, []).tape("0 a").once("one", lambda: values)
    assert Journal(tmp_path, []).tape("0 a").once("one", lambda: None) == values


def test_a_broken_off_unit_is_rewound_and_others_keep_what_they_have(tmp_path: Path) -> None:
    journal = Journal(tmp_path, [LOG])
    one, other = journal.tape("0 one"), journal.tape("0 other")
    row = '{"seed": 0, "unit": "%s", "n": %d}'
    one.once("move", lambda: 1)
    one.begin("train")
    journal.append("0 one", LOG, row % ("one", 1))
    journal.append("0 other", LOG, row % ("other", 1))
    other.once("move", lambda: 2)
    journal.append("0 other", LOG, row % ("other", 2))
    one.once("inside", lambda: 3)
    assert journal.rewind("0 one") == 1, "the move inside of the training"
    assert (tmp_path / LOG).read_text() == row % ("other", 1) + "\n" + row % ("other", 2) + "\n"
    assert [entry.key for entry in journal.entries("0 one")] == ["move", "train"]
    assert journal.rewind("0 one") == 0
    again = Journal(tmp_path, [LOG])
    assert [entry.key for entry in again.entries("0 other")] == ["move"]
    again.cut()
    assert (tmp_path / LOG).read_text() == row % ("other", 1) + "\n", "the row after its last line"


def test_a_journal_of_an_earlier_version_names_the_remedy(tmp_path: Path) -> None:
    body = json.dumps({"key": "recipe", "kind": "move", "logs": {}, "counts": None, "value": 1})
    (tmp_path / NAME).write_text(f"{zlib.crc32(body.encode()):08x} {body}\n")
    with pytest.raises(UserError, match="earlier version; finish the run with that one"):
        Journal(tmp_path, [LOG])


# -- the lock ---------------------------------------------------------------------------------------------------------

HOLD = (
    "import sys, time; from pathlib import Path; from omni_thinker.runs.lock import Lock; "
    "held = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


def test_locked_directory_is_refused_until_its_process_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on .*, for 0 min"):
            Lock(tmp_path)
        other.kill()
        other.wait()
    held = Lock(tmp_path)
    assert json.loads((tmp_path / "lock").read_text("utf-8"))["pid"] != other.pid
    del held


def test_disk_without_file_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=r"can't be locked .* a disk with file locks"):
        Lock(tmp_path)


def test_logs_cut_for_a_damaged_journal_are_copied_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, [LOG])
    tape, row = journal.tape("0 a"), '{"seed": 0, "unit": "a", "n": %d}'
    for n in range(4):

        def make(n: int = n) -> int:
            journal.append("0 a", LOG, row % n)
            return n

        tape.once(f"move {n}", make)
    whole, lines = (tmp_path / LOG).read_text(), (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"move", b"m0ve", 1)
    (tmp_path / NAME).write_bytes(b"".join(lines))
    Journal(tmp_path, [LOG]).cut()
    assert (tmp_path / LOG).read_text() == row % 0 + "\n"
    assert (tmp_path / LOG).with_suffix(".damaged").read_text() == whole
    assert (tmp_path / NAME).with_suffix(".damaged").read_bytes() == b"".join(lines)


def test_folders_are_whole_or_not_there(tmp_path: Path) -> None:
    def write(count: int, folder: Path) -> None:
        folder.mkdir()  # nothing of a process that was killed may be left in it
        for part in range(count):
            (folder / f"part-{part}").write_text(f"{part} of {count}", "utf-8")

    target = tmp_path / "state"
    (tmp_path / "state.partial").mkdir()
    (tmp_path / "state.partial" / "part-7").write_text("stale", "utf-8")
    write_whole(target, partial(write, 3))
    three = checksum(target)
    assert is_whole(target, three)
    write_whole(target, partial(write, 2))
    assert sorted(path.name for path in target.iterdir()) == ["part-0", "part-1"]
    two = checksum(target)
    assert two != three
    assert is_whole(target, two)
    (target / "part-1").rename(target / "part-2")
    assert not is_whole(target, two)

    def fail(folder: Path) -> None:
        write(1, folder)
        raise Killed

    with pytest.raises(Killed):
        write_whole(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    (target / "part-2").unlink()
    assert not is_whole(target, two)
