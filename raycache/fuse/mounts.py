"""Mounts of this machine: start one, find them, ask how one is, unmount it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raycache import errors, mountinfo
from raycache.errors import MountBusyError, MountError, NotFoundError, NotMountedError, RaycacheError
from raycache.fuse import device, statedirs, statefiles, supervisor
from raycache.fuse.device import KIND, Health
from raycache.fuse.statedirs import MountStatus, real_mountpoint, roots

__all__ = ["MountOptions", "MountStatus", "find", "require_mountable", "start", "status", "unmount"]

SERVER = (sys.executable, "-P", "-m", "raycache.fuse.server")
_SUPERVISOR = (sys.executable, "-P", "-m", "raycache.fuse.supervisor")
_POLL_S = 0.02
_LOCK_PATIENCE_S = 1.0
_KILL_PATIENCE_S = 5.0


@dataclass(frozen=True)
class MountOptions:
    """How to mount.

    Args:
        allow_other: let all users in, where that is allowed.
        over: the mount point may hold files, or be a mount of something else; they are covered.
        readahead_kib: readahead of the mount, KiB.
        hang_s: seconds of a server's silence after which it is replaced.
        start_s: seconds in which a server has to come up, and so the mount.
    """

    allow_other: bool = True
    over: bool = False
    readahead_kib: int = supervisor.DEFAULTS["readahead_kib"]
    hang_s: float = supervisor.DEFAULTS["hang_s"]
    start_s: float = supervisor.DEFAULTS["start_s"]


# Starting


def start(
    mountpoint: str,
    config: Mapping[str, Any],
    source_name: str,
    options: MountOptions | None = None,
    *,
    command: Sequence[str] = SERVER,
    root: str = "",
    tuning: Mapping[str, Any] | None = None,
) -> MountStatus:
    """Mount, and return once the mount answers.

    Args:
        mountpoint: an empty directory.
        config: JSON for the server (config.json, mode 0600); may hold secrets.
        source_name: the dataset's name, shown as what is mounted.
        options: see MountOptions.
        command: the server's program (absolute path) and first arguments; see serverprocess.py for the rest.
        root: where state directories are; "" for the first of `roots()`.
        tuning: more of `supervisor.DEFAULTS` to set.

    Raises:
        MountBusyError: something is there already; it says what.
        NotFoundError: there is no such directory.
        MountError: it cannot be mounted, or the server does not come up; with the end of its log.
        RaycacheError: what the server said is wrong.
    """
    options = options or MountOptions()
    point = real_mountpoint(mountpoint)
    home, lock = _locked_home(root, point)
    try:
        device.clear_dead(point)
        require_mountable(point, over=options.over)
        statedirs.sweep(home)
        directory = statedirs.new_slot(home)
        plan = asdict(options) | dict(tuning or {})
        plan |= {"mountpoint": point, "source": source_name, "command": list(command)}
        statefiles.write_json(os.path.join(directory, statefiles.CONFIG), dict(config))
        statefiles.write_json(os.path.join(directory, statefiles.MOUNT), plan)
        try:
            _launch(directory, point, options.start_s)
        except RaycacheError:
            statedirs.sweep(home)
            raise
        return statedirs.status_of(directory)
    finally:
        os.close(lock)


def _locked_home(root: str, point: str) -> tuple[str, int]:
    """The directory of a mount point's state directories, and the descriptor that holds its lock."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        home = statedirs.make_home(root, point) if root else statedirs.first_home(point)
        with contextlib.suppress(FileNotFoundError):  # cleared away this moment
            lock = statedirs.lock_home(home)
            if lock is not None:
                return home, lock
        if time.monotonic() > deadline:
            raise MountBusyError("somebody else is mounting here right now", where=point)
        time.sleep(_POLL_S)  # somebody may only be looking


