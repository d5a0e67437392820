"""Ray Data reads a dataset by its URL alone, on every node, and gets what the object store itself would give."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image

from raycache import arrow_filesystem
from tests.support.cache import Cache
from tests.support.seaweed import REGION

ROWS = 120_000
FILES = 4


@pytest.fixture
def direct(cache: Cache) -> pafs.S3FileSystem:
    """The object store itself, past raycache and its counting proxy."""
    return pafs.S3FileSystem(
        access_key=cache.server.access_key,
        secret_key=cache.server.secret_key,
        endpoint_override=cache.server.address,
        scheme="http",
        region=REGION,
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray Data for a small machine: no progress bars, and 3 actors that read Parquet footers instead of 32."""
    monkeypatch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "3")
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    yield
    context.enable_progress_bars = before


def put_tables(cache: Cache) -> int:
    """A table in several Parquet files below `table/`; number of their bytes."""
    random, total = np.random.default_rng(5), 0
    for number in range(FILES):
        ids = np.arange(number * ROWS // FILES, (number + 1) * ROWS // FILES)
        table = pa.table({"id": ids, "value": random.random(len(ids)), "text": [f"row {i}" for i in ids]})
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=10_000)
        cache.put(f"table/part-{number}.parquet", sink.getvalue())
        total += len(sink.getvalue())
    return total


def sorted_table(dataset: Any) -> pa.Table:
    return pa.concat_tables(dataset.iter_batches(batch_format="pyarrow", batch_size=None)).sort_by("id")


def test_read_parquet(cache: Cache, direct: pafs.S3FileSystem) -> None:
    size = put_tables(cache)
    expected = sorted_table(ray.data.read_parquet(f"{cache.bucket}/table", filesystem=direct))
    assert expected.num_rows == ROWS
    cache.apply()
    cache.proxy.reset()
    assert sorted_table(ray.data.read_parquet("fsspec+raycache://ds/table")).equals(expected)
    assert cache.proxy.stats().bytes <= size * 1.01
    cache.proxy.reset()
    for again in (
        ray.data.read_parquet("fsspec+raycache://ds/table"),
        ray.data.read_parquet("ds/table", filesystem=arrow_filesystem()),
        ray.data.read_parquet([f"fsspec+raycache://ds/table/part-{n}.parquet" for n in range(FILES)]),
    ):
        assert sorted_table(again).equals(expected)
    assert cache.proxy.stats().bytes == 0, "what was cached is not fetched again"
    columns = ray.data.read_parquet("fsspec+raycache://ds/table").select_columns(["id"])
    assert columns.sum("id") == ROWS * (ROWS - 1) // 2


def test_read_images(cache: Cache, direct: pafs.S3FileSystem) -> None:
    random = np.random.default_rng(6)
    for number in range(6):
        sink = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (40 + number, 30, 3), dtype=np.uint8)).save(sink, "PNG")
        cache.put(f"images/{number}.png", sink.getvalue())
    cache.apply()

    def images(dataset: Any) -> dict[str, bytes]:
        return {row["path"].rpartition("/")[2]: row["image"].tobytes() for row in dataset.take_all()}

    expected = images(ray.data.read_images(f"{cache.bucket}/images", filesystem=direct, include_paths=True))
    assert len(expected) == 6
    for _ in range(2):
        found = ray.data.read_images("fsspec+raycache://ds/images", include_paths=True)
        assert images(found) == expected


def test_read_binary_files(cache: Cache, direct: pafs.S3FileSystem) -> None:
    contents = {f"{number}.bin": np.random.default_rng(number).bytes(number * 700_001) for number in range(5)}
    for name, data in contents.items():
        cache.put(f"files/{name}", data)
    cache.apply()
    for url, options in (
        ("fsspec+raycache://ds/files", {}),
        ("fsspec+raycache://ds/files", {}),
        (f"{cache.bucket}/files", {"filesystem": direct}),
    ):
        rows = ray.data.read_binary_files(url, include_paths=True, **options).take_all()
        assert {row["path"].rpartition("/")[2]: row["bytes"] for row in rows} == contents
