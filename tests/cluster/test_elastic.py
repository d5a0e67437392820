"""Growing, shrinking and draining on a real Ray cluster, while every node reads: no read fails, and nothing of the data
is fetched from the store a second time."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from raycache.errors import NotFoundError, SpecError
from tests.cluster.test_cluster import read_until
from tests.support.cache import Cache
from tests.support.waiting import until

MiB = 1 << 20
FILES = 6
SIZE = 4 * MiB + 17
PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` of Ray's autoscaler.proto."""


def put_files(cache: Cache) -> dict[str, bytes]:
    files = {f"part-{number:03d}": random.Random(number).randbytes(SIZE) for number in range(FILES)}
    for name, data in files.items():
        cache.put(name, data)
    return files


def holders(cache: Cache) -> set[str]:
    return {row["node_id"] for row in cache.admin.get("workers") if "ds" in row["datasets"]}


def reading(cache: Cache, files: dict[str, bytes], stop: Path) -> list[Any]:
    """Readers on every node, of every file, until `stop` is there."""
    return [
        cache.cluster.run_on(node, read_until, name, str(stop), hashlib.sha256(files[name]).hexdigest())
        for number, node in enumerate(cache.cluster.node_ids())
        for name in list(files)[number::3]
    ]


def warmed(cache: Cache, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        assert cache.read(name) == data
    cache.proxy.reset()


def store_bytes(cache: Cache) -> int:
    return int(cache.proxy.stats().bytes)


def test_from_one_to_three_to_one_and_a_drain_while_all_read(cache: Cache, tmp_path: Path) -> None:
    files = put_files(cache)
    cache.apply(replicas=1)
    (first,) = holders(cache)
    warmed(cache, files)
    stop = tmp_path / "stop"
    running = reading(cache, files, stop)

    cache.admin.scale("ds", 3)
    assert len(holders(cache)) == 3
    for name, data in files.items():
        assert cache.read(name) == data
    cache.admin.scale("ds", 1)
    until(lambda: holders(cache) == {first}, "the others have left", 60.0)
    for name, data in files.items():
        assert cache.read(name) == data

    drained = cache.admin.drain(first)
    assert drained["ended"]
    assert drained["datasets"]["ds"]["bytes_left"] == {}
    until(lambda: len(holders(cache)) == 1 and first not in holders(cache), "another one holds it")
    row = next(row for row in cache.admin.get("workers") if row["node_id"] == first)
    assert (row["state"], row["datasets"]) == ("drained", [])
    for name, data in files.items():
        assert cache.read(name) == data

    stop.touch()
    assert all(rounds > 0 for rounds in ray.get(running))
    assert store_bytes(cache) == 0

    cache.admin.undrain(first)
    until(lambda: cache.worker_pids().get(first), "its worker is back")
    assert cache.admin.scale("ds", "all")["action"] == "configured"
    assert len(holders(cache)) == 3
    # The rest of the spec is as it was, and the file says what holds once it is applied again.
    actions = {row["kind"]: row["action"] for row in cache.apply(replicas=1)}
    assert actions == {"Secret": "unchanged", "Dataset": "unchanged", "CacheRuntime": "configured"}


def test_a_drain_goes_on_when_the_coordinator_is_killed(cache: Cache) -> None:
    files = put_files(cache)
    cache.apply()
    warmed(cache, files)
    node = cache.cluster.node_ids()[0]
    cache.admin.drain(node, wait=False)
    os.kill(cache.admin.status()["coordinator"]["pid"], signal.SIGKILL)
    ended = cache.admin.drain(node)  # said again, it is the same
    assert ended["ended"]
    assert node not in holders(cache)
    for name, data in files.items():
        assert cache.read(name) == data
    assert store_bytes(cache) == 0
    os.kill(cache.admin.status()["coordinator"]["pid"], signal.SIGKILL)
    until(lambda: len(cache.worker_pids()) == 2, "the workers are found again, and no third is started")
    assert node not in holders(cache)


def test_a_node_that_ray_drains_gives_what_it_has_to_the_others(cache: Cache) -> None:
    files = put_files(cache)
    node = cache.cluster.add_node()
    try:
        until(lambda: node.node_id in cache.worker_pids(), "it has a worker")
        cache.apply()
        warmed(cache, files)
        deadline_ms = int((time.time() + 120) * 1000)
        accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(
            node.node_id, PREEMPTION, "the test takes it away", deadline_ms
        )
        assert accepted, why
        until(lambda: node.node_id not in holders(cache), "its worker has left", 60.0)
    finally:
        cache.cluster.remove_node(node)
    until(lambda: len(cache.admin.get("workers")) == 3, "it is gone", 60.0)
    for name, data in files.items():
        assert cache.read(name) == data
    assert store_bytes(cache) == 0


def test_what_cannot_be_drained_or_scaled_is_said(cache: Cache) -> None:
    put_files(cache)
    cache.apply()
    with pytest.raises(NotFoundError, match="no such node"):
        cache.admin.drain("ffff")
    with pytest.raises(NotFoundError, match="not drained"):
        cache.admin.undrain(cache.cluster.node_ids()[0])
    with pytest.raises(SpecError):
        cache.admin.scale("ds", 0)
