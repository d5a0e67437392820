"""Placement over 1,000 simulated workers: how even, how much moves, how fast. Run: python -m benchmarks.placement

Figures are ratios to a worker's weighted share; 1.0 is perfect. `baseline` is weighted rendezvous hashing of
each segment (Thaler and Ravishankar 1998; score -w / ln u), which the partition table replaces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raycache.blocks import SEGMENT_SIZE, ObjectVersion
from raycache.placement import PARTITIONS, Placement, first_partition, rebalance

WORKERS = 1000
SEGMENTS = 100_000
SEEDS = 5

Floats = npt.NDArray[np.float64]
Namer = Callable[[int, int], str]


def numbered(seed: int, index: int) -> str:
    """Names as writers of large data sets make them."""
    return f"run-{seed}/part-{index:06d}-of-100000.parquet"


def scattered(seed: int, index: int) -> str:
    """Names without any order."""
    return f"run-{seed}/{(seed * 1_000_003 + index) * 0x9E3779B97F4A7C15 % (1 << 64):016x}.bin"


KEY_STRUCTURES: dict[str, tuple[int, int, Namer]] = {
    "1 object x 100,000 segments": (1, 100_000, scattered),
    "40 numbered objects x 2,500": (40, 2_500, numbered),
    "1,000 numbered objects x 100": (1_000, 100, numbered),
    "100,000 numbered objects x 1": (100_000, 1, numbered),
    "40 scattered objects x 2,500": (40, 2_500, scattered),
    "1,000 scattered objects x 100": (1_000, 100, scattered),
    "100,000 scattered objects x 1": (100_000, 1, scattered),
}
"""How 100,000 segments may be cut into objects: number of objects, segments of each, how they are named."""


def weights_of(kind: str, count: int = WORKERS) -> dict[str, int]:
    """Weights by worker id: all equal, or 1:2:4 in turn."""
    return {f"worker-{i:04d}": 1 if kind == "equal" else 1 << (i % 3) for i in range(count)}


def versions(structure: str, seed: int) -> Iterator[ObjectVersion]:
    """The objects of a key structure."""
    objects, segments, name = KEY_STRUCTURES[structure]
    for index in range(objects):
        yield ObjectVersion("bench", name(seed, index), "s3://bench", segments * SEGMENT_SIZE)


def segment_partitions(structure: str, seed: int) -> npt.NDArray[np.int64]:
    """Partition of every segment of a key structure."""
    segments = KEY_STRUCTURES[structure][1]
    first = np.array([first_partition(version) for version in versions(structure, seed)])
    return ((first[:, None] + np.arange(segments)) % PARTITIONS).ravel()


def fullness(placement: Placement, weights: dict[str, int], partitions: npt.NDArray[np.int64]) -> float:
    """Segments of the fullest worker, in units of its weighted share."""
    counts = np.bincount(placement.table[partitions], minlength=len(placement.workers))
    share = np.array([weights[worker] for worker in placement.workers], dtype=np.float64)
    return float((counts / (len(partitions) * share / share.sum())).max())


def moved(before: Placement, after: Placement, partitions: npt.NDArray[np.int64]) -> int:
    """Segments whose owner changed."""
    old, new = np.array(before.workers)[before.table], np.array(after.workers)[after.table]
    return int((old != new)[partitions].sum())


def rendezvous_fullness(weights: dict[str, int], seed: int) -> float:
    """The baseline: 100,000 segments, each hashed over all workers on its own."""
    random = np.random.default_rng(seed)
    share = np.array(list(weights.values()), dtype=np.float64)
    counts = np.zeros(len(share), dtype=np.int64)
    for _ in range(SEGMENTS // 1000):
        scores = share / -np.log(random.random((1000, len(share))))
        counts += np.bincount(scores.argmax(axis=1), minlength=len(share))
    return float((counts / (SEGMENTS * share / share.sum())).max())


def churned(weights: dict[str, int], changes: int, seed: int = 0) -> tuple[Placement, dict[str, int]]:
    """A placement after that many joins and leaves in turn, with the weights it ended on."""
    random = np.random.default_rng(seed)
    weights = dict(weights)
    placement = rebalance(None, weights)
    for change in range(changes):
        if change % 2:
            del weights[sorted(weights)[int(random.integers(len(weights)))]]
        else:
            weights[f"joined-{change:05d}"] = (
                int(random.choice([1, 2, 4])) if set(weights.values()) != {1} else 1
            )
        placement = rebalance(placement, weights)
    return placement, weights


def _worst(values: list[float]) -> dict[str, float]:
    return {"mean": round(float(np.mean(values)), 3), "max": round(max(values), 3)}


def balance() -> dict[str, Any]:
    """Fullest worker over several seeds, on a fresh ring and on one that saw 1,000 joins and leaves."""
    partitions = {
        structure: [segment_partitions(structure, seed) for seed in range(SEEDS)]
        for structure in KEY_STRUCTURES
    }
    figures: dict[str, Any] = {}
    for kind in ("equal", "1:2:4"):
        fresh = weights_of(kind)
        rings = {"fresh": (rebalance(None, fresh), fresh), "after 1,000 changes": churned(fresh, 1000)}
        for ring, (placement, weights) in rings.items():
            figures[f"{kind}, {ring}"] = {
                structure: _worst([fullness(placement, weights, each) for each in seeds])
                for structure, seeds in partitions.items()
            }
        figures[f"{kind}, baseline"] = _worst([rendezvous_fullness(fresh, seed) for seed in range(SEEDS)])
    return figures


def movement() -> dict[str, float]:
    """Segments moved by one join or leave, in units of the fair share of who joined or left."""
    figures = {}
    for kind in ("equal", "1:2:4"):
        worst = {"join": 0.0, "leave": 0.0}
        for seed in range(SEEDS):
            partitions = segment_partitions("1 object x 100,000 segments", seed)
            placement, weights = churned(weights_of(kind), 2 * seed)
            total = sum(weights.values())
            for weight in sorted(set(weights.values())):
                joined = rebalance(placement, {**weights, "one-more": weight})
                fair = len(partitions) * weight / (total + weight)
                worst["join"] = max(worst["join"], moved(placement, joined, partitions) / fair)
                gone = next(worker for worker in weights if weights[worker] == weight)
                left = rebalance(placement, {w: v for w, v in weights.items() if w != gone})
                fair = len(partitions) * weight / total
                worst["leave"] = max(worst["leave"], moved(placement, left, partitions) / fair)
        figures |= {f"{kind}, {change}": round(value, 3) for change, value in worst.items()}
    return figures


def speed() -> dict[str, float]:
    """Microseconds per lookup, milliseconds per rebalance, bytes of a packed table."""
    weights = weights_of("equal")
    start = time.perf_counter()
    placement = rebalance(None, weights)
    first = time.perf_counter() - start
    start = time.perf_counter()
    rebalance(placement, {**weights, "one-more": 1})
    join = time.perf_counter() - start
    start = time.perf_counter()
    rebalance(placement, dict.fromkeys(sorted(weights)[::2], 1))
    halved = time.perf_counter() - start

    large = next(versions("1 object x 100,000 segments", 0))
    placement.owner(large, 0)
    start = time.perf_counter()
    for segment in range(SEGMENTS):
        placement.owner(large, segment)
    known = time.perf_counter() - start
    small = list(versions("100,000 numbered objects x 1", 0))
    start = time.perf_counter()
    for version in small:
        placement.owner(version, 0)
    new = time.perf_counter() - start
    start = time.perf_counter()
    for segment in range(SEGMENTS):
        placement.ranked(large, segment, 3)
    ranked = time.perf_counter() - start
    return {
        "lookup, object seen before, us": round(known / SEGMENTS * 1e6, 2),
        "lookup, new object, us": round(new / SEGMENTS * 1e6, 2),
        "three candidates, us": round(ranked / SEGMENTS * 1e6, 2),
        "first table, ms": round(first * 1e3, 1),
        "one of 1,001 joins, ms": round(join * 1e3, 1),
        "500 of 1,000 leave, ms": round(halved * 1e3, 1),
        "packed table, bytes": len(placement.pack()),
    }


def run() -> dict[str, Any]:
    """All figures."""
    return {
        "workers": WORKERS,
        "segments": SEGMENTS,
        "fullest worker / share": balance(),
        "moved / fair share": movement(),
        "speed": speed(),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
