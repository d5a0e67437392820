"""A store on a disk that fails, is full though the quota is not, hangs, or comes back."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from raycache.blocks import ObjectVersion
from raycache.errors import CacheFullError, IntegrityError
from raycache.metrics import TIER_CHANGES, TIER_ERRORS, Metrics
from raycache.store import LocalStore, health, moving, tiers
from tests.support.sickdisk import SickDisk, path_of
from tests.support.stores import BLOCK, Doing, Gate, allocated, content, opened, part, put, tier, version
from tests.unit.store.test_home import mounting


def states(store: LocalStore) -> list[str]:
    return [usage.state for usage in store.usage()]


def media(store: LocalStore) -> dict[str, str]:
    return {status.version.path: status.medium for status in store.objects()}


def check(store: LocalStore) -> None:
    for usage in store.usage():
        assert allocated(usage.path) <= usage.used <= usage.quota


def try_to_put(store: LocalStore, of: ObjectVersion) -> None:
    try:
        put(store, of)
    except CacheFullError:
        pass


def bring_down(store: LocalStore, disk: SickDisk, code: int = errno.EIO) -> None:
    """Make the first tier give errors until it is unstable, and fail its probe."""
    disk.fail(code)
    for number in range(health.SUSPECT):
        try_to_put(store, version(f"sick-{number}"))
    store.probe()


def test_new_objects_go_to_a_tier_that_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, metrics = SickDisk(monkeypatch, tmp_path / "a"), Metrics()
    with opened(tier(tmp_path / "a", 40), tier(tmp_path / "b", 80, "SSD"), metrics=metrics) as store:
        put(store, version("before"))
        disk.fail(errno.EIO, "create")
        for number in range(health.SUSPECT):
            put(store, version(f"{number}"))  # goes on below: nobody notices
        assert states(store) == ["unstable", "healthy"]
        failed = disk.calls["create"]
        put(store, version("after"))
        assert disk.calls["create"] == failed  # not even tried any more
        assert media(store)["after"] == "SSD"
        usage = store.usage()[0]
        assert usage.error == "Input/output error"
        assert usage.since is not None
        # What lies there is read on.
        with store.fill(version("before")) as filling:
            assert filling.read(1)[1] == part(version("before"), range(1, 2))
        disk.heal()
        store.probe()
        put(store, version("again"))
        assert media(store)["again"] == "MEM"
        check(store)
    assert metrics.snapshot()[TIER_CHANGES] == 2
    assert metrics.snapshot()[TIER_ERRORS] >= health.SUSPECT


def test_a_tier_that_is_down_is_left_alone_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SickDisk(monkeypatch, tmp_path)
    with opened(tier(tmp_path, 40)) as store:
        put(store, version("a"))
        bring_down(store, disk)
        assert states(store) == ["down"]
        failed = dict(disk.calls)
        with pytest.raises(CacheFullError, match="down"):
            store.fill(version("a"))
        with pytest.raises(CacheFullError, match="down"):
            store.fill(version("b"))
        assert disk.calls == failed
        disk.heal()
        store.probe()
        assert states(store) == ["healthy"]
        with store.fill(version("a")) as filling:
            assert filling.missing(range(4)) == []
        put(store, version("b"))
        check(store)


def test_a_fill_under_way_when_the_tier_falls_sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, of = SickDisk(monkeypatch, tmp_path), version("a")
    with opened(tier(tmp_path, 40)) as store, store.fill(of) as filling:
        filling.write(range(1), part(of, range(1)))
        used = store.usage()[0].used
        disk.fail(errno.EIO, "write")
        for _ in range(health.SUSPECT):
            with pytest.raises(CacheFullError):
                filling.write(range(1, 2), part(of, range(1, 2)))
        failed = disk.calls["write"]
        assert filling.receive(range(2, 4)) is None  # or what is fetched would have to be fetched again
        with pytest.raises(CacheFullError, match="unstable"):
            filling.write(range(2, 4), part(of, range(2, 4)))
        assert disk.calls["write"] == failed
        assert filling.read(0)[1] == part(of, range(1))
        assert filling.missing(range(4)) == [1, 2, 3]
        assert store.usage()[0].used == used
        disk.heal()
        store.probe()
        filling.write(range(4), content(of))
        assert filling.complete


@pytest.mark.parametrize("medium", ["SSD", "HDD"])
def test_a_block_that_the_disk_does_not_give_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: str
) -> None:
    disk, of = SickDisk(monkeypatch, tmp_path), version("a")
    with opened(tier(tmp_path, 40, medium)) as store:
        put(store, of)
        with store.fill(of) as filling:
            disk.fail(errno.EIO, "read")
            with pytest.raises(IntegrityError, match="Input/output"):
                filling.read(2)
            disk.heal()
            assert filling.missing(range(4)) == [2]
            filling.write(range(2, 3), part(of, range(2, 3)))
            assert filling.read(2)[1] == part(of, range(2, 3))
        assert states(store) == ["healthy"]


@pytest.mark.parametrize("kind", ["write", "create", "index"])
def test_demotion_passes_by_a_sick_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "b")
    with opened(
        tier(tmp_path / "a", 10), tier(tmp_path / "b", 80, "SSD"), tier(tmp_path / "c", 80, "HDD")
    ) as store:
        disk.fail(errno.EIO, kind)
        for number in range(12):
            put(store, version(f"{number}"))
            check(store)
        assert states(store) == ["healthy", "unstable", "healthy"]
        assert set(media(store).values()) == {"MEM", "HDD"}
        assert len(store.objects()) == 12
        for status in store.objects():
            with store.lease(status.version) or pytest.fail("no lease") as file:
                assert file.pread(0, 9**9) == content(status.version)


def test_what_cannot_be_read_is_lost_in_a_demotion_and_the_rest_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, of = SickDisk(monkeypatch, tmp_path / "a"), version("0")
    with opened(tier(tmp_path / "a", 10), tier(tmp_path / "b", 80, "SSD")) as store:
        put(store, of)
        real = moving._read
        monkeypatch.setattr(moving, "_read", lambda *args: args[3] != BLOCK and real(*args))
        put(store, version("1"))
        put(store, version("2"))
        assert media(store)["0"] == "SSD"
        assert store.contains(of) == [True, False, True, True]
        assert disk.calls == {}


def test_files_that_cannot_be_removed_stay_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SickDisk(monkeypatch, tmp_path)
    with opened(tier(tmp_path, 20.5)) as store:
        for number in range(4):
            put(store, version(f"{number}"))
        disk.fail(errno.EIO, "unlink")
        for number in range(4, 8):
            try_to_put(store, version(f"{number}"))
        check(store)
        assert store.evict(lambda of: True) == 0
        assert store.purge() == 0
        for status in store.objects():
            with store.lease(status.version) or pytest.fail("no lease") as file:
                present = [block for block, there in enumerate(store.contains(status.version)) if there]
                for block in present:
                    assert file.pread(block * BLOCK, BLOCK) == part(status.version, range(block, block + 1))
        disk.heal()
        store.probe()
        put(store, version("after"))
        assert store.purge() > 0
        assert store.usage()[0].used == allocated(tmp_path) == 0


def test_a_tier_that_cannot_be_looked_into_does_not_hide_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "a")
    with opened(tier(tmp_path / "a", 2), tier(tmp_path / "b", 80, "SSD")) as store:
        put(store, version("low"))
        disk.fail(errno.EIO, "open")
        with store.lease(version("low")) or pytest.fail("no lease") as file:
            assert file.pread(0, 9**9) == content(version("low"))
        with pytest.raises(OSError, match="Input/output"):
            store.lease(version("nowhere"))


def test_a_read_only_disk_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, of = SickDisk(monkeypatch, tmp_path), version("a")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
        disk.fail(errno.EROFS, "write", "index", "create", "unlink")
        with pytest.raises(CacheFullError):
            put(store, version("b"))
        store.probe()
        assert states(store) == ["unstable"]
        with store.fill(of) as filling:
            assert filling.read(3)[1] == part(of, range(3, 4))


# -- a device that is full --------------------------------------------------------------------------------------


class FullDevice:
    """Takes so many bytes of data, then says ENOSPC until some are given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, room: int) -> None:
        self._room = room
        self._path = path
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        if path_of(fd).startswith(str(self._path)) and allocated(self._path) + len(data) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._real(fd, data, offset)


