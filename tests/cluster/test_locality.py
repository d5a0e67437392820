"""Work goes to the bytes: Ray Data reads, tasks, placement groups and hints, on a real cluster of three nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

import raycache
import raycache.data
from tests.support.cache import Cache
from tests.support.waiting import until

FILES = 24
SIZE = 300_000


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "3")
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    yield
    context.enable_progress_bars = before
    context.execution_options.preserve_order = False


def contents(folder: str, count: int = FILES) -> dict[str, bytes]:
    return {
        f"{folder}/part-{number:02}.bin": np.random.default_rng(number).bytes(SIZE) for number in range(count)
    }


def loaded(cache: Cache, *folders: str, count: int = FILES) -> None:
    """Files below each folder, each cached by its owner and by nobody else. (The dataset is not named as others': what
    processes of other tests have read, they may still tell.)"""
    for folder in folders:
        for path, data in contents(folder, count).items():
            cache.put(path, data)
    cache.apply("near")
    assert cache.finished(cache.admin.load("near"))["phase"] == "Complete"


def read_bytes(cache: Cache) -> tuple[int, int]:
    """Bytes that programs found in their node's own cache, and that they did not, as the workers were told."""
    peers = cache.client().peers
    usages = [
        peers.call(worker, "usage", {}, 10.0)["datasets"]["near"]
        for worker in peers.membership.workers_for("near")
    ]
    return sum(usage["hit_bytes"] for usage in usages), sum(usage["missed_bytes"] for usage in usages)


def local_share(cache: Cache, dataset: Any, expected: dict[str, bytes]) -> float:
    """Read a dataset of binary files; the share of its bytes that came from the cache of the node that read them."""
    before = read_bytes(cache)
    rows = dataset.take_all()
    assert {row["path"].removeprefix("near/"): row["bytes"] for row in rows} == expected
    total = sum(len(data) for data in expected.values())

    def told() -> tuple[int, int] | None:
        now = read_bytes(cache)
        hit, missed = now[0] - before[0], now[1] - before[1]
        return (hit, missed) if hit + missed >= total else None

    hit, missed = until(told, "all that was read is told")
    assert hit + missed == total
    return float(hit / total)


def test_almost_all_is_read_where_it_lies(cache: Cache) -> None:
    loaded(cache, "ours", "plain")
    ours = raycache.data.read_binary_files(
        "raycache://near/ours", include_paths=True, override_num_blocks=FILES
    )
    share = local_share(cache, ours, contents("ours"))
    plain = ray.data.read_binary_files(
        "fsspec+raycache://near/plain", include_paths=True, override_num_blocks=FILES
    )
    plain_share = local_share(cache, plain, contents("plain"))
    assert share >= 0.95, f"{share:.0%} local, plain {plain_share:.0%}"
    assert plain_share < share


def test_order_and_tables(cache: Cache) -> None:
    """Hive columns, a projection and the order of rows are those of the plain read."""
    for number in range(6):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": range(number * 10, number * 10 + 10), "x": [0.5] * 10}), sink)
        cache.put(f"table/year={number // 2}/part-{number}.parquet", sink.getvalue().to_pybytes())
    cache.put("table/_SUCCESS", b"x")
    cache.apply("near")
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    plain = ray.data.read_parquet("fsspec+raycache://near/table").select_columns(["id", "year"])
    ours = raycache.data.read_parquet("raycache://near/table").select_columns(["id", "year"])
    assert ours.schema().names == plain.schema().names
    assert ours.take_all() == plain.take_all()
    assert [row["id"] for row in ours.take_all()] == list(range(60))
    assert [
        row["id"]
        for row in raycache.data.read_parquet("raycache://near/table/*/part-[03].parquet").take_all()
    ] == [
        *range(10),
        *range(30, 40),
    ]


@ray.remote(num_cpus=0.1)
def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


def test_tasks_groups_and_hints_go_to_the_node_with_most_bytes(cache: Cache) -> None:
    loaded(cache, "a", count=3)
    found = raycache.nodes_for("raycache://near/a")
    assert (found.files, found.size, found.not_cached) == (3, 3 * SIZE, 0)
    assert {node.node_id for node in found.nodes} <= set(cache.cluster.node_ids())

    for number in range(3):
        path = f"raycache://near/a/part-{number:02}.bin"
        (node,) = raycache.nodes_for(path).by_node()
        assert ray.get(where.options(**raycache.scheduling_options(path)).remote()) == node
    group = raycache.placement_group("raycache://near/a", [{"CPU": 0.1}], "PACK")
    try:
        placed = ray.util.placement_group_table(group)["bundles_to_node_id"][0]
        assert placed == found.nodes[0].node_id
    finally:
        ray.util.remove_placement_group(group)

    hints = raycache.data.locality_hints("raycache://near/a", 2)
    assert hints is not None
    assert set(hints) <= set(found.by_node())
    (stream,) = raycache.data.read_binary_files("raycache://near/a").streaming_split(
        1, locality_hints=hints[:1]
    )
    assert sum(len(row["bytes"]) for row in stream.iter_rows()) == 3 * SIZE


def test_a_node_that_is_gone_when_the_read_starts(cache: Cache) -> None:
    node = cache.cluster.add_node()
    try:
        until(lambda: len(cache.worker_pids()) == 4, "the new node has a worker")
        loaded(cache, "b", count=8)
        dataset = raycache.data.read_binary_files("raycache://near/b", include_paths=True)
        options = [raycache.scheduling_options(f"near/{path}") for path in contents("b", 8)]
        assert {"ray.io/node-id": node.node_id} in [one["label_selector"] for one in options]
    finally:
        cache.cluster.remove_node(node)
    assert node.node_id not in ray.get([where.options(**one).remote() for one in options])
    rows = dataset.take_all()
    assert {row["path"].removeprefix("near/"): row["bytes"] for row in rows} == contents("b", 8)
    until(lambda: cache.admin.status()["nodes"] == 3, "it is gone")
