"""The wall around the sandbox: bubblewrap, which has fewer bugs than mounts and namespaces of our own would have."""

import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from omni_thinker.isolation.inside.confine import BOX
from omni_thinker.isolation.worker import IsolationError

Strength = Literal["bubblewrap", "weak"]
_SANDBOX = Path(__file__).parent / "inside" / "sandbox.py"
_HARNESS, _HANDLERS, _PACKAGES = "/harness", "/handlers", "/packages"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_INSTALL = "install it (Debian, Ubuntu: apt-get install bubblewrap) or accept the weak one with --allow-weak-sandbox"
_PYTHON = ("-I", "-S", "-B", "-X", "utf8")
_FIXED = ("/usr/bin/env", "PYTHONHASHSEED=0", "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1")
"""Environment of scorers: nothing may differ from process to process, and none has use for threads of its own."""
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


def weak_allowed() -> bool:
    """Whether `allow_weak_sandbox` was called."""
    return _weak_allowed


def launch() -> Launch:
    """How programs are run here. Raises IsolationError with the remedy where bubblewrap is missing or refused."""
    global _launch  # noqa: PLW0603
    with _lock:
        if _launch is None:
            _launch = _find()
        return _launch


def launch_programs(packages: Sequence[str]) -> Launch:
    """How a sandbox is started whose programs may import these installed packages besides the standard library.

    Nothing else that is installed is shown to them. Raises as `launch`, and for a package that isn't installed."""
    plain = launch()
    if not packages:
        return plain
    folders = dict(_files_of(packages))
    if plain.strength == "weak":
        return Launch((*plain.command, str(next(iter(folders.values())).parent), *packages), "weak")
    wall = (str(shutil.which("bwrap")), *_arguments({f"{_PACKAGES}/{name}": path for name, path in folders.items()}))
    python = (_python(), *_PYTHON, f"{_HARNESS}/{_SANDBOX.name}")
    return Launch((*wall, *python, _PACKAGES, *packages), "bubblewrap")


def _files_of(packages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The folders and files that installed packages consist of, by their names in site-packages."""
    for package in packages:
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            raise IsolationError(f"the package {package!r} isn't installed") from None
        names = dict.fromkeys(file.parts[0] for file in installed.files or ())
        if package not in names:
            raise IsolationError(f"the package {package!r} isn't installed as a folder of its own")
        for name in names:
            path = Path(str(installed.locate_file(name))).resolve()
            if name not in ("..", "__pycache__") and path.exists():
                yield name, path


def launch_scorer(script: str, handler: Path, packages: Sequence[str], *arguments: str) -> Launch:
    """How a script of this folder that calls `handler` is started, behind the same wall as programs.

    It gets the path, as seen from inside, of `handler`, then `arguments`, then the folders for sys.path: those of
    `packages` that aren't installed, and installed packages, read-only. Raises as `launch`."""
    python = (*_FIXED, _python(), "-s", "-S", "-P", "-B", "-X", "utf8")
    if launch().strength == "weak":
        folders = [*(str(folder.parent) for folder in _outside(packages)), *_site_folders()]
        return Launch((*python, str(_SANDBOX.with_name(script)), str(handler), *arguments, *folders), "weak")
    # At places of their own: a worker's /work, say, would hide what lies below a folder of that name outside.
    sites = {f"/sites/{place}": Path(folder) for place, folder in enumerate(_site_folders())}
    outside = {f"{_PACKAGES}/{folder.name}": folder for folder in _outside(packages)}
    # Handlers of this package may use each other; of somebody else's folder nothing else is shown.
    ours = handler.parent.is_relative_to(_SANDBOX.parents[2])
    handlers = {_HANDLERS: handler.parent} if ours else {f"{_HANDLERS}/{handler.name}": handler}
    wall = (str(shutil.which("bwrap")), *_arguments({**sites, **outside, **handlers}))
    folders = [*[_PACKAGES] * bool(outside), *sites]
    command = (*wall, *python, f"{_HARNESS}/{script}", f"{_HANDLERS}/{handler.name}", *arguments, *folders)
    return Launch(command, "bubblewrap")


def _site_folders() -> list[str]:
    """Where packages are installed: for this Python, for the system, for this user."""
    paths = sysconfig.get_paths()
    folders = [paths["purelib"], paths["platlib"]]
    folders += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys(map(os.path.realpath, folders)) if os.path.isdir(path)]


def _outside(packages: Sequence[str]) -> Iterator[Path]:
    """Folders of packages that aren't among the installed ones. Raises IsolationError for one that isn't there."""
    for name in packages:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise IsolationError(f"the package {name!r} isn't installed")
        folder = Path(spec.origin).resolve().parent
        if not any(folder.is_relative_to(site) for site in _site_folders()):
            yield folder


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
        raise IsolationError(f"model output runs inside bubblewrap, which is missing: {_INSTALL}")
    wall = (path, *_arguments({}))
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


def _arguments(binds: Mapping[str, Path]) -> Iterator[str]:
    """The server's root has /proc and the harness; under it lies the root that workers get, with neither.

    binds: where both roots show further folders or files."""
    if os.geteuid() == 0:
        # Root needs no user namespace to set this up, and must be able to become somebody else (confine.leave_root).
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-all", "--cap-drop", "ALL")
    yield from ("--die-with-parent", "--hostname", "sandbox", "--proc", "/proc")
    yield from ("--dev", "/dev", "--ro-bind", str(_SANDBOX.parent), _HARNESS)
    for root in ("", BOX):
        for target, source in [*((path, path) for path in _folders()), *((t, str(s)) for t, s in binds.items())]:
            # Named one by one: those that bubblewrap makes on its way nobody else may enter.
            for parent in reversed(Path(root + target).parents[:-1]):
                yield from ("--dir", str(parent))
            if os.path.islink(source):
                yield from ("--symlink", os.readlink(source), root + target)
            else:
                yield from ("--ro-bind", source, root + target)
    yield from ("--dir", f"{BOX}/work", "--dir", f"{BOX}/dev")
    for path in filter(os.path.exists, _DEVICES):
        yield from ("--dev-bind", path, BOX + path)
    if binds:  # packages may want a place for caches when they are imported; workers don't see it
        yield from ("--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108
    yield from ("--remount-ro", "/", "--chdir", "/", "--")


def _folders() -> Iterator[str]:
    """System folders, and what Python itself needs; no site-packages but those below the system's prefix."""
    python = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__), os.path.dirname(_python())]
    done: list[str] = []
    for path in [*_SYSTEM, *python, *map(os.path.realpath, python)]:
        if (
            path == "/"
            or not os.path.isdir(path)
            or any(path == folder or path.startswith(folder + "/") for folder in done)
        ):
            continue
        done.append(path)
        yield path
