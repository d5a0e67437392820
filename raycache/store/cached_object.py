"""One cached object as its single writer sees it: files, block states, and the ledger of what is allocated.

Methods expect `cond` to be held unless they say otherwise. The bytes themselves are written outside of it: a
writer *claims* blocks, writes, and then *publishes* or *abandons* them, so that any number of threads fill
different blocks of one file at once and none ever writes a block that another is writing or that is present.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raycache.blocks import Extent, ObjectVersion, runs
from raycache.errors import CacheFullError, IntegrityError
from raycache.store import files, index
from raycache.store.tiers import Tier


@dataclass(eq=False, slots=True)
class Claim:
    """Blocks that one thread is about to write.

    Args:
        blocks: ascending indices.
        fresh: those among them for which no bytes were allocated before.
        need: bytes to reserve for `fresh`.
        units: the allocation units that these bytes are for: no block of theirs was allocated before.
        paid: whether the tier has reserved them.
    """

    blocks: list[int]
    fresh: list[int]
    need: int
    units: set[int]
    paid: bool = False


class Contradiction(Exception):
    """What should be put into a sealed file in place of a damaged block is not what its checksum says. Never leaves the
    store."""


@dataclass(eq=False, slots=True)
class Pin:
    """What an open `Filling` holds on an object: the object as such, and the blocks it has been asked about."""

    touched: list[range] = field(default_factory=list)

    def touch(self, blocks: range) -> None:
        """Add blocks, joined with the last ones where they adjoin: a long read leaves one range."""
        if self.touched and self.touched[-1].start <= blocks.start <= self.touched[-1].stop:
            last = self.touched.pop()
            blocks = range(last.start, max(last.stop, blocks.stop))
        self.touched.append(blocks)


class CachedObject:
    """See the module. Created without files; `create` or `adopt` gives it some.

    Attributes:
        tier: where the files are; None before there are any.
        gone: the files are unlinked, or never came to be, or the store is closed and they may be another process's
            by now. Final: whoever finds it so leaves the files alone and asks the store again.
        moving: one thread creates or moves the files; all others wait.
        busy: blocks that are being written or verified.
        unpaid: allocation units that are claimed, and not yet reserved in the tier. Other claims on them wait: they
            would take for paid what may never be.
        writing: held while bytes go into the data file. The kernel lets one writer at a time into a file anyway
            (inode lock), and those that wait there spin: with 16 fetches that took more time than the writing.
        io: threads that use the descriptors right now.
        cost: bytes reserved in the tier for data and index.
        served_ns: when somebody last asked this process for blocks that were all there, nanoseconds since the epoch:
            who asks from another node leaves no trace in the file.
    """

    def __init__(self, version: ObjectVersion, *, secondary: bool) -> None:
        self.version = version
        self.id = version.object_id
        self.secondary = secondary
        self.cond = threading.Condition(threading.Lock())
        self.writing = threading.Lock()
        self.tier: Tier | None = None
        self.header: index.Header | None = None
        self.states = bytearray()
        self.crcs = array("I")
        self.verified = 0
        self.sealed = False
        self.gone = False
        self.moving = False
        self.cancel = False
        self.busy: set[int] = set()
        self.unpaid: set[int] = set()
        self.io = 0
        self.pins: set[Pin] = set()
        self.data_fd = -1
        self.index_fd = -1
        self.cost = 0
        self.served_ns = 0
        self._read_ns = 0
        self._paid = bytearray()
        self._unit = 0
        self._units = array("I")

    # -- files -----------------------------------------------------------------------------------------------

    @property
    def data_path(self) -> str:
        """Path of the data file."""
        assert self.tier is not None
        return index.data_path(self.tier.path, self.id)

    @property
    def index_path(self) -> str:
        """Path of the index file."""
        assert self.tier is not None
        return index.index_path(self.tier.path, self.id)

    @property
    def complete(self) -> bool:
        """Whether all blocks are verified."""
        return self.verified == len(self.states)

    @property
    def flags(self) -> int:
        """The index's flags as they should be."""
        flags = index.SECONDARY if self.secondary else 0
        if self.sealed:
            flags |= index.SEALED
            if index.ABSENT in self.states:
                flags |= index.QUARANTINED
        if self.complete:
            flags |= index.COMPLETE
        return flags

    def settle(
        self, tier: Tier, header: index.Header, states: bytearray, crcs: array[int], *, sealed: bool
    ) -> int:
        """Take these files in `tier` as the object's own; returns their cost (bytes)."""
        self.tier, self.header, self.states, self.crcs, self.sealed = tier, header, states, crcs, sealed
        self.verified = states.count(index.VERIFIED)
        self._unit = max(self.version.block_size, tier.granule)
        self._paid = bytearray(len(states))
        self._units = array("I", bytes(4 * -(-self.version.size // self._unit)))
        # A sealed file keeps its bytes whatever becomes of a block: nobody punches it.
        kept = range(len(states)) if sealed else (i for i, state in enumerate(states) if state)
        self.cost = tier.index_cost(self.version) + self._charge(kept).need
        self._read_ns = 0
        self.was_read()  # what happened so far does not count
        return self.cost

    def open(self) -> None:
        """Open the files for writing; on a device that has become read-only, for reading. Raises FileNotFoundError if
        somebody has removed them."""
        if self.data_fd >= 0:
            return
        assert self.tier is not None
        try:
            self._open(write=True)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            self.tier.watch.failed(error)
            self._open(write=False)

    def _open(self, *, write: bool) -> None:
        data_fd = files.open_file(self.data_path, write=write)
        try:
            self.index_fd = files.open_file(self.index_path, write=write)
        except OSError:
            os.close(data_fd)
            raise
        self.data_fd = data_fd

    def shut(self) -> None:
        """Close the descriptors."""
        for fd in (self.data_fd, self.index_fd):
            if fd >= 0:
                os.close(fd)
        self.data_fd = self.index_fd = -1

    def was_read(self) -> bool:
        """Whether a reader left a trace (`files.mark_read`) since this was asked last. `cond` is not needed."""
        try:
            stamp = os.lstat(self.data_path).st_atime_ns
        except OSError:
            return False
        previous, self._read_ns = self._read_ns, stamp
        return 0 < previous < stamp

    def last_use_ns(self) -> int:
        """When it was read the last time, or else bytes came in; nanoseconds since the epoch, 0 if it is gone. `cond`
        is not needed."""
        try:
            stat = os.lstat(self.data_path)
        except OSError:
            return 0
        return max(stat.st_atime_ns, stat.st_mtime_ns, self.served_ns)

    # -- what is allocated -----------------------------------------------------------------------------------

    def _unit_of(self, block: int) -> int:
        """The allocation unit that a block is in."""
        return block * self.version.block_size // self._unit

    def _unit_extent(self, unit: int) -> Extent:
        """Byte range of an allocation unit, its end rounded up as the filesystem does."""
        assert self.tier is not None
        offset = unit * self._unit
        end = files.round_up(self.version.size, self.tier.page)
        return Extent(offset, min(self._unit, end - offset))

    def _charge(self, blocks: Iterable[int]) -> Claim:
        """Count blocks as allocated; which were not before, and the bytes that they add."""
        claim = Claim(list(blocks), [], 0, set())
        for block in claim.blocks:
            if not self._paid[block]:
                self._paid[block] = 1
                claim.fresh.append(block)
                unit = self._unit_of(block)
                if self._units[unit] == 0:
                    claim.units.add(unit)
                    claim.need += self._unit_extent(unit).length
                self._units[unit] += 1
        return claim

    def _refund(self, blocks: Iterable[int]) -> tuple[list[Extent], int]:
        """Count blocks as not allocated; the extents to give back to the filesystem, and the bytes they free."""
        holes, freed = [], 0
        for block in blocks:
            self._paid[block] = 0
            unit = self._unit_of(block)
            self._units[unit] -= 1
            if self._units[unit] == 0:
                # The whole unit, at once: a huge page is freed only when all of it goes.
                hole = self._unit_extent(unit)
                freed += hole.length
                holes.append(hole)
            else:
                holes.append(self.version.block_extent(block))
        return holes, freed

    def _give_back(self, blocks: list[int]) -> int:
        """Punch absent blocks out of an unsealed file; bytes freed. Where the filesystem cannot, they stay counted."""
        assert self.tier is not None
        holes, freed = self._refund(blocks)
        punched = True
        try:
            for hole in holes:
                punched = punched and files.punch_hole(self.data_fd, hole.offset, hole.length)
        except OSError as error:
            self.tier.watch.failed(error)
            punched = False
        if not punched:
            self._charge(blocks)
            return 0
        self.cost -= freed
        return freed

    # -- claims ----------------------------------------------------------------------------------------------

    def require(self) -> None:
        """Raise CacheFullError if the files are no longer this process's to change."""
        if self.gone:
            raise CacheFullError("the local store was purged or closed", where=self.version.path)

    def check_length(self) -> None:
        """Before bytes are written; `cond` not held, but between enter_io and leave_io.

        Raises:
            CacheFullError: somebody has cut the file short. Written to, it would be long enough again, with zeros where
                bytes were.
        """
        if os.fstat(self.data_fd).st_size != self.version.size:
            raise CacheFullError("somebody has cut the cache file short", where=self.data_path)

    def enter_io(self) -> None:
        """Wait until the files stay where they are, and keep them there until `leave_io`."""
        while self.moving:
            self.cond.wait()
        self.require()
        self.io += 1

    def leave_io(self) -> None:
        """End `enter_io`."""
        self.io -= 1
        self.cond.notify_all()

    def claim(self, blocks: range, crcs: Sequence[int] | None = None) -> Claim | None:
        """Claim the absent blocks of a run, after waiting for other writers of it; None if there are none.

        Args:
            blocks: the run.
            crcs: the blocks' checksums; None if they are not known yet: then it is all of the run, or None.

        Raises:
            IntegrityError: a block is present with other bytes: two fetches of one version that differ.
            CacheFullError: the object is gone.
            Contradiction: the file has been complete, and held other bytes than these.
        """
        self.enter_io()
        while not self.busy.isdisjoint(blocks) or (
            self.unpaid and not self.unpaid.isdisjoint(map(self._unit_of, blocks))
        ):
            self.leave_io()
            self.cond.wait()
            self.enter_io()
        wanted = [block for block in blocks if self.states[block] != index.VERIFIED]
        if crcs is None and any(self.states[block] != index.ABSENT for block in blocks):
            wanted = []
        for block, crc in zip(blocks, crcs or (), strict=crcs is not None):
            if self.states[block] == index.VERIFIED and self.crcs[block] != crc:
                self.leave_io()
                raise IntegrityError(
                    f"block {block} was fetched twice with different bytes under one version",
                    where=f"{self.version.dataset}/{self.version.path}",
                    hint="the object store changed the object without changing its version",
                )
        if not wanted:
            self.leave_io()
            return None
        if self.sealed and crcs is not None and any(self.crcs[i] != crcs[i - blocks.start] for i in wanted):
            self.leave_io()
            raise Contradiction
        claim = self._charge(wanted)
        self.busy.update(wanted)
        self.unpaid.update(claim.units)
        return claim

    def settle_up(self, claim: Claim) -> None:
        """The tier has reserved what the claim needs."""
        self.require()
        self.cost += claim.need
        claim.paid = True
        self.unpaid.difference_update(claim.units)
        self.cond.notify_all()

    def publish(self, claim: Claim, first: int, crcs: Sequence[int]) -> None:
        """Make claimed blocks present: their bytes are written; now checksum, then state, then flags.

        Args:
            claim: the claim.
            first: block of the first checksum.
            crcs: checksums of a run of blocks that contains the claimed ones.

        Raises:
            OSError: the index cannot be written; the blocks stay absent.
            CacheFullError: the object has been purged in the meantime.
        """
        self.require()
        assert self.header is not None
        # From here on the bytes stay, whatever happens: a state that half a failed write left behind is then true.
        claim.fresh.clear()
        for run in runs(claim.blocks, len(claim.blocks)):
            values = array("I", crcs[run.start - first : run.stop - first])
            index.write_crcs(self.index_fd, self.header, run.start, memoryview(values).cast("B"))
            index.write_states(self.index_fd, self.header, run.start, bytes([index.VERIFIED]) * len(run))
            self.crcs[run.start : run.stop] = values
            self.states[run.start : run.stop] = bytes([index.VERIFIED]) * len(run)
            self.verified += len(run)
        self.mark_complete()
        self.release(claim)

    def mark_complete(self) -> None:
        """Write the flags if the last block has just become verified. Raises OSError."""
        if self.complete:
            # Sealed in memory first: if the flag cannot be written, the file is still never punched.
            self.sealed = True
            index.write_flags(self.index_fd, self.flags)

    def abandon(self, claim: Claim) -> int:
        """Give claimed blocks up: they stay absent. Returns the bytes that the tier gets back."""
        freed = 0
        if self.gone:
            freed = 0  # the purge has returned all of it
        else:
            shared = claim.fresh
            if not claim.paid:
                self._refund(block for block in claim.fresh if self._unit_of(block) in claim.units)
                # The rest is in units that others paid for; who did may have given up, and left them to this claim.
                shared = [block for block in claim.fresh if self._unit_of(block) not in claim.units]
            if shared and not self.sealed:
                freed = self._give_back(shared)
        self.release(claim)
        return freed

    def release(self, claim: Claim) -> None:
        """The claimed blocks are no longer busy."""
        self.busy.difference_update(claim.blocks)
        if not claim.paid:
            self.unpaid.difference_update(claim.units)
        self.leave_io()

    # -- verification and dropping -----------------------------------------------------------------------------

    def read_block(self, block: int, buffer: memoryview) -> memoryview:
        """A block's bytes in (the beginning of) `buffer`. `cond` not held, but between enter_io and leave_io."""
        extent = self.version.block_extent(block)
        part = buffer[: extent.length]
        assert self.tier is not None
        with self.tier.watch.call():
            read = files.pread_into(self.data_fd, part, extent.offset)
        if read != extent.length:
            raise OSError(f"{self.data_path} is shorter than its object")
        return part

    def set_state(self, block: int, state: int) -> None:
        """Change one block's state, in the index first. Raises OSError.

        A block of a sealed file that becomes absent is in quarantine: no hole is punched, so that who has the file
        mapped sees the same bytes as before, until the right ones are written over them.
        """
        assert self.header is not None
        old = self.states[block]
        if self.sealed and state == index.ABSENT:
            index.write_flags(self.index_fd, self.flags & ~index.COMPLETE | index.QUARANTINED)
        elif old == index.VERIFIED and self.complete:
            index.write_flags(self.index_fd, self.flags & ~index.COMPLETE)
        index.write_states(self.index_fd, self.header, block, bytes([state]))
        self.states[block] = state
        self.verified += (state == index.VERIFIED) - (old == index.VERIFIED)
        self.mark_complete()

    def drop_blocks(self, want: int, keep: set[int]) -> int:
        """Punch present blocks, but for those in `keep`, until `want` bytes are free; the bytes freed.

        The caller holds the exclusive lock on the data file. Which ones: always the same ones, spread evenly
        (multiplicative hashing, Knuth, TAOCP 3, 6.4), so that a program that reads an object larger than the
        cache over and over finds the share that fits, where "oldest first" would leave it nothing. The first and
        the last block, with the headers and footers of most formats, go last.
        """
        if self.sealed or self.header is None:
            return 0
        last = len(self.states) - 1
        present = [i for i, state in enumerate(self.states) if state and i not in keep and i not in self.busy]
        present.sort(key=lambda i: (i not in (0, last), i * 2654435761 & 0xFFFFFFFF), reverse=True)
        chosen, expected = [], 0
        for block in present:
            if expected >= want:
                break
            chosen.append(block)
            expected += self.version.block_extent(block).length
        for block in chosen:
            self.set_state(block, index.ABSENT)
        return self._give_back(chosen)

    def cached_bytes(self) -> int:
        """Bytes of all present blocks, verified or not."""
        count = len(self.states) - self.states.count(index.ABSENT)
        if not count:
            return 0
        total = count * self.version.block_size
        if self.states[-1]:
            total -= self.version.block_size * len(self.states) - self.version.size
        return total
