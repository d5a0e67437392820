"""Bytes that go into the store as they arrive from the network, piece by piece.

Against collecting a whole fetch first, a piece is checksummed and written while the processor's cache still holds
it, and no large buffer is allocated (and faulted in) for every fetch. What is visible does not change: the blocks
become present together, after their last byte and their checksums are written.
"""

from __future__ import annotations

import threading
from types import TracebackType

from crc32c import crc32c

from raycache.blocks import MiB
from raycache.errors import CacheFullError, IntegrityError
from raycache.store import files
from raycache.store.cached_object import CachedObject, Claim
from raycache.store.space import Space

STAGE = 2 * MiB
"""Bytes written at once: a huge page (x86-64). A write that covers only part of a fresh one makes the kernel zero
the rest of it first, which is then overwritten."""

_local = threading.local()


def _stage() -> memoryview:
    """The calling thread's stage. One is enough: a thread receives one run at a time."""
    stage: memoryview | None = getattr(_local, "stage", None)
    if stage is None:
        stage = _local.stage = memoryview(bytearray(STAGE))
    return stage


class Receiver:
    """A run of absent blocks that is being received. A context manager: what is not committed stays absent.

    Not thread-safe. Made by `Filling.receive`.
    """

    def __init__(self, space: Space, cached: CachedObject, claim: Claim, blocks: range) -> None:
        self._space = space
        self._object = cached
        self._claim: Claim | None = claim
        self._blocks = blocks
        self._extent = cached.version.extent_of(blocks)
        self._stage = _stage()
        self._at = 0  # bytes written
        self._staged = 0  # bytes waiting in the stage
        self._sums: list[int] = []
        self._running = 0

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            self._space.refund(self._object, claim)

    def restart(self) -> None:
        """Begin anew: the fetch failed and is repeated from its first byte."""
        self._at, self._staged, self._sums, self._running = 0, 0, [], 0

    def feed(self, piece: memoryview) -> None:
        """Take the next bytes, copied.

        Raises:
            IntegrityError: more bytes than the run has.
            CacheFullError: the device refuses them.
        """
        if self._at + self._staged + len(piece) > self._extent.length:
            raise IntegrityError("more bytes arrived than were due", where=self._object.version.path)
        while piece:
            part = piece[: len(self.room())]
            self.room()[: len(part)] = part
            self.filled(len(part))
            piece = piece[len(part) :]

    def room(self) -> memoryview:
        """Where the next bytes can be put: up to where a huge page of the file ends, or the run does."""
        start = self._extent.offset + self._at
        return self._stage[self._staged : min(STAGE - start % STAGE, self._extent.length - self._at)]

    def filled(self, count: int) -> None:
        """Take the next `count` bytes: they have been put into `room`. Raises CacheFullError: the device refuses
        them."""
        full = count == len(self.room())
        self._staged += count
        if full:
            self._flush()

    def _flush(self) -> None:
        data, self._staged = self._stage[: self._staged], 0
        offset = self._extent.offset + self._at
        size = self._object.version.block_size
        while data:
            part = data[: size - self._at % size]
            self._running = crc32c(part, self._running)
            self._at += len(part)
            if self._at % size == 0 or self._at == self._extent.length:
                self._sums.append(self._running)
                self._running = 0
            data = data[len(part) :]
        data = self._stage[: self._extent.offset + self._at - offset]
        try:
            self._put(data, offset)
        except OSError as error:
            raise CacheFullError(
                f"the cache device cannot take more: {error.strerror or error}",
                where=self._object.data_path,
                hint="free space on that filesystem, or lower the tier's quota",
            ) from error

    def _put(self, data: memoryview, offset: int) -> None:
        tier = self._object.tier
        assert tier is not None
        self._object.check_length()
        for again in (False, True):
            try:
                with self._object.writing, tier.watch.call():
                    files.pwrite_all(self._object.data_fd, data, offset)
                return
            except OSError as error:
                if again or not self._space.make_real_room(tier, self._extent.length, error):
                    tier.watch.failed(error)
                    raise

    def commit(self) -> list[int]:
        """Make the blocks present; the CRC32C of each.

        Raises:
            IntegrityError: bytes are missing.
            CacheFullError: the index cannot be written, or the object was purged.
        """
        if self._at != self._extent.length or self._claim is None:
            raise IntegrityError(
                f"{self._at} bytes arrived where {self._extent.length} were due",
                where=self._object.version.path,
            )
        tier = self._object.tier
        try:
            with self._object.cond:
                self._object.publish(self._claim, self._blocks.start, self._sums)
        except OSError as error:
            if isinstance(error, CacheFullError):
                raise
            if tier is not None:
                tier.watch.failed(error)
            raise CacheFullError(
                f"the cache's index cannot be written: {error.strerror or error}",
                where=self._object.index_path,
            ) from error
        self._claim = None
        if tier is not None:
            self._space.after_write(tier)
        return self._sums
