"""The wall around the sandbox: bubblewrap, which has fewer bugs than mounts and namespaces of our own would have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omni_thinker.isolation.confine import BOX
from omni_thinker.isolation.worker import IsolationError

Strength = Literal["bubblewrap", "weak"]
_SANDBOX = Path(__file__).with_name("sandbox.py")
_HARNESS = "/harness"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_INSTALL = "install it (Debian, Ubuntu: apt-get install bubblewrap) or accept the weak one with --allow-weak-sandbox"
_PYTHON = ("-I", "-S", "-B", "-X", "utf8")
_PROBE_S = 30.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How a sandbox is started."""

    command: tuple[str, ...]
    strength: Strength


_lock = threading.Lock()
_launch: Launch | None = None
_weak_allowed = False


def allow_weak_sandbox(allowed: bool = True) -> None:
    """Where bubblewrap can't be had, run programs in a process with limits alone: they see this user's files."""
    global _weak_allowed, _launch
    with _lock:
        _weak_allowed, _launch = allowed, None


def launch() -> Launch:
    """How programs are run here. Raises IsolationError with the remedy where bubblewrap is missing or refused."""
    global _launch  # noqa: PLW0603
    with _lock:
        if _launch is None:
            _launch = _find()
        return _launch


def _find() -> Launch:
    try:
        return _strong()
    except IsolationError:
        if not _weak_allowed:
            raise
    return Launch((sys.executable, *_PYTHON, str(_SANDBOX)), "weak")


def _strong() -> Launch:
    path = shutil.which("bwrap")
    if path is None:
        raise IsolationError(f"programs run inside bubblewrap, which is missing: {_INSTALL}")
    wall = (path, *_arguments())
    fault = _fault([*wall, _python(), *_PYTHON, "-c", "pass"])
    if fault is not None:
        raise IsolationError(
            f"bubblewrap can't make a sandbox here ({fault}): allow unprivileged user namespaces, or accept the weak "
            "sandbox with --allow-weak-sandbox"
        )
    return Launch((*wall, _python(), *_PYTHON, f"{_HARNESS}/{_SANDBOX.name}"), "bubblewrap")


def _python() -> str:
    return os.path.realpath(sys.executable)


def _fault(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={},
            timeout=_PROBE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return str(exc)[:200]
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")[-200:]


def _arguments() -> Iterator[str]:
    """The server's root has /proc and the harness; under it lies the root that candidates get, with neither."""
    if os.geteuid() == 0:
        # Root needs no user namespace to set this up, and must be able to become somebody else (confine.leave_root).
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-all", "--cap-drop", "ALL")
    yield from ("--die-with-parent", "--hostname", "sandbox", "--proc", "/proc")
    yield from ("--dev", "/dev", "--ro-bind", str(_SANDBOX.parent), _HARNESS)
    for root in ("", BOX):
        for path in _folders():
            # Named one by one: those that bubblewrap makes on its way nobody else may enter.
            for parent in reversed(Path(root + path).parents[:-1]):
                yield from ("--dir", str(parent))
            if os.path.islink(path):
                yield from ("--symlink", os.readlink(path), root + path)
            else:
                yield from ("--ro-bind", path, root + path)
    yield from ("--dir", f"{BOX}/work", "--dir", f"{BOX}/dev")
    for path in filter(os.path.exists, _DEVICES):
        yield from ("--dev-bind", path, BOX + path)
    yield from ("--remount-ro", "/", "--chdir", "/", "--")


def _folders() -> Iterator[str]:
    """System folders, and what Python itself needs; no site-packages but those below the system's prefix."""
    python = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__), os.path.dirname(_python())]
    done: list[str] = []
    for path in [*_SYSTEM, *python, *map(os.path.realpath, python)]:
        if path == "/" or not os.path.isdir(path) or any(path == own or path.startswith(own + "/") for own in done):
            continue
        done.append(path)
        yield path
