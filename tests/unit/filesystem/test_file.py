"""An open file behaves as `io.BytesIO` over the same bytes, cold and warm, and costs nothing on top."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycache.errors import StaleObjectError
from raycache.filesystem import RaycacheFile, RaycacheFileSystem
from tests.support.embedded import BLOCK, Embedded, noise
from tests.unit.filesystem.conftest import DATA, LINES, SIZE

offsets = st.integers(0, len(LINES) + 50)
sizes = st.one_of(st.none(), st.integers(-1, 3 * BLOCK))
step = st.one_of(
    st.tuples(st.just("seek"), offsets),
    st.tuples(st.just("read"), sizes),
    st.tuples(st.just("readline"), sizes),
    st.tuples(st.just("readinto"), st.integers(0, 2 * BLOCK)),
    st.tuples(st.just("read_buffer"), sizes),
    st.tuples(st.just("read1"), st.integers(0, 1000)),
    st.tuples(st.just("from the end"), offsets),
    st.tuples(st.just("peek"), st.integers(1, 1000)),
)


def do(file: io.BufferedIOBase | io.BytesIO | RaycacheFile, name: str, argument: int | None) -> object:
    """One operation; the model lacks some."""
    model = isinstance(file, io.BytesIO)
    if name == "seek":
        return file.seek(argument or 0)
    if name == "from the end":
        return file.seek(-min(argument or 0, len(LINES)), io.SEEK_END)
    if name == "readinto":
        buffer = bytearray(argument or 0)
        return file.readinto(buffer), bytes(buffer)
    if name == "readline" and argument is None:
        argument = -1
    if name == "read_buffer":
        return file.read(argument) if model else file.read_buffer(argument).to_pybytes()  # type: ignore[union-attr]
    if name == "peek":
        data = file.read(argument) if model else file.peek(argument or 1)  # type: ignore[union-attr]
        return file.seek(-len(data), 1) if model else file.tell(), data
    return getattr(file, name)(argument)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=25), warm=st.booleans())
def test_as_bytesio(
    cache: Embedded, fs: RaycacheFileSystem, steps: list[tuple[str, int | None]], warm: bool
) -> None:
    cache.stores["ds"].purge()
    if warm:
        fs.cat_file("ds/lines.csv")
    model = io.BytesIO(LINES)
    with fs.open("ds/lines.csv") as file:
        for name, argument in steps:
            assert do(file, name, argument) == do(model, name, argument), name
            assert file.tell() == model.tell()


@pytest.mark.parametrize("warm", [True, False])
def test_lines(fs: RaycacheFileSystem, warm: bool) -> None:
    if warm:
        fs.cat_file("ds/lines.csv")
    expected = LINES.splitlines(keepends=True)
    with fs.open("ds/lines.csv") as file:
        assert list(file) == expected
        file.seek(0)
        assert file.readlines() == expected
        file.seek(0)
        assert file.readuntil(b",") == b"0,"
        assert file.readuntil(b"\n1,", blocks=7) == b"\n1,"
    with fs.open("ds/lines.csv", "rt", newline="") as text:
        assert [line.encode() for line in text] == expected


def test_what_it_says_of_itself(fs: RaycacheFileSystem) -> None:
    with fs.open("raycache://ds/a") as file:
        assert isinstance(file, io.BufferedIOBase)
        assert (file.mode, file.size, file.path, file.name) == ("rb", SIZE, "ds/a", "ds/a")
        assert file.full_name == "raycache://ds/a"
        assert file.info() == file.details == fs.info("ds/a")
        assert file.fs is fs
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert not file.isatty()
        assert "ds/a" in repr(file)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        with pytest.raises(io.UnsupportedOperation):
            file.truncate()
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 7)
        file.flush()


@pytest.mark.parametrize("warm", [True, False])
def test_closed(fs: RaycacheFileSystem, warm: bool) -> None:
    file = fs.open("ds/a")
    if warm:
        file.read()
        file.read_buffer()
    file.close()
    file.close()
    assert file.closed
    for call in (
        file.read,
        file.tell,
        file.readline,
        file.read_buffer,
        lambda: file.seek(0),
        lambda: file.read(0),
        lambda: file.readinto(bytearray(3)),
        lambda: file.readinto(bytearray(0)),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_forgotten_file_gives_its_lease_up(fs: RaycacheFileSystem, cache: Embedded) -> None:
    file = fs.open("ds/a")
    file.read()
    assert cache.stores["ds"].evict(lambda version: version.path == "a") == 0
    del file
    gc.collect()
    assert cache.stores["ds"].evict(lambda version: version.path == "a") > 0


def test_buffers_are_free_of_copies_and_outlive_file_and_eviction(
    fs: RaycacheFileSystem, cache: Embedded
) -> None:
    fs.cat_file("ds/a")
    file = fs.open("ds/a")
    allocated = pa.total_allocated_bytes()
    first, second = file.read_buffer(BLOCK), file.read_buffer()
    file.seek(0)
    again = file.read_buffer(BLOCK)
    assert first.address == again.address  # one mapping, no copy
    assert second.address == first.address + BLOCK
    assert pa.total_allocated_bytes() == allocated
    file.close()
    assert cache.stores["ds"].evict(lambda _: True) == 0  # the lease lasts as long as the buffers
    cache.stores["ds"].purge()
    assert first.to_pybytes() + second.to_pybytes() == DATA
    assert not first.is_mutable


def test_a_cold_buffer_is_right_too(fs: RaycacheFileSystem) -> None:
    with fs.open("ds/a") as file:
        file.seek(BLOCK)
        assert file.read_buffer(10).to_pybytes() == DATA[BLOCK : BLOCK + 10]
        assert file.mapped() is None
        assert file.read_buffer().to_pybytes() == DATA[BLOCK + 10 :]
    with fs.open("ds/empty") as file:
        assert file.read_buffer().size == 0
        assert file.read() == b""
        assert file.readline() == b""
        assert file.mapped().size == 0


def test_readinto_takes_any_writable_buffer(fs: RaycacheFileSystem) -> None:
    for _ in range(2):
        with fs.open("ds/a") as file:
            array = np.zeros(1000, dtype=np.int64)
            assert file.readinto(array) == 8000
            assert array.tobytes() == DATA[:8000]
            assert file.readinto(memoryview(bytearray(10))[2:5]) == 3
            file.read()


def test_a_disk_that_fails_is_read_round(fs: RaycacheFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with fs.open("ds/a") as file:
        assert file.read() == DATA
        broken, pread = file._fd, os.pread
        assert broken >= 0

        def failing(fd: int, *rest: int) -> bytes:
            if fd == broken:
                raise OSError(5, "Input/output error")
            return pread(fd, *rest)

        monkeypatch.setattr(os, "pread", failing)
        file.seek(100)
        assert file.read(1000) == DATA[100:1100]
        assert file.tell() == 1100


def test_one_version_per_handle(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    cold, warm = fs.open("ds/lines.csv"), fs.open("ds/a")
    assert warm.read() == DATA
    for name in ("a", "lines.csv"):
        (bucket_dir / name).write_bytes(noise(SIZE, 4))
    warm.seek(0)
    assert warm.read() == DATA
    with pytest.raises(StaleObjectError):
        cold.read()
    assert fs.cat_file("ds/lines.csv") == noise(SIZE, 4)
    cold.close()
    warm.close()


def test_pickled_with_its_version_and_position(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    with fs.open("ds/a") as file:
        file.seek(10)
        pickled = pickle.dumps(file)
        assert len(pickled) < 800
        with pickle.loads(pickled) as again:
            assert again.tell() == 10
            assert again.version == file.version
            assert again.read(5) == DATA[10:15]
    (bucket_dir / "lines.csv").write_bytes(LINES)
    with fs.open("ds/lines.csv") as file:
        pickled = pickle.dumps(file)
    (bucket_dir / "lines.csv").write_bytes(b"another version")
    fs.invalidate_cache()
    with pickle.loads(pickled) as again, pytest.raises(StaleObjectError):
        again.read()


def test_libraries_that_read_files(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    array = np.arange(50_000)
    np.save(bucket_dir / "array.npy", array)
    with zipfile.ZipFile(bucket_dir / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", LINES)
    (bucket_dir / "lines.gz").write_bytes(gzip.compress(LINES))
    (bucket_dir / "pickle").write_bytes(pickle.dumps(list(range(1000))))
    for _ in range(2):
        with fs.open("ds/array.npy") as file:
            assert (np.load(file) == array).all()
        with fs.open("ds/archive.zip") as file, zipfile.ZipFile(file) as archive:
            assert archive.read("member") == LINES
        with fs.open("ds/lines.gz", compression="infer") as file:
            assert file.read() == LINES
        with fs.open("ds/pickle") as file:
            assert pickle.load(file) == list(range(1000))
        with fs.open("ds/lines.csv") as file, io.BufferedReader(file) as buffered:  # type: ignore[type-var]
            assert buffered.read() == LINES


def test_small_random_reads_of_a_warm_file_ask_nobody(
    fs: RaycacheFileSystem, cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.cat_file("ds/a")
    chance = random.Random(3)
    with fs.open("ds/a") as file:
        file.read(1)
        # From here on a read is one system call: neither reader, engine nor client take part.
        monkeypatch.setattr(file, "_reader", None)
        for _ in range(100):
            offset = chance.randrange(SIZE)
            file.seek(offset)
            assert file.read(4096) == DATA[offset : offset + 4096]
        monkeypatch.undo()
