"""The main job on a real Ray cluster: apply, read on every node, fetched once, survive deaths."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from tests.cluster.conftest import Cache
from tests.support.raycluster import until

MiB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read_concurrently(path: str, readers: int, seed: int) -> list[str]:
    """Runs in a task: several readers of one file, each in an order of its own; hashes of what they read."""
    import hashlib
    from contextlib import closing

    from raycache import connect

    client = connect()

    def read(number: int) -> str:
        with closing(client.open("ds", path)) as reader:
            chunk = 700_001  # no multiple of anything
            offsets = list(range(0, reader.size, chunk))
            if number % 2:
                random.Random(seed + number).shuffle(offsets)
            data = bytearray(reader.size)
            for offset in offsets:
                data[offset : offset + chunk] = reader.read_at(offset, chunk)
            return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(readers) as pool:
        return list(pool.map(read, range(readers)))


def test_apply_then_read_on_every_node(cache: Cache) -> None:
    data = noise(3 * MiB + 17)
    cache.put("dir/file", data)
    actions = {(row["kind"], row["name"]): row["action"] for row in cache.apply()}
    assert actions == {
        ("Secret", "ds"): "created",
        ("Dataset", "ds"): "created",
        ("CacheRuntime", "ds"): "created",
    }
    assert {row["action"] for row in cache.apply()} == {"unchanged"}
    hashes = ray.get(
        [cache.cluster.run_on(node, read_concurrently, "dir/file", 1, 0) for node in cache.cluster.node_ids()]
    )
    assert len({tuple(found) for found in hashes}) == 1
    assert cache.read("dir/file") == data
    row = until(lambda: (row := cache.row())["ufs_total_size"] == len(data) and row, "the size is known")
    assert (row["phase"], row["cached"], row["cached_percentage"]) == ("Bound", len(data), 100.0)
    assert row["cache_capacity"] == 3 * (128 + 256) * MiB
    assert [row["datasets"] for row in cache.admin.get("workers")] == [["ds"]] * 3


def test_twelve_cold_readers_on_three_nodes_fetch_each_block_once(cache: Cache) -> None:
    import hashlib

    data = noise(40 * MiB + 12345, 1)
    cache.put("model.bin", data)
    cache.apply()
    cache.client()
    cache.proxy.reset()
    found = ray.get(
        [
            cache.cluster.run_on(node, read_concurrently, "model.bin", 4, number)
            for number, node in enumerate(cache.cluster.node_ids())
        ]
    )
    assert {digest for per_node in found for digest in per_node} == {hashlib.sha256(data).hexdigest()}
    assert len(data) <= cache.proxy.stats().bytes <= len(data) * 1.01
