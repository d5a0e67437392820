"""The soak itself: a cluster of three nodes, eight readers, a storm; then the account of it all."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raycache import api
from tests.soak import aftermath
from tests.soak.chaos import Faults, Killer, Repeated, Writer
from tests.soak.readers import reading
from tests.soak.setting import Setting
from tests.soak.watch import Watch, quarters
from tests.support import raycluster
from tests.support.cache import Cache
from tests.support.raycluster import RayCluster, left_behind
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import SeaweedS3

MiB = 1 << 20

MEMORY_SLACK = 32 * MiB
"""Bytes by which a process's memory may be more in the last quarter of a run than in the second."""

ALL_BLOWS_AFTER_S = 120.0
"""Length of a run in which every kind of blow falls, as good as certainly."""

FLAT_AFTER_S = 600.0
"""Length of a run from which on memory must be flat: before, a process gets its threads and their heaps."""


@dataclass
class Result:
    """What came of a soak.

    Args:
        seconds: for which readers read.
        readers: their reports.
        changes: of objects, by kind.
        blows: what was done to processes, by kind.
        store: of the store's proxy: requests, how many of them were made to fail, bytes.
        counted_bytes: bytes from the store that workers and readers have counted, killed workers up to their last word.
        memory: anonymous memory of processes that lived on, bytes: median of the second and of the last quarter.
        fetched_once: bytes that three nodes' readers asked of the store for this many bytes, after all.
        problems: everything that should not be.
    """

    seconds: float = 0.0
    readers: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    blows: dict[str, int] = field(default_factory=dict)
    store: dict[str, int] = field(default_factory=dict)
    counted_bytes: int = 0
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    fetched_once: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)


class Soak:
    """A run.

    Args:
        setting: where.
        seconds: for which readers read.
    """

    def __init__(self, setting: Setting, seconds: float) -> None:
        self.setting = setting
        self.seconds = seconds
        self.result = Result()

    def run(self) -> Result:
        """All of it."""
        setting, result = self.setting, self.result
        writer = Writer(setting.cache.server, setting.cache.bucket, setting.truth, setting.seed)
        with contextlib.closing(writer), contextlib.closing(setting.truth):
            writer.fill()
            warnings = [
                warning for row in setting.cache.admin.apply(setting.spec()) for warning in row["warnings"]
            ]
            assert not warnings, warnings
            self._storm(writer)
            aftermath.settle(setting)
            result.problems += aftermath.check_all_is_right(setting)
            result.problems += aftermath.check_leases(setting)
            result.fetched_once, problems = aftermath.check_fetched_once(setting)
            result.problems += problems + aftermath.check_ledger(setting)
        return result

    def _storm(self, writer: Writer) -> None:
        cache, result = self.setting.cache, self.result
        killer = Killer(cache.admin, cache.cluster.node_ids()[0], self.setting.point, self.setting.seed + 1)
        watch = Watch(cache.admin, self.setting.point)
        faults = Faults()
        stop = cache.directory / "stop"
        cache.proxy.reset()
        with reading(self.setting, stop) as collect:
            cache.proxy.fault = faults
            actions = [
                Repeated("soak-writer", writer.act),
                Repeated("soak-killer", killer.act),
                Repeated("soak-watch", watch.act),
            ]
            try:
                time.sleep(self.seconds)  # the length of the run: it waits for nothing
            finally:
                for action in actions:
                    action.stop()
                killer.restore()
                stop.touch()
                result.readers, problems = collect()
        cache.proxy.fault = None
        writer.make_whole()
        stats = cache.proxy.stats()
        requests = stats.GET + stats.HEAD + stats.LIST
        result.seconds = self.seconds
        result.changes, result.blows = dict(writer.changes), dict(killer.done)
        result.store = {
            "requests": requests,
            "gets": stats.GET,
            "made to fail": faults.done,
            "bytes": stats.bytes,
        }
        result.counted_bytes = watch.counted + sum(report["fetched"] for report in result.readers)
        result.problems += problems
        self._judge(watch, killer)

    def _judge(self, watch: Watch, killer: Killer) -> None:
        """What the readers saw, and what their processes and the cluster's kept."""
        problems, samples = self.result.problems, dict(watch.memory)
        for report in self.result.readers:
            problems += report.pop("violations")
            problems += [f"{report['name']} left open: {leak}" for leak in report.pop("leaks")]
            samples[report["name"]] = report.pop("memory")
            if not report["reads"]:
                problems.append(f"{report['name']} has read nothing")
        memory = {name: found for name, s in samples.items() if (found := quarters(s, self.seconds))}
        self.result.memory = memory
        if self.seconds >= ALL_BLOWS_AFTER_S:
            problems += [f"no {kind} in the whole run" for kind in sorted(killer.kinds - set(killer.done))]
        if self.seconds >= FLAT_AFTER_S:
            problems += [
                f"memory of {name} grew from {before >> 20} to {after >> 20} MiB"
                for name, (before, after) in memory.items()
                if after - before > MEMORY_SLACK
            ]


@contextlib.contextmanager
def _cache(cluster: RayCluster, directory: Path) -> Iterator[Cache]:
    with SeaweedS3(directory / "s3") as server, S3Proxy(server.address) as proxy:
        api.start(cluster.address)
        try:
            admin = api.Admin(cluster.address)
            yield Cache(cluster, admin, directory, server, proxy, server.create_bucket())
        finally:
            api.stop(cluster.address)


def run(seconds: float, seed: int) -> Result:
    """A cluster, a soak on it, and what is left of both."""
    with tempfile.TemporaryDirectory(prefix="raycache-soak-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with raycluster.ray_cluster(3) as cluster:
            with _cache(cluster, directory) as cache:
                result = Soak(Setting(cache, seed), seconds).run()
            left = left_behind(directory)
            left += [
                f"thread {t.name}" for t in threading.enumerate() if t.name.startswith(("raycache", "soak"))
            ]
            result.problems += [f"left behind: {what}" for what in left]
    return result
