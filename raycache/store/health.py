"""Whether a tier's device can be relied on, from the errors that it gives. Pure: the time is an argument.

    healthy ──SUSPECT errors in WINDOW_S, or one that says so──▶ unstable ──FAILED faults in WINDOW_S,──▶ down
       ▲                                                            │       a failed probe, or a hang     │
       └────────────────────── a probe succeeds ────────────────────┴─────────────────────────────────────┘

A tier that is *unstable* takes nothing new, and what lies in it is read on: so it is with a device that is full in
spite of the quota, or read-only, for as long as that lasts. From one that is *down* the cache does not read either.
Both are probed, less and less often. What lies in a tier is kept all the while.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from enum import StrEnum

from raycache.errors import RaycacheError

REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Nothing can be written; what is there can be read: a tier that gives only these is never down."""

FAULTS = frozenset(
    {
        errno.EIO,
        errno.EUCLEAN,  # ext4, xfs: structure needs cleaning
        errno.EBADMSG,  # ext4, xfs: a checksum of the filesystem's own
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOMEDIUM,
        errno.EREMOTEIO,
        errno.ESTALE,  # the cache directory is on NFS
        errno.ETIMEDOUT,
        errno.ESHUTDOWN,  # xfs, ext4 after a shutdown
        errno.ENOTCONN,  # the cache directory is on FUSE
    }
)
"""What a device that is broken, or gone, answers. No others count: ENOENT, EACCES or EMFILE are no sickness."""

AT_ONCE = frozenset(
    {errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.ESHUTDOWN, errno.ENOTCONN, errno.ESTALE}
)
"""Those of which one is enough to be unstable: they do not happen to a single block."""

WINDOW_S = 60.0
SUSPECT = 3
"""Errors within WINDOW_S seconds that make a tier unstable. One or two are a bad block, which is dropped."""
FAILED = 10
"""Faults within WINDOW_S seconds that take an unstable tier down."""

HANG_S = 20.0
"""Seconds after which a read or write that has not returned counts as one that never will: above what a disk's own
error recovery (7 s with ERC, some minutes without) and a congested write-back usually take, and below what a reader
waits before it goes elsewhere (120 s, `client.near`)."""

FIRST_PROBE_S = 5.0
LAST_PROBE_S = 300.0
"""Seconds until the first probe, doubled after each one that fails, or that was wrong, up to LAST_PROBE_S."""


class State(StrEnum):
    """What a tier is used for."""

    HEALTHY = "healthy"
    UNSTABLE = "unstable"
    """Read on, but nothing new goes there."""
    DOWN = "down"
    """Left alone but for probes."""


def is_sick(error: OSError) -> bool:
    """Whether an error says something about the device, and not about one file or about this process. raycache's own
    errors have numbers for POSIX callers and say nothing."""
    return not isinstance(error, RaycacheError) and (error.errno in REFUSALS or error.errno in FAULTS)


class Health:
    """The state of one tier. Not thread-safe.

    Attributes:
        state: see the module.
        error: the last error, as text; "" if there has been none.
        probe_at: when the next probe is due, in the caller's seconds; infinite while the tier is healthy.
    """

    def __init__(self) -> None:
        self.state = State.HEALTHY
        self.error = ""
        self.probe_at = math.inf
        self._recent: deque[tuple[float, bool]] = deque()  # when, and whether it was a fault
        self._delay = FIRST_PROBE_S
        self._recovered = -math.inf

    def failed(self, error: OSError, now: float) -> bool:
        """A system call on the tier's files failed; True if that changes its state. Errors that say nothing about the
        device (`is_sick`) are none."""
        if not is_sick(error):
            return False
        self._note(error.strerror or str(error), now, fault=error.errno in FAULTS)
        faults = sum(fault for _, fault in self._recent)
        if self.state is State.HEALTHY and (len(self._recent) >= SUSPECT or error.errno in AT_ONCE):
            return self._become(State.UNSTABLE, now)
        if self.state is State.UNSTABLE and faults >= FAILED:
            return self._become(State.DOWN, now)
        return False

    def hung(self, seconds: float, now: float) -> bool:
        """A system call has not returned for that long; True if that changes the state."""
        if seconds < HANG_S or self.state is State.DOWN:
            return False
        self._note(f"no answer for {seconds:.0f} s", now, fault=True)
        return self._become(State.DOWN, now)

    def probed(self, error: OSError | None, now: float) -> bool:
        """A probe ended; True if that changes the state. Any error is one here, whatever its number."""
        if self.state is State.HEALTHY:
            return False
        if error is None:
            return self._become(State.HEALTHY, now)
        self._later(now)
        self.error = error.strerror or str(error)
        if self.state is State.UNSTABLE and error.errno not in REFUSALS:
            return self._become(State.DOWN, now)
        return False

    def _note(self, text: str, now: float, *, fault: bool) -> None:
        self.error = text
        self._recent.append((now, fault))
        while self._recent[0][0] <= now - WINDOW_S or len(self._recent) > FAILED + SUSPECT:
            self._recent.popleft()

    def _become(self, state: State, now: float) -> bool:
        if state is State.HEALTHY:
            self._recovered, self.probe_at = now, math.inf
            self._recent.clear()
        elif self.state is State.HEALTHY:
            # Sick again soon after a probe said that it was well: believe the next one later.
            if now - self._recovered > 2 * LAST_PROBE_S:
                self._delay = FIRST_PROBE_S
            self._later(now)
        self.state = state
        return True

    def _later(self, now: float) -> None:
        self.probe_at = now + self._delay
        self._delay = min(2 * self._delay, LAST_PROBE_S)
