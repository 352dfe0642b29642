"""Small kernels in C, compiled once for this processor where a C compiler is found; without one, torch does the same.

Plain C by ctypes and not a torch extension: it takes two seconds to compile instead of a minute, needs no headers, and
finds torch's own OpenMP threads by their library's name."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch  # first: its OpenMP runtime is the one that the kernels then find

from omni_thinker.errors import UserError
from omni_thinker.models.home import home, publish_folder

SWITCH = "OMNI_THINKER_NATIVE"
"""Set to 0 in the environment: no kernels in C."""
LANES = 16
"""Floats that the kernels take as one vector."""
_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
_FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-fopenmp"),
    # Sums may be taken in vectors; no flag that would change how denormal numbers are treated elsewhere.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_COMPILE_S = 120
_LIBRARY, _DIGEST = "kernels.so", "sha256"
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ARGUMENTS = {
    "add_norm": (*[_POINTER] * 5, _LONG, _LONG, _FLOAT),
    "norm_backward": (*[_POINTER] * 6, *[_LONG] * 3),
    "gate": (*[_POINTER] * 3, *[_LONG] * 3),
    "gate_backward": (*[_POINTER] * 5, _LONG, _LONG),
    "turn_heads": (*[_POINTER] * 4, *[_LONG] * 3),
    "turn_back": (*[_POINTER] * 4, *[_LONG] * 4),
    "turn_and_store": (*[_POINTER] * 6, *[_LONG] * 6),
    "attend": (*[_POINTER] * 8, _FLOAT, *[_LONG] * 8),
    "attend_row": (*[_POINTER] * 13, _FLOAT, *[_LONG] * 6),
    "draw": (*[_POINTER] * 6, _FLOAT, _LONG, _LONG),
    "logprob_entropy": (*[_POINTER] * 5, _FLOAT, _LONG, _LONG),
    "logit_gradient": (*[_POINTER] * 5, _FLOAT, _LONG, _LONG),
    "add_up": (_POINTER, _POINTER, _LONG),
    "squares": (*[_POINTER] * 3, _LONG, _LONG),
    "adamw": (*[_POINTER] * 6, _LONG, *[_FLOAT] * 7),
}
_log = logging.getLogger(__name__)


@cache
def kernels() -> ctypes.CDLL | None:
    """The library, compiled at the first call on a machine; None without a compiler, or where `SWITCH` is 0."""
    if os.environ.get(SWITCH) == "0" or not torch.backends.openmp.is_available():
        return None
    for compiler in filter(None, map(shutil.which, ("cc", "gcc"))):
        try:
            library = _load(compiler)
        except (OSError, RuntimeError, subprocess.SubprocessError, UserError) as exc:
            _log.debug("no kernels in C by %s: %s", compiler, exc)
            continue
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        return library
    return None


def _load(compiler: str) -> ctypes.CDLL:
    """Compile it unless that was done, and load it. Raises what there is to raise where it can't be."""
    version = _run(compiler, "--version")
    if b"clang" in version:  # its threads would be others than torch's, and both kinds would wait by spinning
        raise OSError("clang's OpenMP isn't torch's")
    parts = (*(source.read_bytes() for source in _SOURCES), " ".join(_FLAGS).encode(), version, _processor())
    target = home() / "native" / hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    sources = [str(source) for source in _SOURCES if source.suffix == ".c"]

    def make(folder: Path) -> None:
        _run(compiler, *_FLAGS, "-o", str(folder / _LIBRARY), *sources, "-lm")
        (folder / _DIGEST).write_text(_digest(folder))

    def whole(folder: Path) -> bool:  # a machine that lost power may keep a part of it
        return (folder / _DIGEST).is_file() and (folder / _DIGEST).read_text() == _digest(folder)

    return ctypes.CDLL(str(publish_folder(target, make, whole, force=False) / _LIBRARY))


def _digest(folder: Path) -> str:
    path = folder / _LIBRARY
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _run(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_S).stdout


def _processor() -> bytes:
    """What -march=native depends on, since a cache may be shared by machines."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return " ".join(platform.uname()[4:]).encode()
    lines = path.read_bytes().split(b"\n")
    return b"\n".join(
        dict.fromkeys(line for line in lines if line.startswith((b"flags", b"model", b"vendor", b"Features")))
    )
