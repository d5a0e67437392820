"""Whether a tier's disk and its worker have time for something that can wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raycache.metrics import PEER_BYTES, STORE_BYTES, Metrics

LOOK_S = 1.0
"""Seconds over which use is measured, and for which the verdict holds."""

BUSY_SHARE = 0.5
"""Share of the time in which a disk may be at work, our own reads included, before it counts as busy: a slow disk is
then never used by more than half for what can wait."""


@dataclass(frozen=True)
class _Look:
    at: float
    fetched: int
    busy_ms: int
    quiet: bool


class Quiet:
    """Asked with a tier's path, says whether nothing else is going on. Not thread-safe.

    That is so while the worker fetches nothing (whatever it fetches, somebody waits for, and it is written to its
    tiers) and the disk is at work for less than half of the time (local readers do not pass the worker).

    Args:
        metrics: the process's counters.
        clock: monotonic seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._looks: dict[str, _Look] = {}

    def __call__(self, path: str) -> bool:
        """The verdict of the last second; False at the first look, which has nothing to compare with."""
        now, last = self._clock(), self._looks.get(path)
        if last is not None and now - last.at < LOOK_S:
            return last.quiet
        counts = self._metrics.snapshot()
        fetched = counts.get(STORE_BYTES, 0) + counts.get(PEER_BYTES, 0)
        busy_ms = busy_ms_of(path)
        quiet = (
            last is not None
            and fetched == last.fetched
            and busy_ms - last.busy_ms <= BUSY_SHARE * 1000 * (now - last.at)
        )
        self._looks[path] = _Look(now, fetched, busy_ms, quiet)
        return quiet


def busy_ms_of(path: str, sys: str = "/sys/dev/block") -> int:
    """Milliseconds for which the disk under a path has been at work since the machine started: the tenth field of its
    `stat` (Documentation/block/stat.rst). 0 where no disk is told: tmpfs, network filesystems, some containers."""
    try:
        device = Path(path).stat().st_dev
        text = Path(sys, f"{os.major(device)}:{os.minor(device)}", "stat").read_text()
        return int(text.split()[9])
    except (OSError, ValueError, IndexError):
        return 0
