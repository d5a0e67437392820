"""A day of 1,000 nodes, simulated: python -m benchmarks simulate

Compares raycache's autoscaler with fixed numbers of workers, with a scaler that looks at fullness only, and with what
is possible for who knows the future. What is simulated and what not: `simload`, `simcluster`, and
docs/design/2026-11-25-autoscaling.md. Takes some minutes on one core; writes plots beside the figures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import simload
from benchmarks.harness import RESULTS, progress
from benchmarks.simcluster import ROOM, Cluster, Figures, Scaler
from benchmarks.simload import MINUTES, NODES, Load
from raycache.autoscaling import Bounds, Decision, Policy, State, decide
from raycache.blocks import SEGMENT_SIZE
from raycache.observations import Observation

TiB = 1 << 40
FIXED = (100, 200, 400)
KEEP_MIN = (30, 60, 120)
"""Values of `Policy.keep_s`, in minutes; the default is 60."""
START = 20
STEP = 15
"""Minutes of a point in the series."""


class Need:
    """raycache's autoscaler."""

    reports = True

    def __init__(self, policy: Policy) -> None:
        self._policy, self._state = policy, State()
        self.decisions: list[Decision] = []

    def target(self, window: Sequence[Observation], current: int, bounds: Bounds, now: float) -> int:
        """What `decide` says."""
        decision = decide(window, current, bounds, self._policy, self._state, now)
        self._state = decision.state
        self.decisions.append(decision)
        return decision.target


class Fullness:
    """What scalers that know nothing else do: the HorizontalPodAutoscaler's rule (ratio of the metric to its target,
    tolerance 0.1, at most double, the largest of the last five minutes' wishes when going down), on used / quota."""

    reports = False
    TARGET = 0.7

    def __init__(self) -> None:
        self._wishes: list[int] = []

    def target(self, window: Sequence[Observation], current: int, bounds: Bounds, now: float) -> int:
        """Workers so that they would be `TARGET` full."""
        last = window[-1]
        ratio = last.used / max(1, last.quota) / self.TARGET
        wish = current if abs(ratio - 1) <= 0.1 else min(math.ceil(current * ratio), 2 * current)
        self._wishes = [*self._wishes[-4:], wish]
        return min(max(wish if wish > current else max(self._wishes), bounds.min), bounds.most)


class Fixed:
    """Always as many."""

    reports = False

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def target(self, window: Sequence[Observation], current: int, bounds: Bounds, now: float) -> int:
        """The number, or as many nodes as there are."""
        return min(self._workers, bounds.most)


def run(seed: int = 1, scale: float = 1.0) -> dict[str, Any]:
    """All figures; `plots` draws them."""
    began = time.perf_counter()
    load = simload.make(seed, scale)
    progress(f"{len(load.reads):,} reads of {load.segments:,} segments by {load.jobs:,} jobs")
    scalers: dict[str, tuple[Scaler, int, float]] = {
        f"need, keep {keep} min": (Need(Policy(keep_s=60.0 * keep)), START, 60.0 * keep) for keep in KEEP_MIN
    }
    scalers["fullness only"] = (Fullness(), START, Policy().keep_s)
    scalers |= {f"fixed {number}": (Fixed(number), number, Policy().keep_s) for number in FIXED}
    runs = {}
    decisions = []
    for name, (scaler, start, keep_s) in scalers.items():
        started = time.perf_counter()
        figures = Cluster(load, scaler, start, (1, NODES), keep_s).run()
        runs[name] = summary(figures)
        if isinstance(scaler, Need) and keep_s == Policy().keep_s:
            decisions = [_told(each) for each in scaler.decisions if each.target != each.current]
        progress(f"{name}: {json.dumps({k: v for k, v in runs[name].items() if k != 'series'})}"
                 f" in {time.perf_counter() - started:.0f} s")  # fmt: skip
    return {
        "command": "python -m benchmarks simulate",
        "load": {
            "nodes": NODES,
            "nodes at night": simload.NODES_AT_NIGHT,
            "nodes that die": simload.DEATHS,
            "jobs": load.jobs,
            "read, TiB": _tib(len(load.reads)),
            "different data read, TiB": _tib(len(np.unique(load.reads))),
            "quota of a worker, GiB": ROOM * SEGMENT_SIZE >> 30,
            "seed": seed,
        },
        "runs": runs,
        "clairvoyant": clairvoyant(load),
        "decisions, keep 60 min": decisions,
        "minutes of a point in a series": STEP,
        "seconds": round(time.perf_counter() - began),
    }


