"""What the loads under way want to stay: blocks that are not evicted before the load has ended and counted them.

A load that is larger than the cache would else push out with its last objects what it brought in with its first.
So it asks for room before it fetches, object by object; what does not fit beside the rest is refused, and what was
let in stays. Everything else in the store makes room for it as for any other write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raycache.blocks import ObjectVersion
from raycache.store import files
from raycache.store.tiers import Tier

LAPSE_S = 900.0
"""Seconds after which a load that has asked for nothing more counts as dead: three times what one of its requests
may take."""


@dataclass(slots=True)
class _Kept:
    version: ObjectVersion
    cost: int = 0
    runs: dict[str, list[range]] = field(default_factory=dict)
    """By load; usually one run, of one segment."""

    def blocks(self) -> list[range]:
        """All runs, joined where they meet, in order."""
        joined: list[range] = []
        for run in sorted((run for runs in self.runs.values() for run in runs), key=lambda run: run.start):
            if joined and run.start <= joined[-1].stop:
                run = range(joined[-1].start, max(joined.pop().stop, run.stop))
            joined.append(run)
        return joined


class Keeping:
    """The blocks that loads keep in one store. Thread-safe.

    Args:
        tiers: the store's, fastest first.
        clock: monotonic seconds.
    """

    def __init__(self, tiers: Sequence[Tier], clock: Callable[[], float] = time.monotonic) -> None:
        self._tiers = tiers
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._heard: dict[str, float] = {}
        self._total = 0
        self._largest = 0  # of what has been kept since there was nothing

    def add(self, load: str, version: ObjectVersion, blocks: range) -> bool:
        """Keep blocks for a load, if there is room for them beside all that is kept already.

        Args:
            load: identifies the load.
            version: the object.
            blocks: those that it is going to fetch.

        Returns:
            False if there is no room, and nothing has changed then. Blocks that are kept already are no more cost.
        """
        with self._lock:
            self._lapse()
            kept = self._kept.get(version.object_id) or _Kept(version)
            former = list(kept.runs.get(load, ()))
            if blocks not in former:
                kept.runs[load] = [*former, blocks]
            cost = self._cost(kept)
            if not self._fits(cost, self._total - kept.cost):
                if former:
                    kept.runs[load] = former
                else:
                    kept.runs.pop(load, None)
                return False
            self._total += cost - kept.cost
            kept.cost = cost
            self._largest = max(self._largest, cost)
            self._kept[version.object_id] = kept
            self._heard[load] = self._clock()
            return True

    def of(self, object_id: str) -> list[range]:
        """The blocks of an object that are kept; none for most objects."""
        if not self._kept:  # as nearly always: without the lock
            return []
        with self._lock:
            self._lapse()
            kept = self._kept.get(object_id)
            return [] if kept is None else kept.blocks()

    def release(self, load: str) -> None:
        """A load has ended: what it kept is like everything else from now on."""
        with self._lock:
            self._release(load)

    def _release(self, load: str) -> None:
        self._heard.pop(load, None)
        for object_id, kept in list(self._kept.items()):
            if kept.runs.pop(load, None) is not None:
                self._total -= kept.cost
                kept.cost = self._cost(kept) if kept.runs else 0
                self._total += kept.cost
                if not kept.runs:
                    del self._kept[object_id]
        if not self._kept:
            self._largest = 0

    def _lapse(self) -> None:
        now = self._clock()
        for load in [load for load, heard in self._heard.items() if now - heard > LAPSE_S]:
            self._release(load)

    def _fits(self, cost: int, others: int) -> bool:
        """Whether an object fits beside `others` bytes.

        The last tier holds what is below its high watermark; from those above it, a crossing of the high one sends
        things down until the low one is reached. A file lies in one tier, so each tier but one may have to leave
        as much as nearly the largest file free.
        """
        room = sum(tier.low for tier in self._tiers[:-1]) + self._tiers[-1].high
        largest = max(cost, self._largest)
        return (
            cost <= max(tier.high for tier in self._tiers)
            and others + cost <= room - (len(self._tiers) - 1) * largest
        )

    def _cost(self, kept: _Kept) -> int:
        """Bytes that the kept blocks take, index included, in the tier where that is most."""
        version, runs = kept.version, kept.blocks()
        if runs == [range(version.block_count)]:
            return max(tier.cost(version) for tier in self._tiers)
        data = sum(version.extent_of(run).length for run in runs if run)
        return max(
            tier.index_cost(version) + files.round_up(data, max(tier.page, tier.granule))
            for tier in self._tiers
        )
