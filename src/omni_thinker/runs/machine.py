"""What a run ran on, so that its seconds mean something."""

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omni_thinker.runs.schema.result import Machine

GIB = 1024**3


def machine() -> Machine:
    """Processor, memory, versions, and the peak memory of this process so far."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        peak_rss_gb=round(peak_rss() / GIB, 2),
        python=platform.python_version(),
        torch=_version("torch"),
        transformers=_version("transformers"),
        platform=platform.platform(),
    )


def peak_rss() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
