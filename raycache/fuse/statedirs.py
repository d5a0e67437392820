"""State directories of mounts: where they are, what they tell, and which of them nobody uses any more.

<root>/<hash of the mount point>/LOCK   held by whoever starts or clears up mounts of that mount point
<root>/<hash of the mount point>/KEEPING, MADE   see keeping.py
<root>/<hash of the mount point>/<n>/   the state directory of one mount (statefiles.py). Several, if an older one is
                                        out of the tree and still serves open files.

Where nothing but lock files is left, they and their directory are removed by whoever holds both. So a lock counts only
if its file still has its name once it is held (`lock_home`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raycache import mountinfo
from raycache.errors import MountError
from raycache.fuse import statefiles
from raycache.fuse.device import KIND
from raycache.fuse.statefiles import Process
from raycache.settings import Settings
from raycache.store import files

KEEPING = "KEEPING"
"""Lock file of a mount point that workers keep mounted: one worker of the machine at a time (see keeping.py). Who wants
LOCK too takes this one first, or does not wait for it."""

_LINKS = 40
"""Links followed in a mount point, as the kernel's MAXSYMLINKS."""


@dataclass(frozen=True)
class MountStatus:
    """How a mount is.

    Args:
        mountpoint: absolute path.
        source: the dataset's name.
        state: `starting`; `serving`; `restarting` (the server has died, the next is coming up); `unmounting`;
            `detached` (out of the tree, serving files that are still open); `ended`; `failed` (given up); `dead` (its
            processes were killed, and what they left is still mounted); `unknown` (mounted by a process that has no
            state directory here).
        state_dir: the state directory; "" if there is none.
        supervisor_pid: 0 if it is dead.
        server_pid: 0 if none runs.
        starts: servers started so far; more than one means that some died or were replaced.
        error: what went wrong last.
        mount: device, privileged, allow_other, readahead_kib, last_exit.
        details: what the server said last.
    """

    mountpoint: str
    source: str
    state: str
    state_dir: str = ""
    supervisor_pid: int = 0
    server_pid: int = 0
    starts: int = 0
    error: str = ""
    mount: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def roots(settings: Settings | None = None) -> list[str]:
    """Where mounts of this user may have their state, the preferred place first: on a tmpfs if there is one."""
    settings = settings or Settings.from_environ()
    user = os.geteuid()
    first = ["/run/raycache"] if user == 0 else []
    if user and settings.runtime_dir:
        first = [os.path.join(settings.runtime_dir, "raycache")]
    places = [*first, f"/dev/shm/raycache-{user}", settings.state_dir]
    return [os.path.join(place, "mounts") for place in sorted(filter(None, places), key=_is_slow)]


def _is_slow(place: str) -> bool:
    entry = mountinfo.mount_of(os.path.realpath(os.path.dirname(place)))
    return entry is None or entry.kind != "tmpfs"


def real_mountpoint(path: str) -> str:
    """Absolute path of a mount point without links. Unlike `realpath` it asks nothing of what is mounted there."""
    path = os.path.abspath(path)
    for _ in range(_LINKS):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            target = str(Path(path).readlink())
        except OSError:
            return path
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    raise MountError("too many symbolic links", where=path)


def home_of(root: str, point: str) -> str:
    """The directory of a mount point's state directories."""
    return os.path.join(root, hashlib.sha256(os.fsencode(point)).hexdigest()[:16])


def make_home(root: str, point: str) -> str:
    """`home_of`, made if need be. Raises OSError, AccessDeniedError if somebody else was there before."""
    os.makedirs(os.path.dirname(root), exist_ok=True)
    home = home_of(root, point)
    files.private_directory(root)
    try:
        files.private_directory(home)
    except FileNotFoundError:  # it was there, and somebody has just cleared it away
        files.private_directory(home)
    return home


def first_home(point: str) -> str:
    """`make_home` in the first of `roots()` that can be written.

    Raises:
        MountError: none can.
    """
    failure: OSError | None = None
    for root in roots():
        place = os.path.dirname(root)
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            files.private_directory(place)  # /dev/shm is everybody's
            return make_home(root, point)
        except OSError as error:  # AccessDeniedError is one
            failure = failure or error
    raise MountError(
        f"there is no place for the mount's state: {failure}", where=point, hint="set XDG_STATE_HOME"
    )