def summary(figures: Figures) -> dict[str, Any]:
    """A run in a few figures, and how they went over the day."""
    workers, reads = np.array(figures.workers), np.array(figures.reads)
    fetched, moved = np.array(figures.fetched), np.array(figures.moved)
    changed = np.diff(workers, prepend=workers[0])
    steps = np.sign(changed[changed != 0])
    return {
        "hit ratio": round(1 - float(fetched.sum() / reads.sum()), 4),
        "from the store, TiB": _tib(int(fetched.sum())),
        "worker-hours": round(float(workers.sum()) / 60),
        "most workers": int(workers.max()),
        "least workers": int(workers.min()),
        "changes": len(steps),
        "turns": int((steps[1:] != steps[:-1]).sum()),
        "moved, TiB": _tib(int(moved.sum())),
        "lost with nodes, TiB": _tib(sum(figures.lost)),
        "most from the store in a minute, GB/s": round(float(fetched.max()) * SEGMENT_SIZE / 60 / 1e9, 1),
        "minutes in which the store refused": sum(figures.throttled),
        "busiest worker, 99th percentile, GB/s": round(
            float(np.percentile(figures.busiest, 99)) / 60 / 1e9, 2
        ),
        "series": {
            "workers": _points(workers, np.mean),
            "read, GB/s": _gbps(reads),
            "from the store, GB/s": _gbps(fetched),
            "moved, GB/s": _gbps(moved),
        },
    }


def clairvoyant(load: Load) -> dict[str, Any]:
    """The least that is possible, for several times within which data is kept."""
    found = {}
    for keep in (0, 5, 15, 30, 60, 120, 240, 480, MINUTES):
        fetched, workers = simload.clairvoyant(load, keep, ROOM)
        found[f"keep {keep} min"] = {
            "hit ratio": round(1 - fetched / len(load.reads), 4),
            "from the store, TiB": _tib(fetched),
            "worker-hours": round(float(workers.sum()) / 60, 1),
            "series": {"workers": _points(workers, np.mean)},
        }
    return found


def _told(decision: Decision) -> str:
    hours, minutes = divmod(int(decision.at) // 60, 60)
    return f"{hours:02d}:{minutes:02d} {decision.current} -> {decision.target} ({decision.cause}): {decision.reason}"


def _tib(segments: int) -> float:
    return round(segments * SEGMENT_SIZE / TiB, 2)


def _points(values: Any, merge: Any) -> list[float]:
    return [
        round(float(merge(part)), 2) for part in np.reshape(np.asarray(values, dtype=np.float64), (-1, STEP))
    ]


def _gbps(segments: Any) -> list[float]:
    return [round(value * SEGMENT_SIZE / 60 / 1e9, 2) for value in _points(segments, np.mean)]


def show(figures: dict[str, Any]) -> None:
    """Print what matters, and draw."""
    for name, result in {**figures["runs"], **figures["clairvoyant"]}.items():
        print(f"{name:24} {json.dumps({k: v for k, v in result.items() if k != 'series'})}")
    try:
        from benchmarks import simplots
    except ImportError:
        progress("no plots: matplotlib is missing (pip install --group bench)")
        return
    for path in simplots.draw(figures, RESULTS):
        progress(f"drawn: {path}")


if __name__ == "__main__":
    show(run())
