"""The kernel's end of /dev/fuse, over a socket pair that keeps messages apart."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raycache.fuse.interrupts import Fate
from raycache.fuse.protocol import Opcode
from raycache.fuse.session import Handler, Session

PATIENCE_S = 30.0
"""Seconds until a test that waits for what does not come is failed."""

_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")


def message(opcode: int, body: bytes = b"", *, unique: int = 2, nodeid: int = 1, pid: int = 7) -> bytes:
    """A request as the kernel writes it."""
    return _IN.pack(_IN.size + len(body), opcode, unique, nodeid, 1000, 1001, pid, 0, 0) + body


class Answer(NamedTuple):
    """What the session wrote: a reply, or a notification (unique 0, its code as `error`)."""

    unique: int
    error: int
    body: bytes


class FakeKernel:
    """One mount. `session_fd` stands for /dev/fuse; the answers come in the order in which they were written."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self.session_fd = theirs.fileno()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._receive, name="fake-kernel")
        self._thread.start()

    def read(self, fd: int, buffers: list[bytearray]) -> int:
        """os.readv as the device does it: ENODEV after the unmount."""
        size = os.readv(fd, buffers)
        if size == 0:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return size

    def send(self, opcode: int, body: bytes = b"", *, unique: int = 2, nodeid: int = 1) -> None:
        self._socket.send(message(opcode, body, unique=unique, nodeid=nodeid))

    def send_raw(self, data: bytes) -> None:
        self._socket.send(data)

    def interrupt(self, unique: int) -> None:
        self.send(Opcode.INTERRUPT, struct.pack("=Q", unique), unique=unique | 1)

    def answer(self) -> Answer:
        """The next thing that the session wrote."""
        return self._answers.get(timeout=PATIENCE_S)

    def silent(self) -> bool:
        """Whether nothing that the session wrote is left."""
        return self._answers.empty()

    def unmount(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._theirs.close()
        self._socket.close()

    def _receive(self) -> None:
        while data := self._socket.recv(1 << 20):
            length, error, unique = _OUT.unpack_from(data)
            assert length == len(data)
            self._answers.put(Answer(unique, error, data[_OUT.size :]))


class Running:
    """A session that serves in a thread."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outcome: bool | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fuse-run")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.session.run()
        except OSError as error:
            self.outcome = error

    def join(self) -> bool | BaseException | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.outcome


@contextlib.contextmanager
def serving(
    kernel: FakeKernel,
    handler: Handler,
    *,
    threads: int = 1,
    workers: int = 4,
    fate: Callable[[int], Fate] = lambda tid: Fate.ENDS,
) -> Iterator[Running]:
    """A session of `handler`, ended by an unmount. Whoever is interrupted is about to end, unless `fate` says else."""
    running = Running(
        Session(kernel.session_fd, handler, threads=threads, workers=workers, read=kernel.read, fate=fate)
    )
    try:
        yield running
    finally:
        kernel.unmount()
        running.join()
