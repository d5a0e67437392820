"""How much memory is in use, read from the files that Ray's memory monitor reads.

As of Ray 2.60 (`src/ray/common/memory_monitor_utils.cc`): of a cgroup, its usage less the file pages that the kernel
can reclaim, if its limit is below the machine's memory; else the machine's memory less `MemAvailable`. Both are looked
at here, and the tighter one counts: a container's limit does not keep the machine from filling up.
"""

from __future__ import annotations

from pathlib import Path

from raycache.store.pressure import Sample

CGROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")


class MemoryReader:
    """Takes samples.

    Args:
        share: Ray's `memory_usage_threshold`, of the memory.
        min_free: Ray's `min_memory_free_bytes`; negative if it is not set.
        cgroups: where the container's control group is mounted (version 2, or version 1 with `memory` below it).
        proc: where procfs is mounted.
    """

    def __init__(
        self, share: float = 0.95, min_free: int = -1, cgroups: Path = CGROUPS, proc: Path = PROC
    ) -> None:
        self._share, self._min_free = share, min_free
        self._cgroups, self._proc = cgroups, proc

    def read(self) -> Sample:
        """A sample of now.

        Raises:
            OSError, KeyError: there is no `/proc/meminfo` as Linux has it.
        """
        fields = _fields(self._proc / "meminfo")
        total, available = fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024
        machine = self._sample(total, total - available)
        limits = self._of_cgroup()
        if limits is None or limits[0] >= total:
            return machine
        group = self._sample(limits[0], min(limits))
        return min(machine, group, key=lambda one: one.threshold - one.used)

    def _of_cgroup(self) -> tuple[int, int] | None:
        """Limit and use, in bytes; None without a limit."""
        for folder, limit, usage, prefix in (
            (self._cgroups, "memory.max", "memory.current", ""),
            (self._cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            try:
                text = (folder / limit).read_text().strip()
                if not text.isdecimal():  # "max"
                    return None
                used = int((folder / usage).read_text())
                stat = _fields(folder / "memory.stat")
            except OSError:
                continue
            files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            return int(text), max(0, used - files)
        return None

    def _sample(self, total: int, used: int) -> Sample:
        threshold = int(total * self._share)
        if self._min_free >= 0:
            threshold = max(threshold, total - self._min_free)
        return Sample(total, used, threshold)


def _fields(path: Path) -> dict[str, int]:
    """`name value` or `name: value kB` by name."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
