"""The same cold object read on four nodes at once, against one node's own cold read.

Run: python -m benchmarks broadcast

Four workers and four readers, each a process of its own, on this machine; they take each other for other hosts, so
all that goes between them goes over TCP. The object store is SeaweedFS behind a proxy that counts. First at the
machine's own speed, which its cores limit: so beside it stands what the transport alone costs here (the object
fetched and written once, and sent three times and written), which no cache can go below. Then with uplinks
of a stated bandwidth and an object that is one segment, so that one worker owns all of it: with every copy sent by
the owner, and with those that have it serving it on.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store
from pydantic import SecretStr

from benchmarks.harness import GiB, MiB, in_turn, progress
from benchmarks.workerprocess import Child
from raycache.membership import Membership, Worker
from raycache.spec import MountSource, ResolvedDataset, TierSpec
from tests.support.s3proxy import ProxyProcess
from tests.support.seaweed import SeaweedS3

NODES = 4
ROUNDS = int(os.environ.get("BENCH_BROADCAST_ROUNDS", "5"))
UPLINK_ROUNDS = int(os.environ.get("BENCH_BROADCAST_UPLINK_ROUNDS", "3"))
SIZES = {"file": GiB, "segment": 256 * MiB}
UPLINK = 100_000_000
"""Bytes per second that each worker may send."""
RANGE = 8 * MiB
PARALLEL = 8


class Bench:
    """The running pieces: the datasets `one`, which worker 0 holds alone, and `all`."""

    def __init__(self, s3: SeaweedS3, proxy: ProxyProcess, bucket: str, root: Path) -> None:
        self.proxy = proxy
        self.counts: dict[str, list[dict[str, Any]]] = {}
        self._store = S3Store(
            bucket,
            endpoint=proxy.endpoint,
            access_key_id=s3.access_key,
            secret_access_key=s3.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )
        source = MountSource(
            path="",
            uri=f"s3://{bucket}",
            options={"endpoint": proxy.endpoint, "region": "us-east-1"},
            secret_options={
                "access_key_id": SecretStr(s3.access_key),
                "secret_access_key": SecretStr(s3.secret_key),
            },
        )
        tiers = [TierSpec(medium="MEM", path="/unset", quota=1400 * MiB)]
        wires = {
            name: ResolvedDataset(name=name, mounts=[source], tiers=tiers).wire() for name in ("one", "all")
        }
        self._children = contextlib.ExitStack()
        self.workers = [
            self._child("worker", number=n, root=str(root), datasets=self._held(wires, n))
            for n in range(NODES)
        ]
        membership = Membership()
        for worker in self.workers:
            membership = membership.with_worker(Worker.from_wire(worker.hello))
        wire = membership.rebalanced().to_wire()
        for worker in self.workers:
            worker.do("membership", membership=wire)
        self.readers = [
            self._child("reader", membership=wire, datasets=wires, host_id=f"host-{n}") for n in range(NODES)
        ]
        # Beside a worker's files, so in the same kind of memory.
        tier = Worker.from_wire(self.workers[0].hello).stores["one"][0]
        self.bare = [self._child("bare", path=f"{tier}/bare-{n}") for n in range(NODES)]
        self._tier = Path(tier)

    @staticmethod
    def _held(wires: dict[str, Any], number: int) -> dict[str, Any]:
        return {name: wire for name, wire in wires.items() if name == "all" or number == 0}

    def _child(self, role: str, **arguments: Any) -> Child:
        child = Child(role, **arguments)
        self._children.callback(child.close)
        return child

    def close(self) -> None:
        """End all processes."""
        self._children.close()

    def alone(self) -> None:
        """The object fetched and written by the bare client."""
        target = self._tier / "alone"
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.truncate(descriptor, SIZES["file"])

        def fetch(offset: int) -> None:
            data = obstore.get_range(self._store, "file", start=offset, length=RANGE)
            os.pwrite(descriptor, memoryview(data), offset)

        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(fetch, range(0, SIZES["file"], RANGE)))
        os.close(descriptor)
        target.unlink()

    def sends(self) -> None:
        """As many bytes as a broadcast sends, sent and written by the bare transport."""
        server, *receivers = self.bare
        for receiver in receivers:
            receiver.order("pull", address=server.hello, size=SIZES["file"])
        for receiver in receivers:
            receiver.answer()

    def read(self, dataset: str, path: str, readers: int) -> None:
        """Have the first few readers read an object at once."""
        for reader in self.readers[:readers]:
            reader.order("read", dataset=dataset, path=path)
        for reader in self.readers[:readers]:
            reader.answer()

    def prepared(self, path: str, **settings: Any) -> None:
        """Empty all caches, set the workers up, have memory touched, and begin to count."""
        for worker in self.workers:
            worker.do("evict")
            for setting, value in settings.items():
                worker.do(setting, **value)
        self.workers[0].do("touch", name="one", size=SIZES[path] + 64 * MiB)
        for worker in self.workers:
            worker.do("touch", name="all", size=SIZES[path] + 64 * MiB)
        self._before = [worker.do("sent") for worker in self.workers]
        self._ticks = _cpu_ticks()
        self.proxy.reset()

    def count(self, name: str) -> None:
        """Take what was counted since `prepared`."""
        after = _cpu_ticks()
        sent = [w.do("sent") - before for w, before in zip(self.workers, self._before, strict=True)]
        self.counts.setdefault(name, []).append(
            {
                "store": self.proxy.stats().bytes,
                "sent": sorted(sent, reverse=True),
                "cpu": (after[0] - self._ticks[0]) / max(1, after[1] - self._ticks[1]),
            }
        )

    def measured(
        self, jobs: dict[str, Callable[[], None]], path: str, rounds: int, **settings: dict[str, Any]
    ) -> dict[str, list[float]]:
        """Seconds of each job, by name; what each moved is added to `counts`."""

        last: list[str] = []

        def before(name: str) -> None:
            if last:
                self.count(last[0])
            last[:] = [name]
            self.prepared(path, **settings.get(name, {}))
            progress(name)

        times = in_turn(jobs, rounds, before)
        self.count(last[0])
        return times

    def moved(self, name: str, size: int) -> dict[str, Any]:
        """What a job moved, in multiples of the object's size; medians, the first round left out."""
        counted = self.counts[name][1:]
        sent = [[round(each / size, 3) for each in one["sent"]] for one in counted]
        return {
            "store_bytes": max(round(one["store"] / size, 4) for one in counted),
            "sent_by_each": [round(statistics.median(each), 3) for each in zip(*sent, strict=True)],
            "cpu_busy": round(statistics.median(one["cpu"] for one in counted), 2),
        }


