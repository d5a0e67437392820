"""A DataLoad: fetch paths of a dataset into the cache ahead of use, and count afterwards what is really there.

The coordinator only asks: each segment's owner is told to have its blocks (`ensure`), then the next workers
along the ring are, for further copies, which they take from the owner. No data passes through here. A worker
refuses what does not fit beside the rest of the load, before it fetches it, and keeps what it has taken until the
load has ended. Whatever an answer said, a load is complete only when the workers, asked at the end, hold every byte.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from raycache.blocks import FileInfo, MiB, ObjectVersion
from raycache.engine import Keep, Peers, ensure_to_wire
from raycache.errors import (
    CacheFullError,
    DatasetNotFoundError,
    OperationFailedError,
    RaycacheError,
    WorkerUnavailableError,
)
from raycache.membership import Worker
from raycache.operations import Missing

log = logging.getLogger(__name__)

WINDOW = 64 * MiB
"""Bytes that one request waits for: the step of the progress, and far below every timeout."""

PER_WORKER = 4
"""Requests in flight per worker; each is itself up to eight ranged GETs."""

MAX_PARALLEL = 64
"""Requests in flight per load."""

ENSURE_TIMEOUT_S = 300.0
VERIFY_TIMEOUT_S = 60.0
RELEASE_TIMEOUT_S = 10.0
METADATA_TIMEOUT_S = 60.0

VERIFY_BATCH = 2000
"""Segments per question at the end: about 700 KiB of a request's 4 MiB."""

ROUNDS = 8
"""How often at most what is missing at the end is fetched: workers may have died or come while it ran."""

ROUND_PAUSE_S = 3.0
"""Seconds between rounds when a worker did not answer: Ray needs about two to restart it."""

_AWAY = WorkerUnavailableError.__name__

Replicas = int | Literal["all"]


class Names(Protocol):
    """What a load needs of a `raycache.client.Client`."""

    @property
    def peers(self) -> Peers:
        """The workers."""

    def walk(self, dataset: str, path: str = "") -> Iterable[FileInfo]:
        """All files at or below a path."""

    def invalidate(self, dataset: str, path: str = "") -> None:
        """Forget what is known of names."""


@dataclass(frozen=True)
class Target:
    """One path to load, and on how many nodes."""

    path: str
    replicas: Replicas = 1


@dataclass(frozen=True)
class Outcome:
    """How a load ended.

    Args:
        bytes_cached: bytes that are cached, all copies counted.
        missing: what is not.
    """

    bytes_cached: int
    missing: tuple[Missing, ...]


class Cancelled(RaycacheError):
    """The load was deleted while it ran."""


@dataclass(frozen=True)
class _Part:
    """A segment, and how many copies of it are wanted."""

    version: ObjectVersion
    segment: int
    copies: int

    @property
    def blocks(self) -> range:
        return self.version.blocks_of_segment(self.segment)

    @property
    def size(self) -> int:
        return self.version.extent_of(self.blocks).length


