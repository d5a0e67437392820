"""What the measurements share: rounds in turn, ratios pair by pair, and a record of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MiB = 1 << 20
GiB = 1 << 30
PAGE_REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")
NEVER_REPORTED = 11
"""Order of free blocks above any that exist (MAX_PAGE_ORDER, include/linux/mmzone.h): none is reported."""

RESULTS = Path(__file__).parent / "results"


def touch_pages(directory: Path, size: int) -> None:
    """Fill a file of `size` bytes in `directory` (a tmpfs) and remove it, so that its pages are free but present.

    A virtual machine gives memory that has been free for two seconds back to its host, and has to fetch it again
    when it is touched: 10 to 30 times slower than memory that is there. That must not fall into a measurement, and
    only pages of the same kind help (huge pages for huge pages).
    """
    path = directory / "touch"
    chunk = bytes(8 * MiB)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
    path.unlink()


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def memory_kept() -> Iterator[bool]:
    """Have a virtual machine keep the memory that is free: otherwise it gives it back to its host (free page
    reporting, mm/page_reporting.c) after two seconds, and touching it again takes 10 to 30 times as long as what is
    measured. Yields whether that could be had; it needs root. What was set before is set again afterwards.
    """
    try:
        before = PAGE_REPORTING.read_text()
        PAGE_REPORTING.write_text(str(NEVER_REPORTED))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        PAGE_REPORTING.write_text(before)


def in_turn(
    jobs: Mapping[str, Callable[[], Any]],
    rounds: int,
    before: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Time several jobs round by round, so that a drift of the machine's speed meets all of them alike.

    Args:
        jobs: by name.
        rounds: counted rounds; one more, not counted, comes first.
        before: called with the job's name before each of its runs, outside the timing.

    Returns:
        Seconds of each counted run, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            if before is not None:
                before(name)
            taken = seconds(job)
            if number:
                times[name].append(taken)
    return times


def ratio(of: list[float], to: list[float]) -> float:
    """How fast `of` is relative to `to`: the median of `to/of`, round by round (seconds; 1.0 is equal)."""
    return round(statistics.median(b / a for a, b in zip(of, to, strict=True)), 3)


def rate(times: list[float], size: int) -> float:
    """Median rate in GB/s of runs that moved `size` bytes each."""
    return round(size / statistics.median(times) / 1e9, 3)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "?")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GiB, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_result(name: str, figures: Mapping[str, Any]) -> Path:
    """Write figures to `benchmarks/results/<name>.json`, with the machine they were taken on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")
    return path


def progress(text: str) -> None:
    """Say on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)
