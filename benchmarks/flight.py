"""Throughput and latency of the data plane between two processes on this host. Run: python -m benchmarks.flight"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crc32c

from benchmarks.harness import GiB, MiB
from raycache.flight import FlightPeer, FlightServer

BLOCKS = {"4 KiB": 4096, "4 MiB": 4 * MiB, "16 MiB": 16 * MiB}


def serve() -> None:
    """Serve zeros until standard input ends; print the address first."""
    blocks = {size: (crc32c.crc32c(bytes(size)), memoryview(bytes(size))) for size in BLOCKS.values()}

    def stream(ticket: dict[str, Any]) -> Iterator[tuple[int, memoryview]]:
        for _ in range(ticket["count"]):
            yield blocks[ticket["size"]]

    with FlightServer("127.0.0.1", actions={"echo": lambda request: request}, stream=stream) as server:
        print(server.address, flush=True)
        sys.stdin.read()


def run() -> dict[str, float]:
    """GiB/s of checked blocks for 1 and 4 streams, and microseconds of the smallest exchanges."""
    figures = {}
    command = [sys.executable, "-c", "from benchmarks.flight import serve; serve()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with FlightPeer(process.stdout.readline().strip()) as peer, ThreadPoolExecutor(4) as pool:

            def read(size: int, count: int) -> int:
                return sum(len(data) for _, data in peer.stream({"size": size, "count": count}))

            read(4 * MiB, 64)
            for streams in (1, 4):
                for name in ("4 MiB", "16 MiB"):
                    size = BLOCKS[name]
                    started = time.perf_counter()
                    total = sum(pool.map(read, [size] * streams, [GiB // size] * streams))
                    gib_per_s = total / GiB / (time.perf_counter() - started)
                    figures[f"{streams} streams of {name}, GiB/s"] = round(gib_per_s, 2)
            started = time.perf_counter()
            for _ in range(500):
                read(4096, 1)
            figures["stream of one 4 KiB block, us"] = round((time.perf_counter() - started) / 500 * 1e6)
            started = time.perf_counter()
            for _ in range(500):
                peer.call("echo")
            figures["action, us"] = round((time.perf_counter() - started) / 500 * 1e6)
        process.communicate("")
    return figures


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