def _cpu_ticks() -> tuple[int, int]:
    """Busy and all ticks of the machine's processors since it started (proc_stat(5))."""
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


@contextlib.contextmanager
def running() -> Iterator[Bench]:
    """An S3 server with the data, a proxy that counts, workers and readers."""
    with (
        tempfile.TemporaryDirectory(prefix="rcb-") as directory,
        SeaweedS3(os.path.join(directory, "s3")) as s3,
        ProxyProcess(s3.address) as proxy,
    ):
        bucket = s3.create_bucket("bench")
        path = Path(directory) / "file"
        for key, size in SIZES.items():
            with path.open("wb") as file:
                for _ in range(size // (64 * MiB)):
                    file.write(os.urandom(64 * MiB))
            with contextlib.closing(s3.client()) as client:
                client.upload_file(str(path), bucket, key)
        path.unlink()
        with contextlib.closing(Bench(s3, proxy, bucket, Path(directory) / "tiers")) as bench:
            yield bench


def seconds(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians."""
    return {name: round(statistics.median(taken), 3) for name, taken in times.items()}


def at_full_speed(bench: Bench) -> dict[str, Any]:
    """A cold GiB on four nodes against one, on the unslowed store."""
    jobs: dict[str, Callable[[], None]] = {
        "obstore and pwrite": bench.alone,
        "three sends, bare": bench.sends,
        "one node": lambda: bench.read("one", "file", 1),
        "four nodes": lambda: bench.read("all", "file", NODES),
    }
    times = bench.measured(jobs, "file", ROUNDS)

    def against(of: list[float], to: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(of, to, strict=True)), 2)

    floor = [a + b for a, b in zip(times["obstore and pwrite"], times["three sends, bare"], strict=True)]
    return {
        "seconds": seconds(times),
        "four_nodes_against_one": against(times["four nodes"], times["one node"]),
        "what_the_transport_alone_takes_against_one": against(floor, times["one node"]),
        "four_nodes_against_transport_alone": against(times["four nodes"], floor),
        "moved": {name: bench.moved(name, SIZES["file"]) for name in ("one node", "four nodes")},
    }


def at_limited_uplinks(bench: Bench) -> dict[str, Any]:
    """One hot segment and workers that may send 100 MB/s each: what it takes, and who sends."""

    def read() -> None:
        bench.read("all", "segment", NODES)

    def settings(share: bool) -> dict[str, Any]:
        return {"limit": {"rate": UPLINK}, "share": {"on": share}}

    jobs = {"owner sends all": read, "holders send on": read}
    times = bench.measured(
        jobs,
        "segment",
        UPLINK_ROUNDS,
        **{"owner sends all": settings(False), "holders send on": settings(True)},  # type: ignore[arg-type]
    )
    return {
        "uplink_mb_per_s": UPLINK // 1_000_000,
        "seconds": seconds(times),
        "seconds_of_one_copy_at_that_rate": round(SIZES["segment"] / UPLINK, 2),
        "moved": {name: bench.moved(name, SIZES["segment"]) for name in jobs},
    }


def run() -> dict[str, Any]:
    """All figures of this module."""
    with running() as bench:
        full = at_full_speed(bench)
        limited = at_limited_uplinks(bench)
    return {"nodes": NODES, "rounds": ROUNDS, "unslowed": full, "limited_uplinks": limited}
