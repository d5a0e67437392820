"""Cold and warm reads through a real worker on a one-node Ray cluster, against what the machine can do.

Run: python -m benchmarks reads

Cold: a sequential read of one object through the client, from an S3 server on this machine (SeaweedFS), against
the fastest S3 client alone (obstore, 8 parallel ranges of 8 MiB, bytes thrown away), against that client followed
by a bare `pwrite`, and against the line rate of a store that a proxy slows down. Warm: a Parquet scan against the
same file in the same kind of memory through pyarrow's own filesystem, and small reads through an open file.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from obstore.store import S3Store

from benchmarks.harness import GiB, MiB, in_turn, progress, rate, ratio, touch_pages
from tests.support.raycluster import ray_cluster
from tests.support.s3proxy import ProxyProcess
from tests.support.seaweed import SeaweedS3

SIZE = GiB
TABLE = 256 * MiB
RANGE = 8 * MiB
PARALLEL = 8
ROUNDS = 7
SLOW = 400_000_000  # bytes per second

SPEC = """
apiVersion: v1
kind: Secret
metadata: {{name: s3}}
stringData: {{id: "{id}", key: "{key}"}}
---
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: {name}}}
spec:
  mounts:
    - mountPoint: s3://{bucket}
      options: {{endpoint: "{endpoint}", region: us-east-1}}
      encryptOptions:
        - {{name: accessKeyId, valueFrom: {{secretKeyRef: {{name: s3, key: id}}}}}}
        - {{name: secretAccessKey, valueFrom: {{secretKeyRef: {{name: s3, key: key}}}}}}
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: {name}}}
spec:
  tieredstore:
    levels:
      - {{mediumtype: MEM, path: {path}, quota: 1800Mi, hugePages: {huge}}}
"""


class Bench:
    """The running pieces."""

    def __init__(self, s3: SeaweedS3, proxy: ProxyProcess, bucket: str, scratch: Path) -> None:
        self.s3 = s3
        self.proxy = proxy
        self.bucket = bucket
        self.scratch = scratch
        self.pool = ThreadPoolExecutor(PARALLEL)
        self.buffer = memoryview(bytearray(RANGE))

    def client(self, endpoint: str) -> S3Store:
        """obstore, as fast as it gets."""
        return S3Store(
            self.bucket,
            endpoint=endpoint,
            access_key_id=self.s3.access_key,
            secret_access_key=self.s3.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )

    def alone(self, endpoint: str, take: Callable[[int, Any], object] = lambda offset, data: None) -> None:
        """Fetch the object with the bare client; `take` gets each range."""
        store = self.client(endpoint)

        def fetch(offset: int) -> int:
            data = obstore.get_range(store, "file", start=offset, length=RANGE)
            take(offset, data)
            return len(data)

        assert sum(self.pool.map(fetch, range(0, SIZE, RANGE))) == SIZE

    def apply(self, name: str, path: str, huge: str, endpoint: str) -> None:
        """Bind a dataset to the bucket."""
        import raycache

        raycache.Admin().apply(
            SPEC.format(
                name=name,
                path=path,
                huge=huge,
                endpoint=endpoint,
                bucket=self.bucket,
                id=self.s3.access_key,
                key=self.s3.secret_key,
            )
        )

    def read(self, dataset: str) -> None:
        """Read the object through the client, from its first byte to its last, as buffers (no copy), like obstore."""
        import raycache

        with contextlib.closing(raycache.connect().open(dataset, "file")) as reader:
            position = 0
            while taken := len(reader.read_view(position, RANGE)):
                position += taken
            assert position == SIZE

    def copy(self, dataset: str) -> None:
        """The same, copied into a buffer of the reader's own."""
        import raycache

        with contextlib.closing(raycache.connect().open(dataset, "file")) as reader:
            position = 0
            while taken := reader.readinto_at(position, self.buffer):
                position += taken
            assert position == SIZE

    def evict(self, dataset: str) -> None:
        """Empty the cache, and have as much memory touched as the next run needs."""
        import raycache

        raycache.Admin().evict(dataset)
        touch_pages(Path(self.tier(dataset)), SIZE + 64 * MiB)

    def tier(self, dataset: str) -> str:
        """The directory that the worker keeps a dataset in."""
        import raycache

        client = raycache.connect()
        while True:  # a process hears within a second of a dataset that has just been bound
            client.datasets()
            (worker,) = client.peers.membership.workers
            if dataset in worker.stores:
                return str(worker.stores[dataset][0])
            time.sleep(0.1)


