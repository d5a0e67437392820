"""A directory of its own for each worker of a machine, and the same one again after a restart.

<base>/<name>/<n>/LOCK      held (flock) by the worker that owns slot n, for as long as it lives
<base>/<name>/<n>/tier/     what the store keeps; a huge-page tmpfs is mounted here where that is allowed
"""

from __future__ import annotations

import errno
import os
import shutil

from raycache.errors import AccessDeniedError, CacheFullError, PathError, RaycacheError, StoreBusyError
from raycache.store import files, tmpfs

_SLOTS = 1024
"""Workers of one dataset on one machine: far above anything sensible, so that a search ends."""


class Home:
    """A claimed slot. `path` is the directory to give to a tier.

    Args:
        slot: the slot's directory.
        lock_fd: descriptor that holds the slot's lock.
    """

    def __init__(self, slot: str, lock_fd: int) -> None:
        self.slot = slot
        self.path = os.path.join(slot, "tier")
        self._lock_fd = lock_fd
        os.makedirs(self.path, mode=0o700, exist_ok=True)

    def mount_huge_pages(self, size: int) -> bool:
        """Make `path` a huge-page tmpfs of `size` bytes; False (and a log line) where that is not allowed.

        A mount that a crashed worker left is used again, with its files, and resized."""
        return tmpfs.mount(self.path, size)

    def resize(self, size: int) -> None:
        """Change the size of the tmpfs, if there is one. Shrink the store first."""
        if tmpfs.is_mounted(self.path):
            tmpfs.mount(self.path, size)

    def close(self, *, purge: bool = False) -> None:
        """Give the slot up. With `purge`, its contents and its mount go too; else they wait for the next owner."""
        if self._lock_fd < 0:
            return
        try:
            if purge:
                tmpfs.unmount(self.path)
                shutil.rmtree(self.path, ignore_errors=True)
        finally:
            # LOCK itself stays: removing it would let two owners lock two files of that name.
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock_slot(slot: str) -> int | None:
    """Lock a slot; its descriptor, or None if another process owns it."""
    files.private_directory(slot)
    fd = os.open(os.path.join(slot, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if files.try_lock(fd, exclusive=True):
        return fd
    os.close(fd)
    return None


def _translate(error: OSError, where: str) -> RaycacheError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDeniedError(
            f"the cache directory cannot be made: {error.strerror}",
            where=where,
            hint="choose a path in tieredstore.levels that the worker's user may write",
        )
    return CacheFullError(
        f"the cache directory cannot be made: {error.strerror}",
        where=where,
        hint="free space there, or choose another path in tieredstore.levels",
    )


def claim(base: str, name: str) -> Home:
    """The first free numbered slot below `<base>/<name>`, so that a restarted worker finds its files warm and
    several workers on one machine never share.

    Args:
        base: the tier's path from the spec; made if it is not there.
        name: one path component, usually the dataset's name.

    Raises:
        PathError: `name` is not one path component.
        AccessDeniedError: the directory cannot be made, or belongs to another user.
        CacheFullError: the filesystem is full.
        StoreBusyError: every slot is taken.
    """
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise PathError("a cache directory is named by one path component", where=repr(name))
    root = os.path.join(base, name)
    try:
        os.makedirs(base, mode=0o755, exist_ok=True)
        files.private_directory(root)
        for number in range(_SLOTS):
            slot = os.path.join(root, str(number))
            fd = _lock_slot(slot)
            if fd is not None:
                try:
                    return Home(slot, fd)
                except OSError:
                    os.close(fd)
                    raise
    except RaycacheError:
        raise
    except OSError as error:
        raise _translate(error, root) from error
    raise StoreBusyError(
        f"all {_SLOTS} slots are taken", where=root, hint="are there that many workers on this machine?"
    )


def sweep(base: str, name: str) -> list[str]:
    """Purge the slots that no living process owns: what workers left that will not come back.

    Returns:
        The directories of the slots that were purged.
    """
    root = os.path.join(base, name)
    swept = []
    try:
        numbers = sorted(entry for entry in os.listdir(root) if entry.isdecimal())
    except FileNotFoundError:
        return []
    for number in numbers:
        slot = os.path.join(root, number)
        fd = _lock_slot(slot)
        if fd is not None:
            Home(slot, fd).close(purge=True)
            swept.append(slot)
    return swept
