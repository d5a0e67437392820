"""The loop between /dev/fuse and the operations: threads, what is in flight, interrupts, notifications.

A loop thread reads a request, has the handler answer it, and writes the reply. It must never wait for the network (nor
for anything that needs another FUSE request to be served): for such work the handler returns `Deferred`, and a thread
of a pool does it.

Whoever takes a request out of the table of those in flight is the one who replies; the kernel gets one reply for each.

The session neither opens nor closes the descriptor, and never clones it. Loop threads wait in read(2): with epoll in
front, one program's 4 KiB reads (2 cores, direct I/O, 4 loops, Linux 6.18) came to 18,000 /s in most runs and 55,000
in a few, against a steady 35,000.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from raycache.errors import RaycacheError
from raycache.fairpool import FairPool
from raycache.fuse import answers
from raycache.fuse.answers import Deferred, Handler, Reply, ReplySender
from raycache.fuse.interrupts import Fate, Interrupts, fate_of
from raycache.fuse.notifier import Notifier
from raycache.fuse.protocol import Interrupt, ProtocolError, Request, parse, replies
from raycache.fuse.protocol.constants import NO_REPLY

__all__ = ["Deferred", "Handler", "Load", "Reply", "ReplySender", "Session", "make_wakeable"]

log = logging.getLogger(__name__)

READ_BUFFER = 64 * 1024
"""Bytes of a loop thread's buffer. The kernel wants FUSE_MIN_READ_BUFFER and room for `max_write` (4096, see
`Wanted`) and 80 bytes more; one BATCH_FORGET then brings up to 4,093 nodes."""

LOOPS = 4
"""Loop threads. They wait in the kernel, which wakes one for each request."""

WORKERS = 64
"""Threads for deferred requests; as many as the kernel reads ahead at a time (`Wanted.max_background`). More only while
more files than that have to wait: each has one at least, so that files whose store hangs do not keep up the others."""

REQUEUES = 100
"""How often an INTERRUPT of a request that is not known is sent back to come again."""

WAKE = signal.SIGURG
"""Wakes threads that wait for a request. By default it is ignored: a process that did not expect it lives on."""


class Load(NamedTuple):
    """Requests that are being served: age of the oldest, seconds (0 if there are none), and how many."""

    oldest_s: float
    requests: int


class _InFlight:
    """A request that was read and not answered."""

    __slots__ = ("deferred", "interrupted", "nodeid", "opcode", "pid", "since", "unique")

    def __init__(self, unique: int, opcode: int, nodeid: int, pid: int, since: float) -> None:
        self.unique = unique
        self.nodeid = nodeid
        self.opcode = opcode
        self.pid = pid
        self.since = since
        self.deferred: Deferred | None = None
        self.interrupted = False


class Session:
    """Serves one connection to the kernel, from `run` to the unmount or `stop`.

    Args:
        fd: the /dev/fuse descriptor of a mounted file system.
        handler: serves requests.
        threads: loop threads.
        workers: threads for deferred requests (see `WORKERS`); they start when they are needed.
        clock: seconds, monotonic.
        read: os.readv; tests put a device of their own here.
        fate: what becomes of a thread that was interrupted.
    """

    def __init__(
        self,
        fd: int,
        handler: Handler,
        *,
        threads: int = LOOPS,
        workers: int = WORKERS,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[int, list[bytearray]], int] = os.readv,
        fate: Callable[[int], Fate] = fate_of,
    ) -> None:
        self._fd = fd
        self._handler = handler
        self._clock = clock
        self._read = read
        self._in_flight: dict[int, _InFlight] = {}
        self._unknown: dict[int, int] = {}
        self._interrupts = Interrupts(
            self._in_flight.__contains__, self._give_up, look=fate, clock=self._clock
        )
        self._pool = FairPool("raycache-fuse-worker", workers)
        self._notifier = Notifier(fd)
        self._stopping = False
        self._unmounted = False
        self._failure: OSError | None = None
        # Daemons: a process that wants to end must not wait for threads that wait for the kernel.
        self._loops = [
            threading.Thread(target=self._loop, name=f"raycache-fuse-{number}", daemon=True)
            for number in range(threads)
        ]

        self._lock = threading.RLock()  # a signal handler that calls stop() may interrupt stop()
        self._waiting: set[int] = set()

    # -- running ------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Serve until the file system is unmounted (True) or `stop` was called (False). Once per session.

        On return all threads of the session have ended, after the requests that they had read: those in the pool
        too, which may take as long as their longest wait for the network. The one exception: a notification that
        hangs in the kernel is left behind (see `Notifier`).

        Raises:
            OSError: the device cannot be read: EPERM (nothing is mounted with it), EINVAL (`max_write` too large).
        """
        if threading.current_thread() is threading.main_thread():
            make_wakeable()
        os.set_blocking(self._fd, True)  # who had it before may have died while it stopped
        self._notifier.start()
        started: list[threading.Thread] = []
        try:
            for thread in self._loops:
                thread.start()
                started.append(thread)
            for thread in started:
                thread.join()
        except BaseException:  # a signal handler raised, or there are no more threads to be had
            self.stop()
            for thread in started:
                thread.join()
            raise
        finally:
            # What is queued is answered as well, unless nobody is there to hear it.
            self._pool.shutdown(cancel=self._unmounted)
            self._in_flight.clear()
            self._interrupts.close()
            self._notifier.close()
            os.set_blocking(self._fd, True)
        if self._failure is not None:
            raise self._failure
        return self._unmounted

    def stop(self) -> None:
        """Have `run` return. Any thread may call it, a signal handler too; it does not wait.

        Nothing more is read, what was read is answered; the kernel keeps the rest for the next reader of the device.
        Threads that wait in the kernel are woken by a signal (see `make_wakeable`; without it, each ends with the next
        request, or with the mount), and find the descriptor non-blocking until `run` returns.
        """
        self._stopping = True
        with self._lock:
            if self._waiting:
                os.set_blocking(self._fd, False)
            for ident in self._waiting:
                signal.pthread_kill(ident, WAKE)

    def oldest_age(self, now: float | None = None) -> Load:
        """How much is being served, for a watchdog: a request that grows old has a thread that hangs.

        Args:
            now: the session's clock, seconds; None reads it.
        """
        since = [state.since for state in self._in_flight.copy().values()]
        if not since:
            return Load(0.0, 0)
        now = self._clock() if now is None else now
        return Load(max(0.0, now - min(since)), len(since))

    # -- notifications ------------------------------------------------------------------------------------

    def resend(self) -> None:
        """Have the kernel hand out again what was read and not answered, by a server that is gone: to be called
        before the first read. Of what this session itself is serving it would make duplicates.

        Raises:
            OSError: EINVAL: the kernel cannot do that (before Linux 6.9).
        """
        os.write(self._fd, replies.notify_resend())

    def notify_inval_entry(self, parent: int, name: bytes, *, expire_only: bool = False) -> None:
        """Have the kernel forget what a name in a directory stands for. Returns at once: it is sent by a thread of
        its own, for it waits for the directory's lock, which a LOOKUP holds while it waits for our reply."""
        self._notifier.put(replies.notify_inval_entry(parent, name, expire_only=expire_only))

    def notify_inval_inode(self, nodeid: int, offset: int = 0, length: int = 0) -> None:
        """Have the kernel forget a node's attributes and cached bytes (see `replies.notify_inval_inode`). Returns
        at once; it may wait for pages whose READ waits for our reply."""
        self._notifier.put(replies.notify_inval_inode(nodeid, offset, length))

    # -- the loop -----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        ident = threading.get_ident()
        with self._lock:
            self._waiting.add(ident)
        try:
            self._read_and_serve()
        finally:
            with self._lock:  # no thread may be signalled that has ended
                self._waiting.discard(ident)

    def _read_and_serve(self) -> None:
        buffer = bytearray(READ_BUFFER)
        buffers = [buffer]
        view = memoryview(buffer)
        while not self._stopping:
            try:
                size = self._read(self._fd, buffers)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue  # the kernel has ended the request meanwhile; or it is time to stop
                if error.errno in answers.ENDED:
                    self._unmounted = True
                else:
                    log.error("the FUSE device cannot be read: %s", error)
                    self._failure = error
                self.stop()
                return
            if size == 0:
                self._unmounted = self._stopping = True
                return
            try:
                request = parse(view[:size])
            except ProtocolError as error:
                log.error("%s", error)
                if error.unique:
                    answers.write_error(self._fd, error.unique, error.errno)
                continue
            if isinstance(request.body, Interrupt):
                self._interrupt(request.unique, request.body.unique)
            elif request.opcode in NO_REPLY:
                self._serve_silently(request)
            else:
                self._serve(request)

    def _serve(self, request: Request) -> None:
        unique = request.unique
        state = _InFlight(unique, request.opcode, request.nodeid, request.pid, self._clock())
        self._in_flight[unique] = state
        try:
            reply = self._handler(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must be told
            self._fail(state, error)
            return
        if isinstance(reply, Deferred):
            self._defer(state, reply)
        elif self._take(state):
            answers.write(self._fd, state.unique, state.opcode, reply)
        else:
            answers.discard(reply)

    def _serve_silently(self, request: Request) -> None:
        try:
            self._handler(request)
        except Exception:
            log.exception("FUSE operation %d", request.opcode)

    # -- the pool -----------------------------------------------------------------------------------------

    def _defer(self, state: _InFlight, deferred: Deferred) -> None:
        state.deferred = deferred
        # In this order, and the other way round in _interrupt: one of the two sees what the other has set.
        if state.interrupted:
            self._interrupts.add(state.unique, state.pid)
            if self._in_flight.get(state.unique) is not state:
                return
        try:
            self._pool.submit(state.nodeid, partial(self._work, state, deferred))
        except RuntimeError as error:
            # The process is ending: the next server will be handed the request again.
            log.error("FUSE operation %d has to wait: %s", state.opcode, error)

    def _work(self, state: _InFlight, deferred: Deferred) -> None:
        if self._in_flight.get(state.unique) is not state:
            return  # interrupted before its turn came
        try:
            reply = deferred.call()
        except Exception as error:  # noqa: BLE001 - as in _serve
            self._fail(state, error)
            return
        if self._take(state):
            delivered = answers.write(self._fd, state.unique, state.opcode, reply)
        else:
            delivered = False
            answers.discard(reply)
        if not delivered and deferred.undo is not None:
            deferred.undo()

    def _interrupt(self, unique: int, target: int) -> None:
        """The kernel's rules are in Documentation/filesystems/fuse.rst, "Interrupting filesystem operations"; ours in
        `interrupts`."""
        state = self._in_flight.get(target)
        if state is None:
            # Answered already (then the kernel ignores this), or read by a thread that has not come as far as
            # the table: EAGAIN has the INTERRUPT come again. Not for ever: it may have been read by a server
            # that is dead, and not resent. To ignore an INTERRUPT is always allowed.
            if len(self._unknown) > 1000:
                self._unknown.clear()
            times = self._unknown[target] = self._unknown.get(target, 0) + 1
            if times <= REQUEUES:
                answers.write_error(self._fd, unique, errno.EAGAIN)
            return
        state.interrupted = True
        # What a loop thread serves does not wait for anything: its answer is as fast as EINTR.
        if state.deferred is not None:
            self._interrupts.add(target, state.pid)

    def _give_up(self, unique: int) -> None:
        """Whoever waited for a request has ended, or is about to."""
        if self._in_flight.pop(unique, None) is not None:
            answers.write_error(self._fd, unique, errno.EINTR)

    # -- replies ------------------------------------------------------------------------------------------

    def _take(self, state: _InFlight) -> bool:
        """Whether it is for the caller to reply. One dict operation: no two threads are told yes."""
        # After a second resend() two states have one unique: whichever is ready first answers for both.
        return self._in_flight.pop(state.unique, None) is not None

    def _fail(self, state: _InFlight, error: Exception) -> None:
        if isinstance(error, (RaycacheError, OSError)):
            code = error.errno
        else:
            log.error("FUSE operation %d", state.opcode, exc_info=error)
            code = errno.EIO
        if self._take(state):
            answers.write_error(self._fd, state.unique, code)


def make_wakeable() -> None:
    """Have WAKE interrupt system calls, for `Session.stop`. Only the main thread can do it; its `run` does."""
    signal.signal(WAKE, lambda number, frame: None)
