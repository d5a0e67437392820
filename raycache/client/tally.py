"""How much of what programs read was in the node's cache: counted where it is read, told to a worker now and then.

A byte counts as a *hit* unless this reader, or its readahead, had to have it brought into the node's cache (from
another worker or from the object store), or read it past that cache. Of an open object that is

    missed = past + min(read - past, brought)        hit = read - missed

so a cold scan is all missed, however well readahead hid it, what is read a second time is hit, and small reads that
bring in large blocks count with what was read. A file that is handed out whole (a mapping, a local path) counts as
read whole. A hit costs one addition; who adds it up comes by every few seconds.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable

from raycache.blocks import ObjectVersion
from raycache.errors import RaycacheError

log = logging.getLogger(__name__)

REPORT_EVERY_S = 5.0
"""Seconds between two reports of a process that reads."""

Report = Callable[[str, int, int], None]
"""Takes a dataset and the bytes hit and missed since the last report; raises RaycacheError if nobody took them."""


class Tally:
    """What was read of one open object. Threads that read at the same time may lose an addition.

    Attributes:
        read: bytes that were read; whoever reads adds to it.
        past: bytes among them that came round the node's cache.
    """

    __slots__ = ("__weakref__", "_brought", "_brought_bytes", "_told", "past", "read", "version")

    def __init__(self, version: ObjectVersion) -> None:
        self.version = version
        self.read = 0
        self.past = 0
        self._brought: bytearray | None = None
        self._brought_bytes = 0
        self._told = (0, 0)

    def bring(self, runs: Iterable[range]) -> None:
        """Note blocks that were not in the node's cache when this reader asked for them."""
        for run in runs:
            if self._brought is None:
                self._brought = bytearray(self.version.block_count)
            for block in run:
                if not self._brought[block]:
                    self._brought[block] = 1
                    self._brought_bytes += self.version.block_extent(block).length

    def news(self) -> tuple[int, int]:
        """Bytes hit and missed since this was last asked; either may be negative, when readahead was told of late."""
        read, past = self.read, self.past
        missed = past + min(max(0, read - past), self._brought_bytes)
        now, before = (read - missed, missed), self._told
        self._told = now
        return now[0] - before[0], now[1] - before[1]


class Tallies:
    """The tallies of a process's open objects. Thread-safe.

    Args:
        report: tells somebody.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._open: weakref.WeakSet[Tally] = weakref.WeakSet()
        self._untold: dict[str, tuple[int, int]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def open(self, version: ObjectVersion) -> Tally:
        """A tally for an object that is being opened."""
        tally = Tally(version)
        with self._lock:
            self._open.add(tally)
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="raycache-reads", daemon=True)
                self._thread.start()
                atexit.register(self._at_exit, os.getpid())
        return tally

    def close(self, tally: Tally) -> None:
        """The object is closed: what was read of it goes with the next report."""
        with self._lock:
            if tally in self._open:
                self._open.discard(tally)
                self._collect(tally)

    def tell(self) -> None:
        """Report what has been read since the last time. What nobody took goes with the next one."""
        with self._telling:
            with self._lock:
                for tally in self._open:
                    self._collect(tally)
                untold, self._untold = self._untold, {}
            for dataset, (hit, missed) in untold.items():
                if not hit and not missed:
                    continue
                try:
                    self._report(dataset, hit, missed)
                except RaycacheError as error:
                    log.debug("nobody was told what is read of %s: %s", dataset, error)
                    with self._lock:
                        self._add(dataset, hit, missed)

    def stop(self) -> None:
        """Report for the last time."""
        self._stopping.set()
        atexit.unregister(self._at_exit)
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.tell()

    def _at_exit(self, pid: int) -> None:
        if pid == os.getpid():  # not in a process that was forked from this one
            self.stop()

    def _collect(self, tally: Tally) -> None:
        self._add(tally.version.dataset, *tally.news())

    def _add(self, dataset: str, hit: int, missed: int) -> None:
        known = self._untold.get(dataset, (0, 0))
        self._untold[dataset] = known[0] + hit, known[1] + missed

    def _run(self) -> None:
        while not self._stopping.wait(REPORT_EVERY_S):
            self.tell()
            with self._lock:
                if not self._open and not self._untold and not self._stopping.is_set():
                    self._thread = None  # the next object that is opened starts another
                    return
