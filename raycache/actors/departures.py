"""Which workers are leaving what, until when, and how far they are.

A worker leaves a dataset because its node is drained (`raycache drain`, or Ray drains it), or because the dataset has
fewer replicas than holders. It then owns nothing of it any more, moves what only it has to those that do, and is told
to drop the dataset when that has ended or the time is up. All of it is in the cluster's store, so a coordinator that is
killed goes on with it. No Ray here: the reconciler tells what workers report, and does what is due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycache.actors import kv as keys
from raycache.actors.events import Events
from raycache.actors.kv import Kv, get_json, put_json
from raycache.spec import humanize_size

LEAVE_S = 600.0
"""Seconds that a worker has to move what it holds, where nobody gives a time: 700 GiB at 10 Gbit/s."""

GRACE_S = 5.0
"""Seconds after the time is up until a worker that has not said that it has ended is not waited for any more."""

Part = tuple[str, str]
"""A dataset and a node that leaves it."""


@dataclass
class Drain:
    """A node that is being emptied, or has been.

    Args:
        deadline: seconds since the epoch.
        ended: whether its worker holds nothing any more.
        datasets: how it went with each (`engine.leaving.Progress.to_wire`).
    """

    deadline: float
    ended: bool = False
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Plain data."""
        return {"deadline": self.deadline, "ended": self.ended, "datasets": dict(self.datasets)}


class Departures:
    """See above. Thread-safe.

    Args:
        kv: the cluster's key-value store.
        events: gets what begins and ends.
        clock: seconds since the epoch: a deadline outlives this process.
    """

    def __init__(self, kv: Kv, events: Events, clock: Callable[[], float] = time.time) -> None:
        self._kv = kv
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        stored = get_json(kv, keys.LEAVING) or {"drains": {}, "parts": []}
        self._drains = {node: Drain(**drain) for node, drain in stored["drains"].items()}
        self._of_ray: dict[str, Drain] = {}
        self._parts: dict[Part, float] = {(name, node): until for name, node, until in stored["parts"]}
        self._over: set[Part] = set()

    # -- orders -------------------------------------------------------------------------------------------

    def drain(self, node: str, timeout_s: float) -> None:
        """Have a node emptied within so many seconds. Again: with a new deadline."""
        with self._lock:
            self._drains[node] = Drain(self._clock() + timeout_s)
            for part in [part for part in self._parts if part[1] == node]:
                self._parts[part] = self._drains[node].deadline
            self._save()

    def undrain(self, node: str) -> bool:
        """Let a node hold datasets again; False if it was not drained by `drain`."""
        with self._lock:
            known = self._drains.pop(node, None) is not None
            self._save()
            return known

    def ray_drains(self, deadlines_ms: Mapping[str, int]) -> None:
        """The nodes that Ray is draining now, with its deadlines: milliseconds since the epoch, 0 for none."""
        with self._lock:
            for node in [node for node in self._of_ray if node not in deadlines_ms]:
                del self._of_ray[node]
            for node, deadline_ms in deadlines_ms.items():
                known = self._of_ray.setdefault(node, Drain(self._clock() + LEAVE_S))
                if deadline_ms:
                    known.deadline = deadline_ms / 1000

    # -- questions ----------------------------------------------------------------------------------------

    @property
    def drains(self) -> dict[str, Drain]:
        """The nodes that are drained, by whoever."""
        with self._lock:
            return {**self._of_ray, **self._drains}

    @property
    def parts(self) -> dict[Part, float]:
        """What is being left, until when."""
        with self._lock:
            return dict(self._parts)

    # -- for the reconciler -------------------------------------------------------------------------------

    def holds_on(self, dataset: str, node: str) -> bool:
        """Whether a node that should not hold a dataset any more still has to: its worker is moving it away. The first
        time this is asked, that begins."""
        part = dataset, node
        with self._lock:
            if part not in self._parts and part not in self._over:
                drain = self._drains.get(node) or self._of_ray.get(node)
                deadline = self._clock() + LEAVE_S if drain is None else drain.deadline
                self._parts[part] = deadline
                self._save()
                self._events.add(
                    "Dataset",
                    dataset,
                    "Leaving",
                    f"node {node[:12]}: what only it has is moved to the others",
                )
            return part not in self._over

    def remaining(self, part: Part) -> float:
        """Seconds that are left for something that is being left; not below 0."""
        with self._lock:
            return max(0.0, self._parts.get(part, 0.0) - self._clock())

    def heard(self, part: Part, progress: Mapping[str, Any] | None) -> None:
        """Take what a worker reports of a dataset that it leaves; None: it has not begun."""
        dataset, node = part
        with self._lock:
            if part not in self._parts:
                return
            drain = self._drains.get(node) or self._of_ray.get(node)
            if progress is not None and drain is not None:
                drain.datasets[dataset] = dict(progress)
            late = self._clock() > self._parts[part] + GRACE_S
            if not late and (progress is None or not progress["ended"]):
                return
            if part not in self._over:
                self._over.add(part)
                self._save()
                self._tell(part, progress)

    def left(self, part: Part) -> None:
        """A worker does not hold a dataset any more, or is gone."""
        with self._lock:
            self._over.discard(part)
            if self._parts.pop(part, None) is not None:
                self._save()

    def stays(self, part: Part) -> bool:
        """A node is to hold a dataset after all; whether it was leaving it."""
        with self._lock:
            self._over.discard(part)
            known = self._parts.pop(part, None) is not None
            if known:
                self._save()
            return known

    def emptied(self, node: str) -> None:
        """The worker of a drained node holds nothing any more."""
        with self._lock:
            drain = self._drains.get(node) or self._of_ray.get(node)
            if drain is not None and not drain.ended:
                drain.ended = True
                self._save()

    def retain(self, nodes: Collection[str]) -> None:
        """These are the nodes that are alive; of others nothing is to be drained."""
        with self._lock:
            gone = [node for node in self._drains if node not in nodes]
            lost = [part for part in self._parts if part[1] not in nodes]
            for node in gone:
                del self._drains[node]
            for part in lost:
                del self._parts[part]
                self._over.discard(part)
            if gone or lost:
                self._save()

    def _tell(self, part: Part, progress: Mapping[str, Any] | None) -> None:
        dataset, node = part
        if progress is None:
            message = (
                f"node {node[:12]}: its worker did not begin to move what it holds before the time was up"
            )
            self._events.add("Dataset", dataset, "LeftBehind", message, type="Warning")
            return
        behind = {reason: size for reason, size in progress["bytes_left"].items() if size}
        message = f"node {node[:12]}: {humanize_size(progress['bytes_moved'])} moved"
        for reason, size in behind.items():
            message += f", {humanize_size(size)} left behind ({reason})"
        if behind:
            self._events.add("Dataset", dataset, "LeftBehind", message, type="Warning")
        else:
            self._events.add("Dataset", dataset, "Left", message)

    def _save(self) -> None:
        put_json(
            self._kv,
            keys.LEAVING,
            {
                "drains": {node: drain.to_wire() for node, drain in self._drains.items()},
                "parts": [[dataset, node, until] for (dataset, node), until in self._parts.items()],
            },
        )
