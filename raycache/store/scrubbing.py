"""Looking through what lies in the tiers and nobody reads, for blocks that have rotted.

Without that, a flipped bit of a cold block would be found only when the block is sent to another worker or the worker
starts again, and a local reader of a complete file would find it in its data. A block that does not match is in
quarantine: absent for all who look from then on, counted, and fetched again; see `CachedObject.set_state`.

A pass goes through a tier in the order of the objects' ids, at a limited rate, and only while nobody else needs the
disk or the worker. Where it stands is kept in the tier, so that a worker that is restarted often gets round as well.
Nobody waits for the scrubber: it reads without any lock, and only to confirm what it has found does it keep others from
that block.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from raycache.blocks import MiB, ObjectVersion
from raycache.metrics import CORRUPT_BLOCKS, SCRUBBED_BYTES, Metrics
from raycache.store import files, index, moving, opening
from raycache.store.cached_object import CachedObject, Pin
from raycache.store.quiet import LOOK_S, Quiet
from raycache.store.space import Space
from raycache.store.tiers import Tier
from raycache.store.uncached import UncachedReader, be_idle

_log = logging.getLogger(__name__)

RATE = 32 * MiB
"""Bytes per second: a terabyte in nine hours, and a tenth to a third of what a spinning disk gives."""

EVERY_S = 24 * 3600.0
"""Seconds between the beginnings of two passes of a tier, so that a small one is not read over and over."""

START_S = 60.0
"""Seconds of peace after the start: a process that lives for a moment never begins."""

SAVE_S = 60.0
"""Seconds between two times that the position is written down."""

DISKS = ("SSD", "HDD")
"""The media that are looked through. Memory is not: it may have been swapped out, and would be brought back."""

_ROTTEN = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""What a disk, or its filesystem's own checksums (ext4, xfs, btrfs), says of bytes that are lost."""

_JOIN_S = 5.0
"""Longest wait for the thread at the end: on a disk that hangs it may never come back. It is a daemon."""

NAME = "SCRUB"
"""Name of the file in a tier's directory that keeps the scrubber's position."""


