"""What a program sees of files that change in the store while it reads them: one version, or ESTALE."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from raycache.blocks import MiB
from tests.support.embedded import noise
from tests.support.fusemount import BLOCK, SMALL, FuseMount
from tests.support.waiting import until

LARGE = 3 * SMALL
"""Bytes of a file that is not fetched by its open."""

FAR = LARGE - BLOCK
"""An offset that no readahead of a read at 0 comes to."""


@pytest.fixture(params=["kernel", "user space"])
def kernel(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel may read files itself."""
    return bool(request.param == "kernel")


def test_overwritten_while_open_and_cached(fuse: FuseMount, kernel: bool) -> None:
    old = fuse.put("file", noise(MiB, 1))
    fuse.start(metadata_ttl=0.0, passthrough=kernel)
    with open(fuse.point / "file", "rb", buffering=0) as file:
        assert file.read() == old
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        new = fuse.put("file", noise(2 * MiB, 2))
        with open(fuse.point / "file", "rb") as again:
            assert again.read() == new
            assert os.fstat(again.fileno()).st_ino != os.fstat(file.fileno()).st_ino
            assert os.fstat(again.fileno()).st_size == 2 * MiB
        assert os.pread(file.fileno(), 4 * MiB, 0) == old
        assert os.fstat(file.fileno()).st_size == MiB
        assert view[:] == old
        view.close()
    fuse.unmount()


def read(fd: int, offset: int) -> tuple[bytes, int]:
    """What a read of 1 MiB gives, and its errno."""
    try:
        return os.pread(fd, MiB, offset), 0
    except OSError as error:
        return b"", error.errno or -1


@pytest.mark.parametrize("change", ["overwrite", "truncate", "delete", "write in place"])
def test_changed_while_open_and_not_cached(fuse: FuseMount, kernel: bool, change: str) -> None:
    old = fuse.put("file", noise(LARGE, 1))
    fuse.start(metadata_ttl=300.0, passthrough=kernel)
    source = fuse.source / "file"
    with open(fuse.point / "file", "rb", buffering=0) as file:
        assert file.read(BLOCK) == old[:BLOCK]
        assert fuse.cached_bytes("file") < LARGE
        if change == "overwrite":
            fuse.put("file", noise(LARGE, 2))
        elif change == "truncate":
            os.truncate(source, MiB)
        elif change == "delete":
            source.unlink()
        else:
            with open(source, "r+b") as writer:
                writer.seek(FAR)
                writer.write(b"new")
        with pytest.raises(OSError) as failed:  # noqa: PT011 - the number is what is compared
            os.pread(file.fileno(), BLOCK, FAR)
        assert failed.value.errno == errno.ESTALE
        assert os.pread(file.fileno(), BLOCK, 0) == old[:BLOCK]  # what is cached still is
        # Nothing else ever comes, whatever is asked for.
        for offset in range(0, LARGE, MiB):
            got, code = read(file.fileno(), offset)
            assert code in (0, errno.ESTALE)
            # A read that comes to what is not there any more ends before it, as read(2) does.
            assert old[offset : offset + MiB].startswith(got)
        # Who has been told ESTALE and opens it again gets what is there now, whatever was to be believed.
        if change == "delete":
            with pytest.raises(FileNotFoundError):
                open(fuse.point / "file", "rb").close()
        else:
            with open(fuse.point / "file", "rb") as again:
                assert again.read() == source.read_bytes()
    fuse.unmount()


def test_deleted_while_open_and_cached(fuse: FuseMount, kernel: bool) -> None:
    old = fuse.put("file", noise(MiB, 1))
    fuse.start(metadata_ttl=0.0, passthrough=kernel)
    with open(fuse.point / "file", "rb", buffering=0) as file:
        assert file.read() == old
        (fuse.source / "file").unlink()
        with pytest.raises(FileNotFoundError):
            (fuse.point / "file").read_bytes()
        assert os.listdir(fuse.point) == []
        assert os.pread(file.fileno(), MiB, 0) == old
        assert os.fstat(file.fileno()).st_size == MiB
    fuse.unmount()


def test_a_small_file_that_changed_before_its_open(fuse: FuseMount, kernel: bool) -> None:
    fuse.put("file", noise(MiB, 1))
    fuse.start(metadata_ttl=300.0, passthrough=kernel)
    assert (fuse.point / "file").stat().st_size == MiB  # known, and not fetched
    new = fuse.put("file", noise(MiB + 1, 2))
    if kernel:  # the open finds out, and the VFS looks the name up again
        assert (fuse.point / "file").read_bytes() == new
    else:  # the open asks nobody, and the first read finds out
        with pytest.raises(OSError, match="Stale"):
            (fuse.point / "file").read_bytes()
        assert (fuse.point / "file").read_bytes() == new
    fuse.unmount()


