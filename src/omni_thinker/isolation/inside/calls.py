"""A worker process that calls one trusted function on untrusted text, again and again. A script, never imported.

argv[1] is a file that defines `handle(request) -> reply`, argv[2] the address space in MiB, the rest folders for
sys.path. Code made of a text isn't run (guard.py), but for what the file says in MAY_RUN and MAY_RUN_IN. The deadline
is kept by the parent, which kills this process: nothing here sets alarms."""

import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import confine, guard, handler
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import confine
    import guard
    import handler

    del sys.path[0]


def main() -> None:
    parent = os.getppid()
    if os.path.isdir(confine.BOX):
        confine.leave_root()
    confine.die_with_parent(signal.SIGKILL)  # even in the middle of a loop
    if os.getppid() != parent:
        os._exit(0)
    os.environ.clear()
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    limit = int(sys.argv[2]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = os.getcwd()
    os.chdir("/")
    if folder != "/":
        os.rmdir(folder)  # not needed here, and so never left behind
    sys.path[:0] = sys.argv[3:]
    module = handler.load(sys.argv[1])
    if os.path.isdir(confine.BOX):
        confine.drop_rights()
        confine.forbid()
    guard.forbid_evaluation(getattr(module, "MAY_RUN", frozenset()), getattr(module, "MAY_RUN_IN", frozenset()))
    os.write(replies, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        try:
            reply = module.handle(json.loads(line))
        except Exception as exc:
            reply = {"error": f"{type(exc).__name__}: {exc}"[:300]}
        os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
