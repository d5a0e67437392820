"""pyarrow over raycache: the native handler maps memory, and so does the one pyarrow makes for itself."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raycache.errors import NotAFileError
from raycache.filesystem import RaycacheFileSystem, RaycacheHandler, arrow_filesystem
from tests.support.embedded import BLOCK, Embedded
from tests.unit.filesystem.conftest import DATA, SIZE


@pytest.fixture
def table(bucket_dir: Path) -> pa.Table:
    """A table as a Parquet file, and as a partitioned directory of them."""
    rows = 50_000
    table = pa.table(
        {
            "number": pa.array(range(rows), pa.int64()),
            "text": pa.array([f"row {number}" for number in range(rows)]),
            "part": pa.array([number % 3 for number in range(rows)]),
        }
    )
    pq.write_table(table, bucket_dir / "table.parquet", row_group_size=rows // 4)
    pq.write_to_dataset(table, bucket_dir / "tables", partition_cols=["part"])
    return table


@pytest.fixture(params=["arrow", "fsspec+"])
def arrow(request: pytest.FixtureRequest, fs: RaycacheFileSystem) -> pafs.FileSystem:
    """raycache's own handler, and the one that pyarrow puts around fsspec for `fsspec+raycache://`."""
    if request.param == "arrow":
        return arrow_filesystem()
    filesystem, path = pafs.FileSystem.from_uri("fsspec+raycache://ds/a")
    assert path == "ds/a"
    return filesystem


def test_infos(arrow: pafs.FileSystem, bucket_dir: Path) -> None:
    file, directory, nothing = arrow.get_file_info(["ds/a", "ds/deep", "ds/nothing"])
    assert (file.type, file.size) == (pafs.FileType.File, SIZE)
    assert file.mtime.timestamp() == pytest.approx((bucket_dir / "a").stat().st_mtime)
    assert directory.type == pafs.FileType.Directory
    assert nothing.type == pafs.FileType.NotFound
    found = arrow.get_file_info(pafs.FileSelector("ds/deep", recursive=True))
    assert sorted(info.path for info in found) == [
        "ds/deep/er",
        "ds/deep/er/leaf",
        "ds/deep/part-0",
        "ds/deep/part-1",
        "ds/deep/part-2",
    ]
    assert arrow.get_file_info(pafs.FileSelector("ds/nothing", allow_not_found=True)) == []
    with pytest.raises(FileNotFoundError):
        arrow.get_file_info(pafs.FileSelector("ds/nothing"))


@pytest.mark.parametrize("warm", [False, True])
def test_files_and_streams(arrow: pafs.FileSystem, fs: RaycacheFileSystem, warm: bool) -> None:
    if warm:
        fs.cat_file("ds/a")
    with arrow.open_input_file("ds/a") as file:
        assert file.size() == SIZE
        assert file.read_at(100, BLOCK) == DATA[BLOCK : BLOCK + 100]
        file.seek(0)  # a Python file has one position, which `read_at` moves
        assert file.read() == DATA
    with arrow.open_input_stream("ds/a") as stream:
        assert stream.read(10) == DATA[:10]
        assert stream.readall() == DATA[10:]
    with arrow.open_input_file("ds/empty") as file:
        assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        arrow.open_input_file("ds/nothing")
    with pytest.raises(OSError, match="read-only"):
        arrow.open_output_stream("ds/new")
    with pytest.raises(OSError, match="read-only"):
        arrow.delete_file("ds/a")


@pytest.mark.parametrize("warm", [False, True])
def test_parquet(arrow: pafs.FileSystem, fs: RaycacheFileSystem, table: pa.Table, warm: bool) -> None:
    if warm:
        fs.cat("ds/table*", recursive=True)
    assert pq.read_table("ds/table.parquet", filesystem=arrow).equals(table)
    assert pq.read_table("ds/table.parquet", filesystem=arrow, columns=["text"]).equals(
        table.select(["text"])
    )
    dataset = pads.dataset("ds/tables", filesystem=arrow, format="parquet", partitioning="hive")
    assert dataset.count_rows() == table.num_rows
    assert (
        dataset.to_table(filter=pads.field("part") == 1)
        .sort_by("number")["number"]
        .equals(table.filter(pads.field("part") == 1)["number"])
    )


def test_what_is_complete_is_mapped(arrow: pafs.FileSystem, fs: RaycacheFileSystem, cache: Embedded) -> None:
    fs.cat_file("ds/a")
    allocated = pa.total_allocated_bytes()
    with arrow.open_input_file("ds/a") as file:
        buffer = file.read_buffer(SIZE)
    assert pa.total_allocated_bytes() == allocated
    # The lease is held by the bytes themselves, whatever became of the file.
    assert cache.stores["ds"].evict(lambda _: True) == 0
    part = buffer.slice(BLOCK, 10)
    del buffer, file
    gc.collect()
    assert cache.stores["ds"].evict(lambda _: True) == 0
    assert part.to_pybytes() == DATA[BLOCK : BLOCK + 10]
    del part
    gc.collect()
    assert cache.stores["ds"].evict(lambda _: True) > 0


def test_opening_fetches_nothing(arrow: pafs.FileSystem, cache: Embedded) -> None:
    with arrow.open_input_file("ds/a") as file:
        assert file.size() == SIZE
    assert cache.spies["ds"].reads == []


def test_own_handler(fs: RaycacheFileSystem, cache: Embedded) -> None:
    arrow = arrow_filesystem()
    assert isinstance(arrow.handler, RaycacheHandler)
    assert arrow.type_name == "py::fsspec+raycache"
    assert arrow.normalize_path("raycache://ds//deep/") == "ds/deep"
    assert isinstance(arrow.handler.open_input_file("ds/a"), pa.PythonFile)
    fs.cat_file("ds/a")
    assert isinstance(arrow.handler.open_input_file("ds/a"), pa.BufferReader)
    with pytest.raises(NotAFileError):
        arrow.open_input_file("ds/deep")
    pickled = pickle.dumps(arrow)
    assert len(pickled) < 400
    assert pickle.loads(pickled) == arrow
    assert arrow_filesystem("host:1234") != arrow


def test_urls_through_the_own_handler(fs: RaycacheFileSystem, table: pa.Table) -> None:
    assert pq.read_table("raycache://ds/table.parquet", filesystem=arrow_filesystem()).equals(table)


def test_urls_without_a_filesystem(fs: RaycacheFileSystem, table: pa.Table) -> None:
    assert pq.read_table("fsspec+raycache://ds/table.parquet").equals(table)
