"""One execution of a function for all who ask for the same thing at the same time.

The idea is groupcache's `singleflight`; here the first caller does the work in its own thread, the others
wait, and nothing is remembered once it is done: neither a result nor a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(eq=False)
class _Call(Generic[V]):
    done: threading.Event = field(default_factory=threading.Event)
    leader: int = field(default_factory=threading.get_ident)
    waiters: int = 0
    finished: bool = False
    value: V | None = None
    error: BaseException | None = None


class SingleFlight(Generic[K, V]):
    """Runs at most one function per key at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[K, _Call[V]] = {}

    def do(self, key: K, function: Callable[[], V], timeout_s: float | None = None) -> V:
        """The result of `function`, run by this caller or by the one who asked first.

        A failure is shared too: every caller that waited gets the same exception object. The next call
        after it runs its function anew.

        Args:
            key: what is asked for.
            function: how to get it; ignored if someone else is at it.
            timeout_s: longest wait for someone else's run, seconds. It does not limit this caller's own.

        Raises:
            TimeoutError: the other's run took longer than `timeout_s`; it goes on.
            RuntimeError: `function` asked for its own key, which could never end.
        """
        while True:
            with self._lock:
                call = self._calls.get(key)
                leading = call is None
                if call is None:
                    call = self._calls[key] = _Call()
                elif call.leader == threading.get_ident():
                    raise RuntimeError(f"single flight for {key!r} waits for itself")
                else:
                    call.waiters += 1
            if leading:
                self._lead(key, call, function)
            elif not call.done.wait(timeout_s):
                raise TimeoutError(f"waited {timeout_s:g} s for {key!r}")
            if call.finished:
                break
        try:
            if call.error is not None:
                raise call.error
            return cast(V, call.value)
        finally:
            del call  # the error's traceback holds this frame: do not let the frame hold the error

    def waiters(self, key: K) -> int:
        """How many callers wait, or waited, for the run of `key` that is under way; 0 if there is none."""
        with self._lock:
            call = self._calls.get(key)
            return 0 if call is None else call.waiters

    def _lead(self, key: K, call: _Call[V], function: Callable[[], V]) -> None:
        try:
            try:
                call.value = function()
            except Exception as error:  # noqa: BLE001 - raised again by all who asked, this caller among them
                call.error = error
            # Not reached if the leader was interrupted (KeyboardInterrupt, SystemExit): that is about its
            # thread, not about the key, so it goes up here and one of the waiters takes over.
            call.finished = True
        finally:
            # Forgotten before anyone is woken: who comes from now on must get a run that began after this.
            with self._lock:
                del self._calls[key]
            call.done.set()
