"""One server process, as its supervisor sees it. Standard library only.

What a server has to do, whatever it is written in:

- It is started as `COMMAND... --state-dir=DIR --fuse-fd=N --supervisor-fd=N --lock-fd=N --start=K`. It makes the three
  descriptors close-on-exec, and keeps the lock's open: it marks the state directory as used.
- K is 0 for the first server of a mount, which answers INIT. A later one restores its tables from the journal and asks
  for what was not answered (FUSE_NOTIFY_RESEND). It answers INIT too if asked: the one before may have died over it.
- It writes a line of JSON, an object, to the supervisor's socket as soon as it can answer requests, and then at least
  every second: the object is what `status` shows. A write that would block is given up.
- A first server that cannot work says why, `{"fatal": <errors.to_wire>}`, and exits; then nothing is mounted.
- `stop\\n` from the socket: read no more requests, finish those in flight within a bound, exit with `REPLACE`.
- End of file from the socket: the supervisor is dead. Detach the mount (`device.unmount(lazy=True)`), and serve until
  the last file is closed.
- ENODEV from the device: the connection is over. Exit with 0.
- It ignores SIGINT; SIGTERM is for the supervisor.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any

from raycache.fuse.statefiles import Process, process

REPLACE = 75
"""Exit status of a server that was told to stop so that another can go on: sysexits.h, EX_TEMPFAIL."""

_LINE_LIMIT = 1 << 16


class ServerProcess:
    """A running server. Attributes are for the supervisor to read.

    Args:
        command: program (a path) and its arguments.
        directory: the state directory.
        fuse_fd: the connection.
        lock_fd: holds the state directory's lock.
        number: how many servers this mount had before.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: list[str], directory: str, fuse_fd: int, lock_fd: int, number: int) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            fds = {"fuse": fuse_fd, "supervisor": theirs.fileno(), "lock": lock_fd}
            argv = [*command, f"--state-dir={directory}", *(f"--{name}-fd={fd}" for name, fd in fds.items())]
            self.pid = _spawn([*argv, f"--start={number}"], list(fds.values()))
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._received = bytearray()
        self.handle = os.pidfd_open(self.pid)
        self.process: Process = process(self.pid)
        self.silent_s = 0.0
        """Seconds since it was last heard, without those in which the supervisor itself did not run."""
        self.heard_at = 0.0
        """Monotonic time of its first word; 0 before that."""
        self.deaf = False
        """It has closed its end of the socket."""
        self.stopping_s: float | None = None
        """Seconds since it was told to stop."""
        self.status: dict[str, Any] = {}
        self.fatal: dict[str, str] | None = None

    def fileno(self) -> int:
        """The supervisor's end of the socket."""
        return self._socket.fileno()

    def receive(self) -> bool:
        """Take what it wrote; whether that was at least one line."""
        heard = False
        while True:
            try:
                data = self._socket.recv(_LINE_LIMIT)
            except BlockingIOError:
                return heard
            except ConnectionError:
                data = b""
            if not data:
                self.deaf = True
                return heard
            self._received += data
            *lines, rest = self._received.split(b"\n")
            self._received = rest if len(rest) < _LINE_LIMIT else bytearray()
            for line in lines:
                heard = self._take(bytes(line)) or heard

    def _take(self, line: bytes) -> bool:
        try:
            told = json.loads(line)
        except ValueError:
            return False
        if not isinstance(told, dict):
            return False
        self.silent_s = 0.0
        if isinstance(told.get("fatal"), dict):
            self.fatal = told["fatal"]
        else:
            self.status = told
            self.heard_at = self.heard_at or time.monotonic()
        return True

    def stop(self) -> None:
        """Tell it to make place for another."""
        if self.stopping_s is None:
            self.stopping_s = 0.0
            try:
                self._socket.send(b"stop\n")
            except OSError:
                pass  # it has just ended, or it does not listen and is killed in a moment

    def kill(self) -> None:
        """SIGKILL."""
        signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def reap(self, patience_s: float = 0.0) -> int | None:
        """Its exit status, minus the signal's number if one ended it; None if it still runs after `patience_s`."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        if not poll.poll(patience_s * 1000):
            return None
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Let go of it. One that still runs sees its supervisor gone."""
        self._socket.close()
        os.close(self.handle)


def _spawn(argv: list[str], fds: list[int]) -> int:
    """Start a program that inherits `fds` and nothing else; its process id."""
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        # A process group of its own: Ctrl-C on a terminal is for the supervisor. Python ignores the two signals.
        return os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            setpgroup=0,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)