def _launch(directory: str, point: str, patience_s: float) -> None:
    """Start the supervisor, detached from this process, and wait until its mount answers."""
    ready, theirs = os.pipe2(os.O_CLOEXEC)
    log = statefiles.open_log(directory)
    try:
        # It forks: what runs on is nobody's child, so nobody has to reap it.
        subprocess.run(
            [*_SUPERVISOR, directory, f"--ready={theirs}", "--daemon"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=[theirs],
            start_new_session=True,
            check=False,
        )
        os.close(theirs)
        theirs = -1
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        told = os.read(ready, 1 << 16) if poll.poll(patience_s * 1000) else None
    finally:
        # A supervisor that is not ready yet sees this end closed, and unmounts.
        for fd in (ready, theirs, log):
            if fd >= 0:
                os.close(fd)
    answer = json.loads(told) if told else {}
    if told and "failed" not in answer:
        return
    if told:
        error = errors.from_wire(answer["failed"])
        what = error.what
    else:
        error = MountError("", where=point)
        what = "the supervisor died" if told == b"" else f"it did not come up within {patience_s:g} s"
    _await_unlocked(directory, _KILL_PATIENCE_S)
    tail = statefiles.log_tail(directory)
    raise type(error)(f"{what}\n{tail}" if tail else what, where=error.where, hint=error.hint)


def _await_unlocked(directory: str, patience_s: float) -> bool:
    """Whether nobody has the state directory any more, after waiting for it."""
    path = os.path.join(directory, statefiles.LOCK)
    deadline = time.monotonic() + patience_s
    while statefiles.locked(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def require_mountable(point: str, *, over: bool) -> None:
    """Check that `point` (absolute, without links) may be mounted on.

    Args:
        point: the mount point.
        over: see MountOptions.

    Raises:
        NotFoundError: it does not exist.
        MountError: it is no directory.
        MountBusyError: raycache or something else is mounted there, or it is not empty.
    """
    entry = mountinfo.mounted_at(point)
    if entry is not None and entry.kind == KIND:
        hung = device.probe(point) is Health.HUNG
        raise MountBusyError(
            f"raycache has {entry.source} mounted here already{', and it does not answer' if hung else ''}",
            where=point,
            hint=f"raycache unmount {'--force ' if hung else ''}{point}",
        )
    if entry is not None and not over:
        raise MountBusyError(f"{entry.kind} ({entry.source}) is mounted here", where=point)
    try:
        with os.scandir(point) as names:
            empty = next(names, None) is None
    except FileNotFoundError:
        raise NotFoundError(
            "the directory does not exist", where=point, hint="make an empty directory"
        ) from None
    except OSError as error:
        raise MountError(
            f"cannot be mounted on: {error.strerror}", where=point, hint="make an empty directory"
        ) from None
    if not empty and not over:
        raise MountBusyError("the directory is not empty", where=point, hint="choose an empty directory")


# Finding


def find(root: str = "") -> list[MountStatus]:
    """All mounts of this user that are there, or have failed since they were last looked after. State directories of
    what has ended are removed.

    Args:
        root: where state directories are; "" for all `roots()`.
    """
    found = []
    for place in [root] if root else roots():
        with contextlib.suppress(FileNotFoundError, PermissionError):
            for name in sorted(os.listdir(place)):
                found += _look(os.path.join(place, name))
    return found


def status(mountpoint: str, root: str = "") -> MountStatus:
    """How the mount at a mount point is: the one in the tree, else the newest that is not.

    Raises:
        NotMountedError: there is none.
    """
    point = real_mountpoint(mountpoint)
    here = [
        found for place in ([root] if root else roots()) for found in _look(statedirs.home_of(place, point))
    ]
    entry = mountinfo.mounted_at(point)
    if entry is not None and entry.kind == KIND:
        for found in here:
            if found.mount.get("device") == entry.device:
                return found
        return MountStatus(point, entry.source, "unknown", mount={"device": entry.device})
    if not here:
        raise NotMountedError("raycache has nothing mounted here", where=point)
    return here[-1]


def _look(home: str) -> list[MountStatus]:
    """The mounts of one mount point, oldest first."""
    statedirs.sweep_if_idle(home)
    found = []
    for directory in statedirs.slots(home):
        if os.path.exists(os.path.join(directory, statefiles.MOUNT)):
            found.append(statedirs.status_of(directory))
    return [one for one in found if one.state != "ended"]


# Unmounting


def unmount(mountpoint: str, *, force: bool = False, timeout: float = 30.0, root: str = "") -> MountStatus:
    """Unmount.

    Args:
        mountpoint: where.
        force: kill what serves it, so that whoever has a file open gets errors. Without, such files go on.
        timeout: seconds to wait for the end.
        root: where state directories are; "" for all `roots()`.

    Returns:
        What is left: `ended`, or `detached` if files are open (it ends with the last of them). Its `mount` says
        whether it was `kept` by workers, who will mount it again.

    Raises:
        NotMountedError: raycache has nothing mounted there.
        MountError: it cannot be unmounted, or not within `timeout`.
    """
    point = real_mountpoint(mountpoint)
    before = status(point, root)
    kept = _kept(before)
    if before.state == "failed":
        _clear(before)
        raise NotMountedError(f"the mount had failed already: {before.error}", where=point)
    watcher = _process(before, "supervisor")
    try:
        if force:
            _kill(before, watcher)
            _take_out(before, force)
            _await_end(before, timeout)
        elif watcher is None:
            _take_out(before, force)
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                signal.pidfd_send_signal(watcher, signal.SIGTERM)
            _await(before, watcher, timeout)
            if _told(before).get("state", "ended") not in ("ended", "detached"):
                _take_out(before, force)  # killed by somebody before it could
    finally:
        if watcher is not None:
            os.close(watcher)
    after = _final(before)
    return replace(after, mount=after.mount | {"kept": kept})


def _kept(mount: MountStatus) -> bool:
    """Whether workers keep it (see `keeping`)."""
    config = os.path.join(mount.state_dir, statefiles.CONFIG)
    return bool(mount.state_dir) and "keepers" in statefiles.read_json(config)


def _told(mount: MountStatus) -> dict[str, Any]:
    return statefiles.read_json(os.path.join(mount.state_dir, statefiles.STATUS)) if mount.state_dir else {}


def _process(mount: MountStatus, name: str) -> int | None:
    """A pidfd of the mount's supervisor or server; None if it has ended."""
    return statedirs.process_of(_told(mount), name).open()


def _kill(mount: MountStatus, watcher: int | None) -> None:
    """The supervisor first, which would start another server, then the server. The connection ends with them."""
    if watcher is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watcher, signal.SIGKILL)
        _ended(watcher).poll(
            _KILL_PATIENCE_S * 1000
        )  # what status.json says of its server is its last word then
    server = _process(mount, "server")
    if server is not None:
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(server, signal.SIGKILL)
        finally:
            os.close(server)


def _ended(process: int) -> select.poll:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return poll


def _await(mount: MountStatus, watcher: int, timeout: float) -> None:
    """Until the supervisor has ended, or serves a mount that is out of the tree because files of it are open."""
    ended = _ended(watcher)
    deadline = time.monotonic() + timeout
    while not ended.poll(_POLL_S * 1000):
        told = _told(mount)
        if told.get("state") == "detached":
            return
        if told.get("error") and told.get("state") == "serving":
            raise MountError(told["error"], where=mount.mountpoint)
        if time.monotonic() > deadline:
            raise _too_slow(mount, timeout)


def _await_end(mount: MountStatus, timeout: float) -> None:
    if mount.state_dir and not _await_unlocked(mount.state_dir, timeout):
        raise _too_slow(mount, timeout)


def _too_slow(mount: MountStatus, timeout: float) -> MountError:
    return MountError(
        f"not unmounted within {timeout:g} s",
        where=mount.mountpoint,
        hint=f"raycache unmount --force {mount.mountpoint}",
    )


def _take_out(mount: MountStatus, force: bool) -> None:
    """Take out of the tree what its supervisor cannot, or shall not, end."""
    entry = mountinfo.mounted_at(mount.mountpoint)
    if entry is None or entry.device != mount.mount.get("device"):
        return
    if force:
        device.abort(entry)
    with contextlib.suppress(NotMountedError):
        device.unmount(mount.mountpoint, lazy=True)


def _final(mount: MountStatus) -> MountStatus:
    if not mount.state_dir:
        return MountStatus(mount.mountpoint, mount.source, "ended")
    after = statedirs.status_of(mount.state_dir)
    if after.state == "ended":
        _clear(mount)
    return after


def _clear(mount: MountStatus) -> None:
    home = os.path.dirname(mount.state_dir)
    with contextlib.suppress(FileNotFoundError):  # somebody else has just cleared it away
        lock = statedirs.lock_home(home)
        if lock is not None:
            try:
                statedirs.sweep(home)
                statedirs.prune(home)
            finally:
                os.close(lock)
