"""The read path without Ray: a client with an engine of its own, or several workers with real Flight servers, all
in this process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from raycache.blocks import KiB, MiB, ObjectVersion
from raycache.client import Client, ClusterState
from raycache.engine import Engine, EngineService, Peers
from raycache.flight import FlightServer, PeerPool
from raycache.membership import Membership, Worker
from raycache.metrics import Metrics
from raycache.spec import MountSource, ResolvedDataset, TierSpec
from raycache.store import LocalStore, TierConfig

BLOCK = 64 * KiB
"""Bytes per block of the datasets below: the smallest allowed."""

PATIENCE_S = 60.0
"""Longest wait for another thread; reached only when a test fails."""

SECRET_OPTIONS = frozenset({"access_key_id", "secret_access_key", "session_token"})


def a_bucket(parent: Path, data: bytes) -> Path:
    """An under-store: a directory with one object `a`."""
    directory = parent / "bucket"
    directory.mkdir()
    (directory / "a").write_bytes(data)
    return directory


def dataset_of(
    name: str, mounts: Mapping[str, str], options: Mapping[str, str] | None = None, **changes: Any
) -> ResolvedDataset:
    """A dataset as the spec resolves one.

    Args:
        name: its name.
        mounts: what is mounted, by path; "" is the root.
        options: canonical options of every mount.
        changes: other fields of `ResolvedDataset`.
    """
    options = options or {}
    changes.setdefault("block_size", BLOCK)
    return ResolvedDataset(
        name=name,
        mounts=[
            MountSource(
                path=path,
                uri=uri,
                options={key: value for key, value in options.items() if key not in SECRET_OPTIONS},
                secret_options={
                    key: SecretStr(value) for key, value in options.items() if key in SECRET_OPTIONS
                },
            )
            for path, uri in mounts.items()
        ],
        tiers=[TierSpec(medium="MEM", path="/unused", quota=64 * MiB)],
        **changes,
    )


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes in which no two places look alike."""
    return random.Random(seed).randbytes(size)


class Read(NamedTuple):
    """One read of the object store."""

    path: str
    offset: int
    length: int


class Spy:
    """Watches what an engine reads from the object store.

    Attributes:
        reads: what was read, in the order in which it began.
        before: called before each read, in the reading thread; may wait or raise.
    """

    def __init__(self, engine: Engine, dataset: str) -> None:
        self.reads: list[Read] = []
        self.before: Callable[[Read], None] = lambda read: None
        source = engine.volume(dataset).source
        original_read, original_pour = source.read, source.pour

        def read(version: ObjectVersion, offset: int, length: int) -> Any:
            self.reads.append(Read(version.path, offset, length))
            self.before(self.reads[-1])
            return original_read(version, offset, length)

        def pour(version: ObjectVersion, offset: int, length: int, sink: Any) -> None:
            self.reads.append(Read(version.path, offset, length))
            self.before(self.reads[-1])
            original_pour(version, offset, length, sink)

        source.read = read  # type: ignore[method-assign]
        source.pour = pour  # type: ignore[method-assign]

    @property
    def bytes(self) -> int:
        """Bytes that were asked for."""
        return sum(read.length for read in self.reads)


