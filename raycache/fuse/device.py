"""`/dev/fuse`: mounting, unmounting, the ioctls of passthrough, and what this kernel allows. Standard library only:
the supervisor is made of this.

Nothing here asks a mounted filesystem anything from this process: a mount whose server does not answer holds whoever
asks, and the kernel lets nobody go whose request a server has already read. `probe` asks from a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import re
import select
import signal
import struct
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

from raycache import mountinfo
from raycache.errors import MountError, NotMountedError
from raycache.fuse import fusermount

KIND = "fuse.raycache"
"""The filesystem type in the mount table: the kernel's `fuse` with our subtype."""

MAX_READ = 1 << 20
"""Bytes of the largest READ: 256 pages, the kernel's limit unless fs.fuse.max_pages_limit is raised."""

_DEVICE = "/dev/fuse"
_SYS_ADMIN = 21
"""CAP_SYS_ADMIN, include/uapi/linux/capability.h."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 0x1, 0x2, 0x4, 0x400
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x1, 0x2, 0x8
"""include/uapi/linux/mount.h, include/linux/fs.h."""

_BACKING_OPEN = 1 << 30 | 16 << 16 | 229 << 8 | 1
_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2
"""FUSE_DEV_IOC_BACKING_OPEN and _CLOSE, include/uapi/linux/fuse.h; spelt out by _IOW of asm-generic/ioctl.h."""

_BACKING_LOOK = 4096
"""Registrations that are looked through for forgotten ones: many more than there can be opens under way."""


class Mounted(NamedTuple):
    """A fresh mount.

    Args:
        fd: the connection's descriptor, close-on-exec. The connection ends with its last copy.
        device: `major:minor` of the mount; the minor number names the connection.
        privileged: made by mount(2); else by fusermount3.
        allow_other: other users may use it.
    """

    fd: int
    device: str
    privileged: bool
    allow_other: bool


class Health(enum.Enum):
    """What `probe` found."""

    ANSWERS = "answers"
    DEAD = "dead"
    """Nobody holds the connection: everything is ENOTCONN."""
    HUNG = "hung"
    """Somebody holds the connection and does not answer."""
    UNKNOWN = "unknown"
    """This user may not ask: it is somebody else's mount, without allow_other."""


class Passthrough(NamedTuple):
    """Whether passthrough is possible here, and if not, why."""

    possible: bool
    reason: str


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failed(what: str, code: int, where: str, hint: str = "") -> MountError:
    return MountError(f"{what}: {os.strerror(code)}", where=where, hint=hint)


# Mounting


def mount(point: str, source: str, *, allow_other: bool = True) -> Mounted:
    """Mount at a directory: by mount(2), or through fusermount3 where this process may not.

    Args:
        point: absolute path of the directory, without links.
        source: what the mount table shows as mounted; the dataset's name.
        allow_other: let every user of the machine in. An unprivileged mount has it only if /etc/fuse.conf allows.

    Raises:
        MountError: not possible, with the reason of each way.
    """
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(
            "this machine has no /dev/fuse",
            where=point,
            hint="load the kernel's fuse module; in a container, pass the device in",
        ) from None
    except PermissionError as error:
        why = f"{_DEVICE}: {error.strerror}"
        return _mount_by_helper(point, source, allow_other, why)
    mounted: Mounted | None = None
    try:
        options = f"fd={fd},{_common_options(allow_other)},rootmode=40000"
        options += f",user_id={os.geteuid()},group_id={os.getegid()}"
        flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME)
        name = source.encode(errors="surrogateescape")
        if _libc().mount(name, os.fsencode(point), KIND.encode(), flags, options.encode()) == 0:
            mounted = Mounted(fd, _device_at(point), True, allow_other)
            return mounted
        code = ctypes.get_errno()
    finally:
        if mounted is None:
            os.close(fd)
    if code == errno.EPERM:
        return _mount_by_helper(point, source, allow_other, f"mount: {os.strerror(code)}")
    hint = "the kernel has no FUSE: load its fuse module" if code == errno.ENODEV else ""
    raise _failed("cannot be mounted", code, point, hint)


def _common_options(allow_other: bool) -> str:
    return f"default_permissions,max_read={MAX_READ}" + (",allow_other" if allow_other else "")


def _mount_by_helper(point: str, source: str, allow_other: bool, why: str) -> Mounted:
    allow_other = allow_other and fusermount.allows_other()
    try:
        fd = fusermount.mount(point, source, _common_options(allow_other))
    except MountError as error:
        raise MountError(f"{why}; {error.what}", where=point, hint=error.hint) from None
    mounted: Mounted | None = None
    try:
        mounted = Mounted(fd, _device_at(point), False, allow_other)
        return mounted
    finally:
        if mounted is None:
            os.close(fd)


def _device_at(point: str) -> str:
    entry = mountinfo.mounted_at(point)
    if entry is None or entry.kind != KIND:
        raise MountError(
            "mounted, and not to be seen in the mount table",
            where=point,
            hint="give the mount point as an absolute path without links",
        )
    return entry.device


# Unmounting


