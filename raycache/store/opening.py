"""Pinning an object for a Filling: finding it or making its files, and cleaning up after the last one."""

from __future__ import annotations

import logging
from array import array

from raycache.blocks import ObjectVersion
from raycache.errors import CacheFullError, StoreBusyError
from raycache.store import index, moving
from raycache.store.cached_object import CachedObject, Pin
from raycache.store.space import Space
from raycache.store.tiers import Tier

_log = logging.getLogger(__name__)

_SICK_HINT = "see `raycache get workers -o wide`, and the kernel's log on that node"


def pin(space: Space, version: ObjectVersion, holder: Pin, *, secondary: bool) -> CachedObject:
    """The version's object with `holder` on it and its files open, made if need be.

    Raises:
        CacheFullError: no tier can take even its index.
        StoreBusyError: the store was closed meanwhile.
    """
    while True:
        cached = space.registry.get_or_add(version, secondary=secondary)
        if _pin(space, cached, holder, secondary=secondary):
            return cached
        if space.registry.retired:  # what is gone from a closed store stays in its table
            raise StoreBusyError("the local store is closed", where=space.tiers[0].path)


def _pin(space: Space, cached: CachedObject, holder: Pin, *, secondary: bool) -> bool:
    """False if the object is gone: there is a new one by now, or none."""
    with cached.cond:
        while cached.moving:
            cached.cancel = True  # it is wanted here and now
            cached.cond.wait()
        if cached.gone:
            return False
        if cached.tier is not None:
            return _pin_existing(space, cached, holder, secondary=secondary)
        cached.moving = True
    try:
        tier, copy = _create(space, cached)
    except BaseException:
        with cached.cond:
            cached.moving = False
            space.registry.forget(cached)
        raise
    with cached.cond:
        cached.settle(tier, copy.header, copy.states, copy.crcs, sealed=cached.version.size == 0)
        cached.data_fd, cached.index_fd = copy.data_fd, copy.index_fd
        cached.pins.add(holder)
        tier.enter(cached.id, secondary=cached.secondary)
        cached.gone = space.registry.retired  # the store was closed meanwhile
        cached.moving = False
        cached.cond.notify_all()
    return True


def _pin_existing(space: Space, cached: CachedObject, holder: Pin, *, secondary: bool) -> bool:
    assert cached.tier is not None
    if not cached.tier.watch.readable:
        raise CacheFullError(cached.tier.watch.why(), where=cached.tier.path, hint=_SICK_HINT)
    try:
        cached.open()
        if cached.secondary and not secondary:
            cached.secondary = False
            index.write_flags(cached.index_fd, cached.flags)
            cached.tier.promote(cached.id)
    except FileNotFoundError:
        _log.warning("%s: somebody has removed the cache file", cached.data_path)
        moving.clear(cached.tier, cached.id)
        space.registry.forget(cached)
        return False
    except OSError as error:
        cached.tier.watch.failed(error)
        if not cached.pins:
            cached.shut()
        raise CacheFullError(
            f"the cache file cannot be opened for writing: {error.strerror}", where=cached.data_path
        ) from error
    cached.pins.add(holder)
    return True


def _create(space: Space, cached: CachedObject) -> tuple[Tier, moving.Copy]:
    """Make the files in the first tier that can take the object by its size, else in the largest; further down if
    that one is full of things in use, or sick."""
    version = cached.version
    flags = index.SECONDARY if cached.secondary else 0
    if version.size == 0:
        flags |= index.COMPLETE | index.SEALED
    states = bytearray(version.block_count)
    crcs = array("I", bytes(4 * len(states)))
    homes = space.homes_for(version)
    problem = "the cache is full and all that is in it is in use"
    hint = "raise the quota of a tier, or add one"
    if not homes:
        problem, hint = space.tiers[0].watch.why(), _SICK_HINT
    for tier in homes:
        need = tier.index_cost(version)
        if not space.room(tier, need):
            continue
        try:
            try:
                return tier, _make(tier, cached, flags, states, crcs)
            except OSError as error:
                if not space.make_real_room(tier, need, error):
                    raise
                return tier, _make(tier, cached, flags, states, crcs)
        except OSError as error:
            tier.give(need)
            tier.watch.failed(error)
            problem = f"no cache file can be made in {tier.path}: {error.strerror}"
    raise CacheFullError(problem, where=f"{version.dataset}/{version.path}", hint=hint)


def _make(tier: Tier, cached: CachedObject, flags: int, states: bytearray, crcs: array[int]) -> moving.Copy:
    with tier.watch.call():
        copy = moving.new_files(cached, tier, flags, states, crcs)
        try:
            copy.publish()
        except OSError:
            copy.discard()
            raise
        return copy


def unpin(space: Space, cached: CachedObject, holder: Pin) -> None:
    """Take a pin off. The last one closes the files, and removes them if nothing came of the fill."""
    with cached.cond:
        cached.pins.discard(holder)
        while not cached.pins and (cached.io or cached.moving):
            cached.cond.wait()
        if cached.pins:
            return
        cached.shut()
        if not cached.gone and not cached.complete and not any(cached.states):
            space.unlink(cached)