@contextlib.contextmanager
def running() -> Iterator[Bench]:
    """An S3 server with the data, a proxy, a Ray cluster of one node, raycache on it."""
    with (
        tempfile.TemporaryDirectory(prefix="rcb-") as directory,
        SeaweedS3(os.path.join(directory, "s3")) as s3,
        ProxyProcess(s3.address, SLOW) as proxy,
    ):
        bucket = s3.create_bucket("bench")
        scratch = Path(directory)
        _write(s3, bucket, scratch)
        with ray_cluster(nodes=1, memory=8 * GiB, object_store_memory=100 * MiB):
            import raycache.api

            raycache.api.start()
            try:
                bench = Bench(s3, proxy, bucket, scratch)
                yield bench
                bench.pool.shutdown()
            finally:
                raycache.api.disconnect()
                raycache.api.stop()


def _write(s3: SeaweedS3, bucket: str, scratch: Path) -> None:
    path = scratch / "file"
    piece = os.urandom(64 * MiB)
    with path.open("wb") as file:
        for _ in range(SIZE // len(piece)):
            file.write(piece)
    table = scratch / "table.parquet"
    generator = np.random.default_rng(3)
    columns = {f"c{i}": generator.random(TABLE // 8 // 8) for i in range(8)}
    pq.write_table(pa.table(columns), table, compression="none", use_dictionary=False, row_group_size=1 << 18)
    with contextlib.closing(s3.client()) as client:
        client.upload_file(str(path), bucket, "file")
        client.upload_file(str(table), bucket, "table.parquet")
    path.unlink()


def cold_unslowed(bench: Bench) -> dict[str, Any]:
    """Cold reads at the server's own speed."""
    endpoint = bench.s3.endpoint
    bench.apply("huge", str(bench.scratch / "huge"), "auto", endpoint)
    progress("cold, unslowed, huge-page memory tier")
    times = in_turn(
        {
            "obstore alone": lambda: bench.alone(endpoint),
            "raycache": lambda: bench.read("huge"),
            "raycache, copied out": lambda: bench.copy("huge"),
        },
        ROUNDS,
        lambda _: bench.evict("huge"),
    )
    huge = {
        "ratio": ratio(times["raycache"], times["obstore alone"]),
        "ratio_copied_out": ratio(times["raycache, copied out"], times["obstore alone"]),
        "gb_per_s": {name: rate(taken, SIZE) for name, taken in times.items()},
        "tier": subprocess.run(
            ["stat", "-f", "-c", "%T", bench.tier("huge")],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip(),
    }
    bench.evict("huge")

    shm = Path(tempfile.mkdtemp(prefix="rcb-", dir="/dev/shm"))
    target = shm / "bare"
    bench.apply("shm", str(shm / "tier"), "never", endpoint)
    progress("cold, unslowed, /dev/shm")

    def and_pwrite() -> None:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.truncate(descriptor, SIZE)
        bench.alone(endpoint, lambda offset, data: os.pwrite(descriptor, memoryview(data), offset))
        os.close(descriptor)

    def before(_: str) -> None:
        target.unlink(missing_ok=True)
        bench.evict("shm")

    try:
        times = in_turn(
            {
                "obstore and pwrite": and_pwrite,
                "raycache": lambda: bench.read("shm"),
                "raycache, copied out": lambda: bench.copy("shm"),
            },
            ROUNDS,
            before,
        )
    finally:
        target.unlink(missing_ok=True)
        import raycache

        raycache.Admin().delete("dataset", "shm")
        subprocess.run(["rm", "-rf", str(shm)], check=False)
    plain = {
        "ratio": ratio(times["raycache"], times["obstore and pwrite"]),
        "ratio_copied_out": ratio(times["raycache, copied out"], times["obstore and pwrite"]),
        "gb_per_s": {name: rate(taken, SIZE) for name, taken in times.items()},
    }
    return {"huge_pages_vs_obstore_alone": huge, "dev_shm_vs_obstore_and_pwrite": plain}


def cold_slowed(bench: Bench) -> dict[str, Any]:
    """Cold reads from a store of a stated bandwidth."""
    progress(f"cold, store slowed to {SLOW // 1_000_000} MB/s")
    bench.apply("slow", str(bench.scratch / "slow"), "auto", bench.proxy.endpoint)
    times = in_turn(
        {"obstore alone": lambda: bench.alone(bench.proxy.endpoint), "raycache": lambda: bench.read("slow")},
        3,
        lambda _: bench.evict("slow"),
    )
    bench.evict("slow")
    rates = {name: rate(taken, SIZE) for name, taken in times.items()}
    return {"of_line_rate": round(rates["raycache"] * 1e9 / SLOW, 3), "gb_per_s": rates}


def warm_scan(bench: Bench) -> dict[str, Any]:
    """A Parquet scan of cached data, through both pyarrow fronts."""
    import raycache

    progress("warm Parquet scan")
    same = bench.scratch / "huge" / "same.parquet"
    same.write_bytes((bench.scratch / "table.parquet").read_bytes())
    local = pafs.LocalFileSystem(use_mmap=True)
    handler = raycache.arrow_filesystem()
    generic, _ = pafs.FileSystem.from_uri("fsspec+raycache://huge/table.parquet")

    def scan(filesystem: pafs.FileSystem, path: str) -> None:
        table = pads.dataset(path, filesystem=filesystem, format="parquet")
        for _ in range(4):  # long enough to time
            assert sum(batch.num_rows for batch in table.to_batches()) == TABLE // 64

    with raycache.local_path("raycache://huge/table.parquet"):
        times = in_turn(
            {
                "LocalFileSystem(use_mmap=True)": lambda: scan(local, str(same)),
                "arrow_filesystem()": lambda: scan(handler, "huge/table.parquet"),
                "fsspec+raycache://": lambda: scan(generic, "huge/table.parquet"),
            },
            ROUNDS,
        )
    same.unlink()
    base = times["LocalFileSystem(use_mmap=True)"]
    return {
        "arrow_filesystem_vs_local_mmap": ratio(times["arrow_filesystem()"], base),
        "fsspec_url_vs_local_mmap": ratio(times["fsspec+raycache://"], base),
        "gb_per_s": {name: rate(taken, 4 * TABLE) for name, taken in times.items()},
    }


def small_reads() -> dict[str, Any]:
    """4 KiB at random places of an open, cached file."""
    import fsspec

    progress("warm 4 KiB reads")
    offsets = np.random.default_rng(5).integers(0, TABLE - 4096, 20_000).tolist()
    taken = []
    with fsspec.open("raycache://huge/table.parquet", "rb") as file:
        file.read(4096)
        for offset in offsets:
            started = time.perf_counter_ns()
            file.seek(offset)
            data = file.read(4096)
            taken.append(time.perf_counter_ns() - started)
            assert len(data) == 4096
    taken.sort()
    return {
        "median_us": round(statistics.median(taken) / 1000, 2),
        "p99_us": round(taken[len(taken) * 99 // 100] / 1000, 2),
    }


def run() -> dict[str, Any]:
    """All figures of this module."""
    with running() as bench:
        cold = cold_unslowed(bench)
        slowed = cold_slowed(bench)
        scan = warm_scan(bench)
        return {"cold": cold | {"slowed": slowed}, "warm": {"scan": scan, "read_4kib": small_reads()}}
