"""Where files are: what the workers hold of them, and where placement will put the rest when it is read."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raycache.api import connect
from raycache.blocks import ObjectVersion
from raycache.client import Client
from raycache.engine import MAX_ROOTS, Held, segment_size
from raycache.errors import RaycacheError
from raycache.locality.files import Urls, files_of
from raycache.membership import Worker

log = logging.getLogger(__name__)

HOLDINGS_TIMEOUT_S = 30.0
"""Longest wait for a worker to tell what it holds; one that holds a million objects needs a few seconds."""

PARALLEL = 32
"""Workers that are asked at the same time."""


@dataclass(frozen=True)
class FileHome:
    """Where the bytes of one file are.

    Args:
        version: the file.
        cached: bytes present by node and tier (MEM, SSD, HDD). Several nodes may hold the same bytes.
        planned: bytes that no node holds, by the node whose worker will keep them once somebody reads them.
        absent: bytes that no node holds, planned or not.
    """

    version: ObjectVersion
    cached: Mapping[str, Mapping[str, int]]
    planned: Mapping[str, int]
    absent: int

    def by_node(self, planned: bool = True) -> dict[str, int]:
        """Bytes by node: present, and with `planned` also those that will be."""
        found = {node: sum(tiers.values()) for node, tiers in self.cached.items()}
        if planned:
            for node, count in self.planned.items():
                found[node] = found.get(node, 0) + count
        return found


@dataclass(frozen=True)
class NodeBytes:
    """What one node has of some files.

    Args:
        node_id: Ray node id.
        tiers: bytes present, by tier (MEM, SSD, HDD).
        planned: bytes that no node holds, and that this one will keep once somebody reads them.
    """

    node_id: str
    tiers: Mapping[str, int]
    planned: int = 0

    @property
    def cached(self) -> int:
        """Bytes present, in all tiers."""
        return sum(self.tiers.values())

    @property
    def total(self) -> int:
        """Bytes present and planned."""
        return self.cached + self.planned


@dataclass(frozen=True)
class Locality:
    """Where the bytes of some files are.

    Args:
        files: number of files.
        size: their bytes.
        not_cached: bytes among them that no node holds.
        nodes: the nodes that hold or will hold any, most bytes first.
    """

    files: int
    size: int
    not_cached: int
    nodes: tuple[NodeBytes, ...]

    def by_node(self, planned: bool = True) -> dict[str, int]:
        """Bytes by node id, most first: present, and with `planned` also those that will be."""
        found = {node.node_id: node.total if planned else node.cached for node in self.nodes}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def nodes_for(urls: Urls) -> Locality:
    """Bytes of files by Ray node and tier: what workers really hold, asked now, and what placement says of the rest.

    The same bytes count on each node that has a copy. Each worker is asked once, however many files there are.

    Args:
        urls: `raycache://dataset/path` of files and directories, patterns of them, or `dataset/path`.

    Raises:
        ClusterUnavailableError: no cluster, or no raycache on it.
        SpecError, PathError: not URLs of raycache.
        DatasetNotFoundError, ObjectNotFoundError: there is nothing of that name.
        AccessDeniedError, UnderStoreError: it cannot be listed.
    """
    client = connect()
    return summary(homes_of(client, list(dict.fromkeys(files_of(client, urls)))))


def summary(homes: Sequence[FileHome]) -> Locality:
    """The sum over files."""
    tiers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    planned: dict[str, int] = defaultdict(int)
    for home in homes:
        for node, held in home.cached.items():
            for medium, count in held.items():
                tiers[node][medium] += count
        for node, count in home.planned.items():
            planned[node] += count
    nodes = [
        NodeBytes(node, dict(sorted(tiers.get(node, {}).items())), planned.get(node, 0))
        for node in tiers.keys() | planned.keys()
    ]
    return Locality(
        files=len(homes),
        size=sum(home.version.size for home in homes),
        not_cached=sum(home.absent for home in homes),
        nodes=tuple(sorted(nodes, key=lambda node: (-node.total, node.node_id))),
    )


def homes_of(client: Client, versions: Sequence[ObjectVersion]) -> list[FileHome]:
    """Where each of some files is, in their order. A worker that does not answer holds nothing, for all one knows."""
    client.peers.refresh()
    by_dataset: dict[str, list[ObjectVersion]] = defaultdict(list)
    for version in versions:
        by_dataset[version.dataset].append(version)
    copies: dict[str, list[tuple[str, Held]]] = defaultdict(list)
    for dataset, wanted in by_dataset.items():
        ids = {version.object_id for version in wanted}
        for node_id, held in _ask_all(client, dataset, wanted):
            for one in held:
                if one.object_id in ids:
                    copies[one.object_id].append((node_id, one))
    return [_home(client, version, copies.get(version.object_id, [])) for version in versions]


def _ask_all(client: Client, dataset: str, wanted: Sequence[ObjectVersion]) -> list[tuple[str, list[Held]]]:
    workers = [worker for worker in client.peers.membership.workers_for(dataset) if worker.node_id]
    if not workers:
        return []
    payload = {"dataset": dataset, "paths": roots_of([version.path for version in wanted])}

    def ask(worker: Worker) -> tuple[str, list[Held]]:
        try:
            answer = client.peers.call(worker, "holdings", payload, HOLDINGS_TIMEOUT_S)
            return worker.node_id, [Held.from_wire(item) for item in answer["held"]]
        except RaycacheError as error:
            log.info("what %s holds of %s is not known: %s", worker.address, dataset, error)
            return worker.node_id, []

    with ThreadPoolExecutor(min(PARALLEL, len(workers)), thread_name_prefix="raycache-held") as pool:
        return list(pool.map(ask, workers))


def roots_of(paths: Sequence[str]) -> list[str]:
    """At most `MAX_ROOTS` paths at or below which all the given ones lie: directories instead of many files."""
    roots = set(paths)
    while len(roots) > MAX_ROOTS:
        deepest = max(path.count("/") for path in roots)
        roots = {path.rpartition("/")[0] if path.count("/") == deepest else path for path in roots}
    return sorted(roots)


def _home(client: Client, version: ObjectVersion, copies: Sequence[tuple[str, Held]]) -> FileHome:
    cached: dict[str, dict[str, int]] = defaultdict(dict)
    lacking = [segment_size(version, segment) for segment in range(version.segment_count)]
    fullest = [0] * len(lacking)
    for node, held in copies:
        count = sum(held.segments)
        cached[node][held.medium] = cached[node].get(held.medium, 0) + count
        for segment, present in enumerate(held.segments[: len(fullest)]):
            fullest[segment] = max(fullest[segment], present)
    # Which blocks are present is not told, only how many: a segment lacks what its fullest copy lacks.
    lacking = [size - most for size, most in zip(lacking, fullest, strict=True)]
    planned: dict[str, int] = defaultdict(int)
    membership = client.peers.membership
    placement = membership.placement(version.dataset) if any(lacking) else None
    if placement is not None:
        for worker_id, count in zip(placement.owners(version), lacking, strict=True):
            worker = membership.worker(worker_id)
            if count and worker is not None and worker.node_id:
                planned[worker.node_id] += count
    return FileHome(version, dict(cached), dict(planned), sum(lacking))
