"""The files of a mount's state directory, and who is alive. Standard library only: the supervisor imports this.

LOCK         flock of the supervisor, inherited by its servers: free when neither is left
mount.json   what to mount, and how to start the server; written by `mounts.start`
config.json  what the server needs to reach the data; may hold secrets
status.json  how it goes; written by the supervisor alone
journal*     the server's
log          what the two print; `log.old` is what it held before
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

LOCK, MOUNT, CONFIG, STATUS, JOURNAL, LOG = (
    "LOCK",
    "mount.json",
    "config.json",
    "status.json",
    "journal",
    "log",
)

LOG_LIMIT = 1 << 20
"""Bytes of a log after which it becomes `log.old`."""


class Process(NamedTuple):
    """A process, and not a later one of its number.

    Args:
        pid: process id; 0 is nobody.
        began: start time in clock ticks after boot (proc_pid_stat(5), field 22).
    """

    pid: int = 0
    began: int = 0

    def open(self) -> int | None:
        """A pidfd of it, which is readable once it ends; None if it has ended, or is a zombie."""
        if self.pid <= 0:
            return None
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return None
        # The number cannot change hands while the pidfd is ours to compare with.
        if process(self.pid) == self:
            return handle
        os.close(handle)
        return None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        handle = self.open()
        if handle is None:
            return False
        os.close(handle)
        return True


def process(pid: int) -> Process:
    """The process that has this id now; `Process()` if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return Process()
    return Process() if fields[0] in ("Z", "X") else Process(pid, int(fields[19]))


def write_json(path: str, value: Any) -> None:
    """Replace a file, mode 0600, by a value's JSON; whoever reads sees the old or the new one."""
    fresh = path + ".new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(value, file)
    os.replace(fresh, path)


def read_json(path: str) -> dict[str, Any]:
    """A file's JSON object; empty if the file is not there or holds anything else."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def lock(path: str, *, wait: bool = False) -> int | None:
    """Take the flock of a lock file, made if need be; the descriptor that holds it, or None if others hold it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def locked(path: str) -> bool:
    """Whether somebody holds the flock of a lock file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def open_log(directory: str) -> int:
    """The log, for appending; one that has become long is put aside first."""
    path = os.path.join(directory, LOG)
    with contextlib.suppress(FileNotFoundError):
        if Path(path).stat().st_size > LOG_LIMIT:
            os.replace(path, path + ".old")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def shorten_log(directory: str, fd: int) -> None:
    """Move a log that has become long aside while others append to it. What they write meanwhile may be lost.

    Args:
        directory: the state directory.
        fd: where the process prints; nothing is done if that is not the log.
    """
    path = os.path.join(directory, LOG)
    now = os.fstat(fd)
    if now.st_size <= LOG_LIMIT:
        return
    with contextlib.suppress(OSError):
        if os.path.samestat(now, Path(path).stat()):
            tail = os.pread(fd, LOG_LIMIT, now.st_size - LOG_LIMIT)
            os.ftruncate(fd, 0)  # all have it open for appending, so they go on at the start
            Path(path + ".old").write_bytes(tail)


def log_tail(directory: str, lines: int = 15) -> str:
    """The last lines of the log."""
    try:
        with open(os.path.join(directory, LOG), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
