"""Looks at the processes of a soak while they live: their memory, and what they have counted."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any

from raycache import api
from raycache.errors import RaycacheError
from raycache.fuse import mounts
from tests.soak.reader import anonymous_memory

SAMPLE_S = 1.0


class Watch:
    """Samples the cluster's processes while they are alive.

    Args:
        admin: control.
        point: the mount's path; "" for none.
    """

    def __init__(self, admin: api.Admin, point: str) -> None:
        self._admin = admin
        self._point = point
        self._started = time.monotonic()
        self._counted: dict[str, int] = {}
        self.memory: dict[str, list[tuple[float, int]]] = {}

    def act(self) -> float:
        """One look."""
        found: dict[str, int] = {}
        with contextlib.suppress(RaycacheError):  # the coordinator is being killed
            for row in self._admin.get("workers"):
                self.count(row)
                if row["pid"]:
                    found[f"worker {row['pid']}"] = row["pid"]
        if self._point:
            with contextlib.suppress(RaycacheError):
                found["mount's supervisor"] = mounts.status(self._point).supervisor_pid
        for name, pid in found.items():
            if used := anonymous_memory(pid):
                self.memory.setdefault(name, []).append((time.monotonic() - self._started, used))
        return SAMPLE_S

    def count(self, row: dict[str, Any]) -> None:
        """Note what a worker has fetched so far."""
        known = self._counted.get(row["id"], 0)  # one that does not answer now has not lost it
        self._counted[row["id"]] = max(known, row["metrics"].get("fetched_store_bytes", 0))

    @property
    def counted(self) -> int:
        """Bytes that workers have fetched from the store, as far as they could tell."""
        return sum(self._counted.values())


def quarters(samples: list[tuple[float, int]], seconds: float) -> tuple[int, int] | None:
    """Medians of the second and of the last quarter of a run; None for what did not live from the first one on."""
    second = [used for at, used in samples if seconds / 4 <= at < seconds / 2]
    last = [used for at, used in samples if at >= 3 * seconds / 4]
    if not second or not last or samples[0][0] > seconds / 4:
        return None
    return int(statistics.median(second)), int(statistics.median(last))
