"""How many nodes hold each dataset whose `replicas` are bounds: what workers report, put to `autoscaling.decide`.

What was decided is in the cluster's store, so a coordinator that is killed goes on with it; what was observed is not,
so it looks for a while before it decides again. No Ray here: the reconciler tells what workers report, and does what
is decided.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycache.actors import kv as keys
from raycache.actors.events import Events
from raycache.actors.kv import Kv, get_json, put_json
from raycache.actors.tuning import Tuning
from raycache.autoscaling import Bounds, Decision, State, decide
from raycache.observations import Observation, WorkerReport, observe
from raycache.spec import ReplicaRange, ResolvedDataset

ASK_S = 900.0
"""Seconds for which nodes that Ray was asked for are waited for; then as many workers as there are nodes have to do,
and it is asked again when they turn out not to."""


@dataclass(frozen=True)
class Heard:
    """What a worker has told.

    Args:
        traffic: its reports, by dataset (`engine.traffic.Traffic.report`), at most some seconds old.
        unheld: datasets that it does not hold and was told somebody reads, with the seconds since.
    """

    traffic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unheld: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Scaled:
    """A dataset that is scaled. Times are seconds since the epoch."""

    target: int
    state: State
    read_at: float
    change: dict[str, Any] | None = None
    decision: Decision | None = None
    bounds: Bounds | None = None
    looked_at: float = -math.inf
    short_since: float | None = None
    """Since when more nodes are wanted than there are."""
    before: dict[str, WorkerReport] = field(default_factory=dict)
    window: deque[Observation] = field(default_factory=deque)

    def to_wire(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "state": self.state.to_wire(),
            "read_at": self.read_at,
            "change": self.change,
        }


class Scaling:
    """See above. Thread-safe.

    Args:
        kv: the cluster's key-value store.
        events: gets every change, with its reason.
        tuning: what to go by.
        clock: seconds since the epoch: what is decided outlives this process.
    """

    def __init__(
        self, kv: Kv, events: Events, tuning: Tuning, clock: Callable[[], float] = time.time
    ) -> None:
        self._kv = kv
        self._events = events
        self._policy = tuning.policy
        self._every_s = tuning.report_s
        self._clock = clock
        self._lock = threading.Lock()
        self._scaled = {
            name: _Scaled(
                int(wire["target"]), State.from_wire(wire["state"]), wire["read_at"], wire["change"]
            )
            for name, wire in (get_json(kv, keys.SCALING) or {}).items()
        }

    # -- for the reconciler -------------------------------------------------------------------------------

    def look(
        self,
        datasets: Mapping[str, ResolvedDataset],
        nodes: Mapping[str, int],
        heard: Mapping[str, Heard],
    ) -> None:
        """Decide what is due.

        Args:
            datasets: all there are, by name.
            nodes: on how many nodes each of them could be held now.
            heard: what the workers that answer have told, by node id.
        """
        now = self._clock()
        with self._lock:
            scaled = {name: dataset for name, dataset in datasets.items() if dataset.autoscaled}
            changed = False
            for name in self._scaled.keys() - scaled.keys():
                del self._scaled[name]
                changed = True
            for name, dataset in scaled.items():
                changed |= self._look_at(dataset, nodes.get(name, 0), heard, now)
            if changed:
                self._save()

    def holders(self, dataset: str) -> int | None:
        """How many nodes should hold a dataset; None: as its spec says."""
        with self._lock:
            scaled = self._scaled.get(dataset)
            return None if scaled is None else scaled.target

    def short(self) -> dict[str, int]:
        """Datasets for which there are too few nodes, and Ray may be asked for more: how many it should be."""
        with self._lock:
            return {n: s.target for n, s in self._scaled.items() if s.short_since is not None}

    # -- for the coordinator ------------------------------------------------------------------------------

    def wake(self, dataset: str) -> bool:
        """Somebody is about to read, or to load. Returns whether nobody is to hold the dataset until that is taken
        notice of, at the next look."""
        with self._lock:
            scaled = self._scaled.get(dataset)
            if scaled is None:
                return False
            scaled.read_at = self._clock()
            return scaled.target == 0

    def described(self, dataset: str) -> dict[str, Any] | None:
        """What `describe` tells: the number, its bounds, what was decided last and why, and the last change; None for a
        dataset that is not scaled."""
        with self._lock:
            scaled = self._scaled.get(dataset)
            if scaled is None:
                return None
            found: dict[str, Any] = {"target": scaled.target}
            if scaled.bounds is not None:
                found |= {"min": scaled.bounds.min, "max": scaled.bounds.max, "nodes": scaled.bounds.nodes}
            if scaled.decision is not None:
                found |= {"cause": scaled.decision.cause, "reason": scaled.decision.reason}
                found["updated"] = scaled.decision.at
            found["last_read_at"] = scaled.read_at
            found["asks_for_nodes"] = scaled.short_since is not None
            found["last_change"] = scaled.change or {}
            return found

    # -- inside -------------------------------------------------------------------------------------------

    def _look_at(self, dataset: ResolvedDataset, nodes: int, heard: Mapping[str, Heard], now: float) -> bool:
        """Whether anything has changed that is to be kept."""
        least, _ = dataset.replica_bounds
        scaled = self._scaled.setdefault(dataset.name, _Scaled(least, State(), now))
        for one in heard.values():
            ages = [one.unheld.get(dataset.name, math.inf)]
            if dataset.name in one.traffic:
                ages.append(float(one.traffic[dataset.name]["idle_s"]))
            scaled.read_at = max(scaled.read_at, now - min(ages))
        bounds = scaled.bounds = self._bounds(dataset, nodes, scaled, now)
        woken = (scaled.target == 0 or scaled.state.asleep > 0) and now - scaled.read_at < self._policy.idle_s
        outside = not bounds.min <= scaled.target <= bounds.most
        due = now - scaled.looked_at >= self._every_s
        if due or woken:
            self._observe(dataset.name, scaled, heard, now)
        elif not outside:
            return False
        decision = decide(list(scaled.window), scaled.target, bounds, self._policy, scaled.state, now)
        changed = (decision.target, decision.state) != (scaled.target, scaled.state)
        scaled.decision, scaled.target, scaled.state = decision, decision.target, decision.state
        if decision.target != decision.current:
            scaled.change = {
                "time": now,
                "before": decision.current,
                "target": decision.target,
                "cause": decision.cause,
                "reason": decision.reason,
            }
            self._events.add(
                "Dataset",
                dataset.name,
                "Autoscaled",
                f"from {decision.current} to {decision.target} workers ({decision.cause}): {decision.reason}",
            )
        may_ask = isinstance(dataset.replicas, ReplicaRange) and dataset.replicas.ask_for_nodes
        if not may_ask or scaled.target <= nodes:
            scaled.short_since = None
        elif scaled.short_since is None:
            scaled.short_since = now
        return changed

    def _bounds(self, dataset: ResolvedDataset, nodes: int, scaled: _Scaled, now: float) -> Bounds:
        least, most = dataset.replica_bounds
        may_ask = isinstance(dataset.replicas, ReplicaRange) and dataset.replicas.ask_for_nodes
        in_vain = scaled.short_since is not None and now - scaled.short_since >= ASK_S
        return Bounds(least, most, nodes, may_ask and not in_vain)

    def _observe(self, name: str, scaled: _Scaled, heard: Mapping[str, Heard], now: float) -> None:
        after = {
            node: WorkerReport.from_wire(one.traffic[name])
            for node, one in heard.items()
            if name in one.traffic
        }
        seconds = self._every_s if scaled.looked_at == -math.inf else max(1e-3, now - scaled.looked_at)
        idle_s = max(0.0, now - scaled.read_at)
        scaled.window.append(observe(scaled.before, after, now=now, seconds=seconds, idle_s=idle_s))
        scaled.before, scaled.looked_at = after, now
        while scaled.window[0].at <= now - self._policy.calm_s - self._every_s and len(scaled.window) > 1:
            scaled.window.popleft()

    def _save(self) -> None:
        put_json(self._kv, keys.SCALING, {name: one.to_wire() for name, one in self._scaled.items()})
