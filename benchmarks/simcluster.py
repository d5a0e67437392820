"""A simulated cluster for `benchmarks.simulate`: raycache's own membership, placement, eviction, ghosts and
observations, without any bytes. The unit is a segment of 256 MiB; a read goes to the segment's owner.

What is not simulated: near copies, tiers, time (a job reads at its pace, whatever it hits), and the seconds that moving
takes. A change of the workers takes effect within the minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmarks.simload import MINUTES, Load
from raycache.autoscaling import Bounds
from raycache.blocks import SEGMENT_SIZE
from raycache.eviction import Sieve
from raycache.ghosts import Ghosts
from raycache.membership import Membership, Worker
from raycache.observations import Observation, WorkerReport, observe

ROOM = 160
"""Segments that a worker holds: 40 GiB, what a node has to spare."""
GETS = SEGMENT_SIZE // (8 << 20)
"""Requests for a segment."""
STORE_GETS_PER_MIN = 5500 * 60
"""What the store answers; the rest is refused and asked again (Amazon S3's figure for a partitioned prefix: at least
5,500 GET requests a second)."""
NAME = "day"


class Scaler(Protocol):
    """Decides how many workers there should be."""

    reports: bool
    """Whether it looks at more than how full the workers are; making all reports takes time."""

    def target(self, window: Sequence[Observation], current: int, bounds: Bounds, now: float) -> int:
        """The number from the next minute on; `now` in seconds."""
        ...


@dataclass
class Figures:
    """What a run found; per minute."""

    workers: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    throttled: list[bool] = field(default_factory=list)
    busiest: list[int] = field(default_factory=list)


class _Member:
    """A worker: its node, its place in the arrays, what it holds and what it counts."""

    def __init__(self, node: int, keep_s: float, since: int) -> None:
        self.node, self.name, self.since = node, f"worker-{node:04d}-{since}", since
        self.sieve = Sieve()
        self.ghosts = Ghosts(ROOM, ROOM, keep_s)
        self.served = self.fetched = self.throttled = 0
        self.told = (0, 0)

    def report(self, minute: int, warm: int) -> WorkerReport:
        return WorkerReport(
            age_s=60.0 * (minute - self.since),
            quota=ROOM * SEGMENT_SIZE,
            used=len(self.sieve) * SEGMENT_SIZE,
            warm=warm * SEGMENT_SIZE,
            store=self.fetched * SEGMENT_SIZE,
            served=self.served * SEGMENT_SIZE,
            regretted=tuple(n * SEGMENT_SIZE for n in self.ghosts.regretted),
            gets=self.fetched * GETS + self.throttled,
            throttled=self.throttled,
        )


class Cluster:
    """A day of a load with a scaler.

    Args:
        load: the day.
        scaler: decides.
        start: workers at midnight.
        bounds: least and greatest number; the nodes that are there are a bound, too.
        keep_s: seconds for which data that was read counts as warm.
    """

    def __init__(
        self, load: Load, scaler: Scaler, start: int, bounds: tuple[int, int], keep_s: float
    ) -> None:
        self._load, self._scaler, self._bounds, self._keep_s = load, scaler, bounds, keep_s
        self._owner = [-1] * load.segments  # node of who has it; a list is faster than an array, one by one
        self._owners = np.full(load.segments, -1, dtype=np.int32)  # the same, for what is done to all at once
        self._read_at = np.full(load.segments, -np.inf)
        self._members: dict[int, _Member] = {}  # by node
        self._membership = Membership()
        self._home = np.full(load.segments, -1, dtype=np.int64)  # node of whose it is
        self._wanted = start
        self.figures = Figures()

    def run(self) -> Figures:
        """All minutes."""
        window: list[Observation] = []
        before: dict[str, WorkerReport] = {}
        last_read = 0
        for minute in range(MINUTES):
            moved, lost = self._staff(minute)
            reads = self._load.minute(minute)
            fetched = self._read(reads, minute)
            last_read = minute + 1 if len(reads) else last_read
            refused, busiest = self._count(fetched)
            now, idle_s = 60.0 * (minute + 1), 60.0 * (minute + 1 - last_read)
            if self._scaler.reports:
                after = self._reports(minute + 1)
                seen = observe(before, after, now=now, seconds=60.0, idle_s=idle_s)
                before = after
            else:
                used = sum(len(member.sieve) for member in self._members.values()) * SEGMENT_SIZE
                quota = len(self._members) * ROOM * SEGMENT_SIZE
                seen = Observation(now, 60.0, idle_s, len(self._members), quota, used)
            window = [*window[-30:], seen]
            least, most = self._bounds
            bounds = Bounds(least, most, int(self._load.present[minute].sum()))
            figures = self.figures
            figures.workers.append(len(self._members))
            figures.reads.append(len(reads))
            figures.fetched.append(fetched)
            figures.moved.append(moved)
            figures.lost.append(lost)
            figures.throttled.append(refused)
            figures.busiest.append(busiest * SEGMENT_SIZE)
            self._wanted = self._scaler.target(window, self._wanted, bounds, now)
        return self.figures

    # -- reading ----------------------------------------------------------------------------------------------

    def _read(self, reads: np.ndarray, minute: int) -> int:
        """Read segments in order; how many came from the store."""
        owner, owners, members, now = self._owner, self._owners, self._members, 60.0 * minute
        fetched = 0
        homes = self._home[reads].tolist()
        for segment, home in zip(reads.tolist(), homes, strict=True):
            node = owner[segment]
            if node >= 0:
                member = members[node]
                member.served += 1
                member.sieve.access(segment)
                continue
            fetched += 1
            if home < 0:  # there are no workers
                continue
            member = members[home]
            member.served += 1
            member.fetched += 1
            member.ghosts.fetched(str(segment), 1, now)
            if len(member.sieve) >= ROOM:
                self._evict(member)
            member.sieve.add(segment)
            owner[segment] = owners[segment] = home
        self._read_at[reads] = now
        return fetched

    def _evict(self, member: _Member) -> None:
        victim = next(member.sieve.victims())
        assert isinstance(victim, int)
        member.sieve.remove(victim)
        member.ghosts.evicted(str(victim), 1, float(self._read_at[victim]))
        self._owner[victim] = self._owners[victim] = -1

    def _count(self, fetched: int) -> tuple[bool, int]:
        """Whether the store refused requests, which are counted at those who fetched; and the segments that the
        busiest worker served."""
        share = max(0.0, 1 - STORE_GETS_PER_MIN / max(1, fetched * GETS))
        busiest = 0
        for member in self._members.values():
            last_served, last_fetched = member.told
            member.throttled += int((member.fetched - last_fetched) * GETS * share)
            busiest = max(busiest, member.served - last_served)
            member.told = member.served, member.fetched
        return share > 0, busiest

    def _reports(self, minute: int) -> dict[str, WorkerReport]:
        warm_nodes = self._owners[(self._read_at > 60.0 * minute - self._keep_s) & (self._owners >= 0)]
        warm = np.bincount(warm_nodes, minlength=self._load.present.shape[1])
        return {member.name: member.report(minute, int(warm[node])) for node, member in self._members.items()}

    # -- membership -------------------------------------------------------------------------------------------

    def _staff(self, minute: int) -> tuple[int, int]:
        """Make the workers be as many as wanted, on nodes that are there; segments moved, and lost with a node."""
        present = self._load.present[minute]
        lost = 0
        for node in self._load.died.get(minute, []):
            if node in self._members:
                lost += self._lose(node)
        holding = [node for node in self._members if present[node]]  # the oldest first: they stay
        free = [node for node in np.flatnonzero(present).tolist() if node not in self._members]
        # In an order that is the same every time, so that who leaves comes back to its place.
        free.sort(key=lambda node: node * 7919 % 1009)
        chosen = [*holding, *free][: min(self._wanted, int(present.sum()))]
        joined, left = set(chosen) - set(self._members), set(self._members) - set(chosen)
        if not joined and not left and not lost:
            return 0, 0
        for node in sorted(joined):
            self._members[node] = _Member(node, self._keep_s, minute)
        return self._rebalance(joined, left, minute), lost

    def _rebalance(self, joined: set[int], left: set[int], minute: int) -> int:
        membership = self._membership
        current = {self._members[node].name for node in self._members if node not in left}
        for worker in membership.workers:
            if worker.id not in current:
                membership = membership.without_worker(worker.id)
        for node in sorted(joined):
            membership = membership.with_worker(
                Worker(self._members[node].name, f"{node}:1", weights={NAME: ROOM * SEGMENT_SIZE})
            )
        self._membership = membership.rebalanced() if membership.workers else membership
        placement = self._membership.placement(NAME) if membership.workers else None
        if placement is None:
            self._home[:] = -1
        else:
            nodes = np.array([int(name.split("-")[1]) for name in placement.workers])
            self._home = nodes[placement.table][self._load.partitions]
        moved = self._move(minute)
        for node in left:
            self._lose(node)
        for member in self._members.values():
            member.ghosts.resize(ROOM, ROOM * len(self._members))
        return moved

    def _move(self, minute: int) -> int:
        """Bring what has another owner now there, the warmest last; what is cold only if there is room."""
        movers = np.flatnonzero((self._owners >= 0) & (self._owners != self._home) & (self._home >= 0))
        movers = movers[np.argsort(self._read_at[movers], kind="stable")]
        warm = (self._read_at[movers] > 60.0 * minute - self._keep_s).tolist()
        moved = 0
        for segment, home, is_warm in zip(movers.tolist(), self._home[movers].tolist(), warm, strict=True):
            self._members[self._owner[segment]].sieve.remove(segment)
            member = self._members[home]
            if len(member.sieve) >= ROOM:
                if not is_warm:
                    self._owner[segment] = self._owners[segment] = -1
                    continue
                self._evict(member)
            member.sieve.add(segment)
            self._owner[segment] = self._owners[segment] = home
            moved += 1
        return moved

    def _lose(self, node: int) -> int:
        """A worker is gone with what it still holds; how much that is."""
        held = np.flatnonzero(self._owners == node)
        self._owners[held] = -1
        for segment in held.tolist():
            self._owner[segment] = -1
        del self._members[node]
        return len(held)