@dataclass(frozen=True)
class Position:
    """Where the scrubber stands in a tier.

    Args:
        object_id: the object to go on with; "" when a pass has ended.
        block: its block to go on with.
        began: when the pass began, seconds since the epoch.
    """

    object_id: str = ""
    block: int = 0
    began: float = 0.0

    @classmethod
    def load(cls, directory: str) -> Position:
        """What was saved; the beginning, if there is nothing of use."""
        try:
            data = json.loads(Path(directory, NAME).read_text())
            return cls(str(data["object_id"]), int(data["block"]), float(data["began"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def save(self, directory: str) -> None:
        """Write it down. Losing it costs reading some blocks again, so no failure matters."""
        path = os.path.join(directory, NAME)
        with contextlib.suppress(OSError):
            fd = files.create(path + moving.NEW)
            try:
                files.pwrite_all(fd, memoryview(json.dumps(asdict(self)).encode("ascii")), 0)
            finally:
                os.close(fd)
            os.replace(path + moving.NEW, path)


class Scrubber:
    """Looks through the tiers of one store, in a thread of its own once `start` is called.

    Args:
        space: the store's bytes.
        metrics: counts `scrubbed_bytes` and `corrupt_blocks`.
        media: of which tiers.
        rate: bytes per second.
        quiet: asked with a tier's path before each block, whether nobody else needs the disk or the worker.
        clock: seconds since the epoch.

    Attributes:
        mend: called with a version and a block of it that was found damaged in a file that was complete. Somebody
            may have it mapped, and sees the damage until the right bytes are written over it: see that they are.
    """

    def __init__(
        self,
        space: Space,
        metrics: Metrics,
        *,
        media: tuple[str, ...] = DISKS,
        rate: float = RATE,
        quiet: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mend: Callable[[ObjectVersion, range], None] = lambda version, blocks: None
        self._space = space
        self._metrics = metrics
        self._tiers = [tier for medium in media for tier in space.tiers if tier.config.medium == medium]
        self._rate = rate
        self._quiet = quiet or Quiet(metrics)
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._uncached = UncachedReader()

    def start(self) -> None:
        """Begin, if there is a tier to look through."""
        if self._tiers and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="raycache-scrub", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; where it stands is saved."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None

    def scrub(self) -> None:
        """Look once through all tiers that are due, in this thread; `stop` ends it."""
        for tier in self._tiers:
            try:
                self._pass(tier)
            except OSError as error:
                tier.watch.failed(error)
                _log.warning("%s: cannot be looked through: %s", tier.path, error)

    def _run(self) -> None:
        be_idle()
        wait_s = START_S
        while not self._stopping.wait(wait_s):
            self.scrub()
            due = [Position.load(tier.path).began + EVERY_S for tier in self._tiers]
            wait_s = max(START_S, min(due) - self._clock())

    def _pass(self, tier: Tier) -> None:
        at = Position.load(tier.path)
        if not at.object_id:
            if at.began + EVERY_S > self._clock() >= at.began:
                return
            at = Position(began=self._clock())
        saved = time.monotonic()
        # What comes into the tier meanwhile has just been checked.
        objects = sorted((c for c in self._space.registry.snapshot() if c.tier is tier), key=lambda c: c.id)
        for cached in objects:
            if cached.id < at.object_id:
                continue
            for block in range(at.block if cached.id == at.object_id else 0, cached.version.block_count):
                if cached.gone or cached.tier is not tier:
                    break
                if cached.states[block] == index.ABSENT:
                    continue
                at = Position(cached.id, block, at.began)
                if not self._may_go_on(tier):
                    at.save(tier.path)
                    return
                self._look(cached, tier, block)
                self._stopping.wait(cached.version.block_extent(block).length / self._rate)
                if time.monotonic() - saved >= SAVE_S:
                    at.save(tier.path)
                    saved = time.monotonic()
        Position(began=at.began).save(tier.path)

    def _may_go_on(self, tier: Tier) -> bool:
        """Wait for a quiet moment; False if the end, or a disk that is sick, comes first."""
        while not self._stopping.is_set() and tier.watch.takes_new:
            if self._quiet(tier.path):
                return True
            self._stopping.wait(LOOK_S)
        return False

    # -- one block -----------------------------------------------------------------------------------------------

    def _look(self, cached: CachedObject, tier: Tier, block: int) -> None:
        """Check a block. What others do to it meanwhile shows in its state, or makes it look damaged: then it is
        looked at again with them kept away."""
        with cached.cond:
            if cached.gone or cached.moving or cached.tier is not tier or block in cached.busy:
                return
            header, state, crc = cached.header, cached.states[block], cached.crcs[block]
            if state == index.ABSENT:
                return
            try:
                fd = self._uncached.open(cached.data_path)  # no lease: closed before anything is waited for
            except FileNotFoundError:
                return
        try:
            good = self._matches(cached, tier, fd, block, crc)
            self._metrics.add(SCRUBBED_BYTES, cached.version.block_extent(block).length)
            if good is None or (good and state == index.VERIFIED):
                return
            pin = Pin()
            try:
                with cached.cond:
                    if cached.gone or cached.moving or cached.header is not header or block in cached.busy:
                        return
                    if (cached.states[block], cached.crcs[block]) != (state, crc):
                        return
                    cached.open()
                    cached.pins.add(pin)
                    pin.touch(range(block, block + 1))
                    if good:  # an earlier process left it, and nobody has wanted it since
                        cached.set_state(block, index.VERIFIED)
                if not good and self._quarantine(cached, tier, fd, block) and cached.sealed:
                    self.mend(cached.version, range(block, block + 1))
            finally:
                if pin in cached.pins:
                    opening.unpin(self._space, cached, pin)
        finally:
            os.close(fd)

    def _quarantine(self, cached: CachedObject, tier: Tier, fd: int, block: int) -> bool:
        """Check a block while nobody may write it or take it away, and drop it if it is bad; whether it was."""
        with cached.cond:
            while block in cached.busy or cached.moving:
                cached.cond.wait()
            if cached.gone or cached.tier is not tier or cached.states[block] == index.ABSENT:
                return False
            cached.io += 1
            cached.busy.add(block)
        good: bool | None = True
        try:
            good = self._matches(cached, tier, fd, block, cached.crcs[block])
        finally:
            with cached.cond:
                cached.busy.discard(block)
                cached.leave_io()
                bad = good is False and not cached.gone and cached.tier is tier
                if bad:
                    _log.warning("%s: block %d has rotted, and is not used any more", cached.data_path, block)
                    self._metrics.add(CORRUPT_BLOCKS)
                    cached.set_state(block, index.ABSENT)
        return bad

    def _matches(self, cached: CachedObject, tier: Tier, fd: int, block: int, crc: int) -> bool | None:
        """Whether the disk gives the right bytes; None if it is not the bytes that are at fault."""
        try:
            return self._uncached.checksum(fd, cached.version.block_extent(block)) == crc
        except OSError as error:
            _log.warning("%s: block %d cannot be read: %s", tier.path, block, error)
            tier.watch.failed(error)
            return False if error.errno in _ROTTEN else None
