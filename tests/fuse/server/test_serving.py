"""Who serves a file: the kernel itself, or the server; and what that costs the object store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.fuse import device
from tests.support.embedded import at_once, noise
from tests.support.fusemount import BLOCK, SMALL, FuseMount
from tests.support.s3proxy import Fault, S3Proxy
from tests.support.seaweed import SeaweedS3

LARGE = 3 * SMALL + 12345
"""Bytes of a file that is not fetched by its open."""


@pytest.mark.usefixtures("passthrough")
def test_a_small_file_is_fetched_by_its_open_and_read_by_the_kernel(fuse: FuseMount) -> None:
    data = fuse.put("small", noise(MiB + 5))
    status = fuse.start()
    assert status.details["passthrough"] is True
    assert fuse.cached_bytes("small") == 0
    with open(fuse.point / "small", "rb") as file:
        assert fuse.cached_bytes("small") == len(data)
        assert file.read() == data
    assert (fuse.point / "small").read_bytes() == data
    told = fuse.details()
    assert told["reads"] == 0
    assert told["metrics"]["fetched_store_bytes"] == len(data)
    fuse.unmount()


@pytest.mark.usefixtures("passthrough")
def test_a_large_file_is_read_through_the_server_until_it_is_whole(fuse: FuseMount) -> None:
    data = fuse.put("large", noise(LARGE))
    fuse.start()
    with open(fuse.point / "large", "rb", buffering=0) as file:
        first = file.read(MiB)
        assert first == data[:MiB]
        assert fuse.reads() > 0
        assert fuse.cached_bytes("large") < len(data)
        assert first + file.read() == data
        fuse.until_complete("large")  # the background fetches what was not read, too
        before = fuse.reads()
        # An inode has one I/O mode at a time: while one reads through the server, others do too.
        assert (fuse.point / "large").read_bytes() == data
        assert fuse.reads() > before
    before = fuse.reads()
    assert (fuse.point / "large").read_bytes() == data
    told = fuse.details()
    assert told["reads"] == before
    assert told["metrics"]["fetched_store_bytes"] == len(data)
    fuse.unmount()


@pytest.mark.usefixtures("passthrough")
def test_a_large_file_of_which_a_part_is_read_is_completed(fuse: FuseMount) -> None:
    data = fuse.put("large", noise(LARGE))
    fuse.start()
    with open(fuse.point / "large", "rb", buffering=0) as file:
        while file.tell() < len(data) // 4:
            assert file.read(MiB)
    fuse.until_complete("large")
    assert fuse.details()["metrics"]["fetched_store_bytes"] == len(data)
    fuse.unmount()


def test_without_passthrough_everything_is_read_all_the_same(fuse: FuseMount) -> None:
    small, large = fuse.put("small", noise(MiB, 1)), fuse.put("large", noise(LARGE, 2))
    status = fuse.start(passthrough=False)
    assert status.details["passthrough"] is False
    assert "switched off" in status.details["reason"]
    for _ in range(2):
        assert (fuse.point / "small").read_bytes() == small
        assert (fuse.point / "large").read_bytes() == large
    assert fuse.reads() > 0
    assert fuse.log().count("served from user space") == 1
    fuse.unmount()


@pytest.mark.usefixtures("passthrough")
def test_a_cache_on_a_stacked_filesystem_is_read_all_the_same(fuse: FuseMount) -> None:
    data = [fuse.put(f"f{number}", noise(MiB, number)) for number in range(5)]
    for name in ("lower", "upper", "work"):
        (fuse.directory / name).mkdir()
    layers = ",".join(f"{name}dir={fuse.directory}/{name}" for name in ("lower", "upper", "work"))
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", layers, str(fuse.tier)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no overlayfs here: {mounted.stderr.strip()}")
    try:
        fuse.start()
        for _ in range(2):
            for number, expected in enumerate(data):
                assert (fuse.point / f"f{number}").read_bytes() == expected
        told = fuse.details()
        assert told["passthrough"] is False
        assert "refuses the data files" in told["reason"]
        assert told["metrics"]["fetched_store_bytes"] == sum(map(len, data))
        assert fuse.log().count("served from user space") == 1
        fuse.unmount()
    finally:
        device.unmount(str(fuse.tier), lazy=True)


@pytest.mark.usefixtures("passthrough")
def test_what_the_kernel_reads_is_not_evicted(fuse: FuseMount) -> None:
    data = [fuse.put(f"f{number}", noise(MiB, number)) for number in range(24)]
    fuse.start(quota=6 * MiB)
    with open(fuse.point / "f0", "rb", buffering=0) as file:
        for number in range(1, 24):
            assert (fuse.point / f"f{number}").read_bytes() == data[number]
        assert fuse.cached_bytes("f0") == MiB
        assert sum(fuse.cached_bytes(f"f{number}") for number in range(24)) <= 6 * MiB
        assert file.read() == data[0]
        assert fuse.reads() == 0
    for number in range(1, 24):
        assert (fuse.point / f"f{number}").read_bytes() == data[number]
    assert fuse.cached_bytes("f0") == 0  # once it is closed, it is like all others
    assert fuse.log().count("WARNING") == 0
    fuse.unmount()


@pytest.mark.usefixtures("passthrough")
def test_what_the_kernel_has_mapped_stays_in_memory_until_it_is_let_go(fuse: FuseMount) -> None:
    data = [fuse.put(f"f{number}", noise(MiB, number)) for number in range(12)]
    fuse.start(memory=4 * MiB, quota=32 * MiB)

    def in_memory() -> int:
        return sum(1 for _ in (fuse.directory / "memory").rglob("*.data"))

    with open(fuse.point / "f0", "rb", buffering=0) as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:  # the file is closed: the kernel lets it go with the mapping
        (held,) = (fuse.directory / "memory").rglob("*.data")
        for number in range(1, 12):
            assert (fuse.point / f"f{number}").read_bytes() == data[number]
        assert mapped[:] == data[0]
        assert held.exists(), "nothing would be gained by moving it down"
        assert in_memory() <= 4
    for number in [*range(1, 12), *range(1, 12)]:
        assert (fuse.point / f"f{number}").read_bytes() == data[number]
    assert sum(fuse.cached_bytes(f"f{number}") for number in range(12)) == 12 * MiB, "moved down, not lost"
    assert (fuse.point / "f0").read_bytes() == data[0]
    assert fuse.reads() == 0
    fuse.unmount()


def test_a_cache_that_is_full_of_what_is_read_fails_nobody(fuse: FuseMount) -> None:
    data = [fuse.put(f"f{number}", noise(MiB, number)) for number in range(12)]
    fuse.start(quota=4 * MiB)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(open(fuse.point / f"f{n}", "rb", buffering=0)) for n in range(12)]
        for file, expected in zip(files, data, strict=True):
            assert file.read() == expected
        for file, expected in zip(files, data, strict=True):
            assert os.pread(file.fileno(), BLOCK, 777) == expected[777 : 777 + BLOCK]
    fuse.unmount()


def test_a_file_that_is_larger_than_the_cache(fuse: FuseMount) -> None:
    data = fuse.put("large", noise(LARGE))
    fuse.start(quota=4 * MiB)
    for _ in range(2):
        assert (fuse.point / "large").read_bytes() == data
    fuse.unmount()


@pytest.mark.parametrize("size", [MiB + 1, LARGE])
@pytest.mark.parametrize("kernel", [True, False])
def test_many_cold_readers_cost_the_store_one_copy(
    s3_fuse: FuseMount, s3_server: SeaweedS3, bucket: str, s3_proxy: S3Proxy, size: int, kernel: bool
) -> None:
    data = noise(size)
    s3_server.put(bucket, "dir/model", data)
    s3_fuse.start(passthrough=kernel)
    path = s3_fuse.point / "dir/model"

    def read(number: int) -> str:
        return subprocess.run(["md5sum", str(path)], check=True, capture_output=True, text=True).stdout[:32]

    assert set(at_once(6, read)) == {hashlib.md5(data).hexdigest()}
    assert read(7) == hashlib.md5(data).hexdigest()
    key = s3_proxy.stats().keys[f"{bucket}/dir/model"]
    assert key.bytes == size
    s3_fuse.unmount()


def test_a_store_that_fails_is_an_error_with_its_number(
    s3_fuse: FuseMount, s3_server: SeaweedS3, bucket: str, s3_proxy: S3Proxy
) -> None:
    s3_server.put(bucket, "there", b"bytes")
    s3_fuse.start(metadata_ttl=0.0)
    s3_proxy.fault = lambda request: Fault(status=403)
    for call in (lambda: (s3_fuse.point / "there").read_bytes(), lambda: os.listdir(s3_fuse.point)):
        with pytest.raises(OSError) as failed:  # noqa: PT011 - the number is what is compared
            call()
        assert failed.value.errno == errno.EACCES
    s3_proxy.fault = None
    assert (s3_fuse.point / "there").read_bytes() == b"bytes"  # it is not an answer to remember
    assert os.listdir(s3_fuse.point) == ["there"]
    s3_fuse.unmount()


def test_a_cache_is_warm_after_an_unmount(fuse: FuseMount, tmp_path: Path) -> None:
    data = fuse.put("small", noise(MiB))
    fuse.start()
    assert (fuse.point / "small").read_bytes() == data
    fuse.unmount()
    fuse.start()
    assert (fuse.point / "small").read_bytes() == data
    assert fuse.cached_bytes("small") == MiB
    assert fuse.details()["metrics"].get("fetched_store_bytes", 0) == 0
    fuse.unmount()