class Load:
    """One run of a load.

    Args:
        client: names and workers. Its membership should be kept up to date while the load runs.
        dataset: the dataset's name.
        targets: what to load.
        load_metadata: forget first what workers believe of the names.
        sized: called with (files, bytes, final) as the listing goes on.
        progressed: called with the bytes that are there, all copies counted.
        cancelled: set it to end the load.
    """

    def __init__(
        self,
        client: Names,
        dataset: str,
        targets: Sequence[Target],
        *,
        load_metadata: bool = False,
        sized: Callable[[int, int, bool], None],
        progressed: Callable[[int], None],
        cancelled: threading.Event,
    ) -> None:
        self._client = client
        self._dataset = dataset
        self._targets = targets
        self._load_metadata = load_metadata
        self._id = uuid.uuid4().hex
        self._sized = sized
        self._progressed = progressed
        self._cancelled = cancelled
        self._reasons: dict[str, str] = {}
        """Why something is missing, by path: what the last round met."""

    def run(self) -> Outcome:
        """Load, and count.

        Raises:
            OperationFailedError: no worker holds the dataset, or fewer than the copies wanted.
            Cancelled: it was cancelled.
            ObjectNotFoundError, AccessDeniedError, UnderStoreError: the store could not be listed.
        """
        holders = len(self._holders())
        if not holders:
            raise OperationFailedError(
                "no worker holds the dataset",
                where=self._dataset,
                hint="`raycache describe dataset` tells why",
            )
        if self._load_metadata:
            self._forget_names()
        parts = self._list(holders)
        try:
            return self._run(parts, holders)
        finally:
            self._release()

    def _run(self, parts: Sequence[_Part], holders: int) -> Outcome:
        total = sum(part.size * part.copies for part in parts)
        absent = self._absent(parts)
        # What is there comes first, so that it is kept, and not pushed out by what would take its place: nothing
        # is fetched before all of it is.
        there, todo = _split(parts, absent)
        self._fetch(there, holders, 0, total)
        done = sum(part.size * part.copies for part in there)
        for attempt in range(ROUNDS):
            if attempt and self._cancelled.wait(ROUND_PAUSE_S if self._unsteady() else 0):
                break
            self._reasons.clear()
            self._fetch(todo, holders, done, total)
            absent = self._absent(parts)
            (_, todo), done = _split(parts, absent), total - sum(absent.values())
            self._progressed(done)
            if not todo or not self._worth_repeating(attempt):
                break
        self._check_cancelled()
        return Outcome(done, self._missing(absent))

    # -- what there is ------------------------------------------------------------------------------------

    def _holders(self) -> list[Worker]:
        membership = self._client.peers.membership
        owning = membership.weights_for(self._dataset)  # not those that are leaving
        return [worker for worker in membership.workers_for(self._dataset) if worker.id in owning]

    def _forget_names(self) -> None:
        for target in self._targets:
            path = target.path.strip("/")
            self._client.invalidate(self._dataset, path)
            for worker in self._holders():
                try:
                    payload = {"dataset": self._dataset, "path": path, "hop": True}
                    self._client.peers.call(worker, "invalidate", payload, METADATA_TIMEOUT_S)
                except (WorkerUnavailableError, DatasetNotFoundError) as error:
                    log.info("names at %s not forgotten: %s", worker.address, error)  # it has none, then

    def _list(self, holders: int) -> list[_Part]:
        """Every segment of every file, and the number of its copies; the same file named twice counts once."""
        copies: dict[ObjectVersion, int] = {}
        size = 0
        for target in self._targets:
            wanted = holders if target.replicas == "all" else target.replicas
            if wanted > holders:
                raise OperationFailedError(
                    f"{wanted} copies are wanted and {_nodes(holders)} the dataset",
                    where=f"{self._dataset}/{target.path.strip('/')}",
                    hint="lower replicas, or raise those of the CacheRuntime",
                )
            for info in self._client.walk(self._dataset, target.path):
                self._check_cancelled()
                if info.version is None:
                    continue
                known = copies.get(info.version, 0)
                copies[info.version] = max(known, wanted)
                size += info.size * (copies[info.version] - known)
                if len(copies) % 1000 == 0:
                    self._sized(len(copies), size, False)
        self._sized(len(copies), size, True)
        return [
            _Part(version, segment, count)
            for version, count in copies.items()
            for segment in range(version.segment_count)
        ]

    # -- fetching -----------------------------------------------------------------------------------------

    def _fetch(self, parts: Sequence[_Part], holders: int, done: int, total: int) -> None:
        """Have all parts fetched where they belong; `done` bytes of `total` are there."""
        parallel = min(MAX_PARALLEL, PER_WORKER * holders)
        with ThreadPoolExecutor(parallel, thread_name_prefix="raycache-load") as pool:
            lock = threading.Lock()

            def advance(amount: int) -> None:
                nonlocal done
                with lock:
                    done = min(done + amount, total)  # of a part some may have been there
                    self._progressed(done)

            running: set[Future[None]] = set()
            for part in parts:
                if self._cancelled.is_set():
                    break
                running.add(pool.submit(self._fetch_part, part, advance))
                if len(running) >= 2 * parallel:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
            for future in running:
                future.result()

    def _fetch_part(self, part: _Part, advance: Callable[[int], None]) -> None:
        version = part.version
        for worker in self._keepers(part):
            per_window = max(1, WINDOW // version.block_size)
            blocks = part.blocks
            for start in range(blocks.start, blocks.stop, per_window):
                if self._cancelled.is_set():
                    return
                window = range(start, min(start + per_window, blocks.stop))
                ahead = range(window.stop, min(window.stop + per_window, blocks.stop))
                try:
                    payload = ensure_to_wire(version, window, ahead, keep=Keep(self._id, blocks))
                    self._client.peers.call(worker, "ensure", payload, ENSURE_TIMEOUT_S)
                except RaycacheError as error:
                    # Counted, with its reason, at the end; other parts go on.
                    log.info("load of %s/%s at %s: %s", version.dataset, version.path, worker.address, error)
                    self._reasons[version.path] = _reason(error)
                    if isinstance(error, WorkerUnavailableError | CacheFullError):
                        break
                    return
                advance(version.extent_of(window).length)

    def _keepers(self, part: _Part) -> list[Worker]:
        """The workers that should hold a part, its owner first."""
        membership = self._client.peers.membership
        placement = membership.placement(self._dataset)
        if placement is None:
            return []
        found = [membership.worker(id) for id in placement.ranked(part.version, part.segment, part.copies)]
        return [worker for worker in found if worker is not None]

    # -- counting -----------------------------------------------------------------------------------------

    def _absent(self, parts: Sequence[_Part]) -> dict[_Part, int]:
        """Bytes of each part that its keepers do not hold, all copies counted."""
        self._client.peers.refresh()
        absent = {part: part.size * part.copies for part in parts}
        by_id: dict[str, list[_Part]] = defaultdict(list)
        workers: dict[str, Worker] = {}
        for part in parts:
            keepers = self._keepers(part)
            if len(keepers) < part.copies:
                self._reasons[part.version.path] = f"{_AWAY}: a worker that should hold it is being restarted"
            for worker in keepers:
                workers[worker.id] = worker
                by_id[worker.id].append(part)
        for worker_id, held in by_id.items():
            for start in range(0, len(held), VERIFY_BATCH):
                batch = held[start : start + VERIFY_BATCH]
                for part, count in zip(batch, self._count(workers[worker_id], batch), strict=True):
                    absent[part] -= count
        return absent

    def _count(self, worker: Worker, parts: Sequence[_Part]) -> list[int]:
        items = [
            {"version": part.version.to_wire(), "blocks": [part.blocks.start, part.blocks.stop]}
            for part in parts
        ]
        try:
            answer = self._client.peers.call(worker, "cached", {"items": items}, VERIFY_TIMEOUT_S)
        except RaycacheError as error:
            for part in parts:
                self._reasons[part.version.path] = _reason(error)
            return [0] * len(parts)
        return [int(count) for count in answer["bytes"]]

    def _missing(self, absent: Mapping[_Part, int]) -> tuple[Missing, ...]:
        by_path: dict[str, int] = defaultdict(int)
        for part, count in absent.items():
            if count:
                by_path[part.version.path] += count

        def reason(path: str) -> str:
            return self._reasons.get(path, "it was evicted again: the cache is too small, or others use it")

        return tuple(Missing(path, count, reason(path)) for path, count in sorted(by_path.items()))

    # -- going on -----------------------------------------------------------------------------------------

    def _unsteady(self) -> bool:
        return any(reason.startswith(_AWAY) for reason in self._reasons.values())

    def _worth_repeating(self, attempt: int) -> bool:
        # What the store refuses, it refuses again; one repetition shows that an owner did not merely change.
        return attempt == 0 or self._unsteady()

    def _release(self) -> None:
        """Tell the workers that what was loaded may be evicted like everything else."""
        for worker in self._client.peers.membership.workers_for(self._dataset):
            try:
                payload = {"dataset": self._dataset, "load": self._id}
                self._client.peers.call(worker, "release", payload, RELEASE_TIMEOUT_S)
            except RaycacheError as error:  # it is gone, and else it comes to the same conclusion by itself
                log.info("%s was not told of the load's end: %s", worker.address, error)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the load was deleted while it ran", where=self._dataset)


def _split(parts: Sequence[_Part], absent: Mapping[_Part, int]) -> tuple[list[_Part], list[_Part]]:
    """The parts that are there, and those of which something is absent."""
    return [part for part in parts if not absent[part]], [part for part in parts if absent[part]]


def _nodes(count: int) -> str:
    return "1 node holds" if count == 1 else f"{count} nodes hold"


def _reason(error: RaycacheError) -> str:
    """Why something is missing, in a word."""
    if isinstance(error, CacheFullError):
        return "; ".join(filter(None, (error.what, error.hint)))
    return f"{type(error).__name__}: {error}"


def targets_from_wire(spec: Mapping[str, Any]) -> list[Target]:
    """The targets in an operation's spec."""
    return [Target(target["path"], target["replicas"]) for target in spec["target"]]
