"""What of the machine could tell that a program has been there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def children() -> list[str]:
    """Command lines of the worker processes below this one, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return [line for line in found if not line or "isolation" in line]


def state() -> dict[str, set[str]]:
    """Processes, files and sockets."""
    sockets = {
        line.split()[1] if name != "unix" else line.split()[-1]
        for name in ("tcp", "udp", "unix")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if ":B0AF" in line or "omni-hostile" in line
    }
    homes = (Path(tempfile.gettempdir()), Path.home(), Path("/dev/shm"), Path.cwd())
    files = {str(path) for home in homes for path in home.iterdir() if not path.name.startswith("omni-thinker-")}
    return {"processes": set(children()), "files": files, "sockets": sockets}


def left_behind() -> list[str]:
    """Files that the hostile programs try to write."""
    return [path for path in ("/usr", "/", "/etc", "/dev/shm", "/tmp") if Path(path, "omni-hostile").exists()]
