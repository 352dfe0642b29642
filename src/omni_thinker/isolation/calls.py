"""A worker process that calls one trusted function on untrusted text. A script, never imported.

argv[1] is a file that defines `handle(request) -> reply`, argv[2] the address space in MiB. The deadline is kept by
the parent, which kills this process: nothing here sets alarms.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any


def _load(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handle: Callable[[dict[str, Any]], dict[str, Any]] = module.handle
    return handle


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # die with the parent, even in the middle of a loop
    if os.getppid() != parent:
        os._exit(0)
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    limit = int(sys.argv[2]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = os.getcwd()
    os.chdir("/")
    os.rmdir(folder)  # not needed here, and so never left behind
    handle = _load(sys.argv[1])
    os.write(replies, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        try:
            reply = handle(json.loads(line))
        except Exception as exc:
            reply = {"error": f"{type(exc).__name__}: {exc}"[:300]}
        os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
