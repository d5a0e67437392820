"""Connections to all workers, and the memory of which of them did not answer lately."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raycache.errors import WorkerUnavailableError
from raycache.flight.tls import stamp

if TYPE_CHECKING:
    from raycache.flight.client import FlightPeer
    from raycache.settings import TlsFiles

FIRST_BACKOFF_S = 0.5
"""Seconds a worker is left alone after its first failure; doubled by each further one."""

MAX_BACKOFF_S = 15.0
"""Longest such pause. It is about the time in which Ray notices that a node died."""


@dataclass
class _Trouble:
    failures: int
    until: float


class PeerPool:
    """One `FlightPeer` per address, made when first asked for. Thread-safe.

    A worker that failed is *down* for a while that doubles with each failure: readers skip it instead of
    each waiting for the same timeout. After the pause it is tried again.

    Args:
        token: for all workers.
        tls: files for TLS with all workers; None speaks in clear.
        connect_timeout_s: as for `FlightPeer`.
        clock: seconds, monotonic; replaced by tests.
    """

    def __init__(
        self,
        token: str = "",
        *,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, FlightPeer] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._retired: list[FlightPeer] = []
        self._troubles: dict[str, _Trouble] = {}
        self._closed = False

    def get(self, address: str) -> FlightPeer:
        """The peer of an address, down or not. Raises WorkerUnavailableError once the pool is closed."""
        with self._lock:
            if self._closed:
                raise WorkerUnavailableError("the connections were closed", where=address)
            peer = self._peers.get(address)
            if peer is None:
                from raycache.flight.client import FlightPeer  # loads pyarrow

                peer = FlightPeer(
                    address, self._token, tls=self._tls, connect_timeout_s=self._connect_timeout_s
                )
                self._peers[address] = peer
                self._stamps[address] = stamp(self._tls)
            return peer

    def mark_down(self, address: str) -> None:
        """Note that a worker did not answer.

        Failures of calls that were already under way when the first one failed count once.
        """
        now = self._clock()
        with self._lock:
            trouble = self._troubles.setdefault(address, _Trouble(0, now))
            if now < trouble.until:
                return
            self._retire(address)
            trouble.until = now + min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0**trouble.failures)
            trouble.failures += 1

    def mark_up(self, address: str) -> None:
        """Note that a worker answered: earlier failures are forgotten."""
        if address in self._troubles:  # unlocked look: this is called for every answer
            with self._lock:
                self._troubles.pop(address, None)

    def is_down(self, address: str) -> bool:
        """Whether a worker failed lately and should be skipped for now."""
        trouble = self._troubles.get(address)
        return trouble is not None and self._clock() < trouble.until

    def forget(self, addresses: Collection[str]) -> None:
        """Close the connections to addresses whose workers left."""
        with self._lock:
            gone = [self._peers.pop(address) for address in addresses if address in self._peers]
            if self._closed:
                gone += self._retired
            for address in addresses:
                self._troubles.pop(address, None)
        for peer in gone:
            peer.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            known = list(self._peers)
        self.forget(known)

    def _retire(self, address: str) -> None:
        """Connect anew the next time if the files for TLS have changed. Streams of the old connection go on. Locked."""
        peer = self._peers.get(address)
        if peer is not None and self._stamps[address] != stamp(self._tls):
            self._retired.append(self._peers.pop(address))
