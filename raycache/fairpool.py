"""A pool of threads of which nobody can take all, however long his calls hang.

Calls belong to groups (here: to the object that they fetch or read). Threads are handed out in turn, and one group
alone may use them all; but a group that has fewer than its share runs at once, in a thread beyond the usual number
if need be. So calls that hang (a key whose store says nothing) cost the others no more than their share, and nobody
has to judge which calls hang and which are only slow. The idea is that of fair queueing (Nagle, RFC 970), with
threads in place of packets.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

Call = Callable[[], None]

STRETCH = 8
"""How many times its width a pool may grow to. Of groups that hang, the first holds all of the width, the next a half,
then a third, and so on down to one thread each: up to a width of 64, `n` of them hold at most `n` threads and 3.4
times the width. So four times the width in groups may hang, and one that does not still gets its thread at once."""


@dataclass(eq=False)
class _Group:
    running: int = 0
    waiting: deque[Call] = field(default_factory=deque)


class FairPool:
    """Runs calls in threads, which start when they are needed; those beyond `width` end when there is nothing for them
    to do. Thread-safe.

    Args:
        name: prefix of the threads' names.
        width: threads that are used as long as no group falls short of its share.
        most: threads that there may be at once; None: `STRETCH` times the width.
    """

    def __init__(self, name: str, width: int, most: int | None = None) -> None:
        self._width = width
        self._most = width * STRETCH if most is None else most
        self._name = name
        self._threads = ThreadPoolExecutor(min(width, self._most), thread_name_prefix=name)
        self._extra: list[threading.Thread] = []
        self._extra_running = 0
        self._lock = threading.Lock()
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._running = 0
        self._closed = False

    def submit(self, group: Hashable, call: Call) -> None:
        """Have `call` run once it is its group's turn. What it raises is logged.

        Args:
            group: whose call it is.
            call: what to run.

        Raises:
            RuntimeError: the pool is shut down.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is shut down")
            self._groups.setdefault(group, _Group()).waiting.append(call)
            self._start_all()

    def shutdown(self, *, cancel: bool) -> None:
        """Wait for what runs, and for what is queued too unless `cancel` drops it. Takes nothing more."""
        with self._lock:
            self._closed = True
            if cancel:
                for group in self._groups.values():
                    group.waiting.clear()
            # What is queued is taken by the threads that run: there are some, else nothing would be queued.
            extra = self._extra
        self._threads.shutdown(wait=True)
        for thread in extra:
            thread.join()

    def _start_all(self) -> None:
        """Give a thread to every call that may have one. The lock is held."""
        while not self._closed and (taken := self._take()) is not None:
            try:
                if self._running - self._extra_running <= self._width:
                    self._threads.submit(self._work, *taken)
                else:
                    self._start_extra(*taken)
            except RuntimeError as error:  # no thread can be had: one that is there will come to it
                log.error("a call has to wait: %s", error)
                return

    def _start_extra(self, name: Hashable, call: Call) -> None:
        """A thread for a call while all of the width are taken. The lock is held."""
        thread = threading.Thread(target=self._work, args=(name, call, True), name=f"{self._name}-extra")
        try:
            thread.start()
        except RuntimeError:
            group = self._groups[name]
            group.waiting.appendleft(call)
            group.running -= 1
            self._running -= 1
            raise
        self._extra_running += 1
        self._extra = [*(one for one in self._extra if one.is_alive()), thread]

    def _take(self) -> tuple[Hashable, Call] | None:
        """The next call that may run, and its group, which is counted as running it. The lock is held."""
        if self._running >= self._most:
            return None
        share = max(1, self._width // max(1, len(self._groups)))
        for name, group in self._groups.items():
            if group.waiting and (self._running < self._width or group.running < share):
                self._groups.move_to_end(name)
                group.running += 1
                self._running += 1
                return name, group.waiting.popleft()
        return None

    def _work(self, name: Hashable, call: Call, extra: bool = False) -> None:
        taken: tuple[Hashable, Call] | None = (name, call)
        while taken is not None:
            name, call = taken
            try:
                call()
            except BaseException:  # a panic of a Rust extension is no Exception
                # Nobody is above it in this thread; whoever waits for the call is told by the call.
                log.exception("a call in the pool")
            del call, taken  # an idle thread holds on to nothing
            with self._lock:
                group = self._groups[name]
                group.running -= 1
                self._running -= 1
                if not group.running and not group.waiting:
                    del self._groups[name]
                taken = self._take()
                if extra and taken is None:
                    self._extra_running -= 1
                self._start_all()  # shares have grown if a group is gone
