"""What a benchmark was run on, and what it costs: memory, time."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine() -> str:
    """Cores, instructions and versions that decide speed, in one line."""
    flags = _proc("/proc/cpuinfo", "flags")
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({_proc('/proc/cpuinfo', 'model name').strip()}; "
        f"{', '.join(known)}), {memory_gb:.0f} GiB, Python {platform.python_version()}, "
        + ", ".join(versions(["numpy", "torch"]))
    )


def versions(packages: Iterable[str]) -> list[str]:
    """Those installed, with their versions."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return found


def resident_bytes() -> int:
    """Memory that this process holds now, without what it only maps from files."""
    pages = sum(
        int(_proc("/proc/self/status", name).split()[0]) for name in ("RssAnon", "RssShmem")
    )
    return pages * 1024


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _proc(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value
    return ""


def timed(calls: Iterable[Callable[[], object]], most_s: float = float("inf")) -> dict[str, float]:
    """Milliseconds of calls: the best, the median, the 95th percentile, and of the processor.

    The last is the mean over all cores together. It and the best say most when other programs keep
    the machine busy. No call begins after `most_s` seconds.
    """
    spent, begin, busy = [], time.perf_counter(), time.process_time()
    for call in calls:
        started = time.perf_counter()
        if started - begin > most_s:
            break
        call()
        spent.append(1e3 * (time.perf_counter() - started))
    busy = 1e3 * (time.process_time() - busy) / len(spent)
    spent.sort()
    last = spent[int(0.95 * (len(spent) - 1))]
    return {
        "best_ms": spent[0],
        "p50_ms": statistics.median(spent),
        "p95_ms": last,
        "busy_ms": busy,
    }


def load_warning() -> str:
    """Says so when other programs keep the processor busy; empty when it is idle."""
    load = os.getloadavg()[0]
    return f"other programs were running (load {load:.1f})" if load > 0.5 else ""