class Embedded:
    """An embedded cache.

    Args:
        tier: directory of its one tier, or several, fastest first.
        datasets: what it serves, each from a store of its own below `tier`.
        quota: bytes of each tier.
    """

    def __init__(self, tier: Path | list[Path], *datasets: ResolvedDataset, quota: int = 1024 * MiB) -> None:
        self.metrics = Metrics()
        self._tiers = tier if isinstance(tier, list) else [tier]
        self._quota = quota
        self.engine = Engine(Peers(PeerPool(""), Membership()), self.metrics)
        self.stores: dict[str, LocalStore] = {}
        self.spies: dict[str, Spy] = {}
        for dataset in datasets:
            self.attach(dataset)
        state = ClusterState(Membership(), {dataset.name: dataset for dataset in datasets})
        self.client = Client(state, engine=self.engine)

    def attach(self, dataset: ResolvedDataset) -> None:
        """Serve a dataset."""
        store = open_store(self._tiers, dataset, self._quota, self.metrics)
        self.stores[dataset.name] = store
        self.engine.attach(dataset, store)
        self.spies[dataset.name] = Spy(self.engine, dataset.name)

    def files(self, dataset: str = "ds") -> list[Path]:
        """Data files of a dataset's store."""
        return data_files(self.stores[dataset])

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, and with it the engine and the stores."""
        self.client.close()


class Node:
    """A cache worker: an engine, its store and its Flight server.

    Args:
        root: where its tier is.
        dataset: what it serves.
        number: tells it from the others.
        quota: bytes of its tier.
    """

    def __init__(self, root: Path, dataset: ResolvedDataset, number: int, quota: int) -> None:
        self.metrics = Metrics()
        self.engine = Engine(Peers(PeerPool(""), Membership(), self_id=f"worker-{number}"), self.metrics)
        self.store = open_store([root / str(number)], dataset, quota, self.metrics)
        self.engine.attach(dataset, self.store)
        self.spy = Spy(self.engine, dataset.name)
        self.service = EngineService(self.engine, dict)
        self.server = FlightServer("127.0.0.1", actions=self.service.actions, stream=self.service.stream)
        self.server.start()
        self.worker = Worker(
            id=f"worker-{number}",
            address=self.server.address,
            host_id=f"host-{number}",
            weights={dataset.name: quota},
            stores={dataset.name: self.store.paths},
        )

    def close(self) -> None:
        """End it."""
        self.server.close()
        self.engine.close()
        self.engine.peers.close()


class Workers:
    """Several workers, and clients of them.

    Args:
        root: where their tiers are.
        dataset: what they serve.
        count: number of workers.
        quota: bytes of each one's tier.
    """

    def __init__(
        self, root: Path, dataset: ResolvedDataset, count: int = 2, *, quota: int = 256 * MiB
    ) -> None:
        self.dataset = dataset
        self.nodes = [Node(root, dataset, number, quota) for number in range(count)]
        self._clients: list[Client] = []
        membership = Membership()
        for node in self.nodes:
            membership = membership.with_worker(node.worker)
        self.membership = membership.rebalanced()
        for node in self.nodes:
            node.engine.peers.update(self.membership)

    def client(self, number: int | None = None) -> Client:
        """A client on the host of a worker, or on a host without one (None). Closed with the workers."""
        state = ClusterState(self.membership, {self.dataset.name: self.dataset})
        host = "" if number is None else f"host-{number}"
        self._clients.append(Client(state, host_id=host))
        return self._clients[-1]

    def owner_of(self, version: ObjectVersion, segment: int = 0) -> int:
        """Number of the worker that owns a segment."""
        placement = self.membership.placement(self.dataset.name)
        assert placement is not None
        return int(placement.owner(version, segment).rpartition("-")[2])

    @property
    def store_bytes(self) -> int:
        """Bytes that all workers asked of the object store."""
        return sum(node.spy.bytes for node in self.nodes)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for node in self.nodes:
            node.close()


def open_store(roots: list[Path], dataset: ResolvedDataset, quota: int, metrics: Metrics) -> LocalStore:
    """A local store with a tier below each root, fastest first."""
    media = ["MEM", "SSD", "HDD"]
    configs = [
        TierConfig(media[rank], str(root / dataset.name), quota, huge_pages=False)
        for rank, root in enumerate(roots)
    ]
    return LocalStore(configs, dataset.eviction_policy, metrics)


def data_files(store: LocalStore) -> list[Path]:
    """The data files of a store."""
    return [path for root in store.paths for path in sorted(Path(root).glob("*/*.data"))]


def damage(path: Path, offset: int = 0) -> None:
    """Turn one byte of a file over."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def at_once(count: int, function: Callable[[int], Any]) -> list[Any]:
    """What `function` returns for 0 … count-1, called in as many threads that begin together.

    Raises what any of them raised.
    """
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(PATIENCE_S)
            results[number] = function(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
