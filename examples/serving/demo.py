"""What a model server waits for: `raycache demo serving`, and the last part of `make demo`.

A server that knows only the path of its model starts on a directory that raycache has mounted: cold, after a load
(`raycache load`), three at once cold, three at once warm. The store is slowed to a stated bandwidth, and counts what
it is asked for.

    python -m examples.serving.demo [--bandwidth MB/S] [--size MIB] [--how mmap|read]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.s3proxy import ProxyProcess

MB = 1_000_000
MiB = 1 << 20
NODES = 1
SERVER = Path(__file__).with_name("server.py")
MODEL = "model.safetensors"
TOGETHER = 3


@dataclass
class Run:
    """One line of the table. Of several servers, the seconds are those of the slowest."""

    what: str
    seconds: float
    bytes: int
    gets: int
    store_bytes: int


def raycache(*arguments: str) -> str:
    """Run the command line as a user would, and show it; what it printed. Raises CalledProcessError."""
    print(f"$ raycache {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "raycache.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


@contextlib.contextmanager
def mounted(point: str) -> Iterator[str]:
    """The dataset `demo`, mounted by the command line. Raises CalledProcessError where that is not possible."""
    os.makedirs(point, exist_ok=True)
    raycache("mount", "demo", point)
    try:
        yield os.path.join(point, MODEL)
    finally:
        raycache("unmount", point)


def serve(model: str, how: str, count: int) -> tuple[float, int]:
    """Start `count` servers at once; seconds of the slowest, and bytes of all.

    Raises:
        CalledProcessError: one fails.
    """
    command = [sys.executable, "-I", "-S", str(SERVER), model, f"--how={how}"]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    said = [server.communicate()[0] for server in servers]
    for server in servers:
        if server.returncode:
            raise subprocess.CalledProcessError(server.returncode, command)
    told = [json.loads(line) for line in said]
    return max(one["seconds"] for one in told), sum(one["bytes"] for one in told)


class Experiment:
    """The article's experiment, on a cluster that has the dataset `demo` with a model in it.

    Args:
        proxy: in front of the store.
        point: directory to mount at.
        how: how servers load, see server.py.
        console: for what happens.
    """

    def __init__(self, proxy: ProxyProcess, point: str, how: str, console: Console) -> None:
        self.proxy = proxy
        self.point = point
        self.how = how
        self.console = console
        self.runs: list[Run] = []

    def measure(self, what: str, work: Callable[[], tuple[float, int]]) -> None:
        """Do something and note its seconds and bytes, and what the store saw of it."""
        self.proxy.reset()
        seconds, size = work()
        stats = self.proxy.stats()
        self.runs.append(Run(what, seconds, size, stats.GET, stats.bytes))
        self.console.print(
            f"  {what}: {seconds:.2f} s, {stats.GET} GETs, {stats.bytes / MiB:,.0f} MiB from the store",
            highlight=False,
        )

    def run(self) -> None:
        """All of it. Each cold part is a mount of its own: no page of it is in the kernel's cache either."""
        raycache("evict", "demo")
        with mounted(self.point) as model:
            self.measure("1 server, cold", lambda: serve(model, self.how, 1))
        raycache("evict", "demo")
        raycache("load", "demo", f"/{MODEL}", "--replicas", "all")  # whichever node the mount reads from
        with mounted(self.point) as model:
            self.measure("1 server, after a load", lambda: serve(model, self.how, 1))
            self.measure("the next server", lambda: serve(model, self.how, 1))
        raycache("evict", "demo")
        with mounted(self.point) as model:
            self.measure(f"{TOGETHER} servers at once, cold", lambda: serve(model, self.how, TOGETHER))
            self.measure(f"{TOGETHER} servers at once, warm", lambda: serve(model, self.how, TOGETHER))

    def print_table(self) -> None:
        """All runs, with the factor over the first: of the bytes that all servers together get in a second."""
        first = self.runs[0].bytes / self.runs[0].seconds
        table = Table(title=f"Model servers that load a file of a mount ({self.how})")
        table.add_column("what")
        for column in ("seconds", "MB/s together", "speed-up", "GETs at the store", "bytes from the store"):
            table.add_column(column, justify="right")
        for run in self.runs:
            table.add_row(
                run.what,
                f"{run.seconds:.2f}",
                f"{run.bytes / run.seconds / MB:,.0f}",
                f"{run.bytes / run.seconds / first:.1f} x",
                str(run.gets),
                f"{run.store_bytes / MiB:,.0f} MiB",
            )
        self.console.print(table)


def refusal() -> str:
    """Why this machine cannot mount; "" if nothing speaks against it."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse here"
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None:
            return "only root may mount here: there is no fusermount3"
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse may not be used by this user"
    return ""


def part(proxy: ProxyProcess, scratch: str, console: Console, how: str = "mmap") -> bool:
    """The experiment as a part of another demo, on its cluster; False, and a word, where it cannot be mounted."""
    why = refusal()
    if why:
        console.print(f"Model servers on a mount are left out: {why}.")
        return False
    console.print("Starting model servers on a mount:")
    experiment = Experiment(proxy, os.path.join(scratch, "data"), how, console)
    experiment.run()
    experiment.print_table()
    return True


def main() -> None:
    """Parse the command line and run."""
    from examples.quickstart.demo import cluster

    parser = argparse.ArgumentParser(
        prog="raycache demo serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bandwidth", type=float, default=100.0, help="of the store, MB/s in total; 0: not slowed"
    )
    parser.add_argument("--size", type=int, default=512, help="of the model, MiB")
    parser.add_argument("--how", choices=("mmap", "read"), default="mmap", help="how servers load")
    arguments = parser.parse_args()
    if why := refusal():
        sys.exit(f"the demo mounts a dataset, and cannot: {why}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="rc-") as scratch:
        running = cluster(
            arguments.bandwidth * MB, arguments.size * MiB, console, scratch, nodes=NODES, table=False
        )
        with running as (_, proxy, _):
            limit = f"{arguments.bandwidth:g} MB/s in total" if arguments.bandwidth else "not slowed"
            console.print(f"The store is {limit}.")
            if not part(proxy, scratch, console, arguments.how):
                sys.exit(1)


if __name__ == "__main__":
    main()