# -- when a change is seen --------------------------------------------------------------------------------------------


def test_a_change_is_seen_when_the_ttl_is_over(fuse: FuseMount, kernel: bool) -> None:
    old = fuse.put("file", noise(MiB, 1))
    fuse.start(metadata_ttl=1.0, passthrough=kernel)
    assert (fuse.point / "file").read_bytes() == old
    new = fuse.put("file", noise(MiB, 2))

    def changed() -> bool:
        found = (fuse.point / "file").read_bytes()
        assert found in (old, new)
        return found == new

    until(changed, "the new version is seen")
    fuse.unmount()


def test_within_the_ttl_the_old_version_is_believed(fuse: FuseMount, kernel: bool) -> None:
    old = fuse.put("d/file", noise(MiB, 1))
    fuse.start(metadata_ttl=300.0, passthrough=kernel)
    assert (fuse.point / "d/file").read_bytes() == old
    assert os.listdir(fuse.point / "d") == ["file"]
    fuse.put("d/file", noise(MiB, 2))
    fuse.put("d/more", b"more")
    assert (fuse.point / "d/file").read_bytes() == old
    assert os.listdir(fuse.point / "d") == ["file"]
    fuse.unmount()


def test_strict_sees_every_change_at_once(fuse: FuseMount, kernel: bool) -> None:
    fuse.put("file", b"")
    fuse.start(consistency_mode="strict", passthrough=kernel)
    for number in range(10):
        new = fuse.put("file", noise(1000 + number, number))
        assert (fuse.point / "file").read_bytes() == new
        assert (fuse.point / "file").stat().st_size == len(new)
        fuse.put(f"more-{number}", b"")
        assert len(os.listdir(fuse.point)) == number + 2
    (fuse.source / "file").unlink()
    assert not (fuse.point / "file").exists()
    fuse.put("file", b"back")
    assert (fuse.point / "file").read_bytes() == b"back"
    fuse.unmount()


def test_immutable_never_asks_again(fuse: FuseMount, kernel: bool) -> None:
    old = fuse.put("file", noise(MiB, 1))
    fuse.start(consistency_mode="immutable", metadata_ttl=0.0, passthrough=kernel)
    assert (fuse.point / "file").read_bytes() == old
    assert os.listdir(fuse.point) == ["file"]
    fuse.put("file", noise(MiB, 2))
    fuse.put("more", b"")
    assert (fuse.point / "file").read_bytes() == old
    assert os.listdir(fuse.point) == ["file"]
    fuse.unmount()


def test_a_file_becomes_a_directory_and_a_file_again(fuse: FuseMount) -> None:
    fuse.put("name", b"file")
    fuse.start(metadata_ttl=0.0)
    with open(fuse.point / "name", "rb") as file:
        (fuse.source / "name").unlink()
        fuse.put("name/inside", b"inside")
        assert (fuse.point / "name/inside").read_bytes() == b"inside"
        assert file.read() == b"file"
    (fuse.source / "name/inside").unlink()
    (fuse.source / "name").rmdir()
    fuse.put("name", b"file again")
    assert (fuse.point / "name").read_bytes() == b"file again"
    fuse.unmount()


# -- never a mix ------------------------------------------------------------------------------------------------------


class Writer:
    """Replaces a file by another version over and over; every 16 bytes of one say which it is."""

    def __init__(self, fuse: FuseMount, size: int) -> None:
        self.count = 0
        self._fuse, self._size, self._stop = fuse, size, False
        self._thread = threading.Thread(target=self._run)
        self.write()

    def write(self) -> None:
        self.count += 1
        self._fuse.put("file", b"%015d\n" % self.count * (self._size // 16))

    def _run(self) -> None:
        while not self._stop:
            self.write()

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


def read_whole(path: Path) -> tuple[bytes, int]:
    """What of a file can be read, and the errno at the end."""
    data = b""
    try:
        with open(path, "rb", buffering=0) as file:
            while part := file.read(MiB):
                data += part
    except OSError as error:
        return data, error.errno or -1
    return data, 0


@pytest.mark.parametrize("size", [MiB, SMALL + MiB])
def test_a_file_that_is_replaced_all_the_time_is_never_mixed(
    fuse: FuseMount, kernel: bool, size: int
) -> None:
    whole = stale = 0
    with Writer(fuse, size) as writer:
        fuse.start(metadata_ttl=0.0, passthrough=kernel)
        # Every version may be gone before it can be read whole: that is right, too.
        while (whole < 3 or whole + stale < 20) and stale < 200:
            data, code = read_whole(fuse.point / "file")
            assert data == data[:16] * (len(data) // 16)
            assert code in (0, errno.ESTALE)
            stale += code == errno.ESTALE
            whole += code == 0
            assert code or len(data) == size
    assert writer.count > 1
    fuse.unmount()
