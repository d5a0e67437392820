"""One node's place in the cache, as the reconciler sees it: the worker's actor and what it last said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from raycache.actors.answers import unwrap
from raycache.actors.assignment import Node
from raycache.actors.worker import start_worker
from raycache.errors import RaycacheError, WorkerUnavailableError
from raycache.membership import Worker
from raycache.spec import ResolvedDataset

log = logging.getLogger(__name__)

SILENCE_S = 10.0
"""Seconds without an answer after which a worker counts as gone: it is frozen, or cut off. One that died is known to
be gone at once, and readers go round one that does not answer by themselves; so there is no haste, and a busy machine
must not lose workers, whose share would then be fetched again."""

START_S = 60.0
"""Seconds that a new worker may take for its first answer: on a busy node, Python and Ray start slowly."""

RECREATE_S = 2.0
"""Seconds between attempts to start a worker that cannot start."""

RETRY_S = 10.0
"""Seconds after which a dataset that a worker could not attach is tried there again."""


@dataclass
class Seat:
    """See above.

    Args:
        node: the node.
        since: when it was found, monotonic seconds.
        actor: handle of its worker; None while it cannot be started.
        report: what the worker last said (`NodeWorker.ping`); None while it does not answer.
        silent_since: since when it does not answer; None while it does.
        decided: whether it has answered, or failed to, at least once.
        trouble: why there is no worker, for a person to read.
        synced: the datasets it was last told to hold.
        traffic: what it last told the autoscaler, by dataset; that is not part of every answer.
    """

    node: Node
    since: float
    actor: Any = None
    report: dict[str, Any] | None = None
    silent_since: float | None = None
    decided: bool = False
    trouble: str = ""
    synced: dict[str, ResolvedDataset] = field(default_factory=dict)
    traffic: dict[str, Any] = field(default_factory=dict)
    _traffic_asked: float = float("-inf")
    _answered: bool = False
    _ping: Any = None
    _pinged: float = 0.0
    _sync: Any = None
    _synced_at: float = float("-inf")
    _started_at: float = float("-inf")

    @property
    def worker(self) -> Worker | None:
        """The worker as a member; None while it does not answer."""
        return None if self.report is None else Worker.from_wire(self.report["worker"])

    @property
    def host_id(self) -> str:
        """Machine of the worker; the node's own id while that is unknown."""
        return self.report["worker"]["host_id"] if self.report else self.node.id

    @property
    def generations(self) -> dict[str, int]:
        """Generation of each dataset that the worker holds."""
        return dict(self.report["generations"]) if self.report else {}

    @property
    def takes(self) -> set[str]:
        """Datasets that the worker holds, or was last told to: it may be restarting."""
        return self.generations.keys() | self.synced.keys()

    @property
    def failures(self) -> dict[str, dict[str, Any]]:
        """Datasets that it was told to hold and could not: generation and error."""
        return dict(self.report["failures"]) if self.report else {}

    @property
    def syncing(self) -> bool:
        """Whether it is busy with what it was last told."""
        return self._sync is not None

    @property
    def pending(self) -> list[Any]:
        """References of the answers that are awaited."""
        return [ref for ref in (self._ping, self._sync) if ref is not None]

    def away_s(self, now: float) -> float:
        """Seconds since the worker answered, or since the node was found; of one that does not answer."""
        return now - (self.since if self.silent_since is None else self.silent_since)

    def ask(self, epoch: int, now: float, traffic_s: float) -> None:
        """Start the worker if there is none, and ask how it is, unless an answer is still awaited.

        Args:
            epoch: of the membership.
            now: monotonic seconds.
            traffic_s: seconds after which it is to tell the autoscaler again.
        """
        if self.actor is None:
            if now - self._started_at < RECREATE_S:
                return
            self._started_at = now
            self.actor = start_worker(self.node.id)
        if self._ping is None:
            traffic = now - self._traffic_asked >= traffic_s
            if traffic:
                self._traffic_asked = now
            self._ping, self._pinged = self.actor.ping.remote(epoch, traffic), now

    def hear(self, ready: set[Any], now: float) -> None:
        """Take the answers among `ready`."""
        if self._ping in ready:
            ref, self._ping = self._ping, None
            self._take(ref, now)
        elif self._ping is not None and now - self._pinged > SILENCE_S:
            self._silent(now)
        if self._sync in ready:
            ref, self._sync = self._sync, None
            self._take(ref, now)

    def behind(self, wanted: Mapping[str, ResolvedDataset], now: float) -> bool:
        """Whether the worker must be told to hold other datasets than it does."""
        generations = {name: dataset.generation for name, dataset in wanted.items()}
        failed = {name: failure["generation"] for name, failure in self.failures.items()}
        if {**failed, **self.generations} != generations:
            return True
        return bool(failed) and now - self._synced_at > RETRY_S

    def tell(self, wanted: Mapping[str, ResolvedDataset], now: float) -> None:
        """Tell the worker which datasets to hold."""
        self.synced = dict(wanted)
        self._synced_at = now
        self._sync = self.actor.sync.remote({name: dataset.wire() for name, dataset in wanted.items()})

    def dismiss(self) -> None:
        """End the worker for good."""
        actor, self.actor = self.actor, None
        if actor is not None:
            try:
                ray.kill(actor, no_restart=True)
            except (RayError, ValueError) as error:
                log.info("worker of node %s not killed: %s", self.node.id, error)

    def retire(self) -> None:
        """End the worker, which holds nothing, until `ask` starts another."""
        self.dismiss()
        self._ping = self._sync = None
        self.report, self.traffic, self.synced, self.trouble, self.decided = None, {}, {}, "", True

    def _take(self, ref: Any, now: float) -> None:
        try:
            self.report = unwrap(ray.get(ref))
            self.traffic = self.report.get("traffic", self.traffic)
        except ActorDiedError as error:
            # Ray will not restart it: it could not start at all.
            self._lost(why_died(str(error)), now)
            self.dismiss()
        except (RayError, RaycacheError) as error:
            self._lost(first_line(str(error)), now)
        else:
            self.silent_since = None
            self.trouble = ""
            self.decided = self._answered = True

    def _silent(self, now: float) -> None:
        if self._answered or now - self._started_at > START_S:
            self._lost("it does not answer", self._pinged)
        elif self.silent_since is None:  # it is still starting, as far as one knows
            self.decided = True
            self.silent_since = self._pinged

    def _lost(self, trouble: str, since: float) -> None:
        self.report = None
        self.decided = True
        if self.silent_since is None:
            self.silent_since = since
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning("worker of node %s: %s", self.node.id, trouble)


