"""Messages to the kernel that answer no request, written by a thread that may wait for the kernel's locks."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Seconds that `close` waits for a notification that the kernel has not finished: it waits for a lock whose holder may
wait for a request that only the next server will read."""

_OF_NO_INTEREST = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPIPE})
"""The kernel has no such node or name, so there is nothing to forget; or it has unmounted the file system."""


class Notifier:
    """Writes notifications one after the other.

    The kernel takes a directory's lock, or waits for a page, in the middle of such a write; a LOOKUP holds the one and
    a READ the other until its reply comes. Written by a thread that serves requests, that would be a deadlock.

    Args:
        fd: the /dev/fuse descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A daemon: a process must be able to end while the kernel keeps it.
        self._thread = threading.Thread(target=self._run, name="raycache-fuse-notifier", daemon=True)
        self._closed = False

    def put(self, message: bytes) -> None:
        """Have a message written soon. Never waits; safe in a signal handler."""
        self._messages.put(message)

    def start(self) -> None:
        """Start writing. Once."""
        self._thread.start()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Drop what is not written, and wait up to `patience_s` seconds for what is being written."""
        self._closed = True
        self._messages.put(None)
        self._thread.join(patience_s)
        if self._thread.is_alive():
            log.warning("a FUSE notification hangs in the kernel; its thread is left behind")

    def _run(self) -> None:
        while (message := self._messages.get()) is not None:
            if self._closed:
                continue
            try:
                os.write(self._fd, message)
            except OSError as error:
                if error.errno not in _OF_NO_INTEREST:
                    log.error("a FUSE notification: %s", error)
