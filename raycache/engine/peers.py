"""Who holds what, and how to reach them: the membership as this process knows it, and pooled connections."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raycache.blocks import ObjectVersion
from raycache.errors import IntegrityError, RaycacheError, WorkerUnavailableError
from raycache.flight import PeerPool
from raycache.membership import Membership, Worker
from raycache.wire import StreamTicket

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 1.0
"""At most one question for a newer membership in this time, however many calls fail."""

REFRESH_PATIENCE_S = 2.0
"""Longest wait for a question that another thread has asked."""

STREAM_TIMEOUT_S = 120.0
"""Longest wait for one stream; its worker may itself be waiting for the object store."""

RECHECK_TIMEOUT_S = 10.0
"""Longest wait for a worker that is asked to check a block; somebody waits for the bytes meanwhile."""

HELD_TIMEOUT_S = 10.0
"""Longest wait for a block, or an answer, of a worker that is only asked for what it has: it waits for nobody itself,
and the object store has the bytes, too."""

FAILOVER_DEPTH = 3
"""Owners tried for a segment before the object store itself is read."""


class Peers:
    """The other workers, in the order in which a segment or a directory belongs to them.

    Args:
        pool: connections, with back-off for those that are down.
        membership: what is known at the start.
        self_id: id of this process's own worker; "" for a client.
        refresh: asks for a membership newer than the given epoch; None when there is none, or nobody to ask.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pool: PeerPool,
        membership: Membership,
        self_id: str = "",
        refresh: Callable[[int], Membership | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.self_id = self_id
        self._membership = membership
        self._refresh = refresh
        self._clock = clock
        self._refreshed_at = clock()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._unanswered = False
        self._in_vain = 0
        """The newest epoch that somebody knew of and that was not found when it was asked for."""

    @property
    def membership(self) -> Membership:
        """The newest membership this process has heard of."""
        return self._membership

    def update(self, membership: Membership) -> None:
        """Take a membership, unless an equally new one is known. Connections to workers that left are closed."""
        with self._lock:
            if membership.epoch <= self._membership.epoch:
                return
            left = {worker.address for worker in self._membership.workers}
            left -= {worker.address for worker in membership.workers}
            self._membership = membership
        if left:
            self.pool.forget(left)

    def heard_of(self, epoch: int) -> None:
        """Some answer carried `epoch`: if that is newer than what is known here, ask for it."""
        if epoch > self._membership.epoch:
            self.refresh()

    def refresh(self, wait: bool = True) -> None:
        """Ask for a newer membership, at most once a second.

        Args:
            wait: if another thread is asking, wait for what it hears. Without that, all but one of the threads
                that a lost worker fails would go on with what is old.
        """
        if self._refresh is None:
            return
        if not self._asking.locked() and self._clock() - self._refreshed_at < REFRESH_INTERVAL_S:
            return
        if not self._asking.acquire(blocking=wait, timeout=REFRESH_PATIENCE_S if wait else -1):
            return
        try:
            now = self._clock()
            if now - self._refreshed_at >= REFRESH_INTERVAL_S:
                self._ask_for_newer()
        finally:
            self._asking.release()

    def catch_up(self, epoch: int) -> None:
        """Hear of `epoch`, which somebody who asks here has heard of, before he is answered. Not put off as `refresh`
        is, except for what was asked for in vain a moment ago."""
        if self._refresh is None or epoch <= self._membership.epoch:
            return
        if epoch <= self._in_vain and self._clock() - self._refreshed_at < REFRESH_INTERVAL_S:
            return
        if not self._asking.acquire(timeout=REFRESH_PATIENCE_S):
            return
        try:
            if epoch > self._membership.epoch:
                self._ask_for_newer()
            if epoch > self._membership.epoch:
                self._in_vain = max(self._in_vain, epoch)
        finally:
            self._asking.release()

    def look(self) -> None:
        """Ask for a newer membership now, because somebody connects here who has heard of none, so that `catch_up`
        cannot tell what he may expect. After `REFRESH_PATIENCE_S` what is known has to do."""
        if self._refresh is None:
            return
        # Whom it asks may be silent for longer than he who connects waits: so in a thread that can be left alone.
        asking = threading.Thread(target=self._look, name="raycache-look", daemon=True)
        asking.start()
        asking.join(REFRESH_PATIENCE_S)

    def _look(self) -> None:
        if self._asking.acquire(timeout=REFRESH_PATIENCE_S):
            try:
                self._ask_for_newer()
            finally:
                self._asking.release()

    def _ask_for_newer(self) -> None:
        assert self._refresh is not None
        self._refreshed_at = self._clock()
        try:
            newer = self._refresh(self._membership.epoch)
            self._unanswered = False
            if newer is not None:
                self.update(newer)
        except RaycacheError as error:
            level = logging.DEBUG if self._unanswered else logging.WARNING  # once, not every second
            self._unanswered = True
            log.log(
                level, "membership not refreshed, going on with epoch %d: %s", self._membership.epoch, error
            )

    def owners(self, version: ObjectVersion, segment: int) -> list[Worker]:
        """Workers of a segment, its owner first; those that are down come last.

        Returns:
            Up to `FAILOVER_DEPTH` workers; empty when no worker holds the dataset.
        """
        membership = self._membership
        placement = membership.placement(version.dataset)
        if placement is None:
            return []
        return self._reachable_first(membership, placement.ranked(version, segment, FAILOVER_DEPTH))

    def sources(self, version: ObjectVersion, segment: int) -> list[Worker]:
        """Other workers that may have a segment, to be asked for what they hold before the object store is: its owner,
        and those that owned it before a change of the workers. None that is down."""
        membership = self._membership
        placement = membership.placement(version.dataset)
        if placement is None:
            return []
        tables = [placement, *membership.former_placements(version.dataset)]
        ids = dict.fromkeys(table.owner(version, segment) for table in tables)
        ids.pop(self.self_id, None)
        workers = [worker for id in ids if (worker := membership.worker(id)) is not None]
        return [worker for worker in workers if not self.pool.is_down(worker.address)]

    def present(self, worker: Worker, version: ObjectVersion, blocks: range) -> list[range]:
        """Which of some adjacent blocks a worker has, in runs. Raises as `call` does."""
        payload = {"version": version.to_wire(), "blocks": [blocks.start, blocks.stop]}
        answer = self.call(worker, "present", payload, HELD_TIMEOUT_S)
        try:
            found = [range(int(start), int(stop)) for start, stop in answer["runs"]]
        except (KeyError, TypeError, ValueError):
            raise RaycacheError(
                "an answer does not say which blocks there are", where=worker.address
            ) from None
        return [range(max(r.start, blocks.start), min(r.stop, blocks.stop)) for r in found]

    def reachable(self, id: str) -> bool:
        """Whether a worker is known, and has not failed to answer lately."""
        worker = self._membership.worker(id)
        return worker is not None and not self.pool.is_down(worker.address)

    def directory_owners(self, dataset: str, directory: str) -> list[Worker]:
        """Workers that keep a directory's listing, its owner first; those that are down come last."""
        membership = self._membership
        placement = membership.placement(dataset)
        if placement is None:
            return []
        return self._reachable_first(
            membership, placement.ranked_for_path(dataset, directory, FAILOVER_DEPTH)
        )

    def call(self, worker: Worker, action: str, payload: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Call an action of a worker.

        Raises:
            WorkerUnavailableError: it did not answer; it is left alone for a while.
            RaycacheError: what the worker raised.
        """
        try:
            answer = self.pool.get(worker.address).call(action, payload, timeout_s)
        except WorkerUnavailableError:
            self._lost(worker)
            raise
        self.pool.mark_up(worker.address)
        self.heard_of(int(answer.get("epoch", 0)))
        return answer

    def ask(
        self, worker: Worker, action: str, payload: dict[str, Any], timeout_s: float, epoch: int
    ) -> dict[str, Any]:
        """Call an action of a worker that answers about names (`info`, `list`).

        Args:
            worker, action, payload, timeout_s: as for `call`.
            epoch: the answer must know what was invalidated up to here. A worker that has not heard of it, and does
                not find out when it is told, gives an answer that is not to be remembered: its `ttl` is 0.
        """
        answer = self.call(worker, action, {**payload, "epoch": epoch}, timeout_s)
        if int(answer.get("as_of", 0)) < epoch:
            answer["ttl"] = 0.0
        return answer

    def stream_blocks(
        self,
        worker: Worker,
        version: ObjectVersion,
        blocks: range,
        hops: int = 0,
        held: bool = False,
        *,
        arriving: bool = False,
        shares: bool = False,
        missed: Sequence[str] = (),
    ) -> Iterator[tuple[int, memoryview]]:
        """Blocks from a worker, each with its CRC32C, which has been checked.

        Closing the generator cancels what has not arrived. The arguments are those of `StreamTicket`.

        Raises:
            As `call` does, and IntegrityError for a block whose bytes do not match its checksum, or whose length is
            wrong; with `shares`, ElsewhereError.
        """
        ticket = StreamTicket(
            version,
            blocks,
            hops,
            self._membership.epoch,
            held,
            arriving,
            asker=self.self_id,
            shares=shares,
            missed=tuple(missed),
        ).to_wire()
        timeout_s = HELD_TIMEOUT_S if held else STREAM_TIMEOUT_S
        expected = iter(blocks)
        arrived = 0
        try:
            for crc, data in self.pool.get(worker.address).stream(ticket, timeout_s):
                view = memoryview(data).cast("B")
                if arriving and not len(view):
                    continue
                block = next(expected, None)
                if block is None or len(view) != version.block_extent(block).length:
                    raise IntegrityError("a worker sent blocks that were not asked for", where=worker.address)
                yield crc, view
                arrived += 1
        except WorkerUnavailableError:
            self._lost(worker)
            raise
        except IntegrityError:
            self._report_corrupt(worker, version, blocks[arrived : arrived + 1])
            raise
        if next(expected, None) is not None:
            raise IntegrityError("a worker sent fewer blocks than asked", where=worker.address)

    def recheck(self, worker: Worker, version: ObjectVersion, blocks: range) -> None:
        """Have a worker check blocks that it keeps, and drop the bad ones. Raises as `call` does."""
        payload = {"version": version.to_wire(), "blocks": [blocks.start, blocks.stop]}
        self.call(worker, "recheck", payload, RECHECK_TIMEOUT_S)

    def close(self) -> None:
        """Close all connections."""
        self.pool.close()

    def _report_corrupt(self, worker: Worker, version: ObjectVersion, blocks: range) -> None:
        """Have a worker check a block that arrived damaged: if it is bad there, nobody must get it again."""
        try:
            self.recheck(worker, version, blocks)
        except RaycacheError as error:
            log.warning("worker %s was not told of a damaged block: %s", worker.id, error)

    def _lost(self, worker: Worker) -> None:
        log.info("worker %s at %s does not answer", worker.id, worker.address)
        self.pool.mark_down(worker.address)
        self.refresh()

    def _reachable_first(self, membership: Membership, ids: list[str]) -> list[Worker]:
        workers = [worker for id in ids if (worker := membership.worker(id)) is not None]
        return sorted(workers, key=lambda worker: self.pool.is_down(worker.address))
