"""Copying an object's files down a tier."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from crc32c import crc32c

from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import files, index
from raycache.store.cached_object import CachedObject
from raycache.store.tiers import Tier

_log = logging.getLogger(__name__)

NEW = ".new"
"""Suffix of files that are not whole yet. Adoption removes them."""


@dataclass(slots=True)
class Copy:
    """Files of an object, written under temporary names in `tier`."""

    tier: Tier
    object_id: str
    header: index.Header
    data_fd: int
    index_fd: int
    states: bytearray
    crcs: array[int]

    def publish(self) -> None:
        """Give the files their names: the index first, so that a data file never lacks one. Raises OSError."""
        for path in (
            index.index_path(self.tier.path, self.object_id),
            index.data_path(self.tier.path, self.object_id),
        ):
            os.replace(path + NEW, path)

    def close(self) -> None:
        """Close the descriptors, if they are not the object's by now."""
        os.close(self.data_fd)
        os.close(self.index_fd)

    def discard(self) -> None:
        """Remove the files, whether or not they have their names already. If that fails, adoption does it."""
        self.close()
        clear(self.tier, self.object_id)


def remove(tier: Tier, object_id: str) -> None:
    """Unlink the files of an object in a tier: data first, so that no data file is ever without its index."""
    data, entries = index.data_path(tier.path, object_id), index.index_path(tier.path, object_id)
    for path in (data, data + NEW, entries, entries + NEW):
        files.unlink(path)


def clear(tier: Tier, object_id: str, *, new_only: bool = False) -> bool:
    """As `remove`, but a failure is told to the tier and not raised; False if there was one.

    Args:
        tier: where.
        object_id: which object's files.
        new_only: only files that have not got their names yet.
    """
    try:
        if new_only:
            for path in (index.data_path(tier.path, object_id), index.index_path(tier.path, object_id)):
                files.unlink(path + NEW)
        else:
            remove(tier, object_id)
    except OSError as error:
        tier.watch.failed(error)
        _log.warning("%s: cannot be removed: %s", index.data_path(tier.path, object_id), error)
        return False
    return True


def new_files(cached: CachedObject, tier: Tier, flags: int, states: bytearray, crcs: array[int]) -> Copy:
    """Create the two files of an object under temporary names, the data sparse and of full length.

    Raises:
        OSError: they cannot be made; nothing is left of them.
    """
    version = cached.version
    index_fd = data_fd = -1
    try:
        index_fd = files.create(index.index_path(tier.path, cached.id) + NEW)
        header = index.write_new(index_fd, version, flags, bytes(states), crcs.tobytes())
        data_fd = files.create(index.data_path(tier.path, cached.id) + NEW)
        os.ftruncate(data_fd, version.size)
    except BaseException:
        for fd in (index_fd, data_fd):
            if fd >= 0:
                os.close(fd)
        clear(tier, cached.id, new_only=True)
        raise
    return Copy(tier, cached.id, header, data_fd, index_fd, states, crcs)


def _read(cached: CachedObject, fd: int, part: memoryview, offset: int) -> bool:
    """Read a block of the source; False if it cannot be read."""
    tier = cached.tier
    assert tier is not None
    try:
        with tier.watch.call():
            return files.pread_into(fd, part, offset) == len(part)
    except OSError as error:
        tier.watch.failed(error)
        _log.warning("%s: cannot be read at %d: %s", cached.data_path, offset, error)
        return False


def copy_down(
    cached: CachedObject, source_fd: int, tier: Tier, metrics: Metrics, stop: Callable[[], bool]
) -> Copy | None:
    """Copy an object's present blocks into new files in `tier`, each checked against its CRC32C on the way.

    The caller keeps writers away (`cached.moving`). Readers of the source are not disturbed.

    Args:
        cached: the object.
        source_fd: its data file.
        tier: where the copy goes; the bytes are reserved there.
        metrics: counts corrupt blocks.
        stop: asked before each block.

    Returns:
        The copy, not yet under its names; None if it was stopped.

    Raises:
        OSError: writing failed; nothing is left of the copy. (What cannot be read is as good as corrupt.)
    """
    version = cached.version
    states = bytearray(len(cached.states))
    copy = new_files(cached, tier, 0, states, array("I", cached.crcs))
    done = False
    try:
        buffer = memoryview(bytearray(min(version.block_size, version.size)))
        for block, state in enumerate(cached.states):
            if state == index.ABSENT:
                continue
            if stop():
                return None
            extent = version.block_extent(block)
            part = buffer[: extent.length]
            if not _read(cached, source_fd, part, extent.offset) or crc32c(part) != cached.crcs[block]:
                _log.warning("%s: block %d does not match its checksum; dropped", cached.data_path, block)
                metrics.add(CORRUPT_BLOCKS)
                continue
            with tier.watch.call():
                files.pwrite_all(copy.data_fd, part, extent.offset)
            states[block] = index.VERIFIED
        index.write_states(copy.index_fd, copy.header, 0, states)
        flags = index.SECONDARY if cached.secondary else 0
        if states.count(index.VERIFIED) == len(states):
            flags |= index.COMPLETE | index.SEALED
        index.write_flags(copy.index_fd, flags)
        done = True
        return copy
    finally:
        if not done:
            copy.close()
            clear(tier, cached.id, new_only=True)