def test_a_device_filled_by_others_evicts_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 40)) as store:
        for number in range(4):
            put(store, version(f"{number}"))
        FullDevice(monkeypatch, tmp_path, allocated(tmp_path) + 4096)
        for number in range(4, 12):
            of = version(f"{number}")
            with store.fill(of) as filling, filling.receive(range(4)) or pytest.fail("none") as receiver:
                receiver.feed(memoryview(content(of)))
                receiver.commit()
            check(store)
        assert states(store) == ["healthy"]
        assert "11" in media(store)


def test_a_device_filled_by_others_with_nothing_of_ours_takes_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path / "a", 40), tier(tmp_path / "b", 40, "SSD")) as store:
        with monkeypatch.context() as patch:
            FullDevice(patch, tmp_path / "a", 0)
            for number in range(health.SUSPECT):
                try_to_put(store, version(f"{number}"))
            assert states(store) == ["unstable", "healthy"]
            store.probe()
            assert states(store) == ["unstable", "healthy"]
            put(store, version("below"))
            assert media(store)["below"] == "SSD"
        store.probe()
        assert states(store) == ["healthy", "healthy"]


@mounting
def test_a_real_tmpfs_filled_by_others(tmp_path: Path) -> None:
    mount = tmp_path / "tmpfs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "raycache-test", mount], check=True)
    try:
        with opened(tier(mount / "tier", 96)) as store:
            for number in range(10):
                put(store, version(f"{number}"))
            held = version("9")
            with store.lease(held) or pytest.fail("no lease") as file:
                view = file.view(0, held.size)
                ballast = mount / "ballast"
                subprocess.run(
                    ["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], check=False, capture_output=True
                )
                for number in range(10, 20):
                    put(store, version(f"{number}"))  # by evicting our own
                assert states(store) == ["healthy"]
                assert view == content(held)
                with store.lease(version("19")) or pytest.fail("no lease") as other:
                    assert other.pread(0, 9**9) == content(version("19"))
                del view
            ballast.unlink()
            check(store)
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_quota_lowered_below_what_is_stored_leaves_readers_alone(tmp_path: Path) -> None:
    held, rest = version("held"), [version(f"{number}") for number in range(8)]
    with opened(tier(tmp_path, 42)) as store:
        put(store, held)
        for of in rest:
            put(store, of)
        with store.lease(held) or pytest.fail("no lease") as file, store.fill(version("new")) as filling:
            view = file.view(0, held.size)
            filling.write(range(2), part(version("new"), range(2)))
            store.resize([tier(tmp_path, 8)])
            assert set(media(store)) == {"held", "new"}
            assert file.pread(0, 9**9) == content(held) == view
            with pytest.raises(CacheFullError):
                filling.write(range(2, 4), part(version("new"), range(2, 4)))
            assert filling.read(1)[1] == part(version("new"), range(1, 2))
            del view
        store.reclaim()
        check(store)


def test_what_was_in_use_when_the_quota_was_lowered_leaves_later_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycache.store.space.OVER_S", 0.001)
    with opened(tier(tmp_path, 42), background=True) as store:
        for number in range(8):
            put(store, version(f"{number}"))
        with store.lease(version("0")) or pytest.fail("no lease"):
            store.resize([tier(tmp_path, 1)])
            assert set(media(store)) == {"0"}
        until(lambda: not store.objects())
        assert store.usage()[0].used == 0


def until(done: object) -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(60_000):
        if done():  # type: ignore[operator]
            return
        pause.wait(0.001)
    pytest.fail("it did not happen")


# -- a device that hangs ----------------------------------------------------------------------------------------


def test_a_tier_that_hangs_does_not_keep_up_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HANG_S", 0.05)
    monkeypatch.setattr(tiers, "HANG_S", 0.05)
    with opened(tier(tmp_path / "a", 10), tier(tmp_path / "b", 80, "SSD")) as store:
        put(store, version("0"))
        put(store, version("1"), range(2))
        gate = Gate(
            monkeypatch,
            moving.files,
            "pwrite_all",
            when=lambda fd, data, at: str(tmp_path / "b") in path_of(fd) and len(data) == BLOCK,
        )
        hung = Doing(lambda: put(store, version("2")))
        gate.wait()  # in a demotion, with the right to evict
        put(store, version("3"))
        with store.lease(version("3")) or pytest.fail("no lease") as file:
            assert file.pread(0, 9**9) == content(version("3"))
        assert states(store) == ["healthy", "down"]
        assert store.usage()[1].error.startswith("no answer")
        gate.open()
        hung.result()
        store.probe()
        assert states(store) == ["healthy", "healthy"]
        check(store)
