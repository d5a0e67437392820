"""A day of load for `benchmarks.simulate`: which segments are read in each minute, and which nodes there are.

Made up, but of parts that are known of such clusters: jobs come with the working day and in bursts, data sets are of
very different sizes and popularity (Zipf), training reads the same data epoch by epoch in a new order each time, and
some jobs read new data once. The same for every scaler, and for the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raycache.blocks import SEGMENT_SIZE, ObjectVersion
from raycache.placement import PARTITIONS, first_partition

MINUTES = 24 * 60
NODES = 1000
NODES_AT_NIGHT = 700
"""The rest is given back in the evening and comes again in the morning."""
DEATHS = 10
"""Nodes that die on the day, without notice; each is back after `BACK_MIN` minutes."""
BACK_MIN = 30

DATASETS = 600
MEDIAN_SEGMENTS = 250
"""Of a data set: 62 GiB. Lognormal, with `SPREAD`; the mean is 2.3 times as much."""
SPREAD = 1.3
ZIPF = 0.9
"""Exponent of the popularity of data sets."""
FILE_SEGMENTS = 8
"""Segments of a file: 2 GiB."""

QUIET_JOBS_PER_HOUR = 20
BUSY_JOBS_PER_HOUR = 90
"""At 3 o'clock at night, and at 3 in the afternoon."""
BURSTS = ((9 * 60 + 10, 30), (13 * 60 + 30, 50), (20 * 60, 40))
"""Sweeps: at that minute, so many jobs within ten minutes that read the same data set."""
SCANS = 60
"""Jobs that read data nobody reads again, of 1,000 segments on average (250 GiB)."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Load:
    """What happens on the day.

    Args:
        reads: segment of each read, minute by minute.
        starts: for each minute, where its reads begin in `reads`; one more at the end.
        partitions: partition of each segment (`raycache.placement`).
        present: for each minute, which nodes are there.
        died: nodes that die, by minute. They are not in `present` from then on, until they are back.
        jobs: number of jobs.
    """

    reads: npt.NDArray[np.int32]
    starts: Ints
    partitions: Ints
    present: npt.NDArray[np.bool_]
    died: dict[int, list[int]]
    jobs: int

    @property
    def segments(self) -> int:
        """Segments that exist."""
        return len(self.partitions)

    def minute(self, minute: int) -> npt.NDArray[np.int32]:
        """Segments read in a minute, in order."""
        return self.reads[self.starts[minute] : self.starts[minute + 1]]


def make(seed: int = 1, scale: float = 1.0) -> Load:
    """A day.

    Args:
        seed: another one is another day.
        scale: share of the jobs and of the sizes; for tests.
    """
    random = np.random.default_rng(seed)
    sizes = np.maximum(1, random.lognormal(np.log(MEDIAN_SEGMENTS * scale), SPREAD, DATASETS)).astype(
        np.int64
    )
    popularity = 1 / np.arange(1, DATASETS + 1) ** ZIPF
    popularity /= popularity.sum()
    jobs: list[tuple[int, int, int]] = []  # minute, data set, epochs
    hour = np.arange(MINUTES) / 60
    sun = (1 + np.cos((hour - 15) / 24 * 2 * np.pi)) / 2
    rate = (QUIET_JOBS_PER_HOUR + (BUSY_JOBS_PER_HOUR - QUIET_JOBS_PER_HOUR) * sun) / 60 * scale
    for minute, count in enumerate(random.poisson(rate).tolist()):
        for dataset in random.choice(DATASETS, count, p=popularity).tolist():
            jobs.append(
                (minute, dataset, int(random.choice((1, 1, 1, 2, 3, 5, 10), p=(0.2,) * 3 + (0.1,) * 4)))
            )
    for minute, count in BURSTS:
        dataset = int(random.choice(DATASETS, p=popularity))
        for _ in range(max(1, round(count * scale))):
            jobs.append((minute + int(random.integers(10)), dataset, 1))
    for _ in range(max(1, round(SCANS * scale))):
        sizes = np.append(sizes, max(1, round(random.exponential(1000 * scale))))
        jobs.append((int(random.integers(MINUTES)), len(sizes) - 1, 1))
    first = np.concatenate(([0], np.cumsum(sizes)))
    by_minute: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(MINUTES)]
    for start, dataset, epochs in jobs:
        per_minute = max(1, int(random.lognormal(np.log(120), 0.8)))
        order = (
            np.concatenate([random.permutation(int(sizes[dataset])) for _ in range(epochs)]) + first[dataset]
        )
        for step, place in enumerate(range(0, len(order), per_minute)):
            if start + step < MINUTES:
                by_minute[start + step].append(order[place : place + per_minute])
    # Jobs read at the same time: in turns within a minute.
    reads = [_interleaved(parts) if parts else np.zeros(0, dtype=np.int64) for parts in by_minute]
    present, died = _nodes(random)
    return Load(
        reads=np.concatenate(reads).astype(np.int32),
        starts=np.concatenate(([0], np.cumsum([len(part) for part in reads]))),
        partitions=_partitions(sizes),
        present=present,
        died=died,
        jobs=len(jobs),
    )


def _interleaved(parts: list[Ints]) -> Ints:
    place = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
    mixed: Ints = np.concatenate(parts)[np.argsort(place, kind="stable")]
    return mixed


def _partitions(sizes: Ints) -> Ints:
    found = []
    for dataset, size in enumerate(sizes.tolist()):
        for number, start in enumerate(range(0, size, FILE_SEGMENTS)):
            segments = min(FILE_SEGMENTS, size - start)
            path = f"part-{number:05d}.parquet"
            version = ObjectVersion(f"set-{dataset}", path, "s3://simulated", segments * SEGMENT_SIZE)
            found.append(first_partition(version) + np.arange(segments))
    return np.concatenate(found) % PARTITIONS


def _nodes(random: np.random.Generator) -> tuple[npt.NDArray[np.bool_], dict[int, list[int]]]:
    hour = np.arange(MINUTES) / 60
    share = np.clip(
        np.minimum((hour - 6) / 2, (22 - hour) / 2), 0, 1
    )  # come from 6 to 8, leave from 20 to 22
    counts = NODES_AT_NIGHT + ((NODES - NODES_AT_NIGHT) * share).astype(np.int64)
    rank = random.permutation(NODES)
    present = rank[None, :] < counts[:, None]
    died: dict[int, list[int]] = {}
    for minute in random.integers(1, MINUTES, DEATHS).tolist():
        node = int(random.choice(np.flatnonzero(present[minute])))
        died.setdefault(minute, []).append(node)
        present[minute : minute + BACK_MIN, node] = False
    return present, died


def clairvoyant(load: Load, within_min: float, room: int) -> tuple[int, npt.NDArray[np.float64]]:
    """The least that is possible: who knows the future keeps a segment from one read to the next if they are no
    further apart than `within_min`, and only then. No one who spends as many worker-hours fetches less.

    Args:
        load: the day.
        within_min: minutes.
        room: segments that a worker holds.

    Returns:
        Segments fetched from the store, and workers in use by minute (full ones, as fractions).
    """
    minute = np.repeat(np.arange(MINUTES), np.diff(load.starts))
    order = np.lexsort((minute, load.reads))
    segment, at = load.reads[order], minute[order]
    again = segment[1:] == segment[:-1]
    gap = at[1:] - at[:-1]
    kept = again & (gap <= within_min)
    held = np.zeros(MINUTES + 1)
    np.add.at(held, at[:-1][kept], 1.0)
    np.add.at(held, at[1:][kept], -1.0)
    return len(segment) - int(kept.sum()), np.cumsum(held)[:MINUTES] / room
