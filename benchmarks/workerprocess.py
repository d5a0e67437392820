"""A cache worker, a reader, or a bare Flight server or receiver, as a process of its own and without Ray.

Each takes orders as JSON lines on its standard input and answers each with one. `Child` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raycache.actors.volumes import LocalVolume
from raycache.client import Client, ClusterState
from raycache.engine import Engine, EngineService, Peers
from raycache.flight import FlightPeer, FlightServer, PeerPool
from raycache.membership import Membership, Worker
from raycache.metrics import Metrics
from raycache.spec import ResolvedDataset
from tests.support.httpwire import RateLimit, kernel_pipe

MiB = 1 << 20
BLOCK = 4 * MiB
RELAY_CHUNK = 256 << 10
"""Bytes that a limited uplink lets through at a time: 2.6 ms at 100 MB/s."""


class Child:
    """The process that runs `main` in the given role."""

    def __init__(self, role: str, **arguments: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.workerprocess", role, json.dumps(arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.answer()

    def order(self, do: str, **arguments: Any) -> None:
        """Have it begin something; `answer` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the last order came to."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a child process has ended; its message is on standard error")
        return json.loads(line)

    def do(self, do: str, **arguments: Any) -> Any:
        """Order and answer."""
        self.order(do, **arguments)
        return self.answer()

    def close(self) -> None:
        """End it."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()


class Uplink:
    """What a worker sends passes here: TCP in both directions, at most `rate` bytes per second outwards (0: any).

    Attributes:
        sent: bytes that have gone out.
    """

    def __init__(self, port: int) -> None:
        self.limit = RateLimit(0)
        self.sent = 0
        self._to = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            for pair, outwards in (((client, server), False), ((server, client), True)):
                threading.Thread(target=self._pass, args=(*pair, outwards), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, outwards: bool) -> None:
        never = threading.Event()
        with kernel_pipe() as (out, into), contextlib.suppress(OSError):
            while count := os.splice(source.fileno(), into, RELAY_CHUNK):
                if outwards:
                    self.limit.take(count, never)
                    with self._lock:
                        self.sent += count
                while count:
                    select.select([], [target], [])
                    count -= os.splice(out, target.fileno(), count)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class WorkerRole:
    """A cache worker that serves datasets, each in a memory tier of its own."""

    def __init__(self, number: int, root: str, datasets: dict[str, Any]) -> None:
        self._metrics = Metrics()
        self._engine = Engine(Peers(PeerPool(""), Membership(), self_id=f"worker-{number}"), self._metrics)
        self._volumes = {}
        for name, wire in datasets.items():
            dataset = ResolvedDataset.from_wire(wire)
            tiers = [tier.model_copy(update={"path": f"{root}/{number}"}) for tier in dataset.tiers]
            self._volumes[name] = LocalVolume(dataset.model_copy(update={"tiers": tiers}), self._metrics)
            self._engine.attach(dataset, self._volumes[name].store)
        self._service = EngineService(self._engine, dict)
        self._server = FlightServer("127.0.0.1", actions=self._service.actions, stream=self._service.stream)
        self._server.start()
        self._uplink = Uplink(self._server.port)
        self.hello = Worker(
            id=f"worker-{number}",
            address=self._uplink.address,
            host_id=f"host-{number}",
            weights={name: volume.weight for name, volume in self._volumes.items()},
            stores={name: tuple(volume.paths) for name, volume in self._volumes.items()},
        ).to_wire()

    def membership(self, membership: dict[str, Any]) -> None:
        self._engine.peers.update(Membership.from_wire(membership))

    def share(self, on: bool) -> None:
        """Whether holders are named to those who ask."""
        self._service.tracker.enabled = on

    def limit(self, rate: float) -> None:
        self._uplink.limit.rate = rate

    def sent(self) -> int:
        return self._uplink.sent

    def metrics(self) -> dict[str, int]:
        return self._metrics.snapshot()

    def evict(self) -> None:
        for volume in self._volumes.values():
            volume.store.evict(lambda version: True)

    def touch(self, name: str, size: int) -> None:
        """Have as much memory present as the next run needs (see `harness.touch_pages`)."""
        from benchmarks.harness import touch_pages

        touch_pages(Path(self._volumes[name].paths[0]), size)

    def close(self) -> None:
        self._server.close()
        self._engine.close()
        for volume in self._volumes.values():
            volume.close("everything")
        self._engine.peers.close()


class ReaderRole:
    """A reader on the node of a worker, or on none."""

    def __init__(self, membership: dict[str, Any], datasets: dict[str, Any], host_id: str) -> None:
        known = {name: ResolvedDataset.from_wire(wire) for name, wire in datasets.items()}
        self._client = Client(ClusterState(Membership.from_wire(membership), known), host_id=host_id)
        self.hello = None

    def read(self, dataset: str, path: str) -> float:
        """Read an object from its first byte to its last; seconds."""
        started = time.perf_counter()
        with contextlib.closing(self._client.open(dataset, path)) as reader:
            position = 0
            while taken := len(reader.read_view(position, 8 * MiB)):
                position += taken
            assert position == reader.size
        return time.perf_counter() - started

    def close(self) -> None:
        self._client.close()


class BareRole:
    """Nothing but the transport: sends blocks of zeros, or writes what it is sent into a file."""

    def __init__(self, path: str) -> None:
        import crc32c

        self._path = path
        block = memoryview(bytes(BLOCK))
        crc = crc32c.crc32c(block)

        def stream(ticket: dict[str, Any]) -> Iterator[tuple[int, memoryview]]:
            for _ in range(ticket["count"]):
                yield crc, block

        self._server = FlightServer("127.0.0.1", actions={}, stream=stream)
        self._server.start()
        self.hello = self._server.address

    def pull(self, address: str, size: int) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        with FlightPeer(address) as peer:
            position = 0
            for _, data in peer.stream({"count": size // BLOCK}):
                os.pwrite(descriptor, data, position)
                position += len(data)
        os.close(descriptor)
        os.unlink(self._path)

    def close(self) -> None:
        self._server.close()


ROLES = {"worker": WorkerRole, "reader": ReaderRole, "bare": BareRole}


def main() -> None:
    """Take orders until there are none."""
    role: Any = ROLES[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(role.hello), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(role, order.pop("do"))(**order)), flush=True)
    role.close()


if __name__ == "__main__":
    main()
