"""The supervisor with a stub for a server: what readers see when something dies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from raycache import mountinfo
from raycache.errors import MountError
from raycache.fuse import device
from raycache.fuse.device import Health
from raycache.fuse.mounts import MountOptions
from tests.fuse.conftest import Stage, mounted_under, processes_of
from tests.support.waiting import until

MIB = 1 << 20


class Reader:
    """Reads random ranges of a file in a thread, and compares."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.count, self.wrong = 0, ""
        self._path, self._data, self._stop = path, data, False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        source = random.Random(7)
        try:
            with open(self._path, "rb", buffering=0) as file:
                while not self._stop:
                    offset = source.randrange(len(self._data) - 70_000)
                    if os.pread(file.fileno(), 65_536, offset) != self._data[offset : offset + 65_536]:
                        self.wrong = f"other bytes at {offset}"
                        return
                    self.count += 1
        except OSError as error:
            self.wrong = str(error)

    def more(self, count: int = 20) -> None:
        """Wait until it has read that many times more."""
        target = self.count + count
        until(lambda: self.wrong or self.count >= target, "the reader gets on")

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.wrong == ""


def test_mounted_read_unmounted(stage: Stage) -> None:
    data = stage.file("a b", os.urandom(3 * MIB + 5))
    status = stage.start()
    assert (status.state, status.source, status.mountpoint) == ("serving", "ds", str(stage.point))
    assert (stage.point / "a b").read_bytes() == data
    assert os.listdir(stage.point) == ["a b"]
    entry = mountinfo.mounted_at(str(stage.point))
    assert entry is not None
    assert (entry.kind, entry.source) == ("fuse.raycache", "ds")
    flags = os.statvfs(stage.point).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NOSUID
    with pytest.raises(OSError, match="Read-only"):
        (stage.point / "new").touch()
    assert stage.unmount().state == "ended"
    assert mounted_under(stage.directory) == []


def test_twenty_killed_servers_cost_a_reader_nothing(stage: Stage) -> None:
    data = stage.file("big", os.urandom(4 * MIB))
    stage.start(tuning={"young_s": 0})
    pid = 0
    with Reader(stage.point / "big", data) as reader:
        for _ in range(20):
            pid = stage.server(other_than=pid)
            reader.more()
            os.kill(pid, signal.SIGKILL)
        reader.more()
    assert stage.status().starts == 21
    stage.unmount()


def test_a_passthrough_file_is_read_while_no_server_runs(stage: Stage) -> None:
    if not device.passthrough_support().possible:
        pytest.skip(device.passthrough_support().reason)
    data = stage.file("big", os.urandom(2 * MIB))
    stage.start(passthrough=True)
    with open(stage.point / "big", "rb", buffering=0) as file:
        os.kill(stage.server(), signal.SIGSTOP)
        assert file.read() == data
        os.kill(stage.server(), signal.SIGCONT)
    stage.unmount()


def test_a_server_that_hangs_is_replaced(stage: Stage) -> None:
    data = stage.file("big", os.urandom(MIB))
    stage.start(tuning={"hang_s": 1.0})
    with Reader(stage.point / "big", data) as reader:
        reader.more()
        hung = stage.server()
        os.kill(hung, signal.SIGSTOP)
        stage.server(other_than=hung)
        reader.more()
    last = stage.status().mount["last_exit"]
    assert last["status"] == -signal.SIGKILL
    assert "silent" in last["why"]
    stage.unmount()


def test_sighup_replaces_the_server_under_an_open_file(stage: Stage) -> None:
    data = stage.file("big", os.urandom(MIB))
    stage.start()
    with Reader(stage.point / "big", data) as reader:
        for _ in range(3):
            reader.more()
            old = stage.server()
            os.kill(stage.status().supervisor_pid, signal.SIGHUP)
            stage.server(other_than=old)
        reader.more()
    status = stage.status()
    assert status.mount["last_exit"]["status"] == 75
    assert status.starts == 4
    stage.unmount()


