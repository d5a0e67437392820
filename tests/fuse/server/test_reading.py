"""Every way in which a program reads a file, on the real mount."""

from __future__ import annotations

import mmap
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.fuse import device
from tests.fuse.server.conftest import shared_mount
from tests.support.embedded import noise
from tests.support.fusemount import BLOCK, SMALL, FuseMount

SIZES = (0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK - 7, MiB, 2 * MiB + 1)
LARGE = SMALL + 3 * BLOCK + 11
"""Bytes of a file that is not fetched by its open."""


def contents() -> dict[str, bytes]:
    files = {f"odd/{size}": noise(size, size) for size in SIZES}
    return files | {"small": noise(MiB + 17, 1), "large": noise(LARGE, 2)}


@pytest.fixture(scope="module", params=["kernel", "user space"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuseMount]:
    """A mount whose small files the kernel reads itself, or none."""
    if request.param == "kernel" and not device.passthrough_support().possible:
        pytest.skip(device.passthrough_support().reason)
    with shared_mount(tmp_path_factory.mktemp("reading")) as mount:
        for name, data in contents().items():
            mount.put(name, data)
        mount.start(passthrough=request.param == "kernel")
        yield mount


def test_files_of_every_size(served: FuseMount) -> None:
    for name, data in contents().items():
        path = served.point / name
        assert path.stat().st_size == len(data)
        assert path.read_bytes() == data, name
        assert path.read_bytes() == data, f"{name}, again"


@pytest.mark.parametrize("name", ["small", "large"])
def test_seek_and_positioned_reads(served: FuseMount, name: str) -> None:
    data = contents()[name]
    size = len(data)
    with open(served.point / name, "rb", buffering=0) as file:
        for offset in (0, 1, 4096, BLOCK - 1, size // 2, size - 1, size, size + 1, size + 10 * MiB):
            for length in (0, 1, 4096, 3 * BLOCK, 2 * MiB):
                assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]
        assert file.seek(-5, os.SEEK_END) == size - 5
        assert file.read(100) == data[-5:]
        assert file.read(100) == b""
        assert file.seek(BLOCK, os.SEEK_SET) == BLOCK
        assert file.read(10) == data[BLOCK : BLOCK + 10]
        assert file.seek(-10, os.SEEK_CUR) == BLOCK
        # No holes, as far as lseek(2) tells.
        assert os.lseek(file.fileno(), 7, os.SEEK_DATA) == 7
        assert os.lseek(file.fileno(), 7, os.SEEK_HOLE) == size


@pytest.mark.parametrize("name", ["small", "large"])
def test_readv_and_preadv(served: FuseMount, name: str) -> None:
    data = contents()[name]
    with open(served.point / name, "rb", buffering=0) as file:
        parts = [bytearray(10), bytearray(BLOCK), bytearray(4097)]
        total = sum(map(len, parts))
        assert os.readv(file.fileno(), parts) == total
        assert b"".join(parts) == data[:total]
        assert os.preadv(file.fileno(), parts, 12345) == total
        assert b"".join(parts) == data[12345 : 12345 + total]


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_mmap(served: FuseMount, name: str, flags: int) -> None:
    data = contents()[name]
    fd = os.open(served.point / name, os.O_RDONLY)
    view = mmap.mmap(fd, 0, flags, mmap.PROT_READ)
    os.close(fd)  # the mapping needs no descriptor
    try:
        assert view[-100:] == data[-100:]
        assert view[:] == data
    finally:
        view.close()


def test_a_private_mapping_may_be_written_and_a_shared_one_not(served: FuseMount) -> None:
    data = contents()["small"]
    fd = os.open(served.point / "small", os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
            view[0:4] = b"mine"
            assert view[:8] == b"mine" + data[4:8]
        assert os.pread(fd, 8, 0) == data[:8]
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["small", "large"])
def test_sendfile(served: FuseMount, tmp_path: Path, name: str) -> None:
    data = contents()[name]
    with open(served.point / name, "rb") as file, open(tmp_path / "copy", "wb") as copy:
        sent = 0
        while count := os.sendfile(copy.fileno(), file.fileno(), sent, len(data)):
            sent += count
    assert (tmp_path / "copy").read_bytes() == data
    with open(served.point / name, "rb") as file:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert os.sendfile(ours.fileno(), file.fileno(), 100, 5000) == 5000
            assert theirs.recv(5000, socket.MSG_WAITALL) == data[100:5100]


def test_splice(served: FuseMount) -> None:
    data = contents()["small"]
    out, into = os.pipe()
    try:
        with open(served.point / "small", "rb") as file:
            moved = os.splice(file.fileno(), into, 5000, offset_src=7)
            assert os.read(out, 5000) == data[7 : 7 + moved]
            assert moved > 0
    finally:
        os.close(out)
        os.close(into)


@pytest.mark.parametrize("name", ["small", "large"])
def test_direct_io(served: FuseMount, name: str) -> None:
    data = contents()[name]
    fd = os.open(served.point / name, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MiB) as buffer:  # aligned, as O_DIRECT wants it
            for offset in (0, 4096, 512 * 1024, len(data) // 4096 * 4096):
                count = os.preadv(fd, [buffer], offset)
                assert buffer[:count] == data[offset : offset + MiB]
    finally:
        os.close(fd)


def test_many_handles_of_one_file(served: FuseMount) -> None:
    data = contents()["large"]
    files = [open(served.point / "large", "rb", buffering=0) for _ in range(5)]  # noqa: SIM115
    try:
        for number, file in enumerate(files):
            file.seek(number * MiB)
            assert file.read(1000) == data[number * MiB : number * MiB + 1000]
        files.pop().close()
        with open(served.point / "large", "rb") as another:
            assert another.read() == data
        for file in files:
            assert os.pread(file.fileno(), 100, 77) == data[77:177]
    finally:
        for file in files:
            file.close()


def test_a_descriptor_that_a_child_inherits(served: FuseMount) -> None:
    data = contents()["small"]
    with open(served.point / "small", "rb", buffering=0) as file:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if os.pread(file.fileno(), 100, 5) == data[5:105] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert file.read(10) == data[:10]


def test_programs_of_the_system_read_it(served: FuseMount, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", str(served.point / "odd"), str(tmp_path / "odd")], check=True)
    subprocess.run(["diff", "-r", str(served.source / "odd"), str(tmp_path / "odd")], check=True)
    assert stat.S_IMODE((tmp_path / "odd/4097").stat().st_mode) == 0o444
