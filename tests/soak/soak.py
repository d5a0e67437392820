"""The soak itself: a cluster of three nodes, eight readers, chaos; then the account of it all."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raycache import api
from raycache.actors import kv as keys
from raycache.errors import RaycacheError
from raycache.fuse import mounts
from tests.fuse.conftest import WHY_NOT
from tests.soak.chaos import Faults, Killer, Repeated, Writer
from tests.soak.reader import Plan, anonymous_memory, name_of, read
from tests.soak.truth import ABSENT, Truth, content
from tests.support import raycluster
from tests.support.cache import Cache
from tests.support.raycluster import RayCluster, left_behind
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import SeaweedS3
from tests.support.waiting import until

MiB = 1 << 20

KEYS = 24
"""Objects: about 125 MiB, and the three nodes' tiers are 96 MiB together."""

TIERS = {"mem": "16Mi", "ssd": "16Mi"}
BLOCK = "256Ki"
EMBEDDED_QUOTA = 24 * MiB

TTL_S = 2.0
UNDER_WAY_S = 4.0
"""Seconds that the store's answer about a name may take to those who believe it for TTL_S from then on."""

PATIENCE_S = 120.0
SAMPLE_S = 2.0

MEMORY_SLACK = 24 * MiB
"""Bytes by which a process's memory may be more in the last quarter than in the second."""


