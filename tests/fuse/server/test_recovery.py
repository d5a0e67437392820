"""Servers that are killed, hang, or are replaced, under programs that read."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache import mountinfo
from raycache.blocks import MiB
from raycache.fuse import device
from tests.fuse.conftest import Stage, processes_of
from tests.support.embedded import noise
from tests.support.fusemount import BLOCK, SMALL, FuseMount
from tests.support.waiting import PATIENCE_S, until

KILLS = int(os.environ.get("FUSE_KILLS", "20"))
"""Servers that are killed; set the variable for more."""

SIZES = [100, 5000, BLOCK + 1, MiB, 3 * MiB + 7, SMALL + 1, 2 * SMALL + 5, 20 * MiB]


class Readers:
    """Threads that read files of a mount in all ways and compare, and a program that does `md5sum` of all of them.

    Args:
        mount: where.
        files: what is in them, by name.
        seed: of what they do.
    """

    def __init__(self, mount: FuseMount, files: dict[str, bytes], seed: int) -> None:
        self.mount, self.files = mount, files
        self.count = 0
        self.wrong: list[str] = []
        self._stop = threading.Event()
        names = [f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
        self._sums = "".join(names)
        self._opened = {name: os.open(mount.point / name, os.O_RDONLY) for name in files}
        self._mapped = {
            name: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for name, fd in self._opened.items() if files[name]
        }
        self._threads = [threading.Thread(target=self._run, args=(seed + n,)) for n in range(4)]
        self._threads.append(threading.Thread(target=self._programs))

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self.check()
        for view in self._mapped.values():
            view.close()
        for fd in self._opened.values():
            os.close(fd)
        assert self.wrong == []

    def check(self) -> None:
        """What was opened, and mapped, at the beginning reads whole."""
        for name, data in self.files.items():
            if os.pread(self._opened[name], len(data) + 1, 0) != data:
                # A read through the server may come in pieces.
                parts = [os.pread(self._opened[name], MiB, at) for at in range(0, len(data), MiB)]
                if b"".join(parts) != data:
                    self.wrong.append(f"{name}, open since the beginning, differs")
            if data and self._mapped[name][:] != data:
                self.wrong.append(f"{name}, mapped since the beginning, differs")

    def more(self, count: int = 20) -> None:
        """Wait until they have read that many times more."""
        target = self.count + count
        until(lambda: self.wrong or self.count >= target, "the readers get on")

    def _run(self, seed: int) -> None:
        source = random.Random(seed)
        while not self._stop.is_set() and not self.wrong:
            name = source.choice(list(self.files))
            try:
                self._read(source, name, self.files[name])
            except OSError as error:
                self.wrong.append(f"{name}: {error!r}")
            self.count += 1

    def _read(self, source: random.Random, name: str, data: bytes) -> None:
        path = self.mount.point / name
        offset, length = source.randrange(len(data)), source.randrange(1, MiB)
        way = source.randrange(5)
        if way == 0:
            found, expected = path.read_bytes(), data
        elif way == 1:
            found, expected = os.pread(self._opened[name], length, offset), data[offset : offset + length]
        elif way == 2:
            found, expected = (
                self._mapped[name][offset : offset + length],
                data[offset : offset + length],
            )
        elif way == 3:
            found, expected = str(path.stat().st_size).encode(), str(len(data)).encode()
        else:
            listed = {entry.name for entry in path.parent.iterdir()}
            wanted = {Path(other).name for other in self.files if Path(other).parent == Path(name).parent}
            found, expected = b"%d" % (listed == wanted), b"1"
        if found != expected:
            self.wrong.append(f"{name}: other bytes, way {way}, {len(found)} for {len(expected)} at {offset}")

    def _programs(self) -> None:
        command = "find . -type f -printf '%P\\0' | sort -z | xargs -0 md5sum"
        while not self._stop.is_set() and not self.wrong:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                cwd=self.mount.point,
                capture_output=True,
                text=True,
                env=os.environ | {"LC_ALL": "C"},
            )
            if done.returncode or done.stdout != self._sums:
                self.wrong.append(f"find and md5sum: {done}")


@pytest.fixture(params=["kernel", "user space"])
def filled(fuse: FuseMount, request: pytest.FixtureRequest) -> Iterator[tuple[FuseMount, dict[str, bytes]]]:
    """A mount with files, and what is in them."""
    files = {f"d{n % 3}/f{n}": fuse.put(f"d{n % 3}/f{n}", noise(size, n)) for n, size in enumerate(SIZES)}
    fuse.start(passthrough=request.param == "kernel", metadata_ttl=0.5, quota=64 * MiB)
    yield fuse, files
    with contextlib.suppress(OSError):
        fuse.unmount()


@pytest.mark.timeout(120 + 20 * KILLS)
def test_killed_servers_cost_readers_nothing(filled: tuple[FuseMount, dict[str, bytes]]) -> None:
    fuse, files = filled
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    pid = killed = 0
    with Readers(fuse, files, seed) as readers:
        readers.more()
        while killed < KILLS and not readers.wrong:
            if killed % 3 == 0:  # one that answers; else at any moment, also of its start
                pid = fuse.server(other_than=pid)
                readers.more(moments.randrange(1, 20))
            else:
                time.sleep(moments.uniform(0.0, 1.0))  # not to win a race: any moment will do
            victim = fuse.status().server_pid
            if victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        readers.more()
    assert fuse.status().starts > KILLS // 2
    log = fuse.log()
    assert "Traceback" not in log, log[-3000:]
    assert fuse.unmount().state == "ended"


def test_a_backing_file_that_a_killed_server_had_no_time_to_write_down_is_given_up(
    fuse: FuseMount, passthrough: None
) -> None:
    mount = fuse
    mount.put("file", noise(MiB))
    mount.start()
    assert (mount.point / "file").read_bytes() == noise(MiB)
    (data,) = mount.tier.rglob("*.data")
    before = mount.server()
    # As the server does it, and then dies.
    with open(data, "rb") as leased, _connection(mount) as connection:
        fcntl.flock(leased, fcntl.LOCK_SH)
        device.backing_open(connection, leased.fileno())
    with open(data, "rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(before, signal.SIGKILL)
        mount.server(other_than=before)
        until(lambda: _lockable(other.fileno()), "the lease has ended with it")
    assert (mount.point / "file").read_bytes() == noise(MiB)
    mount.unmount()


@contextlib.contextmanager
def _connection(mount: FuseMount) -> Iterator[int]:
    """The mount's connection, which its supervisor holds."""
    supervisor = mount.status().supervisor_pid
    (number,) = [
        int(fd.name) for fd in Path(f"/proc/{supervisor}/fd").iterdir() if fd.readlink() == Path("/dev/fuse")
    ]
    pidfd = os.pidfd_open(supervisor)
    try:
        # pidfd_getfd(2), which Python does not have; its number is the same on all architectures.
        fd = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(pidfd)


