"""Putting blocks into the store, and taking them out again for other workers."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from crc32c import crc32c

from raycache.blocks import runs
from raycache.errors import CacheFullError, IntegrityError
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import files, index, opening
from raycache.store.cached_object import CachedObject, Claim, Contradiction, Pin
from raycache.store.receiving import Receiver
from raycache.store.space import NoRoom, Space

if TYPE_CHECKING:
    from typing_extensions import Buffer

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
"""How often a write may find its tier full and move on: each time the file has gone down a tier, or the device
was full in spite of the quota and something was evicted."""


class Filling:
    """An object version that is being filled. While it is open, this process does not evict the object, nor any
    block that this Filling has been asked about. Thread-safe; several may be open for one object.
    """

    def __init__(self, space: Space, cached: CachedObject, pin: Pin, metrics: Metrics) -> None:
        self.version = cached.version
        self._space = space
        self._object = cached
        self._pin = pin
        self._metrics = metrics
        self._map: mmap.mmap | None = None
        self._open = True

    def __enter__(self) -> Filling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unpin the object. Closing twice is fine."""
        if self._open:
            self._open = False
            self._map = None
            opening.unpin(self._space, self._object, self._pin)

    @property
    def complete(self) -> bool:
        """Whether every block is present and verified."""
        return self._object.complete

    def missing(self, blocks: range) -> list[int]:
        """Those of `blocks` that have to be fetched.

        A block that an earlier process left is checked against its CRC32C here; a bad one is dropped, counted as
        `corrupt_blocks`, and missing. A block that another thread is writing just now is missing, too.
        """
        cached = self._object
        with cached.cond:
            cached.enter_io()
            self._pin.touch(blocks)
            try:
                while True:
                    doubtful = [i for i in blocks if cached.states[i] == index.UNVERIFIED]
                    mine = [i for i in doubtful if i not in cached.busy]
                    if not doubtful:
                        break
                    if mine:
                        self._verify(mine)
                    else:
                        cached.cond.wait()  # another thread is checking them
                absent = [i for i in blocks if cached.states[i] == index.ABSENT]
            finally:
                cached.leave_io()
            if blocks and not absent and cached.tier is not None:
                cached.tier.access(cached.id)
                cached.served_ns = time.time_ns()
            return absent

    def absent_now(self, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that are not there at this moment. Waits for nothing, not even for files that are being
        moved, so it may be asked under a lock that others want.

        Args:
            blocks: that `missing` has been asked about, and that have been checked by it, therefore.
        """
        states = self._object.states  # a move puts an equal one in its place
        return [block for block in blocks if states[block] == index.ABSENT]

    def recheck(self, blocks: range) -> list[int]:
        """Check present blocks against their CRC32C once more, because a peer received one that did not match.

        Returns:
            Those that are bad; they have been dropped and are missing now.
        """
        cached = self._object
        with cached.cond:
            cached.enter_io()
            self._pin.touch(blocks)
            try:
                while not cached.busy.isdisjoint(blocks):
                    cached.cond.wait()
                present = [i for i in blocks if cached.states[i] != index.ABSENT]
                self._verify(present)
                return [i for i in present if cached.states[i] == index.ABSENT]
            finally:
                cached.leave_io()

    def _verify(self, blocks: list[int]) -> None:
        """Compare blocks with their checksums. `cond` held at call and return, but not while reading."""
        cached = self._object
        cached.busy.update(blocks)
        verdict: dict[int, bool] = {}
        try:
            cached.cond.release()
            try:
                buffer = memoryview(bytearray(min(self.version.block_size, self.version.size)))
                for block in blocks:
                    try:
                        verdict[block] = crc32c(cached.read_block(block, buffer)) == cached.crcs[block]
                    except OSError as error:
                        _failed(cached, error)
                        _log.warning("%s: block %d cannot be read: %s", cached.data_path, block, error)
                        verdict[block] = False
            finally:
                cached.cond.acquire()
            cached.require()
            for block, good in verdict.items():
                if not good:
                    _log.warning("%s: block %d does not match its checksum; dropped", cached.data_path, block)
                    self._metrics.add(CORRUPT_BLOCKS)
                cached.set_state(block, index.VERIFIED if good else index.ABSENT)
        except CacheFullError:
            raise
        except OSError as error:
            _failed(cached, error)
            raise _cache_full(error, cached) from error
        finally:
            cached.busy.difference_update(blocks)
            cached.cond.notify_all()

    def write(self, blocks: range, data: Buffer, crcs: Sequence[int] | None = None) -> list[int]:
        """Put a run of adjacent blocks into the store. Blocks that are present already are left as they are.

        Args:
            blocks: the run; step 1.
            data: exactly the bytes of the run, in one buffer. Not copied.
            crcs: CRC32C of each block, if known: verified here.

        Returns:
            CRC32C of each block.

        Raises:
            IntegrityError: wrong length; bytes that do not match `crcs`; or other bytes are present under the
                same version.
            CacheFullError: nothing more can be evicted, or the device is full or failing, or has been. All blocks
                that were absent are absent still. Or the file has been complete, and the bytes are not those that it
                held: it is unlinked, because somebody may have it mapped.
        """
        if not blocks:
            return []
        view = memoryview(data).cast("B")
        sums = self._checksums(blocks, view, crcs)
        cached = self._object
        if index.UNVERIFIED in cached.states[blocks.start : blocks.stop]:
            self.missing(blocks)  # so that what is good is left as it is: somebody may have it mapped
        for attempt in range(_ATTEMPTS):
            with cached.cond:
                self._pin.touch(blocks)
                try:
                    claim = cached.claim(blocks, sums)
                except Contradiction:
                    self._space.disown(cached)
                    raise CacheFullError(
                        "the cached file is given up: what it held is not what the store holds",
                        where=cached.version.path,
                    ) from None
            if claim is None:
                return sums
            tier = cached.tier
            assert tier is not None
            try:
                try:
                    if not tier.watch.takes_new:
                        raise CacheFullError(tier.watch.why(), where=cached.data_path)
                    self._space.pay(cached, claim)
                    self._put(claim, view, blocks.start)
                    with cached.cond:
                        cached.publish(claim, blocks.start, sums)
                except BaseException:
                    self._space.refund(cached, claim)
                    raise
            except NoRoom as error:
                # The files may still fit one tier down, for instance when all else in this one is being read.
                if self._space.relocate(cached, tier):
                    continue
                raise _full(cached) from error
            except OSError as error:
                if isinstance(error, CacheFullError):
                    raise
                if attempt == 0 and self._space.make_real_room(tier, claim.need, error):
                    continue
                tier.watch.failed(error)
                raise _cache_full(error, cached) from error
            self._space.after_write(tier)
            return sums
        raise _full(cached)

    def receive(self, blocks: range) -> Receiver | None:
        """Begin to receive a run of blocks piece by piece.

        Args:
            blocks: the run; step 1, not empty.

        Returns:
            None where `write` has to deal with it: some of the blocks are present already, or there is no room
            for them as things are, or the device is sick, or the file has been complete, so that somebody may have
            it mapped and nothing may go into it that is not known to be right.

        Raises:
            CacheFullError: the object has been purged.
        """
        cached = self._object
        with cached.cond:
            self._pin.touch(blocks)
            sick = cached.tier is not None and not cached.tier.watch.takes_new
            claim = None if cached.sealed or sick else cached.claim(blocks)
        if claim is None:
            return None
        try:
            self._space.pay(cached, claim)
        except NoRoom:
            self._space.refund(cached, claim)
            return None
        except BaseException:
            self._space.refund(cached, claim)
            raise
        return Receiver(self._space, cached, claim, blocks)

    def _checksums(self, blocks: range, view: memoryview, given: Sequence[int] | None) -> list[int]:
        where = f"{self.version.dataset}/{self.version.path}"
        extent = self.version.extent_of(blocks)
        if len(view) != extent.length:
            raise IntegrityError(f"{len(view)} bytes arrived where {extent.length} were due", where=where)
        size = self.version.block_size
        sums = [crc32c(view[start : start + size]) for start in range(0, extent.length, size)]
        if given is not None and sums != list(given):
            bad = [block for block, a, b in zip(blocks, sums, given, strict=False) if a != b]
            raise IntegrityError(
                f"blocks {bad or 'without checksum'} do not match their checksums", where=where
            )
        return sums

    def _put(self, claim: Claim, view: memoryview, first: int) -> None:
        """Write the claimed blocks' bytes, one call per run. No lock held."""
        origin = first * self.version.block_size
        for run in runs(claim.blocks, len(claim.blocks)):
            offset, length = self.version.extent_of(run)
            start = offset - origin
            assert self._object.tier is not None
            self._object.check_length()
            with self._object.writing, self._object.tier.watch.call():
                files.pwrite_all(self._object.data_fd, view[start : start + length], offset)

    def read(self, block: int) -> tuple[int, memoryview]:
        """A present block: its CRC32C and its bytes, which stay valid after the Filling is closed.

        From a complete file in memory it is a view of it, if it can be mapped. Else a copy: a page of a mapped file
        that the disk does not give is no error but a SIGBUS.

        Raises:
            IntegrityError: the block is not present, or cannot be read: then it is missing from now on.
        """
        cached = self._object
        if cached.states[block] != index.VERIFIED and self.missing(range(block, block + 1)):
            raise IntegrityError(
                f"block {block} is not in the local store",
                where=f"{self.version.dataset}/{self.version.path}",
                hint="ask missing() and fetch it first",
            )
        extent = self.version.block_extent(block)
        with cached.cond:
            cached.enter_io()
            self._pin.touch(range(block, block + 1))
            crc = cached.crcs[block]
            assert cached.tier is not None
            if not cached.tier.watch.readable:
                cached.leave_io()
                raise IntegrityError(cached.tier.watch.why(), where=cached.data_path)
            if cached.sealed and cached.complete and cached.tier.config.medium == "MEM":
                # Never changed until it is unlinked, and then the mapping stays.
                try:
                    if self._map is None:
                        self._map = mmap.mmap(cached.data_fd, self.version.size, prot=mmap.PROT_READ)
                except (OSError, ValueError) as error:
                    # No descriptor or address space is left, or somebody has cut the file: a copy needs neither,
                    # and says what is wrong with the file.
                    _log.info("%s: cannot be mapped, copying: %s", cached.data_path, error)
                else:
                    view = memoryview(self._map)[extent.offset : extent.offset + extent.length]
                    cached.leave_io()
                    return crc, view
        try:
            return crc, cached.read_block(block, memoryview(bytearray(extent.length)))
        except OSError as error:
            failure = error
        finally:
            with cached.cond:
                cached.leave_io()
        self.recheck(range(block, block + 1))  # tells the tier, too
        raise _unreadable(failure, cached) from failure


def _failed(cached: CachedObject, error: OSError) -> None:
    if cached.tier is not None:
        cached.tier.watch.failed(error)


def _full(cached: CachedObject) -> CacheFullError:
    return CacheFullError(
        "the cache is full and all that is in it is in use",
        where=f"{cached.version.dataset}/{cached.version.path}",
        hint="raise the quota of a tier, or add one",
    )


def _cache_full(error: OSError, cached: CachedObject) -> CacheFullError:
    return CacheFullError(
        f"the cache device cannot take more: {error.strerror or error}",
        where=cached.data_path,
        hint="free space on that filesystem, or lower the tier's quota",
    )


def _unreadable(error: OSError, cached: CachedObject) -> IntegrityError:
    return IntegrityError(f"a cached block cannot be read: {error.strerror or error}", where=cached.data_path)
