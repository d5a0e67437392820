"""A dataset whose number of workers follows what is read, on a real Ray cluster: it grows, sleeps and wakes, and no
read fails or waits for it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from raycache.actors import kv as keys
from raycache.actors.kv import RayKv
from raycache.actors.tuning import Tuning
from raycache.autoscaling import Policy
from raycache.cli.describe import description
from tests.support.cache import Cache
from tests.support.raycluster import RayCluster
from tests.support.waiting import until

MiB = 1 << 20
FILES = {f"part-{number}": random.Random(number).randbytes(4 * MiB) for number in range(6)}
TUNING = Tuning(
    # Readers tell every five seconds what they read, so what is idle must be longer.
    Policy(keep_s=60.0, look_s=2.0, calm_s=600.0, again_s=1.0, idle_s=12.0),
    retire_s=1.0,
)


@pytest.fixture
def tuned(ray_cluster: RayCluster) -> Iterator[None]:
    """In seconds what otherwise takes an hour. Before the fixture `cache`, for it is read when raycache starts."""
    TUNING.store(RayKv())
    yield
    RayKv().delete(keys.TUNING)


def scaling(cache: Cache) -> dict[str, Any]:
    return dict(cache.admin.describe("datasets", "ds")["autoscaling"])


def holders(cache: Cache) -> set[str]:
    return {row["node_id"] for row in cache.admin.get("workers") if "ds" in row["datasets"]}


def states(cache: Cache) -> list[str]:
    return sorted(row["state"] for row in cache.admin.get("workers"))


@contextmanager
def reading(cache: Cache) -> Iterator[None]:
    """A program that reads all files round and round, while the context is open; all of it must be right."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for name, data in FILES.items():
                assert cache.read(name) == data

    with ThreadPoolExecutor(1) as pool:
        program = pool.submit(run)
        try:
            yield
        finally:
            stop.set()
        program.result()


def test_it_grows_while_too_much_is_evicted_sleeps_when_idle_and_wakes_with_a_read(
    tuned: None, cache: Cache
) -> None:
    for name, data in FILES.items():
        cache.put(name, data)
    cache.apply(replicas="{min: 0, max: 2}", mem="", ssd="16Mi")
    with reading(cache):
        until(
            lambda: len(holders(cache)) == 2, "a second worker: 24 MiB are read round and round, and 16 fit"
        )
        found = scaling(cache)
    assert (found["target"], found["min"], found["max"], found["nodes"]) == (2, 0, 2, 3)
    assert found["last_change"]["cause"] == "churn"
    assert "had been evicted not long ago" in found["last_change"]["reason"]

    until(lambda: not holders(cache), "nobody holds it when nothing is read")
    until(lambda: states(cache) == ["retired", "retired", "up"], "only the head node still has a worker")
    assert scaling(cache)["last_change"]["cause"] == "idle"
    assert cache.row()["phase"] == "Bound"

    cache.proxy.reset()
    for name, data in FILES.items():
        assert cache.read(name) == data
    assert cache.proxy.stats().bytes > 0, "it comes from the store meanwhile"
    with reading(cache):
        until(lambda: len(holders(cache)) == 2, "as many as before hold it again")
        described = cache.admin.describe("datasets", "ds")
    events = [event["message"] for event in described["events"] if event["reason"] == "Autoscaled"]
    told = {event.split(":")[0] for event in events}
    assert {
        "from 0 to 1 workers (wake)",
        "from 1 to 2 workers (churn)",
        "from 2 to 0 workers (idle)",
        "from 0 to 2 workers (wake)",
    } <= told
    text = "\n".join(description(described))
    assert "Autoscaling:" in text
    assert "Reason:" in text


def test_a_load_of_what_nobody_holds_wakes_it(tuned: None, cache: Cache) -> None:
    for name, data in FILES.items():
        cache.put(name, data)
    cache.apply(replicas="{min: 0, max: 1}", mem="", ssd="64Mi")
    until(lambda: not holders(cache), "nobody holds it when nothing is read")
    row = cache.finished(cache.admin.load("ds"))
    assert (row["phase"], row["bytes_cached"]) == ("Complete", sum(map(len, FILES.values())))
