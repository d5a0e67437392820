"""`raycache mount --foreground`: stay for as long as the mount does, and pass signals on to it."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

import typer

from raycache.cli import mounted
from raycache.cli.failures import Exit, message, say
from raycache.cli.output import print_lines
from raycache.errors import NotMountedError, RaycacheError

if TYPE_CHECKING:
    from raycache.cli.backend import Backend
    from raycache.fuse.mounts import MountStatus

PATIENCE_S = 30.0
"""Seconds that an unmount may take."""


class Signals:
    """SIGTERM, SIGINT and SIGHUP, noted from now on instead of ending the process. Their handlers are not inherited by
    programs that this one starts."""

    def __init__(self) -> None:
        self.fd, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._told: list[int] = []
        signal.set_wakeup_fd(self._waker)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._told.append(number))

    def close(self) -> None:
        """Give the pipe up; nothing is noted any more."""
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._waker)

    def take(self) -> list[int]:
        """Those that came since the last time."""
        try:
            os.read(self.fd, 512)
        except BlockingIOError:
            pass
        told, self._told = self._told, []
        return told


def until_ended(backend: Backend, mount: MountStatus, signals: Signals) -> None:
    """Wait for the end of a mount. The first SIGTERM or SIGINT unmounts, after which open files are served until they
    are closed; another one ends those, too. SIGHUP is passed on: the server is replaced.

    Raises:
        typer.Exit: it failed.
    """
    try:
        watched = os.pidfd_open(mount.supervisor_pid)
    except ProcessLookupError:
        watched = -1
    asked = 0
    poll = select.poll()
    poll.register(signals.fd, select.POLLIN)
    if watched >= 0:
        poll.register(watched, select.POLLIN)
    while watched >= 0 and not any(fd == watched for fd, _ in poll.poll()):
        for number in signals.take():
            if number == signal.SIGHUP:
                signal.pidfd_send_signal(watched, signal.SIGHUP)
                continue
            asked += 1
            _unmount(backend, mount, force=asked > 1)
    if watched >= 0:
        os.close(watched)
    signals.close()
    left = _how_it_ended(backend, mount)
    if left:
        say(left)
        raise typer.Exit(Exit.FAILED)


def _unmount(backend: Backend, mount: MountStatus, *, force: bool) -> None:
    try:
        print_lines([mounted.farewell(backend.unmount(mount.mountpoint, force=force, timeout_s=PATIENCE_S))])
    except NotMountedError:
        pass  # somebody was faster
    except RaycacheError as error:
        say(message(error))


def _how_it_ended(backend: Backend, mount: MountStatus) -> str:
    """What went wrong; "" if nothing."""
    try:
        (after,) = backend.mounts(mount.mountpoint)
    except NotMountedError:
        return ""
    if after.state_dir != mount.state_dir:
        return ""  # another mount took its place
    if after.state in ("failed", "dead"):
        return f"error: {after.error or 'what served it was killed'}\n  where: {after.mountpoint}"
    return ""
