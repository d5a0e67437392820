"""Gives the memory of the memory tiers back while others need it: a thread that looks ten times a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raycache.metrics import YIELDED_BYTES, Metrics
from raycache.store.local_store import LocalStore
from raycache.store.pressure import Governor, Sample, split

_log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Seconds between two looks; Ray's own monitor looks every 0.25 s."""

AGAIN_S = 60.0
"""Seconds without pressure after which the next one is told of anew."""

_JOIN_S = 60.0


@dataclass
class Pressure:
    """What pressure has done to one store.

    Args:
        episodes: times that memory had to be given back, since the start.
        since: when the last of them began, seconds since the epoch; 0: never.
        freed: bytes that were dropped for it at once, since the start. What was moved to a lower tier is not counted.
    """

    episodes: int = 0
    since: float = 0.0
    freed: int = 0


@dataclass
class _Guarded:
    store: LocalStore
    auto: Mapping[str, bool]
    pressure: Pressure = field(default_factory=Pressure)
    last: float = 0.0


class MemoryGuard:
    """Limits the memory tiers of the stores of this process. Thread-safe.

    Args:
        read: takes a sample.
        metrics: counts what was given back.
        clock: seconds since the epoch.
        enabled: whether it looks by itself at all.
    """

    def __init__(
        self,
        read: Callable[[], Sample],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        *,
        enabled: bool = True,
    ) -> None:
        self._read, self._metrics, self._clock = read, metrics, clock
        self._governor = Governor()
        self._lock = threading.Lock()
        self._stores: dict[str, _Guarded] = {}
        self._end = threading.Event()
        self._enabled = enabled
        self._thread: threading.Thread | None = None

    def attach(self, name: str, store: LocalStore, auto: Mapping[str, bool]) -> None:
        """Look after a store, too.

        Args:
            name: of the dataset.
            store: its store.
            auto: the paths of its tiers that are memory, and whether their quota is `auto`.
        """
        with self._lock:
            known = self._stores.get(name)
            if known is not None and known.store is store:
                known.auto = dict(auto)
            elif auto:
                self._stores[name] = _Guarded(store, dict(auto))
            if self._stores and self._enabled and self._thread is None and not self._end.is_set():
                self._thread = threading.Thread(target=self._run, name="raycache-memory", daemon=True)
                self._thread.start()

    def detach(self, name: str) -> None:
        """Leave a store alone from now on; to be called before it is closed."""
        with self._lock:
            self._stores.pop(name, None)

    def report(self) -> dict[str, Pressure]:
        """What happened to each store, by dataset."""
        return {name: guarded.pressure for name, guarded in list(self._stores.items())}

    def look(self) -> None:
        """Take a sample and do what follows from it."""
        with self._lock:
            tiers = {
                f"{name}:{usage.path}": (guarded, usage)
                for name, guarded in self._stores.items()
                for usage in guarded.store.usage()
                if usage.path in guarded.auto
            }
            if not tiers:
                return
            sample = self._read()
            firm = {k: u.quota + u.yielded for k, (g, u) in tiers.items() if not g.auto[u.path]}
            auto = {k: u.quota + u.yielded for k, (g, u) in tiers.items() if g.auto[u.path]}
            own = sum(usage.used for _, usage in tiers.values())
            decision = self._governor.decide(sample, own, sum(firm.values()) + sum(auto.values()))
            limits = split(decision.limit, firm, auto)
            for key, (guarded, usage) in tiers.items():
                if decision.pressed and usage.used > limits[key]:
                    self._note(guarded)
                if limits[key] != usage.quota or (decision.pressed and usage.used > limits[key]):
                    freed = guarded.store.limit(usage.path, limits[key], at_once=decision.hurry)
                    guarded.pressure.freed += freed
                    self._metrics.add(YIELDED_BYTES, freed)

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _note(self, guarded: _Guarded) -> None:
        """Once an episode."""
        now = self._clock()
        if now - guarded.last > AGAIN_S:
            guarded.pressure.episodes += 1
            guarded.pressure.since = now
            _log.warning("%s: memory is needed elsewhere; the tier shrinks", ", ".join(guarded.auto))
        guarded.last = now

    def _run(self) -> None:
        blind = False
        while not self._end.wait(LOOK_S):
            try:
                self.look()
                blind = False
            except (OSError, KeyError, ValueError) as error:
                # Once, not ten times a second; it may pass (no descriptor is left at the moment).
                if not blind:
                    _log.warning("memory tiers do not yield to other processes for now: %s", error)
                blind = True
