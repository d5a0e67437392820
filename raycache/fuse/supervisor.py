"""The supervisor of one mount: `python -m raycache.fuse.supervisor STATE_DIR [--daemon] [--ready=FD]`.

It mounts, keeps the `/dev/fuse` descriptor, and starts a server with it; another when that one dies or falls silent.
The kernel ends a request only when the last descriptor of the connection closes, so as long as this process lives, a
dead server is a pause. It never touches a file of its own mount: it would wait for a server that waits for it.

Signals: SIGTERM and SIGINT unmount (out of the tree at once if files are open; then it serves until the last is
closed); SIGHUP replaces the server, by whatever code is installed now.

Standard library only, and little of it: this process stays for as long as the mount does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

from raycache import errors, mountinfo
from raycache.errors import MountBusyError, MountError, NotMountedError, RaycacheError
from raycache.fuse import device, statefiles
from raycache.fuse.serverprocess import REPLACE, ServerProcess
from raycache.fuse.statefiles import Process, process

_TICK_S = 1.0
_KILL_PATIENCE_S = 5.0
"""How long a killed server gets to end before the next starts. It answers nothing any more; it may take long to go."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 5.0
_FIRST_TRIES = 3
"""Servers that may die before any of them answered. Later, `give_up` counts: somebody may wait for the mount."""
_LOCK_TRIES = 100

DEFAULTS: dict[str, Any] = {
    "allow_other": True,
    "readahead_kib": 4096,
    "hang_s": 10.0,
    "start_s": 60.0,
    "stop_s": 10.0,
    "young_s": 1.0,
    "give_up": 20,
}
"""What mount.json need not say: other users; readahead of the mount, KiB; seconds of silence of a server that mean it
hangs; seconds until its first word; seconds it gets to stop; a server that dies within this many seconds of its first
word counts as one that cannot start; how many of those in a row end the mount."""