@dataclass
class Result:
    """What came of a soak.

    Args:
        seconds: for which readers read.
        readers: their reports.
        changes: of objects, by kind.
        blows: what was done to processes, by kind.
        store: of the store's proxy: requests, how many of them were made to fail, bytes.
        counted_bytes: bytes from the store that the workers have counted, those of killed ones up to their last word.
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
            found = {f"worker {row['pid']}": row["pid"] for row in self._admin.get("workers") if row["pid"]}
            for row in self._admin.get("workers"):
                self.count(row)
        if self._point:
            with contextlib.suppress(RaycacheError):
                found["mount's supervisor"] = mounts.status(self._point).supervisor_pid
        for name, pid in found.items():
            if used := anonymous_memory(pid):
                self.memory.setdefault(name, []).append((time.monotonic() - self._started, used))
        return SAMPLE_S

    def count(self, row: dict[str, Any]) -> None:
        """Note what a worker has fetched so far."""
        self._counted[row["id"]] = row["metrics"].get("fetched_store_bytes", 0)

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


class Soak:
    """A run.

    Args:
        cache: a started raycache; its proxy and bucket are the soak's own.
        seconds: for which readers read.
        seed: of all choices but those that time makes.
    """

    def __init__(self, cache: Cache, seconds: float, seed: int) -> None:
        self.cache = cache
        self.seconds = seconds
        self.seed = seed
        self.result = Result()
        self.point = "" if WHY_NOT else str(cache.directory / "mnt")
        self.truth = Truth(cache.directory / "truth", KEYS, TTL_S + UNDER_WAY_S)

    def run(self) -> Result:
        """All of it."""
        writer = Writer(self.cache.server, self.cache.bucket, self.truth, self.seed)
        with contextlib.closing(writer), contextlib.closing(self.truth):
            writer.fill()
            self._apply()
            self._storm(writer)
            self._settle()
            self._check_all_is_right()
            self._check_leases()
            self._check_fetched_once()
            self._check_ledger()
        return self.result

    # -- the storm -------------------------------------------------------------------------------------------

    def _spec(self) -> str:
        return self.cache.spec(**TIERS, ttl=f"{TTL_S:g}s", block_size=BLOCK, mount=self.point)

    def _apply(self) -> None:
        warnings = [warning for row in self.cache.admin.apply(self._spec()) for warning in row["warnings"]]
        assert not warnings, warnings

    def _storm(self, writer: Writer) -> None:
        cluster, proxy = self.cache.cluster, self.cache.proxy
        killer = Killer(self.cache.admin, cluster.node_ids()[0], self.point, self.seed + 1)
        watch = Watch(self.cache.admin, self.point)
        proxy.reset()
        stop = self.cache.directory / "stop"
        faults = Faults()
        with self._reading(stop) as collect:
            proxy.fault = faults
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
                stop.touch()
                self.result.readers = collect()
        proxy.fault = None
        writer.make_whole()
        stats = proxy.stats()
        self.result.seconds = self.seconds
        self.result.changes, self.result.blows = dict(writer.changes), dict(killer.done)
        self.result.store = {
            "requests": stats.GET + stats.HEAD + stats.LIST,
            "gets": stats.GET,
            "made to fail": faults.done,
            "bytes": stats.bytes,
        }
        self.result.counted_bytes = watch.counted
        self._judge_readers(watch)

    def _plans(self, stop: Path) -> list[tuple[str, Plan]]:
        """Node id, or "" for a process of its own, and what to do there."""
        nodes = self.cache.cluster.node_ids()
        spec = self.cache.directory / "embedded.yaml"
        spec.touch(mode=0o600)
        spec.write_text(self.cache.spec(**TIERS, ttl=f"{TTL_S:g}s", block_size=BLOCK))
        embedded = {
            "spec": str(spec),
            "cache_dir": str(self.cache.directory / "embedded"),
            "quota": EMBEDDED_QUOTA,
        }
        mount = ("mount", {"point": self.point}) if self.point else ("client", {})
        wanted: list[tuple[str, str, dict[str, Any]]] = [
            (nodes[0], "client", {}),
            (nodes[1], "fsspec", {}),
            (nodes[2], "arrow", {}),
            (nodes[1], "local_path", {}),
            ("", "outside", {}),
            ("", "embedded", embedded),
            ("" if self.point else nodes[0], *mount),
            ("" if self.point else nodes[2], *mount),
        ]
        return [
            (
                node,
                Plan(
                    name=f"{front}-{number}",
                    front=front,
                    arguments=arguments,
                    truth=str(self.cache.directory / "truth"),
                    keys=KEYS,
                    believed_s=self.truth.believed_s,
                    stop=str(stop),
                    seed=self.seed + 100 + number,
                ),
            )
            for number, (node, front, arguments) in enumerate(wanted)
        ]

    @contextlib.contextmanager
    def _reading(self, stop: Path) -> Iterator[Any]:
        """All readers run; gives a function that returns their reports once they have been told to end."""
        import ray

        addresses = ",".join(row["address"] for row in self.cache.admin.get("workers"))
        token = (keys.RayKv().get(keys.TOKEN) or b"").decode()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        environ |= {"RAYCACHE_ADDRESS": addresses, "RAYCACHE_TOKEN": token}
        tasks, processes = [], []
        for node, plan in self._plans(stop):
            if node:
                tasks.append(self.cache.cluster.run_on(node, read, asdict(plan)))
                continue
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.reader", json.dumps(asdict(plan))],
                cwd=Path(__file__).parents[2],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append((plan, process))

        def collect() -> list[dict[str, Any]]:
            reports = list(ray.get(tasks, timeout=PATIENCE_S))
            for plan, process in processes:
                out, error = process.communicate(timeout=PATIENCE_S)
                if process.returncode:
                    self.result.problems.append(
                        f"reader {plan.name} ended with {process.returncode}: {error[-2000:]}"
                    )
                else:
                    reports.append(json.loads(out))
            return reports

        try:
            yield collect
        finally:
            for _, process in processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()

    def _judge_readers(self, watch: Watch) -> None:
        problems, memory = self.result.problems, self.result.memory
        for report in self.result.readers:
            problems += report.pop("violations")
            problems += [f"{report['name']} left open: {leak}" for leak in report.pop("leaks")]
            samples = {report["name"]: report.pop("memory")}
            memory |= {name: found for name, s in samples.items() if (found := quarters(s, self.seconds))}
            if not report["reads"]:
                problems.append(f"{report['name']} has read nothing")
        memory |= {name: found for name, s in watch.memory.items() if (found := quarters(s, self.seconds))}
        problems += [
            f"memory of {name} grew from {before >> 20} to {after >> 20} MiB"
            for name, (before, after) in memory.items()
            if after - before > MEMORY_SLACK
        ]

    # -- after it --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until all workers are there again and hold the dataset, and no answer of the storm is believed."""

        rows: list[dict[str, Any]] = []

        def settled() -> bool:
            nonlocal rows
            try:
                rows = self.cache.admin.get("workers")
            except RaycacheError:
                return False
            return [row["state"] for row in rows] == ["up"] * 3 and all(
                row["datasets"] == ["ds"] for row in rows
            )

        try:
            until(settled, "all workers are back", PATIENCE_S)
        except AssertionError as late:
            told = [(row["node_id"], row["state"], row["reason"], row["datasets"]) for row in rows]
            raise AssertionError(f"{late}: {told}") from None
        if self.point:
            until(
                lambda: self.cache.admin.describe("datasets", "ds")["mount"]["mounted_on"] == 3,
                "the mount is known on all nodes",
                PATIENCE_S,
            )
        newest = max(float(self.truth._done[key].max()) for key in range(KEYS))
        until(
            lambda: time.monotonic() > newest + self.truth.believed_s, "no old answer is believed", PATIENCE_S
        )

    def _sizes(self) -> dict[int, int]:
        return {key: self.truth.size(key, self.truth.newest(key)) for key in range(KEYS)}

    def _check_all_is_right(self) -> None:
        """Every object, whole, by the client and by the mount."""
        for key, size in self._sizes().items():
            assert size != ABSENT
            right = content(key, self.truth.newest(key), 0, size)
            if self.cache.read(name_of(key)) != right:
                self.result.problems.append(f"object {key} is not right after the storm")
            if self.point and Path(self.point, name_of(key)).read_bytes() != right:
                self.result.problems.append(f"object {key} of the mount is not right after the storm")

    def _used(self) -> dict[str, int]:
        return {
            f"{row['node_id'][:8]} {tier['path']}": tier["used"]
            for row in self.cache.admin.describe("datasets", "ds")["workers"]
            for tier in row["tiers"]
        }

    def _check_leases(self) -> None:
        """Nobody reads any more, so everything can be evicted; a lease that was forgotten would keep its file."""

        def empty() -> bool:
            self.cache.admin.evict("ds")
            return not any(self._used().values())

        gc.collect()
        try:
            until(empty, "", 30.0)
        except AssertionError:
            self.result.problems.append(f"a lease is left: these bytes cannot be evicted: {self._used()}")

    def _check_fetched_once(self) -> None:
        """On a quiet cluster, what fits is fetched once, whatever reads it."""
        import ray

        chosen, size = [], 0
        for key, bytes_ in sorted(self._sizes().items(), key=lambda item: item[1]):
            if size + bytes_ <= 12 * MiB:
                chosen.append(name_of(key))
                size += bytes_
        self.cache.proxy.reset()
        tasks = [self.cache.cluster.run_on(node, _read_all, chosen) for node in self.cache.cluster.node_ids()]
        assert ray.get(tasks, timeout=PATIENCE_S) == [size] * len(tasks)
        fetched = self.cache.proxy.stats().bytes
        self.result.fetched_once = fetched, size
        if not size <= fetched <= size * 1.01:
            self.result.problems.append(f"{fetched} bytes were fetched for {size}")

    def _check_ledger(self) -> None:
        """What the workers say they use is what lies on their tiers."""
        for row in self.cache.admin.describe("datasets", "ds")["workers"]:
            for tier in row["tiers"]:
                # LOCK and SCRUB are the store's own notes, a page at most.
                files = {
                    path.name: path.stat().st_blocks * 512
                    for path in Path(tier["path"]).rglob("*")
                    if path.suffix
                }
                lies = sum(files.values())
                if lies > tier["used"]:
                    self.result.problems.append(
                        f"{tier['path']}: {lies} bytes lie there, {tier['used']} are known: {files}"
                    )


def _read_all(names: list[str]) -> int:
    """Runs in a task: bytes of these files."""
    from contextlib import closing

    client = api.connect()
    total = 0
    for name in names:
        with closing(client.open("ds", name)) as reader:
            total += len(reader.read_at(0, reader.size))
    return total


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
                result = Soak(cache, seconds, seed).run()
            left = left_behind(directory)
            left += [
                f"thread {t.name}" for t in threading.enumerate() if t.name.startswith(("raycache", "soak"))
            ]
            result.problems += [f"left behind: {what}" for what in left]
    return result
