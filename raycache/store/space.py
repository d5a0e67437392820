"""Making room: which object leaves a tier, whether it goes down or away, and who must not be disturbed.

Locks, in the order in which they may be taken: `Tier.evicting` (upper tiers first), `CachedObject.cond`,
`Registry`'s lock, `Tier.lock`. No thread waits for `evicting` while it holds a `cond`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from raycache.blocks import ObjectVersion
from raycache.metrics import DEMOTED_BYTES, EVICTED_BYTES, Metrics
from raycache.store import files, health, index, moving
from raycache.store.cached_object import CachedObject, Claim
from raycache.store.keeping import Keeping
from raycache.store.registry import Registry
from raycache.store.tiers import Tier

_log = logging.getLogger(__name__)

OVER_S = 10.0
"""Seconds after which a tier that holds more than its quota, because that was lowered, is looked at again."""

_JOIN_S = 60.0
"""Longest wait for the background thread at the end: it may be in a system call on a device that hangs."""

_PASSES = 2
"""Rounds over a tier's victims: the first may only find out which of them have been read."""


class NoRoom(Exception):
    """A tier's quota is used up by objects that are in use. Never leaves the store."""


Evicted = Callable[[str, int, float], None]
"""Takes the id of an object that was evicted, the bytes of it, and when it was last read (seconds since the epoch)."""


