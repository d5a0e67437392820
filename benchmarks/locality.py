"""Where the tasks of a Ray Data read find their bytes, and how long the job takes: three nodes on this machine.

Run: python -m benchmarks locality

`raycache.data`, with the step after it in the read's own tasks and with one after the union, against the plain read of
the same files, and against a read in which everything is local wherever it runs, because each node has a copy of
everything. Local bytes are those that a reader found in its own node's cache, as it tells its worker. On one machine
the bytes that are not local cross only the loopback, so the times of the plain read flatter it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import MiB, in_turn, progress, ratio
from tests.support.raycluster import ray_cluster
from tests.support.waiting import until

NODES = 3
FILES = int(os.environ.get("BENCH_LOCALITY_FILES", "48"))
SIZE = int(os.environ.get("BENCH_LOCALITY_MIB", "8")) * MiB
ROUNDS = int(os.environ.get("BENCH_LOCALITY_ROUNDS", "4"))

SPEC = """
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: {name}}}
spec:
  mounts: [{{mountPoint: "file://{source}"}}]
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: {name}}}
spec:
  replicas: all
  tieredstore:
    levels: [{{mediumtype: SSD, path: "{cache}", quota: 2Gi}}]
"""


class Bench:
    """The running pieces: the datasets `once` (each file on one node) and `everywhere` (on all)."""

    def __init__(self, directory: Path) -> None:
        import raycache

        self.admin = raycache.Admin()
        self.source = directory / "source"
        self.source.mkdir()
        for number in range(FILES):
            (self.source / f"part-{number:03}.bin").write_bytes(os.urandom(SIZE))
        for name in ("once", "everywhere"):
            self.admin.apply(SPEC.format(name=name, source=self.source, cache=directory / name))
        self.shares: dict[str, list[float]] = {}

    def load(self, name: str) -> None:
        """Have a dataset cached as it should be: by its owners alone, or by all."""
        if name == "once":
            self.admin.evict("once")
        load = self.admin.load(name, replicas=1 if name == "once" else "all")
        row = until(lambda: (row := self.admin.load_status(load))["finished"] and row, "loaded", 300)
        assert row["phase"] == "Complete", row

    def told(self, name: str) -> tuple[int, int]:
        """Bytes of a dataset that readers found in their own node's cache, and that they did not."""
        import raycache

        peers = raycache.connect().peers
        usages = [
            peers.call(worker, "usage", {}, 30.0)["datasets"][name]
            for worker in peers.membership.workers_for(name)
        ]
        return sum(usage["hit_bytes"] for usage in usages), sum(usage["missed_bytes"] for usage in usages)

    def job(self, how: str, name: str, dataset: Callable[[], Any]) -> Callable[[], None]:
        """A job that reads all bytes of a dataset."""

        def counted() -> None:
            self._before = self.told(name)
            assert dataset().sum("size") == FILES * SIZE

        self.shares.setdefault(how, [])
        return counted

    def count(self, how: str, name: str) -> None:
        """Take the share of local bytes of the job that has just run."""
        total = FILES * SIZE

        def told() -> tuple[int, int] | None:
            now = self.told(name)
            hit, missed = now[0] - self._before[0], now[1] - self._before[1]
            return (hit, missed) if hit + missed >= total else None

        hit, missed = until(told, "readers have told what they read", 60)
        self.shares[how].append(hit / (hit + missed))


def look(batch: Any) -> Any:
    """A step that sees all bytes."""
    return {"size": [sum(len(data) for data in batch["bytes"])]}


@contextmanager
def running() -> Iterator[Bench]:
    """A Ray cluster, raycache on it, and the files."""
    import ray.data

    from raycache import api

    directory = Path(tempfile.mkdtemp(prefix="rcl-"))
    try:
        with ray_cluster(NODES, object_store_memory=256 * MiB) as cluster:
            ray.data.DataContext.get_current().enable_progress_bars = False
            api.start(cluster.address)
            try:
                yield Bench(directory)
            finally:
                api.stop(cluster.address, purge=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run() -> dict[str, Any]:
    """All figures of this module."""
    import ray.data

    import raycache.data

    with running() as bench:

        def ours(**each: Any) -> Any:
            return raycache.data.read_binary_files("raycache://once", override_num_blocks=FILES, **each)

        def plain(name: str) -> Any:
            read = ray.data.read_binary_files(f"fsspec+raycache://{name}/", override_num_blocks=FILES)
            return read.map_batches(look, batch_size=None)

        def fused(part: Any, near: dict[str, Any]) -> Any:
            return part.map_batches(look, batch_size=None, **near)

        reads: dict[str, tuple[str, Callable[[], Any]]] = {
            "raycache.data": ("once", lambda: ours(each=fused)),
            "raycache.data, step after": ("once", lambda: ours().map_batches(look, batch_size=None)),
            "plain": ("once", lambda: plain("once")),
            "all local": ("everywhere", lambda: plain("everywhere")),
        }
        jobs = {how: bench.job(how, name, dataset) for how, (name, dataset) in reads.items()}
        last: list[str] = []

        def settle() -> None:
            if last:
                bench.count(last[0], reads[last[0]][0])

        def before(how: str) -> None:
            settle()
            bench.load(reads[how][0])
            last[:] = [how]
            progress(how)

        times = in_turn(jobs, ROUNDS, before)
        settle()
    taken = times["raycache.data"]
    return {
        "nodes": NODES,
        "files": FILES,
        "file_mib": SIZE // MiB,
        "rounds": ROUNDS,
        "local_share": {how: round(statistics.mean(shares[1:]), 4) for how, shares in bench.shares.items()},
        "lowest_local_share": {how: round(min(shares[1:]), 4) for how, shares in bench.shares.items()},
        "seconds": {how: round(statistics.median(runs), 2) for how, runs in times.items()},
        "speed_against_all_local": ratio(taken, times["all local"]),
        "speed_against_plain": ratio(taken, times["plain"]),
    }
