"""The process that sends a run's rows while a study works.

It is a process of its own so that a tracker can't change a study's numbers, keep it waiting or end it. It ends when the
study does, however that ends, after it has sent what was left."""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from omni_thinker.errors import UserError
from omni_thinker.recipe.track import TrackSpec
from omni_thinker.runs.files import remove
from omni_thinker.runs.tracking.send import FOLDER, Sender, check_trackers, read_spec

_log = logging.getLogger(__name__)
LOG = "log.txt"
_EVERY_S = 1.0
"""Between two looks at the file."""
_WAIT_S, _BROKEN_S = 60.0, 3.0
"""How long a study that has ended waits for the trackers, and one that broke off."""
_HELD_S = 30.0
"""How long a command waits for a process that sends the last rows of a study."""
_ALONE_S = 600
"""How long the process may live once its study is gone."""
_BEGIN = "import sys; sys.path[:] = {path!r}; from omni_thinker.runs.tracking.process import main; main()"
_ENDED = b"ended\n"


@contextlib.contextmanager
def tracked(spec: TrackSpec, run: Path) -> Iterator[None]:
    """Have the rows of the run in `run` sent while the block works, where the recipe asks for it. Never raises for what
    a tracker does: that is one warning."""
    if not spec.to:
        yield
        return
    try:
        process = _start(run)
    except OSError as exc:
        _log.warning("no tracker can be started: %s", exc)
        yield
        return
    listener = threading.Thread(target=_listen, args=(process.stdout,), daemon=True)
    listener.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        _end(process, run, ended=ended)
        listener.join(_BROKEN_S)


@contextlib.contextmanager
def held(run: Path, wait_s: float) -> Iterator[None]:
    """Be the only process that sends this run's rows. Raises UserError where another goes on doing so."""
    try:
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"can't be made: {exc.strerror or exc}", file=run / FOLDER) from None
    lock = FileLock(run / FOLDER / "lock", timeout=wait_s, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError("another process sends this run's rows to trackers", file=run) from None
    try:
        yield
    finally:
        lock.release()


def track_run(
    run: Path, to: Sequence[str] = (), *, project: str = "", folder: str = "", online: bool = False
) -> dict[str, Any]:
    """Send the rows of a run in `run` that its trackers don't have yet, from this process. What isn't given is as in
    the run's recipe.

    Returns `sent`, and by tracker `rows` (all that it has), `failed` (why) and `see` (how to look at them). Raises
    UserError for trackers that aren't known or installed, and while another process sends."""
    spec, recipe = read_spec(run)
    changed = {"to": tuple(to), "project": project, "folder": folder, "online": online}
    spec = spec.model_copy(update={key: value for key, value in changed.items() if value})
    if not spec.to:
        raise UserError("name a tracker: the run's recipe has none", key="track.to")
    check_trackers(spec)
    with held(run, _HELD_S), contextlib.redirect_stdout(sys.stderr):
        sender = Sender(run, spec, recipe, _log.warning)
        sent = sender.send()
        sender.close(ended=(run / "result.json").exists())
    return {"sent": sent, "rows": sender.counts(), "failed": sender.failed, "see": sender.words()}


def main() -> None:
    """The process: argv[1] is the run's directory; stdin ends with the study, stdout takes lines for people."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch system sends it to all; the study says when it ends
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print goes to the log

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the study may be gone
            said.write(line + "\n")

    run = Path(sys.argv[1])
    try:
        with held(run, _ALONE_S):
            spec, recipe = read_spec(run)
            sender = Sender(run, spec, recipe, say)
            ended = _follow(sender)
            sender.close(ended=ended)
    except (UserError, OSError) as exc:
        say(f"trackers stopped: {exc}")
        os._exit(1)
    os._exit(0)  # threads of packages may linger


def _follow(sender: Sender) -> bool:
    """Send what comes until the study is gone; whether it had ended."""
    said = b""
    while True:
        sender.send()
        ready, _, _ = select.select([0], [], [], _EVERY_S)
        if ready:
            word = os.read(0, 100)
            said += word
            if not word:
                signal.alarm(_ALONE_S)
                sender.send()
                return said == _ENDED


def _start(run: Path) -> subprocess.Popen[bytes]:
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    # It computes nothing, and must not take memory of a GPU.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = [entry or os.getcwd() for entry in sys.path]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _BEGIN.format(path=path), str(run.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the study, which has rows to write yet
        )


def _listen(lines: IO[bytes] | None) -> None:
    for line in lines or ():
        _log.warning("%s", line.decode("utf-8", "replace").strip())


def _end(process: subprocess.Popen[bytes], run: Path, *, ended: bool) -> None:
    """Say that the study is over, and wait a while for the trackers."""
    if not (run / "recipe.toml").exists():  # the run was discarded before anything was done
        process.kill()
        process.wait()
        remove(run / FOLDER)
        return
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.write(_ENDED if ended else b"broke off\n")
            process.stdin.close()
    try:
        code = process.wait(_WAIT_S if ended else _BROKEN_S)
    except subprocess.TimeoutExpired:
        if ended:
            _log.warning("trackers are still taking rows; what is left is sent in the background")
        return
    if code:
        _log.warning(
            "trackers stopped with exit code %d; see %s, then `omni-thinker track %s`", code, run / FOLDER / LOG, run
        )
