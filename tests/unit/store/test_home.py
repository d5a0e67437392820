"""Slots: found again after a restart, never shared; the huge-page tmpfs comes and goes with them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.errors import AccessDeniedError, CacheFullError, PathError, StoreBusyError
from raycache.store import Home, LocalStore, TierConfig, claim, home, sweep, tmpfs
from tests.support.stores import content, put, version


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    return os.geteuid() == 0 and bool(capabilities >> 21 & 1)


mounting = pytest.mark.skipif(not _may_mount(), reason="needs root with CAP_SYS_ADMIN to mount a tmpfs")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """A directory below which nothing is mounted afterwards, whatever happens."""
    yield str(tmp_path / "cache")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if point.startswith(str(tmp_path)):
            tmpfs.unmount(point)


def test_each_claim_has_a_slot_of_its_own_and_the_first_free_one(base: str) -> None:
    first, second = claim(base, "ds"), claim(base, "ds")
    other = claim(base, "other")
    assert [h.path for h in (first, second, other)] == [
        f"{base}/ds/0/tier",
        f"{base}/ds/1/tier",
        f"{base}/other/0/tier",
    ]
    (Path(first.path) / "warm").write_text("x")
    first.close()
    first.close()
    again = claim(base, "ds")
    assert again.path == first.path
    assert (Path(again.path) / "warm").exists(), "a restarted worker finds its files"
    for held in (second, other, again):
        held.close()


def test_slot_of_a_killed_process_is_free_again(base: str) -> None:
    program = (
        "import sys; from raycache.store import claim; "
        "h = claim(*sys.argv[1:]); print(h.path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, base, "ds"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == f"{base}/ds/0/tier"
        mine = claim(base, "ds")
        assert mine.path == f"{base}/ds/1/tier"
        mine.close()
        process.kill()
        process.wait()
    again = claim(base, "ds")
    assert again.path == f"{base}/ds/0/tier"
    again.close()


def test_directories_are_private(base: str) -> None:
    held = claim(base, "ds")
    for path in (f"{base}/ds", held.slot, held.path):
        assert Path(path).stat().st_mode & 0o777 == 0o700
    os.chmod(f"{base}/ds", 0o755)
    claim(base, "ds").close()
    assert Path(f"{base}/ds").stat().st_mode & 0o777 == 0o700
    held.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_that_leave_the_base(base: str, name: str) -> None:
    with pytest.raises(PathError):
        claim(base, name)


def test_somebody_elses_directory_is_refused(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(base)
    Path(f"{base}/link").symlink_to(tmp_path)
    with pytest.raises(AccessDeniedError, match="somebody else"):
        claim(base, "link")
    os.mkdir(f"{base}/ds")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(AccessDeniedError, match="somebody else"):
        claim(base, "ds")


def test_base_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheFullError, match="Not a directory"):
        claim(str(tmp_path / "file" / "x"), "ds")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "makedirs", refused)
    with pytest.raises(AccessDeniedError, match="Permission denied"):
        claim(str(tmp_path / "y"), "ds")


def test_all_slots_taken(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "_SLOTS", 2)
    held = [claim(base, "ds") for _ in range(2)]
    with pytest.raises(StoreBusyError, match="2 slots"):
        claim(base, "ds")
    for one in held:
        one.close()


def test_purge_and_sweep(base: str) -> None:
    kept, left, purged = (claim(base, "ds") for _ in range(3))
    for one in (kept, left, purged):
        (Path(one.path) / "data").write_text("x")
    left.close()
    purged.close(purge=True)
    assert not Path(purged.path).exists()
    assert sorted(sweep(base, "ds")) == [left.slot, purged.slot]
    assert not Path(left.path).exists()
    assert (Path(kept.path) / "data").exists(), "its owner lives"
    kept.close()
    assert sweep(base, "unknown") == []


def test_without_the_right_to_mount_the_path_is_used_as_it_is(
    base: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tmpfs, "_mount", lambda *_: 1)
    held = claim(base, "ds")
    with caplog.at_level(logging.WARNING):
        assert not held.mount_huge_pages(64 * MiB)
    assert "as it is" in caplog.text
    store = LocalStore([TierConfig("MEM", held.path, 8 * MiB)])
    put(store, version("a"))
    store.close()
    held.resize(1 * MiB)
    held.close(purge=True)


def _store_of(held: Home, quota: int) -> LocalStore:
    return LocalStore([TierConfig("MEM", held.path, quota)], background=False)


@mounting
def test_huge_page_mount_survives_a_crash_and_goes_with_a_purge(base: str) -> None:
    of = version("a", 3.5)
    held = claim(base, "ds")
    assert held.mount_huge_pages(64 * MiB)
    assert tmpfs.is_mounted(held.path)
    assert Path(held.path).stat().st_mode & 0o777 == 0o700
    store = _store_of(held, 64 * MiB)
    put(store, of)
    store.close()
    held.close()  # as after a crash: neither purged nor unmounted

    held = claim(base, "ds")
    assert held.mount_huge_pages(32 * MiB), "used again, not mounted over"
    assert os.statvfs(held.path).f_blocks * os.statvfs(held.path).f_frsize == 32 * MiB
    store = _store_of(held, 32 * MiB)
    with store.fill(of) as filling:
        assert filling.missing(range(4)) == []
    held.resize(48 * MiB)
    assert os.statvfs(held.path).f_blocks * os.statvfs(held.path).f_frsize == 48 * MiB
    lease = store.lease(of)
    assert lease is not None
    store.close()
    held.close(purge=True)
    assert not tmpfs.is_mounted(held.path)
    assert lease.pread(0, 9**9) == content(of), "who has a file open keeps it"
    lease.close()


@mounting
def test_shrinking_below_what_is_in_it_keeps_the_mount(base: str, caplog: pytest.LogCaptureFixture) -> None:
    held = claim(base, "ds")
    assert held.mount_huge_pages(64 * MiB)
    (Path(held.path) / "file").write_bytes(bytes(16 * MiB))
    with caplog.at_level(logging.WARNING):
        held.resize(8 * MiB)
    assert "keeps its old size" in caplog.text
    assert os.statvfs(held.path).f_blocks * os.statvfs(held.path).f_frsize == 64 * MiB
    held.close(purge=True)


@mounting
def test_ledger_counts_huge_pages(base: str) -> None:
    """64 KiB in an untouched huge page take 2 MiB."""
    held = claim(base, "ds")
    assert held.mount_huge_pages(64 * MiB)
    huge = tmpfs.huge_page_size(held.path)
    assert huge == tmpfs.huge_page_size(f"{held.path}/deeper") > 0
    assert tmpfs.huge_page_size(base) == 0
    store = _store_of(held, 64 * MiB)
    of = version("a", 100)
    with store.fill(of) as filling:
        for block in (0, 1, 50, 98):
            filling.write(range(block, block + 1), content(of)[block * 65536 : (block + 1) * 65536])
            status = os.statvfs(held.path)
            assert (status.f_blocks - status.f_bfree) * status.f_frsize <= store.usage()[0].used
        assert store.usage()[0].used >= 2 * huge
    put(store, of)
    assert store.usage()[0].used == 100 * 65536 + 4096
    store.evict(lambda _: True)
    assert store.usage()[0].used == 0
    status = os.statvfs(held.path)
    assert status.f_bfree == status.f_blocks
    store.close()
    held.close(purge=True)


@mounting
def test_full_tmpfs_is_an_error_and_not_a_signal(base: str) -> None:
    held = claim(base, "ds")
    assert held.mount_huge_pages(8 * MiB)
    ballast = Path(held.path) / "ballast"
    store = _store_of(held, 8 * MiB)
    ballast.write_bytes(bytes(6 * MiB))
    of = version("a", 64)
    with store.fill(of) as filling:
        with pytest.raises(CacheFullError, match="No space"):
            filling.write(range(64), content(of))
        assert filling.missing(range(64)) == list(range(64))
        ballast.unlink()
        filling.write(range(64), content(of))
        assert filling.complete
    store.close()
    held.close(purge=True)
