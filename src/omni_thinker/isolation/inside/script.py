"""A program as a script that reads an input and prints, in a process of its own. Loaded by the sandbox's script.

Runs in the program's process, which holds inputs and never what a test expects as output."""

import atexit
import builtins
import contextlib
import os
import select
import signal
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import usual
else:
    import usual

MOST_OUTPUT = 4 << 20
"""Bytes of output; a script that prints more is ended."""
_MOST_ERRORS = 4000
_CHUNK = 1 << 16
_PATIENCE_MS = 20
_DESCRIPTORS = 256


def run(program: str, given: str, usual_imports: bool) -> list[Any]:
    """[exit code or 128 + signal, output, end of what went to stderr] of the program with this input."""
    given_in, given_out = os.pipe()
    output_in, output_out = os.pipe()
    errors_in, errors_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for number, descriptor in enumerate((given_in, output_out, errors_out)):
                os.dup2(descriptor, number)
            os.closerange(3, _DESCRIPTORS)  # the channel above all
            os._exit(_execute(program, usual_imports))
        finally:
            os._exit(1)
    for descriptor in (given_in, output_out, errors_out):
        os.close(descriptor)
    output, errors = bytearray(), bytearray()
    status = _exchange(pid, given_out, given.encode("utf-8", "surrogatepass"), {output_in: output, errors_in: errors})
    if len(output) > MOST_OUTPUT:
        return [1, "", f"more than {MOST_OUTPUT >> 20} MiB of output"]
    code = os.waitstatus_to_exitcode(status)
    return [code if code >= 0 else 128 - code, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")]


def _exchange(pid: int, inlet: int, given: bytes, received: dict[int, bytearray]) -> int:
    """Feed the child and collect what it writes, until it has ended; its wait status."""
    output = next(iter(received.values()))
    poll = select.poll()
    for descriptor in (inlet, *received):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLOUT if descriptor == inlet else select.POLLIN)
    rest, open_ends, ended = memoryview(given), {inlet, *received}, False
    while open_ends - {inlet} and len(output) <= MOST_OUTPUT:
        ready = poll.poll(_PATIENCE_MS)
        for descriptor, _ in ready:
            if descriptor == inlet:
                rest, done = _feed(inlet, rest)
            else:
                done = _collect(descriptor, received[descriptor])
                if received[descriptor] is not output:
                    del received[descriptor][:-_MOST_ERRORS]
            if done:
                poll.unregister(descriptor)
                os.close(descriptor)
                open_ends.discard(descriptor)
        # Something that it left behind may hold its ends open for ever.
        if ended and not ready:
            break
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    for descriptor in open_ends:
        os.close(descriptor)
    if len(output) > MOST_OUTPUT:
        os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _feed(inlet: int, rest: memoryview) -> tuple[memoryview, bool]:
    """What is left to write, and whether that is all."""
    try:
        rest = rest[os.write(inlet, rest[:_CHUNK]) :] if rest else rest
    except BlockingIOError:
        return rest, False
    except OSError:  # it reads no more
        return rest, True
    return rest, not rest


def _collect(descriptor: int, received: bytearray) -> bool:
    """Whether everything has been read."""
    try:
        chunk = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    received += chunk
    return not chunk


def _execute(program: str, usual_imports: bool) -> int:
    """Run the program as Python runs a script; its exit code."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = open(number, mode, encoding="utf-8", errors="surrogateescape" if number < 2 else "backslashreplace")  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["program.py"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    vars(module)["__builtins__"] = builtins
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # Python's own come with its module `site`, which isn't loaded
    if usual_imports:
        usual.provide(vars(module))
    code = 0
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), vars(module))  # noqa: S102
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code & 0xFF
