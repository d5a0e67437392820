"""Whether a request that the kernel interrupts is to be given up.

The kernel sends INTERRUPT for any signal that reaches whoever waits, also one that the program has a handler for: a
child that ended, a profiler's tick, Go's SIGURG. A program does not expect EINTR from a file, and the kernel does not
restart the call. So the rule is that of NFS and other network filesystems since Linux 2.6.25 (wait_event_killable):
only what ends the program ends its request. `intr` is not needed for Ctrl-C, which ends a program that does not catch
it; one that does, hears of it when its call is done.

The INTERRUPT comes once, and a later signal brings no other. So a request that was interrupted for nothing is looked
at again and again until it is answered.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
"""Seconds between two looks at those who wait: how long a second Ctrl-C takes at most."""

UNKNOWN_AFTER_S = 10.0
"""Seconds after which an interrupted request of somebody unknown is given up. It may be a program that was killed and
cannot go, or one that only has a handler; most requests are answered long before."""

_KILL = 1 << signal.SIGKILL - 1
_HARMLESS = sum(
    1 << number - 1
    for number in (
        *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
)
"""Signals that end nobody by default (signal(7)): they are ignored, or stop the program, which then waits on."""


class Fate(Enum):
    """What the signals that somebody has got mean for him."""

    ENDS = "ends"
    STAYS = "stays"
    UNKNOWN = "unknown"


def fate(status: str) -> Fate:
    """What becomes of a thread.

    Args:
        status: its /proc/TID/status. The kernel turns a signal that ends a program into a pending SIGKILL for each of
            its threads as soon as it is sent (complete_signal), unless it dumps core or is traced.
    """
    masks: dict[str, int] = {}
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
            masks[name] = int(value, 16)
    if len(masks) < 5:
        return Fate.UNKNOWN
    pending = masks["SigPnd"] | masks["ShdPnd"]
    handled = masks["SigBlk"] | masks["SigIgn"] | masks["SigCgt"] | _HARMLESS
    return Fate.ENDS if pending & _KILL or pending & ~handled else Fate.STAYS


def fate_of(tid: int) -> Fate:
    """What becomes of a thread of this process's pid namespace. The kernel names one of any other 0."""
    if tid <= 0:
        return Fate.UNKNOWN
    try:
        return fate(Path(f"/proc/{tid}/status").read_text(errors="replace"))
    except (OSError, ValueError):
        return Fate.UNKNOWN


class Interrupts:
    """The requests that were interrupted and are still being served. Thread-safe. Its thread lives only while there
    are some.

    Args:
        waits: whether a request, by its number, is still unanswered.
        give_up: answers it with EINTR, unless it is answered.
        look: what becomes of a thread.
        clock: seconds, monotonic.
        every_s: seconds between two looks.
    """

    def __init__(
        self,
        waits: Callable[[int], bool],
        give_up: Callable[[int], None],
        *,
        look: Callable[[int], Fate] = fate_of,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._waits = waits
        self._give_up = give_up
        self._look = look
        self._clock = clock
        self._every_s = every_s
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, unique: int, tid: int) -> None:
        """A request has been interrupted. Gives it up at once if whoever waits for it ends."""
        since = self._clock()
        if self._decide(unique, tid, since):
            return
        with self._lock:
            self._watched.setdefault(unique, (tid, since))
            if self._thread is not None or self._closed.is_set():
                return
            # A daemon, as all threads of a session.
            self._thread = threading.Thread(target=self._run, name="raycache-fuse-interrupts", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads to be had: the next one tries again
                self._thread = None
                log.error("interrupted requests cannot be watched: %s", error)

    def close(self) -> None:
        """Watch nothing any more; its thread has ended on return."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _decide(self, unique: int, tid: int, since: float) -> bool:
        """Whether there is nothing more to decide about a request."""
        if not self._waits(unique):
            return True
        found = self._look(tid)
        if found is Fate.UNKNOWN and self._clock() - since > UNKNOWN_AFTER_S:
            found = Fate.ENDS
        if found is Fate.ENDS:
            self._give_up(unique)
        return found is Fate.ENDS

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            for unique, (tid, since) in list(self._watched.items()):
                if self._decide(unique, tid, since):
                    del self._watched[unique]
            with self._lock:
                if not self._watched:
                    self._thread = None
                    return
