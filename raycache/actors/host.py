"""What this machine is, and how much memory and disk it has."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNT_NAMESPACE = Path("/proc/self/ns/mnt")
_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@cache
def host_id() -> str:
    """Identity of the machine as far as files go: processes with the same one can open each other's.

    It is made of the kernel's boot id and the mount namespace, so two containers of one machine differ.
    """
    try:
        identity = f"{_BOOT_ID.read_text().strip()} {_MOUNT_NAMESPACE.readlink()}"
    except OSError:  # no /proc
        identity = socket.gethostname()
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def memory_size() -> int:
    """Bytes of memory that this process's container, or else the machine, has."""
    total = next(
        int(line.split()[1]) * 1024
        for line in _MEMINFO.read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    for path in _CGROUP_LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():  # else "max"
            total = min(total, int(limit))
    return total


def disk_size(path: str) -> int:
    """Bytes of the filesystem that holds `path`, or will hold it once it is made."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize
