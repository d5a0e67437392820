"""Buffers that READ replies pass through: a few that are used again and again, not one that is made for each."""

from __future__ import annotations

import os
import threading

from raycache.fuse.protocol import replies

KEPT = 8
"""Buffers kept while nobody needs them: as many READs as the kernel has under way for two sequential readers."""


class Buffers:
    """A stock of buffers. Thread-safe.

    Args:
        size: bytes of each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._free: list[memoryview] = []

    def take(self) -> Buffer:
        """A buffer, with anything in it."""
        with self._lock:
            view = self._free.pop() if self._free else None
        return Buffer(self, view if view is not None else memoryview(bytearray(self._size)))

    def give(self, view: memoryview) -> None:
        """Take a buffer back."""
        with self._lock:
            if len(self._free) < KEPT:
                self._free.append(view)


class Buffer:
    """A buffer in use, and the reply that is written from it (a `session.ReplySender`)."""

    __slots__ = ("_length", "_stock", "view")

    def __init__(self, stock: Buffers, view: memoryview) -> None:
        self.view = view
        self._stock = stock
        self._length = 0

    def reply(self, length: int) -> Buffer:
        """Itself as a reply with its first `length` bytes."""
        self._length = length
        return self

    def send(self, fd: int, unique: int) -> None:
        """Write the reply; the buffer is free again afterwards."""
        try:
            os.writev(fd, (replies.header(unique, self._length), self.view[: self._length]))
        finally:
            self.discard()

    def discard(self) -> None:
        """Give the buffer back."""
        self._stock.give(self.view)
