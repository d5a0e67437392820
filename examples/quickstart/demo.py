"""The main job, end to end, on this machine: `make demo`.

A real S3 server behind a proxy that slows it to what an object store is to its users, a Ray cluster of three
nodes, a dataset spec. Then a Parquet scan and a model load, three times each: directly from S3, through the
cold cache, through the warm cache; and, where this machine may mount, model servers on a mount
(examples/serving). The GETs are counted at the store, not by raycache.

    python -m examples.quickstart.demo [--bandwidth MB/S] [--size MIB]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray.data
from rich.console import Console
from rich.table import Table

import raycache
from examples.quickstart.data import write_model, write_table
from examples.serving import demo as serving
from tests.support.raycluster import ray_cluster
from tests.support.s3proxy import ProxyProcess
from tests.support.seaweed import SeaweedS3

MB = 1_000_000
MiB = 1 << 20
NODES = 3
HERE = Path(__file__).parent


@dataclass
class Run:
    """One line of the table."""

    job: str
    how: str
    seconds: float
    bytes: int
    gets: int
    store_bytes: int


class Demo:
    """The running pieces, and the jobs that read through them."""

    def __init__(self, console: Console, s3: SeaweedS3, proxy: ProxyProcess, bucket: str) -> None:
        self.console = console
        self.s3 = s3
        self.proxy = proxy
        self.bucket = bucket
        self.runs: list[Run] = []
        self.direct = pafs.S3FileSystem(
            access_key=s3.access_key,
            secret_key=s3.secret_key,
            endpoint_override=proxy.endpoint,
            region="us-east-1",
            allow_bucket_creation=False,
        )

    def measure(self, job: str, how: str, work: Callable[[], int]) -> None:
        """Run a job and note its time, its bytes, and what the store saw of it."""
        self.proxy.reset()
        started = time.perf_counter()
        size = work()
        seconds = time.perf_counter() - started
        stats = self.proxy.stats()
        self.runs.append(Run(job, how, seconds, size, stats.GET, stats.bytes))
        self.console.print(
            f"  {job}, {how}: {seconds:.2f} s, {size / seconds / MB:,.0f} MB/s, {stats.GET} GETs",
            highlight=False,
        )

    def scan(self, filesystem: pafs.FileSystem | None, url: str) -> int:
        """A full Parquet scan in this process, with pyarrow."""
        table = pads.dataset(url, filesystem=filesystem, format="parquet")
        return sum(batch.nbytes for batch in table.to_batches())

    def scan_with_ray(self, filesystem: pafs.FileSystem | None, url: str) -> int:
        """A full Parquet scan with Ray Data, on all nodes."""
        rows = ray.data.read_parquet(url, filesystem=filesystem)
        sizes = rows.map_batches(_sizes, batch_format="pyarrow", batch_size=None)
        return int(sizes.sum("bytes"))

    def load_model_directly(self) -> int:
        """What a model loader does: read the whole file into memory."""
        with self.direct.open_input_file(f"{self.bucket}/model.safetensors") as file:
            return len(file.read())

    def load_model(self) -> int:
        """The same, through the cache."""
        with fsspec.open("raycache://demo/model.safetensors", "rb") as file:
            return len(file.read())

    def print_table(self) -> None:
        """All runs, with the factor over direct S3."""
        table = Table(title="Reading from S3, directly and through raycache")
        for column in (
            "job",
            "how",
            "seconds",
            "MB/s",
            "speed-up",
            "GETs at the store",
            "bytes from the store",
        ):
            table.add_column(column, justify="left" if column in ("job", "how") else "right")
        for run in self.runs:
            direct = next(r for r in self.runs if r.job == run.job)
            table.add_row(
                run.job if run is direct else "",
                run.how,
                f"{run.seconds:.2f}",
                f"{run.bytes / run.seconds / MB:,.0f}",
                f"{direct.seconds / run.seconds:.1f} x",
                str(run.gets),
                f"{run.store_bytes / MiB:,.0f} MiB",
                end_section=run.how == "warm",
            )
        self.console.print(table)


def _sizes(batch: Any) -> dict[str, list[int]]:
    return {"bytes": [batch.nbytes]}


def raycache_command(*arguments: str) -> None:
    """Run the command line as a user would, and show it."""
    print(f"$ raycache {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "raycache.cli", *arguments], check=True)


@contextlib.contextmanager
def cluster(
    bandwidth: float, size: int, console: Console, scratch: str, *, nodes: int, table: bool = True
) -> Iterator[tuple[SeaweedS3, ProxyProcess, str]]:
    """A slowed S3 server with a model, a Ray cluster, raycache on it, and the dataset `demo`.

    Args:
        bandwidth: of the store, bytes per second; 0: not slowed.
        size: of the model, and of the table, bytes.
        console: for what happens.
        scratch: an empty directory.
        nodes: of the Ray cluster.
        table: whether there is a Parquet table too.

    Yields:
        The server, the proxy that slows it, the bucket.
    """
    with (
        SeaweedS3(os.path.join(scratch, "s3")) as s3,
        ProxyProcess(s3.address, bandwidth) as proxy,
    ):
        bucket = s3.create_bucket("demo")
        what = "a Parquet table and a model file" if table else "a model file"
        console.print(f"Writing {what} of {size // MiB} MiB{' each' if table else ''} to S3 ...")
        with contextlib.closing(s3.client()) as client:
            if table:
                write_table(client, bucket, "table", size, files=8, scratch=scratch)
            write_model(client, bucket, "model.safetensors", size, scratch=scratch)
        spec = Path(scratch, "dataset.yaml")
        spec.write_text(
            string.Template((HERE / "dataset.yaml").read_text()).substitute(
                access_key=s3.access_key,
                secret_key=s3.secret_key,
                bucket=bucket,
                endpoint=proxy.endpoint,
                memory=os.path.join(scratch, "memory"),
                disk=os.path.join(scratch, "disk"),
            )
        )
        console.print(f"Starting a Ray cluster of {nodes} node{'s' if nodes > 1 else ''} ...")
        with ray_cluster(nodes, memory=4 << 30, object_store_memory=512 * MiB) as running:
            os.environ["RAY_ADDRESS"] = running.address
            raycache_command("start")
            try:
                raycache_command("apply", "-f", str(spec))
                yield s3, proxy, bucket
            finally:
                raycache_command("stop")


def run(bandwidth: float, size: int, console: Console) -> None:
    """The whole demo. `bandwidth` in bytes per second (0: not slowed), `size` of each data set in bytes."""
    with (
        tempfile.TemporaryDirectory(prefix="rc-") as scratch,
        cluster(bandwidth, size, console, scratch, nodes=NODES) as (s3, proxy, bucket),
    ):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        jobs(Demo(console, s3, proxy, bucket), bandwidth)
        raycache_command("get", "datasets")
        serving.part(proxy, scratch, console)


def jobs(demo: Demo, bandwidth: float) -> None:
    """Every job directly, cold and warm."""
    limit = f"{bandwidth / MB:.0f} MB/s in total" if bandwidth else "not slowed"
    demo.console.print(f"Reading (the store is {limit}):")
    admin = raycache.Admin()
    cached = raycache.arrow_filesystem()

    job = "Parquet scan, pyarrow"
    demo.measure(job, "direct S3", lambda: demo.scan(demo.direct, f"{demo.bucket}/table"))
    demo.measure(job, "cold", lambda: demo.scan(cached, "demo/table"))
    demo.measure(job, "warm", lambda: demo.scan(cached, "demo/table"))
    admin.evict("demo")

    job = "Parquet scan, Ray Data"
    # Ray starts its worker processes on first use; the first job must not pay for the others.
    demo.scan_with_ray(demo.direct, f"{demo.bucket}/table/part-000.parquet")
    demo.measure(job, "direct S3", lambda: demo.scan_with_ray(demo.direct, f"{demo.bucket}/table"))
    demo.measure(job, "cold", lambda: demo.scan_with_ray(None, "fsspec+raycache://demo/table"))
    demo.measure(job, "warm", lambda: demo.scan_with_ray(None, "fsspec+raycache://demo/table"))

    job = "model load"
    demo.measure(job, "direct S3", demo.load_model_directly)
    demo.measure(job, "cold", demo.load_model)
    demo.measure(job, "warm", demo.load_model)
    demo.print_table()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bandwidth", type=float, default=100.0, help="of the store, MB/s in total; 0: not slowed"
    )
    parser.add_argument("--size", type=int, default=512, help="of the table and of the model, MiB each")
    arguments = parser.parse_args()
    run(arguments.bandwidth * MB, arguments.size * MiB, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