def test_a_server_that_does_not_stop_is_killed(stage: Stage) -> None:
    stage.start(fault="deaf", tuning={"stop_s": 1.0})
    old = stage.server()
    os.kill(stage.status().supervisor_pid, signal.SIGHUP)
    stage.server(other_than=old)
    assert "did not stop" in stage.status().mount["last_exit"]["why"]
    stage.unmount()


def test_unmounting_with_a_file_open(stage: Stage) -> None:
    data = stage.file("big", os.urandom(2 * MIB))
    stage.start(tuning={"young_s": 0})
    with open(stage.point / "big", "rb", buffering=0) as file:
        assert file.read(100) == data[:100]
        assert stage.unmount().state == "detached"
        assert mounted_under(stage.directory) == []
        assert os.listdir(stage.point) == []
        # The file goes on, even if its server dies now.
        os.kill(stage.server(), signal.SIGKILL)
        assert file.read() == data[100:]
    until(lambda: not processes_of(stage.directory), "all of it ends with the last file")


def test_a_new_mount_while_an_old_one_has_files_open(stage: Stage) -> None:
    stage.file("a", b"old")
    stage.start()
    with open(stage.point / "a", "rb", buffering=0) as file:
        stage.unmount()
        stage.sources = {}
        stage.file("b", b"new")
        stage.start()
        assert os.listdir(stage.point) == ["b"]
        assert file.read() == b"old"
        assert stage.status().state == "serving"
        stage.unmount()
    until(lambda: not processes_of(stage.directory), "the old one ends")


def test_a_killed_supervisor_leaves_no_dead_mount(stage: Stage) -> None:
    data = stage.file("big", os.urandom(2 * MIB))
    stage.start()
    with open(stage.point / "big", "rb", buffering=0) as file:
        assert file.read(100) == data[:100]
        os.kill(stage.status().supervisor_pid, signal.SIGKILL)
        until(lambda: not mounted_under(stage.directory), "the server takes the mount out of the tree")
        assert stage.status().state == "detached"
        assert file.read() == data[100:]
    until(lambda: not processes_of(stage.directory), "the server ends with the last file")

    def nothing_there() -> bool:
        # A process that ends has no command line any more a moment before its locks are gone.
        try:
            stage.status()
        except MountError as error:
            return "nothing mounted" in str(error)
        return False

    until(nothing_there, "nothing is mounted")


def test_both_killed_and_mounted_again(stage: Stage) -> None:
    data = stage.file("big", os.urandom(MIB))
    status = stage.start()
    os.kill(status.supervisor_pid, signal.SIGSTOP)  # so that the server does not see it die first
    os.kill(stage.server(), signal.SIGKILL)
    os.kill(status.supervisor_pid, signal.SIGKILL)
    until(lambda: stage.status().state == "dead", "both are gone")
    assert device.probe(str(stage.point)) is Health.DEAD
    stage.start()
    assert (stage.point / "big").read_bytes() == data
    assert len(mounted_under(stage.directory)) == 1
    stage.unmount()


def test_a_dead_mount_is_unmounted(stage: Stage) -> None:
    status = stage.start()
    os.kill(status.supervisor_pid, signal.SIGSTOP)
    os.kill(stage.server(), signal.SIGKILL)
    os.kill(status.supervisor_pid, signal.SIGKILL)
    until(lambda: stage.status().state == "dead", "both are gone")
    assert stage.unmount().state == "ended"
    assert mounted_under(stage.directory) == []


def test_a_supervisor_that_is_killed_while_it_is_asked_to_unmount(stage: Stage) -> None:
    status = stage.start()
    os.kill(status.supervisor_pid, signal.SIGSTOP)
    os.kill(stage.server(), signal.SIGKILL)
    killer = threading.Timer(0.1, os.kill, (status.supervisor_pid, signal.SIGKILL))
    killer.start()
    assert stage.unmount().state == "ended"
    killer.join()
    assert mounted_under(stage.directory) == []


