"""The cluster's state for a client outside the Ray cluster: asked of the workers, over Flight."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from raycache.actors import cluster_state
from raycache.client import ClusterState
from raycache.errors import ClusterUnavailableError, RaycacheError, WorkerUnavailableError
from raycache.flight import PeerPool
from raycache.settings import Settings

ATTEMPTS = 3
"""Workers that are asked for a newer state before the client goes on with the one it has."""

STATE_TIMEOUT_S = 10.0
"""Longest wait for a worker to say what the cluster looks like."""


def seeds(text: str) -> list[str]:
    """The addresses in a comma-separated list of them, as `RAYCACHE_ADDRESS` is."""
    return [part.strip() for part in text.split(",") if part.strip()]


class StateOverFlight:
    """Asks workers for the cluster's state: those it knows, then those that others name.

    Args:
        seeds: addresses to begin with; asked each time, for all workers that were known may have been replaced.
        token: of the workers.
    """

    def __init__(self, seeds: Callable[[], Sequence[str]], token: str) -> None:
        self._seeds = seeds
        self._known: list[str] = []
        self._token = token
        self._pool = PeerPool(token, tls=Settings.from_environ().tls)

    def __call__(self, known_epoch: int) -> ClusterState | None:
        failure: RaycacheError | None = None
        seeds = self._seeds()
        candidates = list(dict.fromkeys([*self._known, *seeds]))
        if known_epoch >= 0:  # a reader waits: leave out those that did not answer lately, and try few
            candidates = [address for address in candidates if not self._pool.is_down(address)]
            candidates = random.sample(candidates, min(ATTEMPTS, len(candidates)))
        for address in candidates:
            try:
                answer = self._pool.get(address).call("state", {"known_epoch": known_epoch}, STATE_TIMEOUT_S)
            except WorkerUnavailableError as error:
                self._pool.mark_down(address)
                failure = error
                continue
            self._pool.mark_up(address)
            if "membership" not in answer:
                return None
            state = cluster_state.from_wire(answer, self._token)
            former, self._known = self._known, [worker.address for worker in state.membership.workers]
            self._pool.forget(set(former) - {*self._known, *seeds})
            return state
        raise ClusterUnavailableError(
            "no worker of the cluster answers",
            where=",".join(seeds),
            hint="is raycache running there, and the port reachable?",
        ) from failure

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
