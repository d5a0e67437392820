"""The session's loop: errors, interrupts, deferred requests, the end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import struct
import threading
from collections.abc import Iterator

import pytest

from raycache.errors import ObjectNotFoundError, SpecError
from raycache.fuse.interrupts import Fate
from raycache.fuse.protocol import UNIQUE_RESEND, Notify, Opcode, Request, replies
from raycache.fuse.session import REQUEUES, WAKE, Deferred, Load, Reply, Session, make_wakeable
from tests.unit.fuse.fake_kernel import PATIENCE_S, FakeKernel, Running, serving


@pytest.fixture(autouse=True)
def _wakeable() -> Iterator[None]:
    before = signal.getsignal(WAKE)
    make_wakeable()
    yield
    signal.signal(WAKE, before)


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel()
    yield kernel
    kernel.close()


class Gate:
    """Work that says when it has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.undone = threading.Event()

    def __call__(self) -> bytes:
        self.begun.set()
        assert self.open.wait(PATIENCE_S)
        return b"gated"

    def wait(self) -> None:
        assert self.begun.wait(PATIENCE_S)

    def deferred(self) -> Deferred:
        return Deferred(self, self.undone.set)


def _echo(request: Request) -> Reply:
    return b"%d" % request.unique


def test_replies_are_one_message_each(kernel: FakeKernel) -> None:
    def handler(request: Request) -> Reply:
        if request.unique == 4:
            return [b"one", memoryview(b"two"), bytearray(b"three")]
        return b"one" if request.unique == 2 else b""

    with serving(kernel, handler):
        for unique in (2, 4, 6):
            kernel.send(Opcode.STATFS, unique=unique)
        assert [kernel.answer() for _ in range(3)] == [(2, 0, b"one"), (4, 0, b"onetwothree"), (6, 0, b"")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ObjectNotFoundError("no such object"), errno.ENOENT),
        (SpecError("no OSError at all"), errno.EINVAL),
        (OSError(errno.ESTALE, "stale"), errno.ESTALE),
        (PermissionError(errno.EACCES, "no"), errno.EACCES),
        (TimeoutError("an OSError without a number"), errno.EIO),
        (OSError(4711, "no number that the kernel takes"), errno.EIO),
        (ZeroDivisionError("a bug"), errno.EIO),
    ],
)
@pytest.mark.parametrize("deferred", [False, True])
def test_errors_are_told_by_number(
    kernel: FakeKernel, error: Exception, expected: int, deferred: bool
) -> None:
    def fail() -> Reply:
        raise error

    with serving(kernel, lambda request: Deferred(fail) if deferred else fail()):
        kernel.send(Opcode.STATFS)
        assert kernel.answer() == (2, -expected, b"")


