"""Taking over what an earlier process left in the tiers."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Sequence

from raycache.blocks import runs
from raycache.errors import IntegrityError
from raycache.store import files, index, moving, scrubbing, watching
from raycache.store.cached_object import CachedObject
from raycache.store.tiers import Tier

_log = logging.getLogger(__name__)


def adopt(tiers: Sequence[Tier]) -> list[CachedObject]:
    """Objects for all valid pairs of files, entered in their tiers, the longest unread first.

    Every present block becomes unverified: it is checked on first use. Files without a valid index, with a data
    file of another size, or left half-made by a move, are removed; of two copies (a crash during a demotion) the
    fuller one stays. No lock of a reader is asked for: whoever has such a file open keeps it.
    """
    found: dict[str, tuple[int, CachedObject]] = {}
    for tier in tiers:
        for object_id in _candidates(tier):
            adopted = _adopt_one(tier, object_id)
            if adopted is None:
                continue
            rival = found.get(object_id)
            if rival is None:
                found[object_id] = adopted
            elif adopted[1].cached_bytes() > rival[1].cached_bytes():
                found[object_id] = adopted
                _remove(rival[1].tier or tier, object_id, "a fuller copy is in a lower tier")
            else:
                _remove(tier, object_id, "a copy is in a higher tier")
    result = []
    for _, cached in sorted(found.values(), key=lambda pair: pair[0]):
        assert cached.tier is not None
        cached.tier.enter(cached.id, secondary=cached.secondary, amount=cached.cost)
        result.append(cached)
    return result


def _candidates(tier: Tier) -> list[str]:
    """Ids of which there are a data and an index file; all else in the tier's folders is removed."""
    names = {str(path) for path in tier.remnants()}
    ids = []
    for name in (watching.PROBE, scrubbing.NAME + moving.NEW):
        _unlink(os.path.join(tier.path, name))
    for name in sorted(names):
        object_id, dot, kind = os.path.basename(name).partition(".")
        data, entries = index.data_path(tier.path, object_id), index.index_path(tier.path, object_id)
        if dot and kind == "data" and name == data and entries in names:
            ids.append(object_id)
        elif not (kind == "index" and name == entries and data in names):
            _log.info("%s: left over, removed", name)
            _unlink(name)
    return ids


def _unlink(name: str) -> None:
    try:
        files.unlink(name)
    except OSError as error:
        _log.warning("%s: cannot be removed: %s", name, error)


def _remove(tier: Tier, object_id: str, why: str) -> None:
    _log.warning("%s: removed: %s", index.data_path(tier.path, object_id), why)
    try:
        moving.remove(tier, object_id)
    except OSError as error:
        _log.warning("%s: cannot be removed: %s", index.data_path(tier.path, object_id), error)


def _adopt_one(tier: Tier, object_id: str) -> tuple[int, CachedObject] | None:
    """(access time, object) of one pair of files; None if they were not valid and are gone."""
    data_fd = index_fd = -1
    try:
        data_fd = files.open_file(index.data_path(tier.path, object_id), write=True)
        index_fd = files.open_file(index.index_path(tier.path, object_id), write=True)
        loaded = index.load(index_fd)
        status = os.fstat(data_fd)
        if loaded.version.object_id != object_id or status.st_size != loaded.version.size:
            raise IntegrityError("the data file does not belong to its index")
        return status.st_atime_ns, _take_over(tier, loaded, data_fd, index_fd, status.st_blocks * 512)
    except (IntegrityError, OSError) as error:
        _remove(tier, object_id, str(error))
        return None
    finally:
        for fd in (data_fd, index_fd):
            if fd >= 0:
                os.close(fd)


def _take_over(tier: Tier, loaded: index.Loaded, data_fd: int, index_fd: int, allocated: int) -> CachedObject:
    header, states = loaded.header, loaded.states
    present = bytes((index.ABSENT, index.UNVERIFIED, index.UNVERIFIED)) + bytes(253)
    states = bytearray(states.translate(present))
    empty = loaded.version.size == 0
    # Readers may look on: first nothing is trusted any more, then this boot is named.
    if not empty:
        index.write_flags(index_fd, header.flags & ~index.COMPLETE)
        index.write_states(index_fd, header, 0, states)
    if header.boot != files.boot_id():
        index.write_boot(index_fd, files.boot_id())
    cached = CachedObject(loaded.version, secondary=bool(header.flags & index.SECONDARY))
    crcs = array("I")
    crcs.frombytes(loaded.crcs)
    sealed = bool(header.flags & index.SEALED)
    cost = cached.settle(tier, header, states, crcs, sealed=sealed)
    if not sealed and allocated > cost - tier.index_cost(loaded.version):
        # Bytes that were written, but whose block never became present.
        absent = [i for i, state in enumerate(states) if state == index.ABSENT]
        for run in runs(absent, len(absent)):
            offset, length = loaded.version.extent_of(run)
            if offset + length == loaded.version.size:  # its last page too, of which the file has but a part
                length = files.round_up(loaded.version.size, tier.page) - offset
            files.punch_hole(data_fd, offset, length)
    return cached