def _lockable(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def test_sighup_replaces_the_server_under_open_files(filled: tuple[FuseMount, dict[str, bytes]]) -> None:
    fuse, files = filled
    pid = 0
    with Readers(fuse, files, 1) as readers:
        for _ in range(3):
            pid = fuse.server(other_than=pid)
            readers.more()
            os.kill(fuse.status().supervisor_pid, signal.SIGHUP)
        fuse.server(other_than=pid)
        readers.more()
    assert fuse.status().mount["last_exit"]["status"] == 75
    assert fuse.status().starts == 4
    assert "Traceback" not in fuse.log()


def test_a_server_that_hangs_is_replaced(fuse: FuseMount) -> None:
    files = {"small": fuse.put("small", noise(MiB)), "large": fuse.put("large", noise(2 * SMALL))}
    fuse.start(tuning={"hang_s": 1.0})
    with Readers(fuse, files, 1) as readers:
        readers.more()
        hung = fuse.server()
        os.kill(hung, signal.SIGSTOP)
        fuse.server(other_than=hung)
        readers.more()
    assert "silent" in fuse.status().mount["last_exit"]["why"]
    fuse.unmount()


def test_the_supervisor_is_killed(fuse: FuseMount) -> None:
    files = {"small": fuse.put("small", noise(MiB)), "large": fuse.put("large", noise(2 * SMALL))}
    fuse.start()
    with contextlib.ExitStack() as opened:
        handles = {name: opened.enter_context(open(fuse.point / name, "rb", buffering=0)) for name in files}
        assert handles["large"].read(BLOCK) == files["large"][:BLOCK]
        os.kill(fuse.status().supervisor_pid, signal.SIGKILL)
        until(lambda: mountinfo.mounted_at(str(fuse.point)) is None, "the mount is out of the tree")
        assert os.listdir(fuse.point) == []
        for name, data in files.items():
            assert (
                b"".join(os.pread(handles[name].fileno(), MiB, at) for at in range(0, len(data), MiB)) == data
            )
        # Another may be mounted while the old one serves.
        fuse.start()
        assert (fuse.point / "small").read_bytes() == files["small"]
        fuse.unmount()
        assert os.pread(handles["large"].fileno(), 100, SMALL) == files["large"][SMALL : SMALL + 100]
    until(lambda: not processes_of(fuse.directory), "the server ends with its last file")
    assert fuse.point.is_dir()


def test_both_are_killed_and_the_next_start_cleans_up(fuse: FuseMount) -> None:
    data = fuse.put("small", noise(MiB))
    fuse.start()
    fd = os.open(fuse.point / "small", os.O_RDONLY)
    try:
        status = fuse.status()
        os.kill(status.supervisor_pid, signal.SIGKILL)
        os.kill(status.server_pid, signal.SIGKILL)
        until(lambda: not processes_of(fuse.directory), "both are gone")
        if mountinfo.mounted_at(str(fuse.point)):  # else the server has just had the time to detach it
            until(lambda: fuse.status().state == "dead", "it is seen to be dead")
            with pytest.raises(OSError) as failed:  # noqa: PT011 - the number is what is compared
                os.listdir(fuse.point)
            assert failed.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        fuse.start()
        assert (fuse.point / "small").read_bytes() == data
        assert len([e for e in mountinfo.mounts() if e.point == str(fuse.point)]) == 1
    finally:
        with contextlib.suppress(OSError):  # its connection is gone; what counts is that this returns
            os.close(fd)
    fuse.unmount()


def test_references_survive_the_servers_that_gave_them(fuse: FuseMount) -> None:
    count = 50
    for number in range(count):
        fuse.put(f"d/{number}", b"old")
    fuse.start(metadata_ttl=0.0)
    pid = 0
    for round_ in range(3):
        pid = fuse.server(other_than=pid)
        for _ in range(3):  # each look-up is a reference more
            assert sum((fuse.point / f"d/{number}").stat().st_size for number in range(count)) == 3 * count
        if round_ < 2:
            os.kill(pid, signal.SIGKILL)
    assert fuse.details()["nodes"] == count + 1  # the directory is one
    for number in range(count):
        fuse.put(f"d/{number}", b"newer")
    for number in range(count):
        assert (fuse.point / f"d/{number}").stat().st_size == 5
    # The kernel drops the old ones, and with each all references that three servers have given out.
    until(lambda: fuse.details()["nodes"] == count + 1, "the old nodes are forgotten")
    assert fuse.server() == pid
    assert "Traceback" not in fuse.log()
    fuse.unmount()


def test_a_server_that_somebody_kills_is_not_to_blame(stage: Stage) -> None:
    data = stage.file("file", b"bytes")
    stage.start(tuning={"give_up": 3, "young_s": 3600.0})
    pid = 0
    for _ in range(6):
        pid = stage.server(other_than=pid)
        os.kill(pid, signal.SIGKILL)
    stage.server(other_than=pid)
    assert (stage.point / "file").read_bytes() == data
    stage.unmount()
