"""The gate of a worker's port: who calls, whether he may, and whether he asks for too much at once."""

from __future__ import annotations

import contextlib
import hmac
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raycache import wire
from raycache.access import rules
from raycache.access.callers import CLUSTER, Caller
from raycache.access.tokens import SigningKeys
from raycache.errors import AccessDeniedError, ClusterUnavailableError, WorkerUnavailableError

log = logging.getLogger(__name__)

MAX_CALLS = 256
"""Calls, and as many streams, that one token may have under way from one address: many times what a mount or a client
needs. Who has more is refused, and may try again, so that one who floods the worker leaves room for others."""

RENEW_S = 1.0
"""Seconds between looks for new keys, however many tokens name unknown ones."""


class Gate:
    """See above. Thread-safe.

    Args:
        token: the cluster's own, which allows everything; "" lets everybody do everything.
        others: further tokens that do, such as the one Ray's own processes present to each other.
        keys: the keys of signed tokens; None if none are accepted.
        renew: reads the keys anew; asked when a token names an unknown one, which may be new. May raise
            ClusterUnavailableError.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        token: str = "",
        *,
        others: tuple[str, ...] = (),
        keys: SigningKeys | None = None,
        renew: Callable[[], SigningKeys | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = not token
        self._internal = [wire.bearer(each) for each in (token, *others) if each]
        self._keys = keys
        self._renew = renew
        self._clock = clock
        self._renewed_at = -RENEW_S
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()
        self._actions: Counter[str] = Counter()

    def take(self, keys: SigningKeys | None) -> None:
        """Accept the tokens of these keys, and of no others."""
        self._keys = keys

    def caller(self, authorization: bytes) -> Caller:
        """Who presents the value of an `authorization` header.

        Raises:
            AccessDeniedError: nobody who may call.
        """
        # Every candidate is compared, in constant time: how long it takes says nothing.
        matches = [hmac.compare_digest(authorization, expected) for expected in self._internal]
        if self._open or any(matches):
            return CLUSTER
        token = authorization.removeprefix(b"Bearer ").decode("latin-1")
        if token == authorization.decode("latin-1") or token.count(".") != 2:
            raise AccessDeniedError("wrong or missing token")
        keys = self._keys
        if keys is None or not keys.knows(token):
            keys = self._renewed()
        if keys is None:
            raise AccessDeniedError("wrong or missing token")
        return keys.check(token)

    @contextlib.contextmanager
    def action(self, caller: Caller, peer: str, name: str, payload: Mapping[str, Any]) -> Iterator[None]:
        """Let an action through that comes from the address `peer`.

        Raises:
            AccessDeniedError: he may not.
            WorkerUnavailableError: he has too many under way.
        """
        with self._admitted(caller, peer, name, payload, self._actions):
            yield

    @contextlib.contextmanager
    def stream(self, caller: Caller, peer: str, ticket: Mapping[str, Any]) -> Iterator[None]:
        """The same for a stream, as long as it lasts."""
        with self._admitted(caller, peer, rules.STREAM, ticket, self._streams):
            yield

    def shown(self, caller: Caller, name: str, answer: dict[str, Any]) -> dict[str, Any]:
        """What of an answer a caller may see."""
        return rules.shown(caller, name, answer)

    @contextlib.contextmanager
    def _admitted(
        self, caller: Caller, peer: str, name: str, payload: Mapping[str, Any], running: Counter[str]
    ) -> Iterator[None]:
        if caller.internal:
            yield
            return
        try:
            rules.admit(caller, name, payload)
        except AccessDeniedError as error:
            log.info("token %s: %s", caller.name, error)
            raise
        who = f"{caller.name}@{_host(peer)}"
        with self._lock:
            if running[who] >= MAX_CALLS:
                raise WorkerUnavailableError(
                    f"{MAX_CALLS} calls with this token are under way from there",
                    hint="ask for less at a time",
                )
            running[who] += 1
        try:
            yield
        finally:
            with self._lock:
                running[who] -= 1
                if not running[who]:
                    del running[who]

    def _renewed(self) -> SigningKeys | None:
        """The keys, read anew unless that was done a moment ago."""
        with self._lock:
            now = self._clock()
            due = self._renew is not None and now - self._renewed_at >= RENEW_S
            if due:
                self._renewed_at = now
        if due and self._renew is not None:
            try:
                self._keys = self._renew()
            except ClusterUnavailableError as error:
                log.warning("the keys of tokens are not read anew, going on with those there are: %s", error)
        return self._keys


def _host(peer: str) -> str:
    """The address in gRPC's name of a peer, without the port: `ipv4:10.0.0.1:4711`, `ipv6:[::1]:4711`."""
    return peer.rpartition(":")[0]