def ask_all(seats: Sequence[Seat], call: Callable[[Seat], Any], timeout_s: float) -> dict[str, Any]:
    """What workers answer, by node id; errors of ours are values, and so is that one does not answer in time.

    Args:
        seats: whose; those without an actor are left out.
        call: starts the call on a seat's actor; returns Ray's reference.
        timeout_s: longest wait for all of them together.
    """
    refs = {call(seat): seat for seat in seats if seat.actor is not None}
    if not refs:
        return {}
    ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s)
    answers: dict[str, Any] = {}
    for ref in ready:
        try:
            answers[refs[ref].node.id] = unwrap(ray.get(ref))
        except RaycacheError as error:
            answers[refs[ref].node.id] = error
        except RayError as error:
            log.info("worker of node %s: %s", refs[ref].node.id, error)
    for ref in late:
        node_id = refs[ref].node.id
        answers[node_id] = WorkerUnavailableError("the worker does not answer", where=node_id)
    return answers


def why_died(text: str) -> str:
    """What a person should hear of an actor that could not start."""
    if "No module named 'raycache'" in text or "failed to import" in text:
        return "the package raycache is not installed there; install it on every node, with the same version"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"the worker could not start: {lines[-1][:300] if lines else 'no reason given'}"


def first_line(text: str) -> str:
    """The first line of a longer message."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "unknown error")
