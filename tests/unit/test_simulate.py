"""The simulation of a day (`python -m benchmarks simulate`), on a fiftieth of it: that its books balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import simcluster, simload, simulate
from raycache.autoscaling import Bounds, Policy
from raycache.observations import Observation


@pytest.fixture(scope="module")
def load() -> simload.Load:
    return simload.make(seed=2, scale=0.02)


def figures(load: simload.Load, scaler: simcluster.Scaler, start: int) -> simcluster.Figures:
    return simcluster.Cluster(load, scaler, start, (1, simload.NODES), Policy().keep_s).run()


def test_with_room_for_all_each_segment_is_fetched_once(load: simload.Load) -> None:
    quiet = replace(load, present=np.ones_like(load.present), died={})
    found = figures(quiet, simulate.Fixed(120), 120)
    assert sum(found.reads) == len(load.reads)
    assert (
        sum(found.fetched) == len(np.unique(load.reads)) == simload.clairvoyant(load, simload.MINUTES, 1)[0]
    )
    assert sum(found.moved) == sum(found.lost) == 0


class FewerAtNoon(simulate.Fixed):
    """A sixth of the workers leaves at noon."""

    def target(self, window: Sequence[Observation], current: int, bounds: Bounds, now: float) -> int:
        return 120 if now < 12 * 3600 else 100


def test_what_moves_when_workers_leave_is_not_fetched_again(load: simload.Load) -> None:
    quiet = replace(load, present=np.ones_like(load.present), died={})
    found = figures(quiet, FewerAtNoon(120), 120)
    assert sum(found.moved) > 0
    assert sum(found.fetched) == len(np.unique(load.reads))


def test_need_takes_less_than_fullness_and_nobody_beats_who_knows_the_future(
    load: simload.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simcluster, "ROOM", 16)  # a tenth, for a load that is as small
    need = simulate.summary(figures(load, simulate.Need(Policy()), 5))
    full = simulate.summary(figures(load, simulate.Fullness(), 5))
    fixed = simulate.summary(figures(load, simulate.Fixed(5), 5))
    assert need["worker-hours"] < full["worker-hours"] / 2
    for result in (need, full, fixed):
        for keep in (0, 15, 60, 240):
            fetched, workers = simload.clairvoyant(load, keep, simcluster.ROOM)
            if workers.sum() / 60 >= result["worker-hours"]:
                assert simulate._tib(fetched) <= result["from the store, TiB"]


def test_the_same_seed_is_the_same_day(load: simload.Load) -> None:
    again = simload.make(seed=2, scale=0.02)
    assert np.array_equal(load.reads, again.reads)
    assert np.array_equal(load.partitions, again.partitions)
