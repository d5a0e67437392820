"""The journal: what a server has to know of the servers before it.

An append-only file of records (`records.py`). It has to survive processes, not the machine: nothing is fsynced,
and it lies on a tmpfs where there is one. Records queue in the order in which things happened and are written by
`flush`, all that wait in one write(2), before the kernel is answered. A kill leaves at worst one torn record at
the end, of something that was never answered; replay cuts it off.

When history outweighs what is alive, `compact` writes the state to a new file and renames it. Readers of the
tables wait for a copy of them, not for the writing: what is recorded meanwhile goes to the old file, and to the
new one before the rename. So at every moment the file of that name is whole.

A journal that cannot be written fails nobody. It is said once and counted, records are dropped, and compaction is
tried again from time to time: it needs no history. Ids stay unique even if the file is lost: each server of a
mount starts at a number no server before it can have reached.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from raycache.fuse.records import State, decode, encode

_log = logging.getLogger(__name__)

GENERATION_BITS = 40
"""A server's node ids and handles start at its generation shifted by this: 2^40 of them take a server that makes
a million nodes a second 12 days, and 2^23 servers pass before an inode number would look negative."""

COMPACT_ABOVE = 1 << 20
"""Bytes of journal below which it is left alone."""

COMPACT_FACTOR = 4
"""How much larger than what is alive it may grow."""

RETRY_S = 10.0
"""Seconds after a failed write until compaction is due again."""

_ENTRY_BYTES = 150
"""A guess at the bytes of one node's record, until a compaction has told."""

_CUT = b"cut"
"""Stands in the queue between what a snapshot holds and what came later. Compared by identity."""


class Source(Protocol):
    """The tables whose changes are recorded (`Handles`)."""

    @property
    def entries(self) -> int:
        """Number of nodes and handles that are alive."""

    def snapshot(self, cut: Callable[[], object]) -> State:
        """A copy of the tables; calls `cut` at the moment from which on changes are not in it."""


def replay(path: str) -> State:
    """The state that a journal leads to: what its records say up to the first that is torn or corrupt.

    Never raises: a journal that cannot be read is logged, and is as good as empty.
    """
    return _replay(path)[0]


def _replay(path: str) -> tuple[State, bool]:
    """The state, and whether there was a journal."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return State(), False
    except OSError as error:
        _log.warning("%s: cannot be read, files that are open now will not go on: %s", path, error)
        return State(), True
    state, end = decode(data)
    if end < len(data):
        _log.warning("%s: %d bytes from %d on are torn or corrupt and left out", path, len(data) - end, end)
    return state, True


class Journal:
    """One mount's journal, open for writing. Thread-safe. Made by `open`.

    Attributes:
        degraded: whether what is on disk is not what is true, because a write failed.
        failures: how many writes and compactions failed.
        lost: how many records were dropped while degraded.
    """

    def __init__(self, path: str, generation: int, clock: Callable[[], float]) -> None:
        self.degraded = True
        self.failures = 0
        self.lost = 0
        self._path = path
        self._generation = generation
        self._clock = clock
        self._source: Source | None = None
        self._queue: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._compacting = threading.Lock()
        self._since: list[bytes] | None = None
        """What was recorded since the cut, while a compaction is under way."""
        self._fd = -1
        self._size = 0
        self._entry_bytes = float(_ENTRY_BYTES)
        self._retry_at = 0.0
        self._said = False

    @classmethod
    def open(
        cls, path: str, *, generation: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> tuple[Journal, State]:
        """Restore what a journal holds, and write it anew for this server.

        Args:
            path: the file. Remove it before the first server of a mount: its ids are another connection's.
            generation: how many servers of this mount the supervisor has started before. The journal counts them
                too, and the higher number is taken.
            clock: seconds, monotonic.

        Returns:
            The journal, and the state to make the tables from. Never raises OSError: see `degraded`.
        """
        state, found = _replay(path)
        state.generation = max(generation, state.generation + 1 if found else 0)
        state.next_node = max(state.next_node, state.generation << GENERATION_BITS)
        state.next_handle = max(state.next_handle, state.generation << GENERATION_BITS)
        journal = cls(path, state.generation, clock)
        journal._rewrite(state)
        return journal, state

    def attach(self, source: Source) -> None:
        """Say whose changes these are. Before the first `compact`."""
        self._source = source

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    @property
    def due(self) -> bool:
        """Whether `compact` is worth its while: to be asked now and then, after the kernel was answered."""
        source = self._source
        if source is None or self._clock() < self._retry_at:
            return False
        alive = source.entries * self._entry_bytes
        return self.degraded or self._size > max(COMPACT_ABOVE, COMPACT_FACTOR * alive)

    def add(self, record: bytes) -> None:
        """Queue a record. No I/O: tables call it under their locks, so that records are in order."""
        self._queue.append(record)

    def flush(self) -> None:
        """Write what is queued, also by other threads. When it returns, what this thread added is written, or
        the journal is `degraded`."""
        with self._lock:
            self._drain()

    def compact(self) -> bool:
        """Write what is alive to a new file and take it instead of this one. False if it could not be done, or
        another thread is at it."""
        if not self._compacting.acquire(blocking=False):
            return False
        try:
            return self._compact()
        finally:
            self._compacting.release()

    def close(self) -> None:
        """Write what is queued and close the file. What is added later is dropped."""
        with self._compacting, self._lock:
            self._drain()
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self.degraded = True
            self._source = None

    def _drain(self) -> None:
        batch: list[bytes] = []
        while self._queue:
            record = self._queue.popleft()
            if record is _CUT:
                self._since = []
                continue
            batch.append(record)
            if self._since is not None:
                self._since.append(record)
        if self.degraded:
            self.lost += len(batch)
        elif batch:
            data = b"".join(batch)
            try:
                _append(self._fd, data)
            except OSError as error:
                # After a short write the file ends in a torn record: nothing may follow it.
                self.lost += len(batch)
                self._failed(error)
                self.degraded = True
            else:
                self._size += len(data)

    def _compact(self) -> bool:
        source = self._source
        if source is None:
            return False
        try:
            state = source.snapshot(lambda: self._queue.append(_CUT))
            state.generation = self._generation
            return self._rewrite(state)
        finally:
            with self._lock:
                self._drain()  # with it the cut, where it is still queued
                self._since = None

    def _rewrite(self, state: State) -> bool:
        data = encode(state)
        entries = len(state.nodes) + len(state.handles)
        temporary = self._path + ".new"
        fd = -1
        try:
            fd = _create(temporary)
            _append(fd, data)
            with self._lock:
                self._drain()
                rest = b"".join(self._since or ())
                if rest:
                    _append(fd, rest)
                os.replace(temporary, self._path)
                fd, self._fd = self._fd, fd
                self._since = None
                self._size = len(data) + len(rest)
                self._entry_bytes = len(data) / entries if entries else _ENTRY_BYTES
                self.degraded = False
                said, self._said = self._said, False
            if said:
                _log.warning("%s: the journal is whole again", self._path)
            return True
        except OSError as error:
            self._failed(error)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return False
        finally:
            if fd >= 0:
                os.close(fd)

    def _failed(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "%s: the journal cannot be written; reads go on, but files that are open may not survive a crash "
                "of the server until it can: %s",
                self._path,
                error,
            )
        self.failures += 1
        self._retry_at = self._clock() + RETRY_S


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _append(fd: int, data: bytes) -> None:
    """One write(2). Raises OSError also for a short one: the disk is full, or the file at its limit."""
    written = os.write(fd, data)
    if written < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