def test_a_bug_is_logged_and_does_not_end_the_loop(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> Reply | None:
        if request.opcode == Opcode.STATFS:
            return b"fine"
        if request.opcode == Opcode.DESTROY:
            return None
        raise RuntimeError("a bug of ours")

    with serving(kernel, handler):
        kernel.send(Opcode.LOOKUP, b"name\0")
        assert kernel.answer() == (2, -errno.EIO, b"")
        kernel.send(Opcode.FORGET, struct.pack("=Q", 1), unique=4)  # nobody waits for an error
        kernel.send(Opcode.DESTROY, unique=6)  # a reply was due
        assert kernel.answer() == (6, -errno.EIO, b"")
        kernel.send(Opcode.STATFS, unique=8)
        assert kernel.answer() == (8, 0, b"fine")
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 3
    assert sum(record.exc_info is not None for record in logged) == 2


def test_forget_reaches_the_handler_and_is_not_answered(kernel: FakeKernel) -> None:
    seen: list[Request] = []

    def handler(request: Request) -> Reply | None:
        seen.append(request)
        return b"" if request.opcode == Opcode.STATFS else None

    with serving(kernel, handler):
        kernel.send(Opcode.FORGET, struct.pack("=Q", 3), nodeid=9)
        kernel.send(Opcode.BATCH_FORGET, struct.pack("=IIQQ", 1, 0, 5, 2), unique=4)
        kernel.send(Opcode.STATFS, unique=6)
        assert kernel.answer().unique == 6
        assert kernel.silent()
    assert [request.opcode for request in seen] == [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.STATFS]


def test_what_is_no_request_is_answered_if_it_can_be(kernel: FakeKernel) -> None:
    with serving(kernel, _echo):
        kernel.send_raw(b"\1\2\3")
        kernel.send(Opcode.READ, b"short", unique=2)
        assert kernel.answer() == (2, -errno.EIO, b"")
        kernel.send(9999, b"an operation of the future", unique=4)
        assert kernel.answer() == (4, 0, b"4")


# -- deferred requests ------------------------------------------------------------------------------------------------


def test_a_deferred_request_does_not_hold_the_loop(kernel: FakeKernel) -> None:
    gate = Gate()
    with serving(kernel, lambda r: gate.deferred() if r.opcode == Opcode.READ else _echo(r)):
        kernel.send(Opcode.READ, bytes(40), unique=2)
        gate.wait()
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer() == (4, 0, b"4")
        gate.open.set()
        assert kernel.answer() == (2, 0, b"gated")
    assert not gate.undone.is_set()


def test_an_interrupt_is_answered_while_the_request_runs(kernel: FakeKernel) -> None:
    gate = Gate()
    with serving(kernel, lambda r: gate.deferred() if r.opcode == Opcode.OPEN else _echo(r)):
        kernel.send(Opcode.OPEN, bytes(8), unique=2)
        gate.wait()
        kernel.interrupt(2)
        assert kernel.answer() == (2, -errno.EINTR, b"")
        gate.open.set()
        assert gate.undone.wait(PATIENCE_S)  # the handle that it opened is nobody's
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer().unique == 4
        assert kernel.silent()


def test_files_that_hang_do_not_keep_up_the_others(kernel: FakeKernel) -> None:
    gates = {unique: Gate() for unique in range(2, 14)}

    def handler(request: Request) -> Reply | Deferred:
        if request.nodeid == 99:
            return Deferred(lambda: b"healthy")
        return gates[request.unique].deferred()

    with serving(kernel, handler, workers=2):
        for unique in gates:  # six files, two requests each
            kernel.send(Opcode.STATFS, unique=unique, nodeid=unique // 2)
        for unique in list(gates)[::2]:
            gates[unique].wait()
        kernel.send(Opcode.STATFS, unique=100, nodeid=99)
        assert kernel.answer() == (100, 0, b"healthy")
        for gate in gates.values():
            gate.open.set()
        assert {kernel.answer().unique for _ in gates} == set(gates)


def test_an_interrupted_request_that_is_queued_is_never_begun(kernel: FakeKernel) -> None:
    first, second, third = Gate(), Gate(), Gate()
    gates = {2: first, 4: second, 6: third}
    with serving(kernel, lambda r: gates[r.unique].deferred(), workers=1):
        for unique in gates:
            kernel.send(Opcode.READ, bytes(40), unique=unique)
        first.wait()
        kernel.interrupt(4)
        assert kernel.answer() == (4, -errno.EINTR, b"")
        for gate in gates.values():
            gate.open.set()
        assert {kernel.answer().unique, kernel.answer().unique} == {2, 6}
    assert not second.begun.is_set()
    assert not second.undone.is_set()


def test_an_interrupt_may_come_before_the_request_is_deferred(kernel: FakeKernel) -> None:
    gate, work = Gate(), Gate()

    def handler(request: Request) -> Reply | Deferred:
        if request.opcode == Opcode.STATFS:
            return b""
        gate()
        return work.deferred()

    with serving(kernel, handler, threads=2):
        kernel.send(Opcode.READ, bytes(40), unique=2)
        gate.wait()  # one thread is busy from here on, so the other reads in this order
        kernel.interrupt(2)
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer() == (4, 0, b"")
        gate.open.set()
        assert kernel.answer() == (2, -errno.EINTR, b"")
    assert not work.begun.is_set()


def test_who_lives_on_is_answered_in_spite_of_an_interrupt(kernel: FakeKernel) -> None:
    gate = Gate()
    asked: list[int] = []

    def fate(tid: int) -> Fate:
        asked.append(tid)
        return Fate.STAYS

    with serving(kernel, lambda r: gate.deferred() if r.opcode == Opcode.OPEN else b"", fate=fate):
        kernel.send(Opcode.OPEN, bytes(8), unique=2)
        gate.wait()
        kernel.interrupt(2)
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer().unique == 4
        gate.open.set()
        assert kernel.answer() == (2, 0, b"gated")
    assert set(asked) == {7}  # the pid of the request, not the INTERRUPT's
    assert not gate.undone.is_set()


def test_who_lives_on_and_then_ends_is_let_go(kernel: FakeKernel) -> None:
    gate = Gate()
    fates = iter([Fate.STAYS, Fate.UNKNOWN, Fate.STAYS, Fate.ENDS])
    with serving(kernel, lambda r: gate.deferred(), fate=lambda tid: next(fates)):
        kernel.send(Opcode.OPEN, bytes(8), unique=2)
        gate.wait()
        kernel.interrupt(2)  # once, as the kernel does
        assert kernel.answer() == (2, -errno.EINTR, b"")
        gate.open.set()
        assert gate.undone.wait(PATIENCE_S)
    assert not any(thread.name == "raycache-fuse-interrupts" for thread in threading.enumerate())


def test_who_lives_on_may_be_interrupted_before_the_request_is_deferred(kernel: FakeKernel) -> None:
    gate = Gate()

    def handler(request: Request) -> Reply | Deferred:
        if request.opcode == Opcode.STATFS:
            return b""
        gate()
        return Deferred(lambda: b"late")

    with serving(kernel, handler, threads=2, fate=lambda tid: Fate.STAYS):
        kernel.send(Opcode.READ, bytes(40), unique=2)
        gate.wait()
        kernel.interrupt(2)
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer() == (4, 0, b"")
        gate.open.set()
        assert kernel.answer() == (2, 0, b"late")


def test_a_request_that_a_loop_serves_is_answered_in_spite_of_an_interrupt(kernel: FakeKernel) -> None:
    gate = Gate()
    with serving(kernel, lambda r: gate() if r.opcode == Opcode.READ else b"", threads=2):
        kernel.send(Opcode.READ, bytes(40), unique=2)
        gate.wait()
        kernel.interrupt(2)
        kernel.send(Opcode.STATFS, unique=4)
        assert kernel.answer().unique == 4
        gate.open.set()
        assert kernel.answer() == (2, 0, b"gated")


def test_an_interrupt_of_what_is_not_known_is_to_come_again_but_not_for_ever(kernel: FakeKernel) -> None:
    with serving(kernel, _echo):
        for _ in range(REQUEUES):
            kernel.interrupt(8)
            assert kernel.answer() == (9, -errno.EAGAIN, b"")
        kernel.interrupt(8)
        kernel.send(Opcode.STATFS, unique=10)
        assert kernel.answer() == (10, 0, b"10")


# -- resent requests --------------------------------------------------------------------------------------------------


def test_the_reply_to_a_resent_request_carries_the_bit(kernel: FakeKernel) -> None:
    seen: list[bool] = []

    def handler(request: Request) -> Reply:
        seen.append(request.resent)
        return b""

    session = Session(kernel.session_fd, handler, threads=1, read=kernel.read)
    session.resend()
    assert kernel.answer() == (0, Notify.RESEND, b"")
    running = Running(session)
    kernel.send(Opcode.STATFS, unique=2 | UNIQUE_RESEND)
    assert kernel.answer() == (2 | UNIQUE_RESEND, 0, b"")
    kernel.send(Opcode.STATFS, unique=4)
    assert kernel.answer() == (4, 0, b"")
    kernel.unmount()
    assert running.join() is True
    assert seen == [True, False]


def test_a_request_that_comes_twice_is_answered_once(kernel: FakeKernel) -> None:
    first, second = Gate(), Gate()
    gates = iter((first, second))
    with serving(kernel, lambda r: next(gates).deferred()):
        for gate in (first, second):
            kernel.send(Opcode.READ, bytes(40), unique=2 | UNIQUE_RESEND)
            gate.wait()
        first.open.set()
        assert kernel.answer() == (2 | UNIQUE_RESEND, 0, b"gated")
        second.open.set()
        assert second.undone.wait(PATIENCE_S)
        assert kernel.silent()
    assert not first.undone.is_set()


# -- the end ----------------------------------------------------------------------------------------------------------


def test_an_unmount_ends_it(kernel: FakeKernel) -> None:
    running = Running(Session(kernel.session_fd, _echo, threads=3, read=kernel.read))
    kernel.send(Opcode.STATFS)
    assert kernel.answer().unique == 2
    kernel.unmount()
    assert running.join() is True


def test_stop_wakes_who_waits_and_answers_what_was_read(kernel: FakeKernel) -> None:
    gate = Gate()
    session = Session(kernel.session_fd, lambda r: gate.deferred(), threads=3, read=kernel.read)
    running = Running(session)
    kernel.send(Opcode.READ, bytes(40))
    gate.wait()
    session.stop()
    session.stop()
    gate.open.set()
    assert running.join() is False
    assert kernel.answer() == (2, 0, b"gated")
    kernel.send(Opcode.STATFS, unique=4)
    assert kernel.silent()
    with serving(kernel, _echo):  # the next reader finds it, and the descriptor as it was
        assert kernel.answer() == (4, 0, b"4")
    assert os.get_blocking(kernel.session_fd)


def test_a_descriptor_that_a_dead_reader_left_non_blocking(kernel: FakeKernel) -> None:
    os.set_blocking(kernel.session_fd, False)
    with serving(kernel, _echo):
        kernel.send(Opcode.STATFS)
        assert kernel.answer() == (2, 0, b"2")
        assert os.get_blocking(kernel.session_fd)


def test_a_signal_handler_that_raises_ends_it(kernel: FakeKernel) -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def handler(request: Request) -> Reply:
        os.kill(os.getpid(), signal.SIGTERM)
        return b""

    before = signal.signal(signal.SIGTERM, stop)
    kernel.send(Opcode.STATFS)
    try:
        with pytest.raises(KeyboardInterrupt):
            Session(kernel.session_fd, handler, read=kernel.read).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert kernel.answer() == (2, 0, b"")


def test_stop_before_run(kernel: FakeKernel) -> None:
    session = Session(kernel.session_fd, _echo, read=kernel.read)
    session.stop()
    assert session.run() is False


def test_a_device_that_cannot_be_read_is_an_error(kernel: FakeKernel) -> None:
    def read(fd: int, buffers: list[bytearray]) -> int:
        raise PermissionError(errno.EPERM, "nothing is mounted")

    with pytest.raises(PermissionError):
        Session(kernel.session_fd, _echo, read=read).run()


def test_a_request_that_the_kernel_took_back_is_passed_over(kernel: FakeKernel) -> None:
    errors = [errno.ENOENT, errno.EINTR, errno.EAGAIN]

    def read(fd: int, buffers: list[bytearray]) -> int:
        if errors:
            raise OSError(errors.pop(), "not this one")
        return kernel.read(fd, buffers)

    running = Running(Session(kernel.session_fd, _echo, threads=1, read=read))
    kernel.send(Opcode.STATFS)
    assert kernel.answer() == (2, 0, b"2")
    kernel.unmount()
    assert running.join() is True


# -- notifications, senders, the watchdog -----------------------------------------------------------------------------


def test_notifications_are_sent_by_a_thread_of_their_own(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Gate()
    write = os.write

    def slow_write(fd: int, data: bytes) -> int:
        if fd == kernel.session_fd and data[8:16] == bytes(
            8
        ):  # as if the kernel waited for the directory's lock
            held()
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow_write)

    def handler(request: Request) -> Reply:
        running.session.notify_inval_entry(7, b"name")
        running.session.notify_inval_inode(8)
        return b""

    with serving(kernel, handler) as running:
        kernel.send(Opcode.STATFS)
        assert kernel.answer() == (2, 0, b"")
        held.wait()
        held.open.set()
        assert kernel.answer() == (0, Notify.INVAL_ENTRY, struct.pack("=QII", 7, 4, 0) + b"name\0")
        assert kernel.answer() == (0, Notify.INVAL_INODE, struct.pack("=Qqq", 8, 0, 0))


class _Sender:
    def __init__(self, failure: OSError | None = None) -> None:
        self.failure = failure
        self.discarded = threading.Event()

    def send(self, fd: int, unique: int) -> None:
        if self.failure is not None:
            raise self.failure
        os.writev(fd, [replies.header(unique, 4), b"self"])

    def discard(self) -> None:
        self.discarded.set()


def test_a_reply_may_send_itself(kernel: FakeKernel) -> None:
    sender = _Sender()
    with serving(kernel, lambda request: sender):
        kernel.send(Opcode.READ, bytes(40))
        assert kernel.answer() == (2, 0, b"self")
    assert not sender.discarded.is_set()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
def test_a_reply_that_could_not_be_sent_becomes_an_error(kernel: FakeKernel, code: int) -> None:
    undone = threading.Event()
    sender = _Sender(OSError(code, "no"))
    with serving(kernel, lambda request: Deferred(lambda: sender, undone.set)):
        kernel.send(Opcode.READ, bytes(40))
        assert kernel.answer() == (2, -code, b"")
        assert undone.wait(PATIENCE_S)


def test_a_reply_that_is_not_wanted_any_more_is_discarded(kernel: FakeKernel) -> None:
    gate, sender = Gate(), _Sender()

    def work() -> Reply:
        gate()
        return sender

    with serving(kernel, lambda request: Deferred(work)):
        kernel.send(Opcode.READ, bytes(40))
        gate.wait()
        kernel.interrupt(2)
        assert kernel.answer() == (2, -errno.EINTR, b"")
        gate.open.set()
        assert sender.discarded.wait(PATIENCE_S)


def test_the_age_of_the_oldest_request(kernel: FakeKernel) -> None:
    times = iter([100.0, 103.0])
    gates = {2: Gate(), 4: Gate()}
    session = Session(
        kernel.session_fd,
        lambda r: gates[r.unique].deferred(),
        threads=1,
        clock=lambda: next(times),
        read=kernel.read,
    )
    assert session.oldest_age(50.0) == Load(0.0, 0)
    running = Running(session)
    for unique, gate in gates.items():
        kernel.send(Opcode.READ, bytes(40), unique=unique)
        gate.wait()
    assert session.oldest_age(110.0) == Load(10.0, 2)
    gates[2].open.set()
    assert kernel.answer().unique == 2
    assert session.oldest_age(110.0) == Load(7.0, 1)
    gates[4].open.set()
    assert kernel.answer().unique == 4
    assert session.oldest_age(110.0) == Load(0.0, 0)
    kernel.unmount()
    assert running.join() is True
