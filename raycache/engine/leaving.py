"""A worker leaves a dataset: what only it has goes to the workers that own it now, in the background of serving.

It goes through its objects, those used last first, and has the owner of each segment take what that one lacks. The
owner fetches it (`Engine.take`), so that it keeps no more than it has room for without evicting anything: what was
used there is worth no less than what comes. So the worker that leaves only says what there is, and serves it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from raycache.blocks import ObjectVersion, runs
from raycache.engine.peers import Peers
from raycache.engine.volume import Volume
from raycache.errors import RaycacheError

log = logging.getLogger(__name__)

MOVE_SIZE = 8 << 20
"""Bytes that an owner is asked to take at a time: as much as one fetch brings (`fetch.FETCH_SIZE`)."""

MOVE_PARALLEL = 3
"""Runs on their way at a time, of one dataset: enough to keep a link busy, and a fifth of the streams that a worker has
for its readers (`fetch.PEER_PARALLEL`)."""

TAKE_TIMEOUT_S = 60.0
"""Longest wait for an owner that takes a run."""

PASSES = 3
"""How often it is gone through what there is. The second time finds what readers brought in meanwhile and asks those
again that did not answer."""

PAUSE_S = 1.0
"""Seconds before it is gone through again, if somebody did not answer: a worker that was restarted is back by then."""

NOBODY = "no other worker holds the dataset"
NO_ROOM = "no room at its owner"
LATE = "the time was up"


@dataclass
class Progress:
    """How far it is; bytes.

    Args:
        total: what there was to look at.
        moved: went to its owners.
        elsewhere: its owners had it already.
        left: stays behind, by reason; while it goes on: what could not be moved so far.
        ended: whether that was all.
    """

    total: int = 0
    moved: int = 0
    elsewhere: int = 0
    left: dict[str, int] = field(default_factory=dict)
    ended: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "bytes_total": self.total,
            "bytes_moved": self.moved,
            "bytes_elsewhere": self.elsewhere,
            "bytes_left": dict(self.left),
            "ended": self.ended,
        }


class Leaving:
    """Moves a dataset away, in threads of its own, until all is moved, the time is up, or it is stopped.

    Args:
        volume: what leaves. Its worker must own nothing of it any more.
        peers: the others.
        timeout_s: seconds after which the rest is left behind.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        volume: Volume,
        peers: Peers,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._peers = peers
        self._clock = clock
        self._deadline = clock() + timeout_s
        self._lock = threading.Lock()
        self._progress = Progress()
        self._settled: set[tuple[str, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raycache-leaving", daemon=True)
        self._thread.start()

    def report(self) -> Progress:
        """How far it is."""
        with self._lock:
            now = self._progress
            return Progress(now.total, now.moved, now.elsewhere, dict(now.left), now.ended)

    def stop(self) -> None:
        """Move nothing more. Waits for what is on its way."""
        self._stop.set()
        self._thread.join(TAKE_TIMEOUT_S)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it has not within `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- threads ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        name = self._volume.dataset.name
        try:
            for _ in range(PASSES):
                if not self._pass() or self._stop.wait(PAUSE_S if self._progress.left else 0.0):
                    break
        except Exception as error:
            # Nobody is above this thread, and whoever waits must hear that it has ended.
            log.exception("moving dataset %s away", name)
            with self._lock:
                self._progress.left = {f"internal error: {type(error).__name__}": self._progress.total}
        with self._lock:
            self._progress.ended = True
        log.info("dataset %s: %s", name, self._progress)

    def _pass(self) -> bool:
        """Go through all there is once; whether there was anything to do."""
        work = [one for one in self._work() if (one[0].object_id, one[1].start) not in self._settled]
        if not work:
            return False
        with self._lock:
            # What could not be moved the last time is tried again: it counts once.
            self._progress.left = {}
            known = self._progress.moved + self._progress.elsewhere
            self._progress.total = known + sum(v.extent_of(run).length for v, run in work)
        rest = iter(work)
        threads = [
            threading.Thread(target=self._move_all, args=(rest,), name="raycache-leaving-move", daemon=True)
            for _ in range(MOVE_PARALLEL)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return True

    def _work(self) -> Iterator[tuple[ObjectVersion, range]]:
        """What there is, in runs of one segment each, in the order in which it should go."""
        store = self._volume.store
        for version in store.by_use():
            present = store.contains(version)
            most = max(1, MOVE_SIZE // version.block_size)
            for segment in range(version.segment_count):
                blocks = [block for block in version.blocks_of_segment(segment) if present[block]]
                for run in runs(blocks, most):
                    yield version, run

    def _move_all(self, work: Iterator[tuple[ObjectVersion, range]]) -> None:
        while True:
            with self._lock:
                item = next(work, None)
            if item is None:
                return
            if self._stop.is_set():
                self._note(*item, left="it was stopped")
                continue
            try:
                self._move(*item)
            except RaycacheError as error:
                log.info("blocks %s of %s not moved: %s", item[1], item[0].path, error)
                self._note(*item, left=error.what)
            except Exception as error:  # must not end the thread, and with it the move
                log.exception("moving blocks %s of %s", item[1], item[0].path)
                self._note(*item, left=f"internal error: {type(error).__name__}")

    def _move(self, version: ObjectVersion, run: range) -> None:
        left_s = self._deadline - self._clock()
        if left_s <= 0:
            self._note(version, run, left=LATE)
            return
        owner = next(iter(self._peers.owners(version, version.segment_of(run.start))[:1]), None)
        if owner is None or owner.id == self._peers.self_id:
            self._note(version, run, left=NOBODY)
            return
        membership = self._peers.membership
        payload = {
            "version": version.to_wire(),
            "blocks": [run.start, run.stop],
            "source": self._peers.self_id,
            "epoch": membership.epoch,
        }
        answer = self._peers.call(owner, "take", payload, min(TAKE_TIMEOUT_S, left_s + 1.0))
        moved, refused = int(answer["taken"]), int(answer["refused"])
        self._note(version, run, moved=moved, refused=refused)

    def _note(
        self, version: ObjectVersion, run: range, *, moved: int = 0, refused: int = 0, left: str = ""
    ) -> None:
        length = version.extent_of(run).length
        with self._lock:
            progress = self._progress
            if left:
                progress.left[left] = progress.left.get(left, 0) + length
                return
            progress.moved += moved
            progress.elsewhere += length - moved - refused
            if refused:
                progress.left[NO_ROOM] = progress.left.get(NO_ROOM, 0) + refused
            else:
                self._settled.add((version.object_id, run.start))