def slots(home: str) -> Iterator[str]:
    """The state directories of a mount point, oldest number first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(filter(str.isdigit, os.listdir(home)), key=int):
            yield os.path.join(home, name)


def new_slot(home: str) -> str:
    """A new state directory; the home is locked."""
    used = {os.path.basename(slot) for slot in slots(home)}
    number = next(number for number in range(len(used) + 1) if str(number) not in used)
    directory = os.path.join(home, str(number))
    os.mkdir(directory, 0o700)
    return directory


def status_of(directory: str) -> MountStatus:
    """How the mount of a state directory is. Asks nothing of the mount itself."""
    plan = statefiles.read_json(os.path.join(directory, statefiles.MOUNT))
    told = statefiles.read_json(os.path.join(directory, statefiles.STATUS))
    point, source = plan.get("mountpoint", ""), plan.get("source", "")
    mounted = any(
        (entry.kind, entry.device, entry.point) == (KIND, told.get("device"), point)
        for entry in mountinfo.mounts()
    )
    watcher, server = process_of(told, "supervisor"), process_of(told, "server")
    state = told.get("state", "starting")
    if statefiles.locked(os.path.join(directory, statefiles.LOCK)):
        if state in ("serving", "restarting") and not mounted:
            state = "detached"  # by umount(8), or by a server that lost its supervisor
    elif mounted:
        state = "dead"
    elif state != "failed" and told:
        state = "ended"
    keep = ("device", "privileged", "allow_other", "readahead_kib", "last_exit")
    return MountStatus(
        point,
        source,
        state,
        state_dir=directory,
        supervisor_pid=watcher.pid if watcher.alive else 0,
        server_pid=server.pid if server.alive else 0,
        starts=told.get("starts", 0),
        error=told.get("error", ""),
        mount={name: told[name] for name in keep if name in told},
        details=told.get("details", {}),
    )


def process_of(told: Mapping[str, Any], name: str) -> Process:
    """A process that status.json names."""
    return Process(*told.get(name, ()))


def lock_home(home: str, name: str = statefiles.LOCK, *, wait: bool = False) -> int | None:
    """Take a lock of a mount point.

    Args:
        home: the directory of its state directories.
        name: LOCK or KEEPING.
        wait: for others to release it.

    Returns:
        The descriptor that holds it; None if others do.

    Raises:
        FileNotFoundError: the directory is not there, or was cleared away meanwhile.
    """
    path = os.path.join(home, name)
    while True:
        lock = statefiles.lock(path, wait=wait)
        if lock is None or _is_named(lock, path):
            return lock
        os.close(lock)  # of a file that was removed: the next one may be somebody's already


def _is_named(lock: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(path))
    except FileNotFoundError:
        return False


def prune(home: str) -> None:
    """Remove the directory of a mount point of which nothing is left.

    Args:
        home: locked (LOCK). Whoever waits for that lock finds its file gone, and makes another.
    """
    names = set(os.listdir(home))
    if names - {statefiles.LOCK, KEEPING}:
        return
    keeping = lock_home(home, KEEPING) if KEEPING in names else None
    if KEEPING in names and keeping is None:
        return
    try:
        if keeping is not None:
            os.unlink(os.path.join(home, KEEPING))
        os.unlink(os.path.join(home, statefiles.LOCK))
        with contextlib.suppress(
            OSError
        ):  # somebody has just begun to use it: it stays, with locks of their own
            os.rmdir(home)
    finally:
        if keeping is not None:
            os.close(keeping)


def sweep_if_idle(home: str) -> None:
    """Clear up unless somebody is mounting there: a directory that is being made looks like one that was left."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        lock = lock_home(home)
        if lock is not None:
            try:
                sweep(home, failed=False)
                prune(home)
            finally:
                os.close(lock)


def sweep(home: str, *, failed: bool = True) -> None:
    """Remove the state directories that nobody uses, except of mounts that are dead and still in the tree.

    Args:
        home: locked.
        failed: those of mounts that failed too.
    """
    for directory in slots(home):
        if statefiles.locked(os.path.join(directory, statefiles.LOCK)):
            continue
        state = status_of(directory).state
        if state in ("ended", "starting") or (failed and state == "failed"):
            shutil.rmtree(directory, ignore_errors=True)