class Supervisor:
    """The supervisor of the mount that a state directory describes.

    Args:
        directory: the state directory, absolute.
        ready_fd: a pipe to whoever waits for the mount: gets one line, `{}` or `{"failed": ...}`. Whoever closes it
            before does not want the mount any more.
    """

    def __init__(self, directory: str, ready_fd: int | None = None) -> None:
        self._directory = directory
        self._ready = ready_fd
        self._plan = DEFAULTS | statefiles.read_json(os.path.join(directory, statefiles.MOUNT))
        if "mountpoint" not in self._plan:
            raise MountError(
                "there is no mount.json", where=directory, hint="start mounts with: raycache mount"
            )
        self._point: str = self._plan["mountpoint"]
        self._lock = self._take_lock()
        self._fuse = -1
        self._device = ""
        self._server: ServerProcess | None = None
        self._doomed: list[ServerProcess] = []
        self._starts = self._failures = 0
        self._next_start = 0.0
        self._answered = False
        self._gone_s = 0.0
        self._told: set[int] = set()
        self._wakeup, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._status: dict[str, Any] = {
            "state": "starting",
            "mountpoint": self._point,
            "source": self._plan["source"],
            "supervisor": process(os.getpid()),
            "server": Process(),
        }
        self._written: dict[str, Any] = {}

    def run(self) -> int:
        """Mount and supervise until the mount has ended; the exit status."""
        signal.set_wakeup_fd(self._waker)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._told.add(number))
        self._report()
        try:
            self._mount()
            while self._step():
                pass
        except RaycacheError as error:
            return self._fail(error)
        self._take_out()  # an aborted connection is still in the tree
        self._report(state="ended")
        self._tell_starter({"failed": errors.to_wire(MountError("unmounted", where=self._point))})
        return 0

    # Beginning

    def _take_lock(self) -> int:
        path = os.path.join(self._directory, statefiles.LOCK)
        for _ in range(_LOCK_TRIES):
            fd = statefiles.lock(path)
            if fd is not None:
                return fd
            time.sleep(0.02)  # somebody looks whether it is held
        raise MountBusyError("another supervisor has this state directory", where=self._directory)

    def _mount(self) -> None:
        for name in os.listdir(self._directory):
            if name.startswith(statefiles.JOURNAL):
                os.unlink(os.path.join(self._directory, name))  # of an earlier mount: its nodes are not ours
        cleared = device.clear_dead(self._point)
        if cleared:
            _say(f"{self._point}: unmounted {cleared} dead mount(s)")
        made = device.mount(self._point, self._plan["source"], allow_other=self._plan["allow_other"])
        self._fuse, self._device = made.fd, made.device
        raised = device.raise_readahead(made.device, self._plan["readahead_kib"])
        self._report(
            device=made.device,
            privileged=made.privileged,
            allow_other=made.allow_other,
            readahead_kib=self._plan["readahead_kib"] if raised else 128,
        )

    # The loop

    def _step(self) -> bool:
        """Do what there is to do, after waiting for it at most a tick; False when the mount has ended."""
        if self._server is None:
            if not device.connected(self._fuse):
                return False
            if time.monotonic() >= self._next_start:
                self._start()
        before = time.monotonic()
        self._wait(min(_TICK_S, max(0.0, self._next_start - before)) if self._server is None else _TICK_S)
        # Time in which this process did not run (stopped, starved, frozen) does not speak against the server.
        elapsed = min(time.monotonic() - before, 1.5 * _TICK_S)
        self._obey()
        if self._server is not None:
            self._look_after(self._server, elapsed)
        self._doomed = [server for server in self._doomed if not _reaped(server)]
        statefiles.shorten_log(self._directory, sys.stderr.fileno())
        return True

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._server is not None:
            poll.register(self._server.handle, select.POLLIN)
            if not self._server.deaf:
                poll.register(self._server, select.POLLIN)
        if self._ready is not None:
            poll.register(self._ready, 0)
        for fd, events in poll.poll(seconds * 1000):
            if fd == self._ready and events & select.POLLERR:
                _say("whoever wanted the mount is gone")
                self._told.add(signal.SIGTERM)
                self._close_ready()
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 512)

    def _obey(self) -> None:
        told, self._told = self._told, set()
        if told & {signal.SIGTERM, signal.SIGINT}:
            self._unmount()
        elif signal.SIGHUP in told and self._server is not None:
            _say(f"server {self._server.pid} is told to stop: another takes over")
            self._server.stop()

    def _look_after(self, server: ServerProcess, elapsed: float) -> None:
        heard = server.receive()
        code = server.reap()
        if code is not None:
            self._ended(server, code, "")
            return
        if heard:
            if server.heard_at and self._status["state"] in ("starting", "restarting"):
                self._status["state"] = "serving"
            self._report(details=server.status)
            if server.heard_at and not self._answered:
                self._answered = True
                self._tell_starter({})
        else:
            server.silent_s += elapsed
        if server.stopping_s is not None:
            server.stopping_s += elapsed
        self._gone_s = 0.0 if device.connected(self._fuse) else self._gone_s + elapsed
        why = self._why_kill(server)
        if why:
            server.kill()
            self._ended(server, server.reap(_KILL_PATIENCE_S), why)

    def _why_kill(self, server: ServerProcess) -> str:
        limit = self._plan["hang_s"] if server.heard_at else self._plan["start_s"]
        if server.silent_s > limit:
            return f"it was silent for {limit:g} s"
        if (server.stopping_s or 0.0) > self._plan["stop_s"]:
            return f"it did not stop within {self._plan['stop_s']:g} s"
        if self._gone_s > self._plan["stop_s"]:
            return "the connection is over and it did not end"
        return ""

    # Servers

    def _start(self) -> None:
        if self._answered and self._status["state"] == "serving":
            self._status["state"] = "restarting"
        number, self._starts = self._starts, self._starts + 1
        try:
            server = ServerProcess(self._plan["command"], self._directory, self._fuse, self._lock, number)
        except OSError as error:
            self._failed_start(MountError(f"the server cannot be started: {error}", where=self._point))
            self._report(starts=self._starts)
            return
        self._server = server
        _say(f"server {server.pid} started ({number})")
        self._report(server=server.process, starts=self._starts)

    def _ended(self, server: ServerProcess, code: int | None, why: str) -> None:
        """A server has ended, or was killed and takes long to: see what follows."""
        server.receive()  # its last words
        self._server = None
        worked_s = time.monotonic() - server.heard_at if server.heard_at else 0.0
        _say(f"server {server.pid} ended: {_meaning(code)}{', killed: ' + why if why else ''}")
        self._report(server=Process(), last_exit={"status": code, "why": why, "worked_s": round(worked_s, 3)})
        if code is None:
            self._doomed.append(server)
        else:
            server.close()
        if server.fatal is not None and not self._answered:
            raise errors.from_wire(server.fatal)
        if server.stopping_s is not None and code == REPLACE:
            self._failures = 0
        elif server.heard_at and code == -signal.SIGKILL and not why:
            # Somebody else's doing (the OOM killer's, too): it came up, so the next one will.
            self._failures = 0
            self._next_start = time.monotonic() + _FIRST_DELAY_S
        elif server.heard_at and worked_s >= self._plan["young_s"]:
            self._failures = 0  # it had worked
        elif device.connected(self._fuse):
            self._failed_start(
                MountError(f"the server does not stay up: {why or _meaning(code)}", where=self._point)
            )

    def _failed_start(self, error: MountError) -> None:
        self._failures += 1
        allowed = self._plan["give_up"] if self._answered else min(_FIRST_TRIES, self._plan["give_up"])
        if self._failures >= allowed:
            raise error
        delay = 0.0
        if self._failures > 1:
            delay = min(_FIRST_DELAY_S * 2 ** (self._failures - 2), _LONGEST_DELAY_S)
        self._next_start = time.monotonic() + delay

    # Ending

    def _unmount(self) -> None:
        """Take the mount out of the tree; the loop ends with the connection."""
        entry = mountinfo.mounted_at(self._point)
        try:
            if entry is None or entry.device != self._device:
                covered = any(other.device == self._device for other in mountinfo.mounts())
                self._report(
                    **({"error": "something else is mounted over it"} if covered else {"state": "detached"})
                )
            elif device.unmount(self._point):
                _say("unmounted")
                self._report(state="detached" if device.connected(self._fuse) else "unmounting")
            else:
                device.unmount(self._point, lazy=True)
                _say("in use: unmounted lazily; it ends when its last file closes")
                self._report(state="detached")
        except NotMountedError:
            self._report(state="detached")
        except MountError as error:
            _say(str(error))
            self._report(error=str(error))

    def _fail(self, error: RaycacheError) -> int:
        _say(f"giving up: {error}")
        if self._server is not None:
            self._server.kill()
            self._server.reap(_KILL_PATIENCE_S)
        if self._fuse >= 0:
            self._take_out()
            os.close(self._fuse)  # whoever still waits for an answer gets ENOTCONN
        self._report(state="failed", error=str(error), server=Process())
        self._tell_starter({"failed": errors.to_wire(error)})
        return 1

    def _take_out(self) -> None:
        entry = mountinfo.mounted_at(self._point)
        if entry is not None and entry.device == self._device:
            with contextlib.suppress(MountError):
                device.unmount(self._point, lazy=True)

    def _tell_starter(self, line: dict[str, Any]) -> None:
        if self._ready is not None:
            with contextlib.suppress(OSError):
                os.write(self._ready, json.dumps(line).encode() + b"\n")
            self._close_ready()

    def _close_ready(self) -> None:
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None

    def _report(self, **changes: Any) -> None:
        self._status |= changes
        if self._status != self._written:
            try:
                statefiles.write_json(os.path.join(self._directory, statefiles.STATUS), self._status)
            except OSError as error:  # the directory was removed, or is full: serving goes on
                _say(f"status.json: {error}")
            self._written = dict(self._status)


def _reaped(server: ServerProcess) -> bool:
    if server.reap() is None:
        return False
    server.close()
    return True


def _meaning(code: int | None) -> str:
    if code is None:
        return "does not end"
    return f"signal {-code}" if code < 0 else f"status {code}"


def _say(text: str) -> None:
    print(
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor {os.getpid()}: {text}", file=sys.stderr, flush=True
    )


def main(arguments: list[str]) -> int:
    """Run as a program; see the module."""
    directory, ready_fd = os.path.abspath(arguments[0]), None
    for argument in arguments[1:]:
        name, _, value = argument.partition("=")
        if name == "--ready":
            ready_fd = int(value)
            os.set_inheritable(ready_fd, False)
        elif name == "--daemon" and os.fork():
            os._exit(0)
    os.chdir("/")
    try:
        supervisor = Supervisor(directory, ready_fd)
    except RaycacheError as error:
        _say(str(error))
        return 1
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
