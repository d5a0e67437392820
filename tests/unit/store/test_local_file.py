"""Reading: leases, bounds, views, and never a byte that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raycache.errors import CacheFullError, IntegrityError
from raycache.store import LocalFile, StoreView, files, index
from tests.support.stores import BLOCK, content, opened, part, put, tier, version


def test_complete_file_reads_like_the_object(tmp_path: Path) -> None:
    of = version("a", 3.5)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        with StoreView(store.paths).open(of) or pytest.fail("no lease") as file:
            data = content(of)
            assert file.complete
            assert file.has(range(of.block_count))
            assert file.version == of
            assert Path(file.path).read_bytes() == data
            assert file.pread(0, of.size) == data
            assert file.pread(0, of.size + 10**12) == data
            assert file.pread(of.size - 3, 100) == data[-3:]
            assert file.pread(of.size, 1) == b""
            assert file.pread(of.size + 5, 1) == b""
            buffer = bytearray(100)
            assert file.preadv_into(BLOCK - 50, memoryview(buffer)) == 100
            assert buffer == data[BLOCK - 50 : BLOCK + 50]
            assert file.preadv_into(of.size - 7, memoryview(buffer)) == 7
            assert file.preadv_into(of.size + 7, memoryview(buffer)) == 0
            assert os.pread(file.fileno(), 10, 5) == data[5:15]


def test_views_outlive_the_lease(tmp_path: Path) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        file = store.lease(of)
        assert file is not None
        view = file.view(10, 20)
        array = np.frombuffer(file.view(0, of.size), dtype=np.uint8)
        file.close()
        assert store.evict(lambda _: True) == 0, "a view in use keeps the lease"
        store.purge()
        assert view == content(of)[10:30]
        assert array.tobytes() == content(of)
        assert view.readonly
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_missing_blocks_are_an_error_and_not_zeros(tmp_path: Path) -> None:
    of = version("a", 4)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of, range(1, 3))
        with store.lease(of) or pytest.fail("no lease") as file:
            assert not file.complete
            assert file.has(range(1, 3))
            assert not file.has(range(3))
            assert not file.has(range(2, 4))
            assert file.pread(BLOCK, 2 * BLOCK) == part(of, range(1, 3))
            for offset, length in ((0, 1), (BLOCK - 1, 2), (3 * BLOCK - 1, 2), (3 * BLOCK, 1)):
                with pytest.raises(IntegrityError, match="not in the local store"):
                    file.pread(offset, length)
                with pytest.raises(IntegrityError):
                    file.preadv_into(offset, memoryview(bytearray(length)))
                with pytest.raises(IntegrityError):
                    file.view(offset, length)


def test_a_view_keeps_the_blocks_of_an_incomplete_file(tmp_path: Path) -> None:
    of, other = version("a", 8), version("b", 8)
    with opened(tier(tmp_path, 10)) as store:
        put(store, of, range(4))
        with store.lease(of) or pytest.fail("no lease") as file:
            view = file.view(BLOCK, 2 * BLOCK)
        # The file is closed; what is left of the lease is in the view. There is room for one of the two objects.
        with pytest.raises(CacheFullError):
            put(store, other, range(8))
        assert view == part(of, range(1, 3))
        del view
        put(store, other, range(8))
        assert not any(store.contains(of)[:4])


def test_a_reader_sees_blocks_arrive(tmp_path: Path) -> None:
    of = version("a", 2)
    with (
        opened(tier(tmp_path, 20)) as store,
        store.fill(of) as filling,
        store.lease(of) or pytest.fail("no lease") as file,
    ):
        assert not file.has(range(1))
        filling.write(range(1), part(of, range(1)))
        assert file.has(range(1))
        assert not file.complete
        filling.write(range(1, 2), part(of, range(1, 2)))
        assert file.complete
        assert bytes(file.view(0, of.size)) == content(of)


def test_empty_object_is_complete_at_once(tmp_path: Path) -> None:
    of = version("empty", 0)
    with opened(tier(tmp_path, 20)) as store:
        with store.fill(of) as filling:
            assert filling.complete
            assert filling.missing(range(0)) == []
            assert filling.write(range(0), b"") == []
        with store.lease(of) or pytest.fail("no lease") as file:
            assert file.complete
            assert file.has(range(0))
            assert file.pread(0, 10) == b""
            assert file.view(0, 10) == b""
            assert file.preadv_into(0, memoryview(bytearray(3))) == 0
        assert store.contains(of) == []
        assert [(status.complete, status.bytes_cached) for status in store.objects()] == [(True, 0)]


def test_nothing_cached_is_no_file(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "a", 20)) as store:
        put(store, version("a"))
        view = StoreView([*store.paths, str(tmp_path / "none")])
        assert view.open(version("a", etag='"2"')) is None
        assert view.open(version("b")) is None


def test_a_locked_file_is_not_handed_out(tmp_path: Path) -> None:
    of = version("a")
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        fd = files.open_file(index.data_path(store.paths[0], of.object_id))
        assert files.try_lock(fd, exclusive=True)
        assert store.lease(of) is None
        os.close(fd)
        held = store.lease(of)
        assert held is not None
        held.close()
        held.close()


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_damaged_index_is_no_file(tmp_path: Path, keep: int) -> None:
    of = version("a")
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        path = Path(index.index_path(store.paths[0], of.object_id))
        path.write_bytes(path.read_bytes()[:keep])
        assert store.lease(of) is None


def test_blocks_of_another_boot_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash of the machine the states may have reached the disk and the bytes not."""
    of = version("a")
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot, 16")
    with StoreView([str(tmp_path)]).open(of) or pytest.fail("no lease") as file:
        assert not file.complete
        assert not file.has(range(1))
        with pytest.raises(IntegrityError):
            file.pread(0, 1)
        with opened(tier(tmp_path, 20)) as store:
            assert not file.has(range(1)), "adopted, but not verified"
            with store.fill(of) as filling:
                assert filling.missing(range(2)) == []
            assert file.has(range(2))
            assert not file.has(range(3))
            assert not file.complete


def test_where_the_kernel_names_no_boot_only_this_process_trusts_its_files(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "boot_id")
    assert files._boot_id(nowhere) == files._boot_id(nowhere)
    code = "import sys; from raycache.store import files; print(files._boot_id(sys.argv[1]).hex())"
    other = subprocess.run([sys.executable, "-c", code, nowhere], check=True, capture_output=True, text=True)
    assert len(files._boot_id(nowhere)) == 16
    assert bytes.fromhex(other.stdout) != files._boot_id(nowhere)


def test_repr_names_the_file(tmp_path: Path) -> None:
    of = version("some/path")
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        with store.lease(of) or pytest.fail("no lease") as file:
            assert isinstance(file, LocalFile)
            assert "ds/some/path" in repr(file)