def test_asking_a_hung_mount_does_not_hang(stage: Stage) -> None:
    stage.start()
    status = stage.status()
    os.kill(status.supervisor_pid, signal.SIGSTOP)
    os.kill(stage.server(), signal.SIGSTOP)
    assert device.probe(str(stage.point), 0.5) is Health.HUNG
    with pytest.raises(MountError, match="does not answer"):
        stage.start()
    assert stage.unmount(force=True).state == "ended"
    assert mounted_under(stage.directory) == []


def test_force_ends_open_files(stage: Stage) -> None:
    stage.file("big", bytes(2 * MIB))
    stage.start()
    fd = os.open(stage.point / "big", os.O_RDONLY)
    try:
        assert os.read(fd, 1) == b"\0"
        assert stage.unmount(force=True).state == "ended"
        with pytest.raises(OSError, match=r"not connected|Software caused"):
            os.read(fd, 1)
    finally:
        with contextlib.suppress(OSError):  # close says it too
            os.close(fd)


def test_abort_ends_whoever_waits(stage: Stage) -> None:
    stage.file("big", bytes(MIB))
    stage.start(tuning={"stop_s": 1.0})
    failures: list[OSError] = []

    def read() -> None:
        try:
            (stage.point / "big").read_bytes()
        except OSError as error:
            failures.append(error)

    server = stage.server()
    os.kill(server, signal.SIGSTOP)
    waiting = threading.Thread(target=read)
    waiting.start()
    entry = mountinfo.mounted_at(str(stage.point))
    assert entry is not None
    assert device.abort(entry)
    waiting.join(30)
    assert not waiting.is_alive()
    until(lambda: not processes_of(stage.directory), "the supervisor sees it, and ends")
    assert len(failures) == 1
    assert mounted_under(stage.directory) == []


def test_umount_by_somebody_else(stage: Stage) -> None:
    stage.start()
    assert device.unmount(str(stage.point))
    until(lambda: not processes_of(stage.directory), "it ends by itself")


def test_a_server_that_cannot_start_says_why(stage: Stage) -> None:
    with pytest.raises(PermissionError, match=r"s3://b: no such key"):
        stage.start(fault="fatal")
    assert mounted_under(stage.directory) == []


def test_a_server_that_dies_at_once_fails_the_mount_with_its_log(stage: Stage) -> None:
    with pytest.raises(MountError, match=r"does not stay up: status 3[\s\S]*dies, as told"):
        stage.start(fault="die")
    assert mounted_under(stage.directory) == []


def test_a_mute_server_fails_the_mount_in_time(stage: Stage) -> None:
    with pytest.raises(MountError, match=r"did not come up within 1 s"):
        stage.start(fault="mute", options=MountOptions(start_s=1.0))
    until(lambda: not processes_of(stage.directory), "the supervisor sees that nobody waits")
    assert mounted_under(stage.directory) == []


def test_a_server_that_stays_down_ends_the_mount(stage: Stage) -> None:
    stage.file("poison", b"x")
    stage.start(fault="crash-on-read", tuning={"give_up": 3})
    with pytest.raises(OSError, match=r"not connected|Software caused"):
        (stage.point / "poison").read_bytes()
    until(lambda: not processes_of(stage.directory), "the supervisor gives up")
    status = stage.status()
    assert status.state == "failed"
    assert "does not stay up" in status.error
    assert mounted_under(stage.directory) == []


def test_the_supervisor_is_small(stage: Stage) -> None:
    supervisor = stage.start().supervisor_pid
    status = Path(f"/proc/{supervisor}/status").read_text()
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kib < 18 * 1024
    maps = Path(f"/proc/{supervisor}/maps").read_text()
    assert "pyarrow" not in maps
    assert "pydantic" not in maps
    stage.unmount()
