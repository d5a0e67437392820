"""Signals while the object store lets a program wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.embedded import noise
from tests.support.fusemount import SMALL, FuseMount
from tests.support.s3proxy import Fault, Request, S3Proxy
from tests.support.seaweed import SeaweedS3
from tests.support.waiting import PATIENCE_S, until

LARGE = 2 * SMALL
"""Bytes of a file that is read through the server."""


class Hanging:
    """A mount of a bucket in which whatever is asked about keys with `slow` in them hangs."""

    def __init__(self, mount: FuseMount, server: SeaweedS3, bucket: str, proxy: S3Proxy) -> None:
        self.mount = mount
        self.latency_s = 3600.0
        self._asked = threading.Semaphore(0)
        for number in range(2):
            server.put(bucket, f"dir/slow-{number}", noise(1000 + number, number))
        server.put(bucket, "dir/slow-large", noise(LARGE))
        server.put(bucket, "dir/quick", b"quick")
        server.put(bucket, "slow/names", b"")
        mount.start()
        assert len(list((mount.point / "dir").iterdir())) == 4
        proxy.fault = self._fault

    def _fault(self, request: Request) -> Fault | None:
        if "slow" not in request.key:
            return None
        self._asked.release()
        return Fault(latency_s=self.latency_s)

    def popen(self, *command: str) -> subprocess.Popen[bytes]:
        """A program that has come to ask the store for something slow."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._asked.acquire(timeout=PATIENCE_S)
        return process


@pytest.fixture
def hanging(s3_fuse: FuseMount, s3_server: SeaweedS3, bucket: str, s3_proxy: S3Proxy) -> Iterator[Hanging]:
    yield Hanging(s3_fuse, s3_server, bucket, s3_proxy)
    s3_fuse.unmount(force=True)  # the server waits for the store
    s3_proxy.fault = None


def ends(process: subprocess.Popen[bytes], number: int) -> None:
    """It has been ended by that signal, and not only been told to."""
    with process:
        assert process.wait(PATIENCE_S) == -number


@pytest.mark.parametrize("name", ["dir/slow-0", "dir/slow-large", "slow/names"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT])
def test_a_signal_that_ends_a_program_ends_it(hanging: Hanging, name: str, number: int) -> None:
    process = hanging.popen("cat", str(hanging.mount.point / name))
    process.send_signal(number)
    ends(process, number)
    assert (hanging.mount.point / "dir/quick").read_bytes() == b"quick"


def test_programs_that_were_killed_leave_nobody_waiting(hanging: Hanging) -> None:
    large = str(hanging.mount.point / "dir/slow-large")
    waiting = [hanging.popen("cat", str(hanging.mount.point / "dir/slow-0"))]
    waiting += [hanging.popen("cat", large)]
    # More than the server has loops. (And fewer fetches than it does at a time: the others would wait for those.)
    waiting += [
        subprocess.Popen(["cat", large], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)
    ]
    until(lambda: hanging.mount.status().details["requests"] >= len(waiting), "all wait for the store")
    for process in waiting:
        process.kill()
    for process in waiting:
        ends(process, signal.SIGKILL)
    # Their files are closed, though the server still waits for the store.
    assert (hanging.mount.point / "dir/quick").read_bytes() == b"quick"
    until(lambda: hanging.mount.status().details["open"] == 0, "all files are closed")


_CATCHES = """
import ctypes, signal, sys
for number in (signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
fd = libc.open(sys.argv[1].encode(), 0)
sys.exit(ctypes.get_errno() if fd < 0 else 0)
"""


def test_a_program_with_a_handler_waits_on_and_can_be_killed(hanging: Hanging) -> None:
    process = hanging.popen(sys.executable, "-c", _CATCHES, str(hanging.mount.point / "dir/slow-0"))
    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()  # the kernel sends no second INTERRUPT for it
    ends(process, signal.SIGKILL)


_TICKS = """
import ctypes, os, signal, sys
ticks = [0]
def tick(*_): ticks[0] += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
libc = ctypes.CDLL(None, use_errno=True)
for path in sys.argv[1:]:
    buffer = ctypes.create_string_buffer(256)
    # What os.stat and os.open would hide: they try again (PEP 475).
    if libc.access(path.encode(), os.R_OK):
        sys.exit(f"access {path}: {os.strerror(ctypes.get_errno())}")
    fd = libc.open(path.encode(), os.O_RDONLY)
    if fd < 0:
        sys.exit(f"open {path}: {os.strerror(ctypes.get_errno())}")
    size, got = os.fstat(fd).st_size, 0
    data = ctypes.create_string_buffer(1 << 20)
    while got < size:
        count = libc.read(fd, data, len(data))
        if count <= 0:
            sys.exit(f"read {path}: {os.strerror(ctypes.get_errno())}")
        got += count
signal.setitimer(signal.ITIMER_REAL, 0)
print(ticks[0])
"""


def test_a_program_that_gets_signals_all_the_time_sees_none_of_them(hanging: Hanging) -> None:
    hanging.latency_s = 0.2
    names = ["slow/names", "dir/slow-0", "dir/slow-1", "dir/slow-large"]
    paths = [str(hanging.mount.point / name) for name in names]
    done = subprocess.run([sys.executable, "-c", _TICKS, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
