"""The system under test: workers with real stores and Flight servers, clients here and there, a clock to turn."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import raycache.actors.embedding
import raycache.actors.node
import raycache.client.client
import raycache.engine.volume
from raycache.actors import cluster_state
from raycache.actors.embedding import open_embedded
from raycache.client import Client, ClusterState
from raycache.engine import MetadataCache, Peers
from raycache.errors import ClusterUnavailableError
from raycache.flight import PeerPool
from raycache.metrics import CORRUPT_BLOCKS
from raycache.spec import ResolvedDataset
from raycache.store import LocalStore
from raycache.ufs import Backoff, DatasetSource, open_store
from tests.model.fronts import ArrowFront, ClientFront, Front, FsspecFront, MountFront
from tests.model.understores import ThirdParty
from tests.support.embedded import BLOCK, PATIENCE_S, dataset_of
from tests.support.raylesscluster import RaylessCluster, with_tiers
from tests.support.stores import allocated

NAME = "ds"
NODES = ("node0", "node1")
EAGER = Backoff(deadline_s=PATIENCE_S, base_s=0.001, cap_s=0.01)


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def ruled_by(clock: Clock) -> Iterator[None]:
    """What is believed for a time, or left alone for a time, goes by this clock; who retries hardly waits."""

    def with_clock(kind: Callable[..., object]) -> object:
        return functools.partial(kind, clock=clock)

    source = functools.partial(DatasetSource, opener=functools.partial(open_store, backoff=EAGER))
    with pytest.MonkeyPatch.context() as patch:
        for module in (raycache.engine.volume, raycache.client.client):
            patch.setattr(module, "MetadataCache", with_clock(MetadataCache))
            patch.setattr(module, "DatasetSource", source)
        for module in (raycache.actors.node, raycache.client.client, raycache.actors.embedding):
            patch.setattr(module, "Peers", with_clock(Peers))
            patch.setattr(module, "PeerPool", with_clock(PeerPool))
        yield


class System:
    """A cluster of two nodes, a client on one of them, one elsewhere, and a cache without a cluster.

    Args:
        root: directory for its tiers.
        store: what to read.
        mode: `consistency.mode` of the dataset.
        ttl: its `metadataTTL`, seconds.
        blocks: blocks that fit into each tier.
    """

    def __init__(self, root: Path, store: ThirdParty, mode: str, ttl: float, blocks: int) -> None:
        self._root = root
        self._dataset = dataset_of(
            NAME, {"": store.uri}, store.options, consistency_mode=mode, metadata_ttl=ttl
        )
        self._blocks = blocks
        self._reachable = True
        self._cluster = RaylessCluster(len(NODES))
        self._cluster.hold(self._sized(blocks))
        self._clients = {"near": self._client(NODES[0]), "far": self._client("")}
        self._clients["own"] = open_embedded(
            [self._dataset], str(root / "own"), self._sized(blocks).tiers[0].quota
        )
        self.fronts: dict[str, Front] = {
            f"{cache} {kind.__name__.removesuffix('Front').lower()}": kind(cache, client, NAME)
            for cache, client in self._clients.items()
            for kind in (ClientFront, FsspecFront, ArrowFront)
        }

    def mounted(self, front: MountFront) -> None:
        """There is a mount of the same store, too."""
        self.fronts["mount"] = front

    def invalidate(self, cache: str, path: str) -> None:
        """Have a client forget names."""
        self._clients[cache].invalidate(NAME, path)

    # -- what happens to caches ---------------------------------------------------------------------------

    def evict(self, path: str) -> None:
        """Evict all versions of an object that are not in use, everywhere."""
        for store in self._stores():
            store.evict(lambda version: version.path == path)

    def resize(self, blocks: int) -> None:
        """Give every tier another quota: the dataset's spec was changed."""
        self._blocks = blocks
        self._cluster.hold(self._sized(blocks))

    # -- what happens to workers --------------------------------------------------------------------------

    @property
    def running(self) -> list[str]:
        """Nodes that have a worker."""
        return sorted(self._cluster.nodes)

    def drop(self, node: str, *, memory_goes: bool) -> None:
        """End a worker; nobody is told."""
        self._cluster.nodes.pop(node).stop("memory" if memory_goes else "nothing")

    def start(self, node: str) -> None:
        """Start a worker where there is none, over the same directories; nobody is told."""
        worker = self._cluster.nodes[node] = self._cluster.new_worker(node)
        worker.sync({NAME: self._sized(self._blocks).wire()})

    def publish(self, *, returning: bool) -> None:
        """Make known who is there; `returning`: who is away keeps his share."""
        self._cluster.publish(NODES if returning else ())

    def lose_membership(self, lost: bool) -> None:
        """Have nobody answer when clients ask for the membership, or somebody again."""
        self._reachable = not lost

    # -- what is looked at --------------------------------------------------------------------------------

    def assert_counted(self) -> None:
        """What each tier says it uses is what lies there, and no byte that was read had rotted."""
        for store in self._stores():
            for usage in store.usage():
                assert usage.used == allocated(usage.path), f"{usage.medium} of {usage.path}"
        for metrics in [node.metrics for node in self._cluster.nodes.values()] + [
            client.metrics for client in self._clients.values()
        ]:
            assert CORRUPT_BLOCKS not in metrics.snapshot()

    def close(self) -> None:
        """End everything."""
        for client in self._clients.values():
            client.close()
        self._cluster.stop("everything")
        shutil.rmtree(self._root)

    # -- inside -------------------------------------------------------------------------------------------

    def _sized(self, blocks: int) -> ResolvedDataset:
        return with_tiers(self._dataset, self._root, blocks * BLOCK, "MEM", "SSD")

    def _stores(self) -> list[LocalStore]:
        engines = [node.engine for node in self._cluster.nodes.values()]
        own = self._clients["own"]._engine
        assert own is not None
        return [engine.volume(NAME).store for engine in [*engines, own]]

    def _client(self, node: str) -> Client:
        return Client(cluster_state.read(self._cluster.kv), refresh=self._newer_state, node_id=node)

    def _newer_state(self, epoch: int) -> ClusterState | None:
        if not self._reachable:
            raise ClusterUnavailableError("nobody answers")
        return cluster_state.read_if_newer(self._cluster.kv, epoch)
