"""Filling: bytes first, checks, and what a failed write leaves behind."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crc32c import crc32c

from raycache.errors import CacheFullError, IntegrityError
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalStore, files, index
from tests.support.stores import BLOCK, Doing, allocated, content, opened, part, put, tier, version


def _flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_checksums_are_those_of_the_blocks(tmp_path: Path) -> None:
    of = version("a", 2.5)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        crcs = filling.write(range(3), content(of))
        assert crcs == [crc32c(part(of, range(i, i + 1))) for i in range(3)]
        for block in range(3):
            crc, data = filling.read(block)
            assert crc == crcs[block]
            assert data == part(of, range(block, block + 1))


@pytest.mark.parametrize("wrap", [bytearray, memoryview, pa.py_buffer, lambda b: np.frombuffer(b, np.uint8)])
def test_any_buffer_is_taken(tmp_path: Path, wrap: Any) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        filling.write(range(2), wrap(content(of)))
        assert filling.complete


def test_a_run_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, sizes = version("a", 8), []
    real = files.pwrite_all

    def counting(fd: int, data: memoryview, offset: int) -> None:
        sizes.append(len(data))
        real(fd, data, offset)

    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        monkeypatch.setattr(files, "pwrite_all", counting)
        filling.write(range(8), content(of))
    assert [size for size in sizes if size >= BLOCK] == [8 * BLOCK]


def test_wrong_length_and_wrong_checksums_are_refused(tmp_path: Path) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        data = content(of)
        good = [crc32c(data[:BLOCK]), crc32c(data[BLOCK:])]
        with pytest.raises(IntegrityError, match="were due"):
            filling.write(range(2), data[:-1])
        with pytest.raises(IntegrityError, match=r"\[1\]"):
            filling.write(range(2), data, [good[0], good[1] ^ 1])
        with pytest.raises(IntegrityError):
            filling.write(range(2), data, good[:1])
        assert filling.missing(range(2)) == [0, 1]
        assert filling.write(range(2), data, good) == good


def test_present_blocks_are_never_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = version("a", 3)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        filling.write(range(1, 2), part(of, range(1, 2)))
        written: list[int] = []
        real = files.pwrite_all
        monkeypatch.setattr(
            files, "pwrite_all", lambda fd, data, at: (written.append(at), real(fd, data, at))[1]
        )
        filling.write(range(3), content(of))
        assert BLOCK not in written
        assert filling.complete
        written.clear()
        filling.write(range(3), content(of))
        assert written == []


def test_other_bytes_of_the_same_version_are_refused(tmp_path: Path) -> None:
    of = version("a", 1)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        filling.write(range(1), content(of))
        with pytest.raises(IntegrityError, match="twice"):
            filling.write(range(1), bytes(of.size))
        assert filling.read(0)[1] == content(of)


def test_read_from_an_incomplete_file_is_a_copy_and_an_absent_block_an_error(tmp_path: Path) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        filling.write(range(1), part(of, range(1)))
        assert filling.read(0)[1] == part(of, range(1))
        with pytest.raises(IntegrityError, match="not in the local store"):
            filling.read(1)


def test_complete_file_that_cannot_be_mapped_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        filling = store.fill(of)
        with monkeypatch.context() as patch:

            def failing(*_: object, **__: object) -> None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            patch.setattr(mmap, "mmap", failing)
            assert filling.read(1)[1] == part(of, range(1, 2))
        Doing(filling.close).result()
        assert store.evict(lambda _: True) > 0


def test_complete_file_that_was_cut_is_an_error_and_can_be_closed(tmp_path: Path) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        filling = store.fill(of)
        os.truncate(index.data_path(store.paths[0], of.object_id), BLOCK)
        assert filling.read(0)[1] == part(of, range(1))
        with pytest.raises(IntegrityError, match="cannot be read"):
            filling.read(1)
        Doing(filling.close).result()
        assert store.evict(lambda _: True) > 0


def test_bytes_read_stay_valid_when_the_object_is_gone(tmp_path: Path) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
        with store.fill(of) as filling:
            _, data = filling.read(1)
        store.purge()
        assert data == part(of, range(1, 2))


def test_fill_that_came_to_nothing_leaves_no_file(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 20)) as store:
        with store.fill(version("a")) as filling:
            assert filling.missing(range(4)) == [0, 1, 2, 3]
        assert store.objects() == []
        assert store.usage()[0].used == 0
        assert allocated(tmp_path) == 0


class _FullDevice:
    """`os.pwrite` that writes half of the first large write and then says that the device is full."""

    def __init__(self, times: int, code: int = errno.ENOSPC) -> None:
        self.left, self.code = times, code
        self._real = os.pwrite

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        if len(data) < BLOCK // 2 or not self.left:
            return self._real(fd, data, offset)
        if len(data) == BLOCK // 2:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self._real(fd, data[: len(data) - BLOCK // 2], offset)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failed_write_leaves_the_blocks_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    of = version("a", 4)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        filling.write(range(1), part(of, range(1)))
        used = store.usage()[0].used
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", _FullDevice(99, code))
            with pytest.raises(CacheFullError, match=os.strerror(code)):
                filling.write(range(1, 3), part(of, range(1, 3)))
        assert filling.missing(range(4)) == [1, 2, 3]
        assert store.usage()[0].used == used
        assert allocated(tmp_path) <= used
        put(store, of)
        assert filling.complete


def test_full_device_evicts_once_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, version("old"))
        with store.fill(version("new")) as filling:
            monkeypatch.setattr(os, "pwrite", _FullDevice(1))
            filling.write(range(4), content(version("new")))
            assert filling.complete
        assert [status.version.path for status in store.objects()] == ["new"]


def test_failed_index_write_leaves_nothing_that_could_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("a", 2)
    with opened(tier(tmp_path, 20)) as store:
        with store.fill(of) as filling:

            def broken(*_: object) -> None:
                raise OSError(errno.EIO, "broken")

            with monkeypatch.context() as patch:
                patch.setattr(index, "write_states", broken)
                with pytest.raises(CacheFullError):
                    filling.write(range(2), content(of))
            assert filling.missing(range(2)) == [0, 1]
            filling.write(range(2), content(of))
            assert filling.complete
        assert allocated(tmp_path) <= store.usage()[0].used


def test_index_that_cannot_be_made_means_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tier(tmp_path, 20)) as store:
        monkeypatch.setattr(os, "ftruncate", broken)
        with pytest.raises(CacheFullError, match="No space"):
            store.fill(version("a"))
        assert store.usage()[0].used == 0
        assert store.objects() == []
        assert list(tmp_path.rglob("*.*")) == []


def test_recheck_drops_a_block_that_rotted(tmp_path: Path) -> None:
    of, metrics = version("a", 3), Metrics()
    with opened(tier(tmp_path, 20), metrics=metrics) as store:
        put(store, of)
        used = store.usage()[0].used
        with store.lease(of) or pytest.fail("no lease") as file, store.fill(of) as filling:
            assert file.complete
            _flip(file.path, BLOCK + 77)
            assert filling.recheck(range(3)) == [1]
            assert metrics.snapshot()[CORRUPT_BLOCKS] == 1
            assert not filling.complete
            assert filling.missing(range(3)) == [1]
            with store.lease(of) or pytest.fail("no lease") as late:
                assert not late.complete
                assert not late.has(range(1, 2))
            before = os.fstat(file.fileno()).st_blocks
            filling.write(range(1, 2), part(of, range(1, 2)))
            # The file had been complete, so somebody may have it mapped: mended in place, nothing ever punched.
            assert os.fstat(file.fileno()).st_blocks == before
            assert file.pread(0, of.size) == content(of)
        assert store.usage()[0].used == used


def test_secondary_becomes_primary_and_not_back(tmp_path: Path) -> None:
    def kinds(store: LocalStore) -> list[bool]:
        return [status.secondary for status in store.objects()]

    of = version("a")
    with opened(tier(tmp_path, 20)) as store:
        put(store, of, secondary=True)
        assert kinds(store) == [True]
        put(store, of)
        put(store, of, secondary=True)
        assert kinds(store) == [False]
    with opened(tier(tmp_path, 20)) as store:
        assert kinds(store) == [False]


# -- receiving piece by piece ----------------------------------------------------------------------------------


def test_pieces_become_present_together(tmp_path: Path) -> None:
    of = version("a", 3.5)
    with (
        opened(tier(tmp_path, 20)) as store,
        store.fill(of) as filling,
        store.lease(of) or pytest.fail("no lease") as file,
    ):
        with filling.receive(range(1, 4)) or pytest.fail("not received") as receiver:
            data = memoryview(part(of, range(1, 4)))
            receiver.feed(data[:7])
            receiver.restart()  # the connection broke
            for start in range(0, len(data), 50_001):
                receiver.feed(data[start : start + 50_001])
            assert not file.has(range(1, 2))
            crcs = receiver.commit()
        assert file.has(range(1, 4))
        assert file.pread(BLOCK, 9**9) == part(of, range(1, 4))
        assert crcs == [filling.read(block)[0] for block in range(1, 4)]
        assert filling.recheck(range(4)) == []


def test_pieces_that_did_not_all_arrive_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("a", 3)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        used = store.usage()[0].used
        data = memoryview(content(of))
        with filling.receive(range(3)) or pytest.fail("not received") as receiver:
            receiver.feed(data[: 2 * BLOCK])
            with pytest.raises(IntegrityError, match="were due"):
                receiver.commit()
            with pytest.raises(IntegrityError, match="more bytes"):
                receiver.feed(data)
        monkeypatch.setattr(os, "pwrite", _FullDevice(99))
        with (
            filling.receive(range(3)) or pytest.fail("not received") as receiver,
            pytest.raises(CacheFullError, match="No space"),
        ):
            receiver.feed(data)
        assert filling.missing(range(3)) == [0, 1, 2]
        assert store.usage()[0].used == used >= allocated(tmp_path)


def test_only_absent_blocks_of_a_file_that_was_never_complete_are_received(tmp_path: Path) -> None:
    of = version("a", 3)
    with opened(tier(tmp_path, 20)) as store:
        with store.fill(of) as filling:
            filling.write(range(1), part(of, range(1)))
            assert filling.receive(range(2)) is None
            filling.write(range(3), content(of))
        _flip(index.data_path(store.paths[0], of.object_id), BLOCK)
        with store.fill(of) as filling:
            assert filling.recheck(range(3)) == [1]
            assert filling.receive(range(1, 2)) is None


def test_nothing_is_received_without_room(tmp_path: Path) -> None:
    with (
        opened(tier(tmp_path, 20)) as store,
        store.fill(version("a", 15)) as other,
        store.fill(version("b", 5)) as filling,
    ):
        other.write(range(15), content(version("a", 15)))
        assert filling.receive(range(5)) is None


def test_write_verifies_what_an_earlier_process_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = version("a", 3)
    with opened(tier(tmp_path, 20)) as store:
        put(store, of)
    _flip(index.data_path(str(tmp_path), of.object_id), BLOCK)
    with opened(tier(tmp_path, 20)) as store, store.fill(of) as filling:
        assert filling.receive(range(3)) is None
        written: list[int] = []
        real = files.pwrite_all
        monkeypatch.setattr(
            files, "pwrite_all", lambda fd, data, at: (written.append(at), real(fd, data, at))[1]
        )
        filling.write(range(3), content(of))
        assert BLOCK in written
        assert 2 * BLOCK not in written
        assert filling.complete
