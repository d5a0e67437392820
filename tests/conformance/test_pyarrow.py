"""What reads files through pyarrow gets from raycache what a local directory gives it.

Every test runs against pyarrow's own `LocalFileSystem` and against raycache over the same files, cold and warm: through
its own handler and through the one that pyarrow makes for an fsspec filesystem.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.feather
import pyarrow.fs as pafs
import pyarrow.json
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from raycache.filesystem import RaycacheFileSystem, arrow_filesystem
from tests.support.embedded import BLOCK, Embedded, dataset_of, noise
from tests.support.leaks import lasting

SIZE = 3 * BLOCK + 777
DATA = noise(SIZE)
ROWS = 6_000
KINDS = ["local", "raycache", "raycache, warm", "fsspec", "fsspec, warm"]
TABLE = pa.table(
    {
        "number": pa.array(range(ROWS), pa.int64()),
        "text": pa.array([f"row {number}" for number in range(ROWS)]),
        "part": pa.array([f"p{number % 3}" for number in range(ROWS)]),
    }
)


def _fill(root: Path) -> None:
    """The files that both sides have below `ds`."""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a").write_bytes(DATA)
    (root / "empty").write_bytes(b"")
    (root / "odd sp ace ü#%25+").write_bytes(b"odd")
    (root / "deep" / "one").write_bytes(b"one")
    (root / "deep" / "er" / "two").write_bytes(b"two")
    pq.write_table(TABLE, root / "t.parquet", row_group_size=ROWS // 4)
    pa.csv.write_csv(TABLE, root / "t.csv")
    pa.feather.write_feather(TABLE, root / "t.feather", compression="uncompressed")
    pa.orc.write_table(TABLE, root / "t.orc")
    (root / "t.json").write_text("".join(f'{{"number": {number}}}\n' for number in range(ROWS)))
    with pa.OSFile(str(root / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=ROWS // 4)
    with pa.CompressedOutputStream(str(root / "z.gz"), "gzip") as compressed:
        compressed.write(DATA)
    pq.write_to_dataset(TABLE, root / "hive", partition_cols=["part"])


@pytest.fixture(scope="module", autouse=True)
def _csv_opened_its_pipe() -> None:
    """pyarrow's CSV reader opens a pipe, for signals, once per process."""
    with lasting():
        pa.csv.read_csv(pa.BufferReader(b"a\n1\n"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of the directory `ds`. No test changes what is in it."""
    root = tmp_path_factory.mktemp("root")
    _fill(root / "ds")
    return root


@pytest.fixture(params=KINDS)
def arrow(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pafs.FileSystem]:
    """A filesystem in which those files are at `ds/...`."""
    kind, _, warm = request.param.partition(", ")
    if kind == "local":
        yield pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
        return
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{root / 'ds'}"})) as cache:
        monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: cache.client)
        RaycacheFileSystem.clear_instance_cache()
        if warm:
            fs = RaycacheFileSystem()
            fs.cat(fs.find("ds"))
        yield (
            arrow_filesystem() if kind == "raycache" else pafs.FileSystem.from_uri("fsspec+raycache://ds")[0]
        )
        RaycacheFileSystem.clear_instance_cache()


# -- names ---------------------------------------------------------------------------------------------------------


def _described(info: pafs.FileInfo) -> tuple[Any, ...]:
    size = info.size if info.type == pafs.FileType.File else None
    return info.path, info.type, size, info.base_name, info.extension, info.is_file


def test_info_of_files_directories_and_nothing(arrow: pafs.FileSystem, root: Path) -> None:
    paths = ["ds/a", "ds/empty", "ds/deep", "ds/deep/er", "ds/nothing", "ds/a/below", "ds/odd sp ace ü#%25+"]
    infos = arrow.get_file_info(paths)
    file, directory, nothing = pafs.FileType.File, pafs.FileType.Directory, pafs.FileType.NotFound
    assert [info.path for info in infos] == paths
    assert [info.type for info in infos] == [file, file, directory, directory, nothing, nothing, file]
    assert [info.size for info in infos if info.is_file] == [SIZE, 0, 3]
    # fsspec gives times as floats of seconds: near today they are 238 ns apart.
    assert abs(infos[0].mtime_ns - (root / "ds" / "a").stat().st_mtime_ns) < 1000
    assert arrow.get_file_info("ds/a").path == "ds/a", "one path gives one answer"
    assert arrow.get_file_info([]) == []


@pytest.mark.parametrize("recursive", [False, True])
def test_selectors(arrow: pafs.FileSystem, root: Path, recursive: bool) -> None:
    expected = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    for base in ("ds", "ds/deep", "ds/deep/er", "ds/hive"):
        selector = pafs.FileSelector(base, recursive=recursive)
        found = sorted(map(_described, arrow.get_file_info(selector)))
        assert found == sorted(map(_described, expected.get_file_info(selector)))


def test_selectors_of_what_is_not_there(arrow: pafs.FileSystem) -> None:
    assert arrow.get_file_info(pafs.FileSelector("ds/nothing", allow_not_found=True)) == []
    assert arrow.get_file_info(pafs.FileSelector("ds/nothing", allow_not_found=True, recursive=True)) == []
    with pytest.raises(FileNotFoundError):
        arrow.get_file_info(pafs.FileSelector("ds/nothing"))
    with pytest.raises(OSError, match="ds/a"):
        arrow.get_file_info(pafs.FileSelector("ds/a"))


def test_normal_paths_stay(arrow: pafs.FileSystem) -> None:
    for path in ("ds", "ds/a", "ds/deep/er/two", "ds/odd sp ace ü#%25+"):
        assert arrow.normalize_path(path) == path


def test_equality_and_pickling(arrow: pafs.FileSystem) -> None:
    again = pickle.loads(pickle.dumps(arrow))
    assert again == arrow
    assert arrow.equals(again)
    assert arrow != pafs.LocalFileSystem()
    with again.open_input_file("ds/a") as file:
        assert file.read() == DATA


# -- files -----------------------------------------------------------------------------------------------------------


def test_input_file_reads_and_seeks(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_file("ds/a") as file:
        assert (file.readable(), file.writable(), file.seekable(), file.closed) == (True, False, True, False)
        assert (file.size(), file.tell()) == (SIZE, 0)
        assert file.read(10) == DATA[:10]
        assert file.tell() == 10
        assert file.read(0) == b""
        assert file.seek(100) == 100
        assert file.read(BLOCK) == DATA[100 : 100 + BLOCK]
        assert file.seek(5, os.SEEK_CUR) == 105 + BLOCK
        assert file.seek(-7, os.SEEK_END) == SIZE - 7
        assert file.read() == DATA[-7:]
        assert file.read() == b""
        assert file.read(5) == b""
        assert file.tell() == SIZE


def test_positioned_reads(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_file("ds/a") as file:
        for offset, length in ((0, 1), (BLOCK - 1, 2), (5, 2 * BLOCK), (SIZE - 3, 3), (SIZE, 5), (7, 0)):
            assert file.read_at(length, offset) == DATA[offset : offset + length]
        assert file.read_at(100, SIZE - 3) == DATA[-3:], "short at the end only"


def test_into_buffers(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_file("ds/a") as file:
        target = bytearray(BLOCK + 3)
        assert file.readinto(target) == len(target)
        assert target == DATA[: len(target)]
        file.seek(-5, os.SEEK_END)
        assert file.readinto(target) == 5
        assert target[:5] == DATA[-5:]
        assert file.readinto(target) == 0
        file.seek(0)
        buffer = file.read_buffer(BLOCK)
        rest = file.read_buffer()
    assert buffer.to_pybytes() + rest.to_pybytes() == DATA, "buffers outlive the file"


def test_whole_and_in_pieces(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_stream("ds/a") as stream:
        assert stream.read(3) == DATA[:3]
        assert stream.readall() == DATA[3:]
        assert stream.read(1) == b""
    pieces = []
    with arrow.open_input_stream("ds/a") as stream:
        while piece := stream.read(10_007):
            pieces.append(piece)
    assert b"".join(pieces) == DATA
    with arrow.open_input_stream("ds/a", buffer_size=4096) as stream:
        assert stream.read(BLOCK) == DATA[:BLOCK]
    with arrow.open_input_file("ds/empty") as empty:
        assert (empty.size(), empty.read(), empty.read_at(5, 0)) == (0, b"", b"")
    with arrow.open_input_stream("ds/empty") as empty:
        assert empty.readall() == b""


def test_compressed_streams(arrow: pafs.FileSystem, root: Path) -> None:
    with arrow.open_input_stream("ds/z.gz") as stream:  # told by its extension
        assert stream.readall() == DATA
    with arrow.open_input_stream("ds/z.gz", compression=None) as stream:
        assert stream.readall() == (root / "ds" / "z.gz").read_bytes()


def test_downloads(arrow: pafs.FileSystem, tmp_path: Path) -> None:
    with arrow.open_input_file("ds/a") as file:
        file.download(str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


@pytest.mark.parametrize("open_", ["open_input_file", "open_input_stream"])
def test_closed_files(arrow: pafs.FileSystem, open_: str) -> None:
    file = getattr(arrow, open_)("ds/a")
    with file as same:
        assert same is file
    assert file.closed
    file.close()  # once more is no error
    for name in ("read", "readall", "tell", "read_buffer"):
        with pytest.raises(ValueError, match="closed"):
            getattr(file, name)()


@pytest.mark.parametrize("open_", ["open_input_file", "open_input_stream"])
def test_what_cannot_be_opened(arrow: pafs.FileSystem, open_: str) -> None:
    for path in ("ds/nothing", "ds/a/below"):
        with pytest.raises(OSError, match="ds/"):
            getattr(arrow, open_)(path)
    with pytest.raises(FileNotFoundError):
        getattr(arrow, open_)("ds/nothing")
    with pytest.raises(OSError, match="ds/deep"):
        getattr(arrow, open_)("ds/deep")


def test_threads_have_files_of_their_own(arrow: pafs.FileSystem) -> None:
    def read(start: int) -> bytes:
        with arrow.open_input_file("ds/a") as file:
            return bytes(file.read_at(20_000, start))

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(read, range(0, SIZE, 20_000)))
    assert b"".join(parts) == DATA


def test_threads_share_a_file(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_file("ds/a") as file, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: bytes(file.read_at(9_999, start)), range(0, SIZE, 9_999)))
    assert b"".join(parts) == DATA


# -- formats ---------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Any], pa.Table]] = {
    "t.parquet": pq.read_table,
    "t.feather": pa.feather.read_table,
    "t.csv": pa.csv.read_csv,
    "t.orc": lambda file: pa.orc.ORCFile(file).read(),
    "t.arrow": lambda file: pa.ipc.open_file(file).read_all(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(arrow: pafs.FileSystem, name: str) -> None:
    with arrow.open_input_file(f"ds/{name}") as file:
        assert FORMATS[name](file).equals(TABLE)


def test_json(arrow: pafs.FileSystem) -> None:
    with arrow.open_input_stream("ds/t.json") as stream:
        assert pa.json.read_json(stream).equals(TABLE.select(["number"]))


def test_parquet_in_parts(arrow: pafs.FileSystem) -> None:
    file = pq.ParquetFile("ds/t.parquet", filesystem=arrow, pre_buffer=True)
    with file:
        assert file.metadata.num_row_groups == 4
        assert file.read_row_group(2, columns=["number"])["number"].to_pylist() == list(
            range(ROWS // 2, ROWS * 3 // 4)
        )
        assert sum(batch.num_rows for batch in file.iter_batches(1000)) == ROWS
    assert pq.read_schema("ds/t.parquet", filesystem=arrow).names == TABLE.column_names


@pytest.mark.parametrize("format_", ["parquet", "csv", "feather", "orc"])
def test_dataset_of_a_file(arrow: pafs.FileSystem, format_: str) -> None:
    dataset = pads.dataset(f"ds/t.{format_}", filesystem=arrow, format=format_)
    assert dataset.count_rows() == ROWS
    assert dataset.to_table(columns=["number"], filter=pads.field("number") < 5)["number"].to_pylist() == [
        *range(5)
    ]
    assert dataset.files == [f"ds/t.{format_}"]


def test_partitions_are_discovered(arrow: pafs.FileSystem, root: Path) -> None:
    dataset = pads.dataset("ds/hive", filesystem=arrow, format="parquet", partitioning="hive")
    assert {Path(file).parent.name for file in dataset.files} == {"part=p0", "part=p1", "part=p2"}
    rows = dataset.to_table(filter=pads.field("part") == "p1").sort_by("number")
    assert rows["number"].to_pylist() == list(range(1, ROWS, 3))
    assert len(list(dataset.get_fragments(filter=pads.field("part") == "p1"))) == 1
    again = pickle.loads(pickle.dumps(dataset))
    assert again.count_rows() == ROWS
    assert pq.read_table("ds/hive", filesystem=arrow).num_rows == ROWS


# -- writing (raycache alone: a directory can be written) ------------------------------------------------------------

WRITES: dict[str, Callable[[pafs.FileSystem], Any]] = {
    "output": lambda fs: fs.open_output_stream("ds/new"),
    "append": lambda fs: fs.open_append_stream("ds/a"),
    "create_dir": lambda fs: fs.create_dir("ds/new", recursive=True),
    "delete_dir": lambda fs: fs.delete_dir("ds/deep"),
    "delete_dir_contents": lambda fs: fs.delete_dir_contents("ds/deep"),
    "delete_file": lambda fs: fs.delete_file("ds/a"),
    "move": lambda fs: fs.move("ds/a", "ds/b"),
    "copy_file": lambda fs: fs.copy_file("ds/a", "ds/b"),
    "write_table": lambda fs: pq.write_table(TABLE, "ds/new.parquet", filesystem=fs),
    "write_dataset": lambda fs: pads.write_dataset(TABLE, "ds/new", filesystem=fs, format="parquet"),
}


@pytest.mark.parametrize("arrow", KINDS[1:], indirect=True)
@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_refused(arrow: pafs.FileSystem, root: Path, write: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(OSError, match="read-only"):
        WRITES[write](arrow)
    assert sorted(root.rglob("*")) == before
    assert (root / "ds" / "a").read_bytes() == DATA
