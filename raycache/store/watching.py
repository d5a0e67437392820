"""Watching a tier's device: what its system calls say, and a thread that probes it while it is sick.

The thread is the tier's own, so that a device that hangs keeps up nobody but itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator

from raycache.metrics import TIER_CHANGES, TIER_ERRORS, Metrics
from raycache.store import files, health
from raycache.store.health import Health, State

_log = logging.getLogger(__name__)

PROBE = "PROBE"
"""Name of the file that a probe writes in the tier's directory."""
_PROBE_BYTES = 64 * 1024
_JOIN_S = 5.0
"""Longest wait for the prober at the end: on a device that hangs it may never come back. It is a daemon."""


def probe(directory: str) -> None:
    """Write a small file, bring it to the device, read it back, and remove it. Raises OSError."""
    path = os.path.join(directory, PROBE)
    data = os.urandom(_PROBE_BYTES)
    fd = files.create(path)
    try:
        files.pwrite_all(fd, memoryview(data), 0)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # else it is read from memory
        buffer = bytearray(_PROBE_BYTES)
        if files.pread_into(fd, memoryview(buffer), 0) != _PROBE_BYTES or buffer != data:
            raise OSError(errno.EIO, "what was written is not what is read back")
    finally:
        os.close(fd)
        files.unlink(path)


class Watch:
    """The health of one tier. Thread-safe; holds no lock over a system call.

    Args:
        directory: the tier's.
        metrics: counts errors and changes.
        clock: monotonic seconds.
    """

    def __init__(
        self, directory: str, metrics: Metrics | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._lock = threading.Lock()
        self._health = Health()
        self._since: float | None = None
        self._under_way: dict[int, float] = {}  # by thread: when its system call began
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False
        self.errors = 0
        """Errors so far."""

    # -- what the store asks ---------------------------------------------------------------------------------

    @property
    def takes_new(self) -> bool:
        """Whether anything may be written there."""
        return self._state() is State.HEALTHY

    @property
    def readable(self) -> bool:
        """Whether it is worth reading what lies there."""
        return self._state() is not State.DOWN

    def report(self) -> tuple[str, float | None, str]:
        """State, since when (seconds since the epoch; None if it was never another), and the last error or ""."""
        state = self._state()
        with self._lock:
            return str(state), self._since, self._health.error

    def why(self) -> str:
        """State and last error in words."""
        state, _, error = self.report()
        return f"the tier is {state}: {error}"

    # -- what the store tells --------------------------------------------------------------------------------

    def failed(self, error: OSError) -> None:
        """A system call on the tier's files failed. Errors that say nothing about the device are ignored."""
        if not health.is_sick(error):
            return
        self._metrics.add(TIER_ERRORS)
        with self._lock:
            self.errors += 1
            changed = self._health.failed(error, self._clock())
        if changed:
            self._changed()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Around system calls that read or write data: one that does not return is noticed, by the next thread that
        asks how the tier is."""
        me = threading.get_ident()
        inside = me in self._under_way
        if not inside:
            self._under_way[me] = self._clock()
        try:
            yield
        finally:
            if not inside:
                del self._under_way[me]

    def probe(self) -> bool:
        """Probe the device now, unless it is healthy; whether it is healthy then. Waits for the device."""
        if self._state() is State.HEALTHY:
            return True
        failure: OSError | None = None
        try:
            probe(self._directory)
        except OSError as error:
            failure = error
        with self._lock:
            if failure is None and self._longest() >= health.HANG_S:  # others still wait: it is not over
                failure = OSError(errno.ETIMEDOUT, self._health.error)
            changed = self._health.probed(failure, self._clock())
        if changed:
            self._changed()
        return failure is None

    def close(self) -> None:
        """End probing."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    # -- inside ----------------------------------------------------------------------------------------------

    def _longest(self) -> float:
        """Seconds for which the oldest system call has been under way."""
        return self._clock() - min(tuple(self._under_way.values()), default=math.inf)

    def _state(self) -> State:
        if self._under_way and self._longest() >= health.HANG_S:
            with self._lock:
                changed = self._health.hung(self._longest(), self._clock())
            if changed:
                self._changed()
        return self._health.state

    def _changed(self) -> None:
        self._metrics.add(TIER_CHANGES)
        with self._lock:
            self._since = time.time()
            state, error = self._health.state, self._health.error
            start = state is not State.HEALTHY and self._thread is None and not self._closed
            if start:
                self._thread = threading.Thread(target=self._run, name="raycache-probe", daemon=True)
                self._thread.start()
        if state is State.HEALTHY:
            _log.warning("%s: the tier is healthy again", self._directory)
        elif state is State.UNSTABLE:
            _log.warning("%s: the tier is unstable, nothing new goes there: %s", self._directory, error)
        else:
            _log.error("%s: the tier is down, reads go round it: %s", self._directory, error)

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed or self._health.state is State.HEALTHY:
                    self._thread = None
                    return
                wait_s = self._health.probe_at - self._clock()
            if wait_s > 0:
                self._wake.wait(wait_s)
            else:
                self.probe()