def unmount(point: str, *, lazy: bool = False) -> bool:
    """Unmount what is on top at `point`.

    Args:
        point: absolute path, without links.
        lazy: take it out of the tree now, whoever uses it; the connection lives until the last file closes.

    Returns:
        False if it is in use (never with `lazy`).

    Raises:
        NotMountedError: nothing is mounted there.
        MountError: it may not be unmounted.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc().umount2(os.fsencode(point), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        return False
    if code in (errno.EINVAL, errno.ENOENT):
        raise NotMountedError("nothing is mounted here", where=point)
    if code != errno.EPERM:
        raise _failed("cannot be unmounted", code, point)
    return fusermount.unmount(point, lazy=lazy)


def abort(entry: mountinfo.MountEntry) -> bool:
    """End a connection, whoever holds it: all requests, waiting ones too, end with an error. The last resort.

    Returns:
        False where that is not allowed, or no way is there.
    """
    minor = entry.device.partition(":")[2]
    try:
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
    except OSError:
        pass  # fusectl is not mounted, or this user is not the mount's
    else:
        return True
    # MNT_FORCE aborts first (fuse_umount_begin) and only then looks whether the mount is busy.
    flags = _MNT_FORCE | _UMOUNT_NOFOLLOW
    return _libc().umount2(os.fsencode(entry.point), flags) == 0 or ctypes.get_errno() == errno.EBUSY


# What state a mount is in


def connected(fd: int) -> bool:
    """Whether the connection behind a `/dev/fuse` descriptor lives: False once unmounted or aborted."""
    poll = select.poll()
    poll.register(fd, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


_ASK = """
import os, sys
try: found = os.statvfs(sys.argv[1])
except OSError as error: sys.exit(error.errno)
sys.exit(0 if found.f_namemax else 200)
"""
"""statfs and not stat: it is never answered from a cache. To whom it is not allowed, it says zeros (fuse_statfs)."""


def probe(point: str, patience_s: float = 2.0) -> Health:
    """Ask what is mounted at `point` whether it lives, from another process, which may hang in this one's place.

    (`/sys/fs/fuse/connections` does not tell: a dead connection stays there until it is unmounted.)

    Args:
        point: absolute path of a FUSE mount.
        patience_s: seconds without an answer that mean `HUNG`. A dead one answers at once.
    """
    devnull = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    argv = [sys.executable, "-I", "-S", "-c", _ASK, point]
    pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=devnull)
    handle = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        if not ended.poll(patience_s * 1000):
            os.kill(pid, signal.SIGKILL)
            if ended.poll(1000):  # else it hangs in the kernel, and is reaped when this process ends
                os.waitpid(pid, 0)
            return Health.HUNG
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)
    if code in (errno.ENOTCONN, errno.ECONNABORTED):
        return Health.DEAD
    return Health.UNKNOWN if code in (200, errno.EACCES, errno.EPERM) else Health.ANSWERS


def clear_dead(point: str) -> int:
    """Unmount dead mounts of raycache at `point`; how many there were.

    Raises:
        MountError: one may not be unmounted.
    """
    count = 0
    while (entry := mountinfo.mounted_at(point)) and entry.kind == KIND and probe(point) is Health.DEAD:
        try:
            unmount(point, lazy=True)
        except NotMountedError:
            break
        count += 1
    return count


# Passthrough and readahead


def passthrough_support() -> Passthrough:
    """Whether this process can use passthrough. The kernel's configuration is told by INIT only."""
    release = os.uname().release
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or (int(version[1]), int(version[2])) < (6, 9):
        return Passthrough(False, f"Linux {release} is older than 6.9")
    try:
        status = Path("/proc/self/status").read_text()
        ids = Path("/proc/self/uid_map").read_text().split()
    except OSError as error:
        return Passthrough(False, f"/proc does not tell the capabilities: {error}")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if found is None or not int(found[1], 16) >> _SYS_ADMIN & 1:
        return Passthrough(False, "this process does not have CAP_SYS_ADMIN")
    if ids != ["0", "0", "4294967295"]:
        return Passthrough(False, "this process has CAP_SYS_ADMIN in its own user namespace only")
    return Passthrough(True, "")


def backing_open(fuse_fd: int, file_fd: int) -> int:
    """Register an open file as one that the kernel may read itself; its backing id, for OPEN replies.

    The registration keeps the open file description, and the flock on it, until `backing_close` or the end of the
    connection.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN or where INIT did not agree on passthrough; ELOOP on a stacked
            filesystem; EINVAL, EBADF for what is no regular file.
    """
    # A bytes object would hide the id: ioctl would return a copy of the buffer instead of the call's result.
    request = bytearray(struct.pack("<iIQ", file_fd, 0, 0))
    backing_id: int = fcntl.ioctl(fuse_fd, _BACKING_OPEN, request, True)
    return backing_id


def backing_close(fuse_fd: int, backing_id: int) -> None:
    """Give a registration up; files that are open through it go on. Raises OSError: ENOENT for an unknown id."""
    fcntl.ioctl(fuse_fd, _BACKING_CLOSE, bytearray(struct.pack("<I", backing_id)), True)


def backing_clear(fuse_fd: int, kept: Collection[int]) -> int:
    """Give up all registrations but some. The kernel does not list them; it numbers them one after the other
    (`idr_alloc_cyclic` in fs/fuse/backing.c), so those that nobody knows of are among the last `_BACKING_LOOK`.

    Returns:
        How many there were.

    Raises:
        OSError: as `backing_open`.
    """
    with open(os.memfd_create("raycache-probe"), "rb") as probe:
        newest = backing_open(fuse_fd, probe.fileno())
    backing_close(fuse_fd, newest)
    cleared = 0
    for backing_id in range(max(1, newest - _BACKING_LOOK), newest):
        if backing_id not in kept:
            with contextlib.suppress(FileNotFoundError):  # ENOENT: there is none
                backing_close(fuse_fd, backing_id)
                cleared += 1
    return cleared


def raise_readahead(device: str, kib: int) -> bool:
    """Raise a mount's readahead above the 128 KiB that the kernel caps it to, whatever INIT says. Do it before INIT
    is answered: that takes the smaller of the two.

    Args:
        device: `major:minor` of the mount.
        kib: readahead, KiB.

    Returns:
        False where that is not allowed (it needs root, and a writable /sys).
    """
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        return False
    return True
