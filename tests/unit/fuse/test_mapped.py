"""Replies from the pages of a memory tier."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from raycache.blocks import KiB, MiB
from raycache.fuse import mapped
from raycache.fuse.mapped import RESIDENT, Mapping
from raycache.fuse.protocol import replies
from raycache.store import LocalFile, LocalStore, TierConfig
from tests.support.embedded import noise
from tests.support.stores import version

SIZE = 16 * MiB
SHM = Path("/dev/shm")


def resident_kib() -> int:
    """Shared memory that this process has in its page table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem:"))


@pytest.mark.skipif(not SHM.is_dir(), reason="there is no /dev/shm")
def test_a_mapping_sends_the_files_bytes_and_lets_its_pages_go(tmp_path: Path) -> None:
    directory = SHM / tmp_path.name / "tier"
    of = version("a", -(-SIZE // version("a", 1).block_size))
    data = noise(of.size)
    try:
        with (
            contextlib.closing(
                LocalStore([TierConfig("MEM", str(directory), 64 * MiB, huge_pages=False)])
            ) as store,
            store.fill(of) as filling,
        ):
            filling.write(range(of.block_count), data)
            local = store.lease(of)
            assert local is not None
            before = resident_kib()
            mapping = Mapping.of(local)
            assert mapping is not None
            local.close()  # the mapping has a lease of its own
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                step = 64 * KiB
                for offset in range(0, of.size, step):
                    length = min(step, of.size - offset)
                    mapping.reply(offset, length).send(ours.fileno(), 7)
                    message = theirs.recv(step + 64)
                    assert message == replies.header(7, length) + data[offset : offset + length]
                    assert resident_kib() - before <= 2 * RESIDENT // 1024
    finally:
        for path in sorted(directory.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        directory.parent.rmdir()


def test_a_file_on_a_disk_is_not_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 4096)
    monkeypatch.setattr(mapped.mountinfo, "mounts", list)  # no tmpfs anywhere
    mapped._is_tmpfs.cache_clear()
    fd = os.open(path, os.O_RDONLY)

    class Local:
        def fileno(self) -> int:
            return fd

    local: LocalFile = Local()  # type: ignore[assignment]
    try:
        assert Mapping.of(local) is None
    finally:
        os.close(fd)
        mapped._is_tmpfs.cache_clear()
