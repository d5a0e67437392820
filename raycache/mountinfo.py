"""The mount table of this process, as the kernel tells it (proc_pid_mountinfo(5)). Reading it touches no
filesystem: unlike `stat`, it cannot hang on a mount that does not answer. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_MOUNTS = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")
"""How the kernel writes space, tab, newline, backslash and `#` (fs/proc_namespace.c, mangle())."""


class MountEntry(NamedTuple):
    """One mount.

    Args:
        device: `major:minor` of its files' `st_dev`; for FUSE the minor number is the connection's.
        point: absolute path of the mount point.
        kind: filesystem type, `tmpfs` or `fuse.raycache`.
        source: what is mounted; any text.
        options: the filesystem's own options, comma-separated.
    """

    device: str
    point: str
    kind: str
    source: str
    options: str


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def parse(table: bytes) -> list[MountEntry]:
    """The entries of a mountinfo file, in its order. Lines that are not of its format are left out."""
    found = []
    for line in table.split(b"\n"):
        left, dash, right = line.partition(b" - ")
        mount, filesystem = left.split(b" "), right.split(b" ")
        if dash and len(mount) >= 5 and len(filesystem) >= 3:
            fields = (mount[2], mount[4], filesystem[0], filesystem[1], filesystem[2])
            found.append(MountEntry(*map(_unescape, fields)))
    return found


def mounts() -> list[MountEntry]:
    """Every mount, a covered one before the one that covers it. Empty where there is no /proc."""
    try:
        return parse(Path(_MOUNTS).read_bytes())
    except OSError:
        return []


def mounted_at(point: str) -> MountEntry | None:
    """What is mounted exactly at `point` (absolute, without links), the topmost; None if nothing is."""
    return next((entry for entry in reversed(mounts()) if entry.point == point), None)


def mount_of(path: str) -> MountEntry | None:
    """The mount that `path` (absolute, without links; it need not exist) lies on; None where there is no /proc."""
    best: MountEntry | None = None
    for entry in mounts():
        inside = path == entry.point or path.startswith(entry.point.rstrip("/") + "/")
        if inside and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best