class Space:
    """The bytes that a store's objects take. Thread-safe.

    Args:
        tiers: fastest first.
        registry: the objects.
        metrics: counts what is evicted and demoted.
        background: evict in a thread of its own, else in the thread that crosses a high watermark.
    """

    def __init__(
        self, tiers: Sequence[Tier], registry: Registry, metrics: Metrics, *, background: bool
    ) -> None:
        self.tiers = tuple(tiers)
        self.registry = registry
        self.keeping = Keeping(self.tiers)
        self.evicted: Evicted = lambda object_id, size, read_at: None
        """Is told of what was evicted for want of room, but for near copies."""
        self._metrics = metrics
        self._background = background
        self._wake = threading.Event()
        self._thread_lock = threading.Lock()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # -- reservations ------------------------------------------------------------------------------------------

    def pay(self, cached: CachedObject, claim: Claim) -> None:
        """Reserve the bytes of a claim, evicting what must go. No lock held.

        Raises:
            NoRoom: everything in the tier is in use.
        """
        tier = cached.tier
        assert tier is not None
        if tier.used + claim.need > tier.high and self._outgrows(cached, tier):
            self._shed(cached, tier.used + claim.need - tier.high)
        if not (
            tier.take(claim.need)
            or self.room(tier, claim.need)
            or (self._shed(cached, claim.need) and tier.take(claim.need))
        ):
            raise NoRoom
        with cached.cond:
            if cached.gone:
                tier.give(claim.need)
            cached.settle_up(claim)

    def refund(self, cached: CachedObject, claim: Claim) -> None:
        """Undo a claim whose blocks were not published."""
        with cached.cond:
            tier = cached.tier
            freed = cached.abandon(claim)
        if freed and tier is not None:
            tier.give(freed)

    def _outgrows(self, cached: CachedObject, tier: Tier) -> bool:
        """Whether the object can never fit and has its fair half of the tier already: it then makes room in
        itself, instead of pushing out everything else."""
        return tier.cost(cached.version) > tier.high and cached.cost > tier.high // 2

    def homes_for(self, version: ObjectVersion) -> list[Tier]:
        """The tiers where a new object may go, in order: the first that can take the whole of it below its high
        watermark, else the largest, and those below. None that is sick."""
        well = [tier for tier in self.tiers if tier.watch.takes_new]
        for place, tier in enumerate(well):
            if tier.cost(version) <= tier.high:
                return well[place:]
        return well[well.index(max(well, key=lambda tier: tier.quota)) :] if well else []

    def room(self, tier: Tier, need: int, *, primaries: bool = True) -> bool:
        """Reserve `need` bytes in a tier, evicting as many objects as it takes; False if it cannot be done."""
        if need > tier.quota:
            return False
        if tier.take(need):
            return True
        for _ in range(_PASSES):
            for victim in self._victims(tier, primaries=primaries):
                with tier.evicting():
                    if tier.take(need):  # another writer's eviction was enough for both
                        return True
                    self._release(tier, victim, need + tier.used - tier.quota)
                if tier.take(need):
                    return True
        return tier.take(need)

    def reclaim(self, tier: Tier) -> None:
        """Evict down to the low watermark, if the tier is above the high one."""
        if tier.used <= tier.high:
            return
        for _ in range(_PASSES):
            for victim in self._victims(tier, primaries=True):
                with tier.evicting():
                    excess = tier.used - tier.low
                    if excess <= 0:
                        return
                    self._release(tier, victim, excess)

    def shed(self, tier: Tier, want: int) -> int:
        """Free about `want` bytes in no time: drop objects, and move none down; what loads keep goes last.

        Returns:
            Bytes freed. What is open somewhere is passed by: its memory would not be free before it is closed.
        """
        freed = 0
        for kept in (*(False for _ in range(_PASSES)), True):
            for victim in self._victims(tier, primaries=True):
                if freed >= want:
                    return freed
                if victim.moving:
                    with victim.cond:
                        victim.cancel = True  # of a demotion; the next call drops it
                elif kept or not self.keeping.of(victim.id):
                    freed += self.drop(victim, tier=tier)
        return freed

    def make_real_room(self, tier: Tier | None, need: int, error: OSError) -> bool:
        """The device is full although the quota is not (others write there, too): evict about `need` bytes of our own.
        False for other failures, and if there is nothing to evict."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or tier is None:
            return False
        freed = 0
        for victim in self._victims(tier, primaries=True):
            with tier.evicting():
                freed += self._release(tier, victim, need - freed)
            if freed >= need:
                return True
        return False

    # -- victims -----------------------------------------------------------------------------------------------

    def _victims(self, tier: Tier, *, primaries: bool) -> Iterator[CachedObject]:
        """Objects of a tier in the order in which they should leave; secondary copies first. None of a tier that is
        down, and no more of one on which eviction fails."""
        before = tier.watch.errors
        for policy in (tier.secondary, tier.primary) if primaries else (tier.secondary,):
            candidates = policy.victims()
            while True:
                with tier.lock:
                    key = next(candidates, None)
                if key is None:
                    break
                if not tier.watch.readable or tier.watch.errors - before >= health.SUSPECT:
                    return
                cached = self.registry.get(str(key))
                if cached is None or cached.tier is not tier:
                    continue
                if cached.was_read():
                    tier.access(cached.id)
                    continue
                yield cached

    def _release(self, tier: Tier, cached: CachedObject, want: int) -> int:
        """Demote, trim or drop a victim; bytes freed in `tier`, 0 if it is in use or a load keeps it, and there is
        no room below. `tier.evicting` held."""
        if tier.rank + 1 < len(self.tiers):
            freed = self._move_down(cached, tier, relocate=False)
            if freed is not None:
                return freed
        if self.keeping.of(cached.id):
            return 0
        read_at = cached.last_use_ns() / 1e9
        try:
            freed = self._trim(cached, tier, want)
        except OSError as error:
            tier.watch.failed(error)
            _log.warning("%s: cannot punch a hole, dropping the whole file: %s", cached.data_path, error)
            freed = 0
        freed = freed or self.drop(cached, tier=tier)
        self._tell(cached, freed, read_at)
        return freed

    def _tell(self, cached: CachedObject, freed: int, read_at: float) -> None:
        if freed and not cached.secondary:
            self.evicted(cached.id, freed, read_at)

    def drop(self, cached: CachedObject, *, tier: Tier | None = None) -> int:
        """Unlink an object that nobody uses; bytes freed, 0 if somebody does, or the device does not let it go.

        Args:
            cached: the object.
            tier: only if it is in this one.
        """
        with cached.cond:
            if cached.gone or cached.pins or cached.moving or cached.tier is None:
                return 0
            if tier is not None and cached.tier is not tier:
                return 0
            return self.unlink(cached)

    def unlink(self, cached: CachedObject) -> int:
        """Unlink an object's files unless a reader has them; bytes freed. A failure is told to the tier, and the object
        stays. Its `cond` is held."""
        tier = cached.tier
        assert tier is not None
        try:
            with tier.watch.call():
                return self.registry.unlink(cached)
        except OSError as error:
            tier.watch.failed(error)
            _log.warning("%s: cannot be removed: %s", cached.data_path, error)
            return 0

    def disown(self, cached: CachedObject) -> None:
        """Unlink an object though it is in use: readers keep what they have open. Its `cond` is held, and it is not
        being moved."""
        if not cached.gone and cached.tier is not None and moving.clear(cached.tier, cached.id):
            self.registry.forget(cached)

    def _trim(self, cached: CachedObject, tier: Tier, want: int) -> int:
        """Punch some blocks out of an incomplete object that is much larger than what is wanted; bytes freed."""
        with cached.cond:
            if cached.gone or cached.pins or cached.moving or cached.tier is not tier:
                return 0
            if cached.sealed or cached.cost < 2 * want:
                return 0
            try:
                cached.open()
            except FileNotFoundError:
                return 0
            try:
                if not files.try_lock(cached.data_fd, exclusive=True):
                    return 0
                freed = cached.drop_blocks(want, set())
            finally:
                cached.shut()  # ends the lock, too
            tier.give(freed)
        self._metrics.add(EVICTED_BYTES, freed)
        return freed

    def _shed(self, cached: CachedObject, want: int) -> bool:
        """Punch blocks of the very object that is being filled, but for those its Fillings were asked about."""
        with cached.cond:
            if cached.gone or cached.sealed or cached.tier is None:
                return False
            keep = {block for pin in cached.pins for run in pin.touched for block in run}
            keep.update(block for run in self.keeping.of(cached.id) for block in run)
            if not files.try_lock(cached.data_fd, exclusive=True):
                return False
            try:
                # Some more than needed: choosing looks at every block.
                freed = cached.drop_blocks(max(want, cached.cost // 64), keep)
            except OSError as error:
                cached.tier.watch.failed(error)
                _log.warning("%s: cannot drop blocks: %s", cached.data_path, error)
                return False
            finally:
                files.unlock(cached.data_fd)
            cached.tier.give(freed)
        self._metrics.add(EVICTED_BYTES, freed)
        self._tell(cached, freed, cached.last_use_ns() / 1e9)
        return freed > 0

    # -- moving down -------------------------------------------------------------------------------------------

    def relocate(self, cached: CachedObject, tier: Tier) -> bool:
        """Move an object that is being filled out of `tier`, which is full of things in use, to a lower one; True
        if it is worth trying the write again."""
        return bool(self._move_down(cached, tier, relocate=True)) or cached.tier is not tier

    def _move_down(self, cached: CachedObject, source: Tier, *, relocate: bool) -> int | None:
        """Move an object's files from `source` to a lower tier; the bytes freed in `source`, 0 if the object is in
        use, wanted, or not there any more, None if there is no room below.

        Readers are not disturbed while the bytes are copied: the lock is tried before (so as not to copy in vain)
        and taken only for the change of names. A fill that comes in the meantime cancels a demotion.
        """
        with cached.cond:
            while relocate and cached.moving:
                cached.cond.wait()
            if cached.tier is not source or cached.gone or cached.moving or (cached.pins and not relocate):
                return 0
            if source.rank + 1 >= len(self.tiers):
                return None
            cached.moving = True  # from here no new claim, no new io
            while cached.io:
                cached.cond.wait()
            cached.cancel = False
        moved: int | None = None
        source_fd = -1
        try:
            source_fd = files.open_file(cached.data_path)
            if files.try_lock(source_fd, exclusive=True):
                files.unlock(source_fd)
                for target in self.tiers[source.rank + 1 :]:
                    if not target.watch.takes_new:
                        continue
                    moved = self._move_to(cached, source_fd, target, relocate=relocate)
                    if moved is not None:
                        break
            else:
                moved = 0
        except FileNotFoundError:
            moved = 0
        except OSError as error:
            source.watch.failed(error)
            _log.warning("%s: cannot be moved down a tier: %s", cached.data_path, error)
        finally:
            if source_fd >= 0:
                os.close(source_fd)
            if moved:
                # Not before: what is unlinked takes its bytes until its last descriptor is closed.
                source.give(moved)
            with cached.cond:
                cached.moving = False
                cached.cond.notify_all()
        if moved and cached.tier is not None:
            self.after_write(cached.tier)
        return moved

    def _move_to(self, cached: CachedObject, source_fd: int, target: Tier, *, relocate: bool) -> int | None:
        """As `_move_down`, to one tier; None also if that one fails. Raises OSError: the source does."""
        present = len(cached.states) - cached.states.count(index.ABSENT)
        unit = max(cached.version.block_size, target.granule)
        data = min(present * unit, files.round_up(cached.version.size, target.page))
        need = target.index_cost(cached.version) + data
        # What a primary copy has to leave for, a secondary copy must not come.
        if not self.room(target, need, primaries=not cached.secondary or relocate):
            return None
        copy: moving.Copy | None = None
        taken = need
        try:
            copy = moving.copy_down(
                cached, source_fd, target, self._metrics, lambda: cached.cancel and not relocate
            )
            if copy is None:
                return 0
            with cached.cond:
                if (cached.cancel and not relocate) or not files.try_lock(source_fd, exclusive=True):
                    return 0
                source, freed = cached.tier, cached.cost
                assert source is not None
                # Names in the new tier first: whoever looks in one tier after the other finds it at any time.
                copy.publish()
                with source.watch.call():
                    if not moving.clear(source, cached.id):
                        return 0  # the copy goes, and all is as it was
                source.leave(cached.id, 0)  # `_move_down` gives the bytes back
                was_open = cached.data_fd >= 0
                cached.shut()
                sealed = copy.states.count(index.VERIFIED) == len(copy.states)
                cost = cached.settle(target, copy.header, copy.states, copy.crcs, sealed=sealed)
                target.enter(cached.id, secondary=cached.secondary)
                taken -= cost
                if was_open:
                    cached.data_fd, cached.index_fd = copy.data_fd, copy.index_fd
                else:
                    copy.close()
                copy = None
            self._metrics.add(DEMOTED_BYTES, freed)
            return freed
        except OSError as error:
            target.watch.failed(error)
            _log.warning("%s: cannot be moved to %s: %s", cached.data_path, target.path, error)
            return None
        finally:
            if copy is not None:
                copy.discard()
            target.give(taken)

    # -- watermarks --------------------------------------------------------------------------------------------

    def after_write(self, tier: Tier) -> None:
        """Start eviction if the tier is above its high watermark."""
        if tier.used <= tier.high:
            return
        if not self._background:
            self.reclaim(tier)
            return
        if self._thread is None:
            with self._thread_lock:
                if self._thread is None and not self._stopping:
                    self._thread = threading.Thread(target=self._run, name="raycache-evict", daemon=True)
                    self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            # What is in use when a quota is lowered leaves later, and nobody says when.
            over = any(tier.used > tier.quota and tier.watch.readable for tier in self.tiers)
            self._wake.wait(OVER_S if over else None)
            self._wake.clear()
            if self._stopping:
                return
            for tier in reversed(self.tiers):  # the lower first: room for what comes down
                try:
                    self.reclaim(tier)
                except OSError as error:
                    _log.warning("%s: eviction failed: %s", tier.path, error)

    def stop(self) -> None:
        """End the background thread."""
        with self._thread_lock:
            self._stopping = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(_JOIN_S)
