"""The least rate at which the body of an answer must come.

A limit on silence alone lets a store that sends a byte every few seconds hold a read for ever. So what falls below
`LEAST_RATE` for a whole window is cut, counts as a failure of the store, and is tried again over another connection.
S3's own clients do the same (the AWS Common Runtime: `minimum_throughput_bytes_per_second` over
`allowable_throughput_failure_interval_seconds`, 1 byte/s over 30 s unless set).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from raycache.blocks import KiB

LEAST_RATE = 1 * KiB
"""Bytes per second. Of fetches that somebody waits for (8 MiB within two minutes: 70 KiB/s) it is a seventieth, so
none is cut that could have been of use, even where several streams share a slow link and one gets far less than its
part; and what a store sends that only keeps a connection open (a byte now and then) is far below it."""

WINDOW_S = 20.0
"""Seconds over which the rate is taken: as long as the silence that is allowed, because a pause of that length is no
failure by itself."""


class TooSlowError(TimeoutError):
    """The body comes at less than `LEAST_RATE`."""


class Pace:
    """Watches the body of one answer. Not thread-safe.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._bytes = 0

    def got(self, count: int) -> None:
        """Note that `count` bytes have come. Raises TooSlowError: they, and those before them, were too few."""
        self._bytes += count
        now = self._clock()
        if now - self._since < WINDOW_S:
            return
        if self._bytes < LEAST_RATE * (now - self._since):
            raise TooSlowError(f"{self._bytes} bytes in {now - self._since:.0f} s")
        self._since, self._bytes = now, 0
