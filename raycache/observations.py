"""What the workers of a dataset report, and what that makes together: the food of `autoscaling`.

Workers report counters; two rounds of reports make an observation. Pure: no clock, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from raycache.errors import RaycacheError
from raycache.ghosts import EXTRA


@dataclass(frozen=True)
class WorkerReport:
    """What one worker tells of one dataset.

    Args:
        age_s: seconds since its counters began at 0: a worker that restarted counts anew.
        quota: bytes it may use, all tiers.
        used: bytes it uses.
        warm: bytes of what it owns that were read in the last `autoscaling.Policy.keep_s`.
        read: counter, bytes that readers on its node have read (hit and missed).
        missed: counter, bytes among them that were not in the node's cache.
        store: counter, bytes it fetched from the object store.
        served: counter, bytes it sent to other nodes.
        regretted: counters, `ghosts.Ghosts.regretted`.
        gets: counter, requests it sent to the object store.
        throttled: counter, requests among them that the store refused for being too many (429, 503).
        streams: streams it is serving now.
    """

    age_s: float = 0.0
    quota: int = 0
    used: int = 0
    warm: int = 0
    read: int = 0
    missed: int = 0
    store: int = 0
    served: int = 0
    regretted: tuple[int, ...] = (0,) * len(EXTRA)
    gets: int = 0
    throttled: int = 0
    streams: int = 0

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> WorkerReport:
        """The report that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            numbers = {each.name: data[each.name] for each in fields(cls)}
            regretted = tuple(int(each) for each in numbers.pop("regretted"))
            report = cls(**{name: int(number) for name, number in numbers.items()}, regretted=regretted)
        except (KeyError, TypeError, ValueError):
            raise RaycacheError("what a worker reports of a dataset is no report") from None
        if len(regretted) != len(EXTRA):
            raise RaycacheError("what a worker reports of a dataset is of another version of raycache")
        return replace(report, age_s=float(data["age_s"]))


@dataclass(frozen=True)
class Observation:
    """What all workers of a dataset did in an interval: sums, but for the busiest.

    Args:
        at: end of the interval.
        seconds: its length.
        idle_s: seconds since anybody last read or loaded data, or since the dataset was made, at its end.
        workers: how many reported.
        busiest: bytes moved by the worker that moved most (sent, or fetched from the store, whichever is more).
        moved: that figure, summed over the workers.
        busiest_streams: streams that the busiest worker was serving.

    The others are as in `WorkerReport`.
    """

    at: float
    seconds: float
    idle_s: float
    workers: int = 0
    quota: int = 0
    used: int = 0
    warm: int = 0
    read: int = 0
    missed: int = 0
    store: int = 0
    regretted: tuple[int, ...] = (0,) * len(EXTRA)
    gets: int = 0
    throttled: int = 0
    busiest: int = 0
    busiest_streams: int = 0
    moved: int = 0


def observe(
    before: Mapping[str, WorkerReport],
    after: Mapping[str, WorkerReport],
    *,
    now: float,
    seconds: float,
    idle_s: float,
) -> Observation:
    """What happened between two rounds of reports.

    A worker that restarted or joined in between counts from 0. One whose counters are older than the interval, and
    that was not in the round before (it did not answer then), counts with its sizes only.

    Args:
        before: the reports of the round before, by any id that outlives a restart, such as the node's.
        after: the reports of this round.
        now: when they were taken.
        seconds: time between the rounds; more than 0.
        idle_s: as in `Observation`.
    """
    sums = dict.fromkeys(("quota", "used", "warm", "read", "missed", "store", "gets", "throttled"), 0)
    regretted = [0] * len(EXTRA)
    moved, busiest, busiest_streams = 0, 0, 0
    for worker, report in after.items():
        first = WorkerReport()
        last = before.get(worker)
        if last is not None and report.age_s >= last.age_s:
            first = last
        elif report.age_s > seconds:
            first = report
        for name in sums:
            gauge = name in ("quota", "used", "warm")
            sums[name] += getattr(report, name) - (0 if gauge else getattr(first, name))
        for place, (new, old) in enumerate(zip(report.regretted, first.regretted, strict=True)):
            regretted[place] += new - old
        mine = max(report.served - first.served, report.store - first.store)
        moved += mine
        if mine > busiest:
            busiest, busiest_streams = mine, report.streams
    return Observation(
        at=now,
        seconds=seconds,
        idle_s=idle_s,
        workers=len(after),
        regretted=tuple(regretted),
        busiest=busiest,
        busiest_streams=busiest_streams,
        moved=moved,
        **sums,
    )


def latest(window: Sequence[Observation], seconds: float) -> list[Observation]:
    """The last observations, as many as it takes to cover so much time."""
    chosen: list[Observation] = []
    for each in reversed(window):
        if span(chosen) >= seconds * 0.9:
            break
        chosen.append(each)
    return chosen[::-1]


def span(window: Sequence[Observation]) -> float:
    """Seconds that observations cover together."""
    return sum(each.seconds for each in window)


def summed(window: Sequence[Observation]) -> Observation:
    """Several observations (at least one) as one: sums of what happened, sizes as they were last."""

    def added(value: Callable[[Observation], int]) -> int:
        return sum(value(each) for each in window)

    return replace(
        window[-1],
        seconds=span(window),
        read=added(lambda each: each.read),
        missed=added(lambda each: each.missed),
        store=added(lambda each: each.store),
        gets=added(lambda each: each.gets),
        throttled=added(lambda each: each.throttled),
        busiest=added(lambda each: each.busiest),
        moved=added(lambda each: each.moved),
        regretted=tuple(map(sum, zip(*(each.regretted for each in window), strict=True))),
    )
