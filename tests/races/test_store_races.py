"""Readers, writers and eviction, each stopped at the worst point. Gates, never sleeps. Crashes: test_crashes.py."""

from __future__ import annotations

import contextlib
import mmap
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycache.blocks import ObjectVersion
from raycache.errors import CacheFullError, StoreBusyError
from raycache.metrics import DEMOTED_BYTES, Metrics
from raycache.store import LocalStore, StoreView, files, index, moving, opening
from raycache.store.space import Space
from raycache.store.tiers import Tier
from tests.support.stores import (
    BLOCK,
    Doing,
    Gate,
    OtherReader,
    allocated,
    content,
    opened,
    part,
    put,
    tier,
    version,
)

A, B, C = version("a"), version("b"), version("c")


def _media(store: LocalStore) -> dict[str, str]:
    return {status.version.path: status.medium for status in store.objects()}


def _whole(store: LocalStore, of: ObjectVersion) -> bytes:
    with store.lease(of) or pytest.fail("no lease") as file:
        return file.pread(0, of.size)


def _waiting(monkeypatch: pytest.MonkeyPatch, store: LocalStore, of: ObjectVersion) -> Gate:
    """A gate at which the next thread stands that has to wait for another one's work on this object."""
    cached = store._registry.get(of.object_id)
    assert cached is not None
    return Gate(monkeypatch, threading.Condition, "wait", when=lambda cond, *_: cond is cached.cond)


# -- eviction against readers ----------------------------------------------------------------------------------


def test_lease_taken_just_before_the_eviction_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        gate = Gate(monkeypatch, files, "try_lock", when=lambda fd, exclusive: exclusive)
        eviction = Doing(lambda: store.evict(lambda _: True))
        gate.wait()
        with store.lease(A) or pytest.fail("no lease") as file:
            gate.open()
            assert eviction.result() == 0
            assert file.pread(0, 9**9) == content(A)
            assert file.pread(0, 9**9) == _whole(store, A), "new readers find it, too"


def test_reader_that_comes_while_the_eviction_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        gate = Gate(monkeypatch, moving, "remove")
        eviction = Doing(lambda: store.evict(lambda _: True))
        gate.wait()
        assert StoreView(store.paths).open(A) is None, "a miss, not a wait"
        gate.open()
        assert eviction.result() > 0
        assert StoreView(store.paths).open(A) is None


@pytest.mark.parametrize("again", [False, True])
def test_reader_that_opened_but_did_not_lock_before_the_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        gate = Gate(monkeypatch, files, "try_lock", when=lambda fd, exclusive: not exclusive)
        reader = Doing(lambda: StoreView(store.paths).open(A))
        gate.wait()
        assert store.evict(lambda _: True) > 0
        if again:
            put(store, A, range(2))
        gate.open()
        file = reader.result()
        if again:
            assert file.has(range(2)), "the new file, not the unlinked one"
            assert not file.has(range(3))
            file.close()
        else:
            assert file is None


def test_lease_of_another_process(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 10)) as store:
        put(store, A)
        with OtherReader(store.paths) as reader:
            assert reader.open(A) == [True, True]
            assert store.evict(lambda _: True) == 0
            for name in "xyz":  # pressure
                put(store, version(name))
            assert reader.read(0, A.size) == content(A)
            reader.close()
            assert store.evict(lambda of: of == A) > 0
            assert reader.open(A) is False
            put(store, A)
            assert reader.open(A) == [True, True]
        # Killed, without a word: its lease ended with it.
        assert store.evict(lambda of: of == A) > 0


def test_blocks_under_a_lease_of_another_process_are_not_punched(tmp_path: Path) -> None:
    huge = version("huge", 40)
    with opened(tier(tmp_path, 20)) as store:
        put(store, huge, range(15))
        with OtherReader(store.paths) as reader:
            assert reader.open(huge, range(15)) == [False, True]
            with pytest.raises(CacheFullError):
                put(store, huge, range(15, 30))
            assert reader.read(0, 15 * BLOCK) == part(huge, range(15))
            reader.close()
            with store.fill(huge) as filling:
                for block in range(15, 30):
                    filling.write(range(block, block + 1), part(huge, range(block, block + 1)))
        assert store.contains(huge).count(True) < 30


def test_mapping_without_a_lease_survives_eviction(tmp_path: Path) -> None:
    """Arrow maps by path and holds no lock: a complete file is only ever unlinked."""
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        with store.lease(A) or pytest.fail("no lease") as file:
            mapped = pa.memory_map(file.path)
            buffer = mapped.read_buffer()
        assert store.evict(lambda _: True) > 0
        put(store, version("b", 8))
        assert buffer.to_pybytes() == content(A)
        mapped.close()


# -- fill against eviction ---------------------------------------------------------------------------------------


def test_object_being_written_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 12, high=0.9, low=0.1)) as store:
        gate = Gate(monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK)
        writer = Doing(lambda: put(store, A))
        gate.wait()
        for name in "wxyz":
            put(store, version(name))
        assert store.evict(lambda _: True) > 0
        assert list(_media(store)) == ["a"]
        assert not any(store.contains(A)), "no block is present before its bytes are"
        gate.open()
        writer.result()
        assert _whole(store, A) == content(A)


def test_fill_that_meets_an_eviction_gets_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        gate = Gate(monkeypatch, moving, "remove")
        eviction = Doing(lambda: store.evict(lambda _: True))
        gate.wait()
        writer = Doing(lambda: put(store, A))
        gate.open()
        assert eviction.result() > 0
        writer.result()
        assert _whole(store, A) == content(A)
        assert store.usage()[0].used == allocated(tmp_path)


def test_purge_in_the_middle_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store:
        gate = Gate(monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK)
        writer = Doing(lambda: put(store, A))
        gate.wait()
        store.purge()
        assert store.usage()[0].used == 0
        gate.open()
        with pytest.raises(CacheFullError, match="purged"):
            writer.result()
        assert (store.usage()[0].used, store.usage()[0].files) == (0, 0)
        put(store, A)
        assert store.usage()[0].used == allocated(tmp_path)


@pytest.mark.parametrize("what", ["write", "verify"])
def test_thread_that_outlives_its_store_leaves_the_next_ones_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A, range(2))
    with opened(tier(tmp_path, 20)) as old, old.fill(A) as filling:
        if what == "write":
            gate = Gate(
                monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK, after=True
            )
            late = Doing(lambda: filling.write(range(2, 4), part(A, range(2, 4))))
        else:
            gate = Gate(monkeypatch, files, "pread_into", after=True)
            late = Doing(lambda: filling.missing(range(2)))
        gate.wait()
        old.close()
        with opened(tier(tmp_path, 20)) as new:  # adopts, and gives back the bytes that have no bit yet
            before = new.contains(A)
            gate.open()
            with pytest.raises(CacheFullError, match="closed"):
                late.result()
            assert new.contains(A) == before
            with new.fill(A) as again:
                assert again.missing(range(4)) == [2, 3]
            file = new.lease(A)
            assert file is not None
            with file:
                assert not file.has(range(2, 3))


def test_fill_that_meets_a_close_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked for the object, which a closed store still lists as gone, again and again, for ever."""
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        gate = Gate(monkeypatch, opening, "pin")
        filling = Doing(lambda: store.fill(A))
        gate.wait()
        store.close()
        gate.open()
        with pytest.raises(StoreBusyError, match="closed"):
            filling.result()


def test_object_made_anew_while_the_old_one_goes_can_be_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path, 10, high=1.0)) as store:
        put(store, A)
        real = Tier.leave

        def leave(home: Tier, key: str, amount: int) -> None:
            monkeypatch.setattr(Tier, "leave", real)
            if store._registry.get(key) is None:  # another thread need not wait, so it may come now
                Doing(lambda: put(store, A)).result()
            real(home, key, amount)

        monkeypatch.setattr(Tier, "leave", leave)
        assert store.evict(lambda _: True) > 0
        put(store, A)
        big = version("big", 8)
        put(store, big)
        assert _media(store) == {"big": "MEM"}


# -- two writers of one block --------------------------------------------------------------------------------------


def test_two_threads_fill_the_same_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = files.pwrite_all

    def counting(fd: int, data: memoryview, at: int) -> None:
        if len(data) >= BLOCK:
            written.append(at)
        real(fd, data, at)

    with opened(tier(tmp_path, 20)) as store, store.fill(A) as one, store.fill(A) as two:
        monkeypatch.setattr(files, "pwrite_all", counting)
        gate = Gate(
            monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK, after=True
        )
        first = Doing(lambda: one.write(range(1, 3), part(A, range(1, 3))))
        gate.wait()  # the bytes are there, the index bit is not
        assert two.missing(range(4)) == [0, 1, 2, 3]
        waiting = _waiting(monkeypatch, store, A)
        second = Doing(lambda: two.write(range(4), content(A)))
        waiting.wait()
        waiting.open()
        gate.open()
        assert first.result() == second.result()[1:3]
        assert two.complete
        assert written == [BLOCK, 0, 3 * BLOCK]


def test_second_writer_takes_over_when_the_first_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.pwrite_all
    fail = threading.Event()
    fail.set()

    def broken(fd: int, data: memoryview, at: int) -> None:
        if len(data) >= BLOCK and fail.is_set():
            fail.clear()
            real(fd, data[: BLOCK // 2], at)
            raise OSError(5, "Input/output error")
        real(fd, data, at)

    with opened(tier(tmp_path, 20)) as store, store.fill(A) as one, store.fill(A) as two:
        monkeypatch.setattr(files, "pwrite_all", broken)
        gate = Gate(monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK)
        first = Doing(lambda: one.write(range(2), part(A, range(2))))
        gate.wait()
        waiting = _waiting(monkeypatch, store, A)
        second = Doing(lambda: two.write(range(4), content(A)))
        waiting.wait()
        waiting.open()
        gate.open()
        with pytest.raises(CacheFullError, match="Input/output"):
            first.result()
        second.result()
        assert two.complete
        # The hole that the first one punched did not touch what the second wrote.
        assert _whole(store, A) == content(A)


def test_receiver_that_waited_for_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store, store.fill(A) as one, store.fill(A) as two:
        gate = Gate(monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK)
        first = Doing(lambda: one.write(range(2), part(A, range(2))))
        gate.wait()
        waiting = _waiting(monkeypatch, store, A)
        second = Doing(lambda: two.receive(range(4)))
        waiting.wait()
        waiting.open()
        gate.open()
        first.result()
        assert second.result() is None, "some of it is there by now: not for a receiver"
        assert two.missing(range(4)) == [2, 3]


def test_second_writer_into_a_huge_page_waits_until_the_first_has_paid_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big, other = version("big", 8), version("other", 2)
    with opened(tier(tmp_path, 8.25, high=1.0)) as store:
        store._space.tiers[0].granule = 2 * BLOCK
        with store.fill(big) as one, store.fill(big) as two:
            one.write(range(6), part(big, range(6)))
            put(store, other)
            with store.lease(other) or pytest.fail("no lease"):
                gate = Gate(monkeypatch, Space, "room", after=True)
                first = Doing(lambda: one.receive(range(6, 7)))
                gate.wait()  # it has found no room, and has not given up yet
                waiting = _waiting(monkeypatch, store, big)
                second = Doing(lambda: two.receive(range(7, 8)))
                waiting.wait()
                waiting.open()
                gate.open()
                assert first.result() is None
                assert second.result() is None, "no room for it either"
            two.write(range(7, 8), part(big, range(7, 8)))
            assert allocated(tmp_path) <= store.usage()[0].used <= store.usage()[0].quota


def test_huge_page_whose_payer_gave_up_is_returned_by_who_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big, other = version("big", 10), version("other", 2)
    with opened(tier(tmp_path, 10.25, high=1.0)) as store:
        store._space.tiers[0].granule = 2 * BLOCK
        with store.fill(big) as one, store.fill(big) as two:
            one.write(range(6), part(big, range(6)))
            put(store, other)
            before = store.usage()[0].used
            with store.lease(other) or pytest.fail("no lease"):
                payer = one.receive(range(6, 7)) or pytest.fail("no room")
                gate = Gate(monkeypatch, Space, "room", after=True)
                # One block in a page that is paid, one in a page that is not.
                second = Doing(lambda: two.receive(range(7, 9)))
                gate.wait()
                with payer:
                    pass  # nothing arrives: given up
                gate.open()
                assert second.result() is None
            assert store.usage()[0].used == before


def test_object_is_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tier(tmp_path, 20)) as store:
        gate = Gate(monkeypatch, moving, "new_files")
        first = Doing(lambda: store.fill(A))
        gate.wait()
        waiting = _waiting(monkeypatch, store, A)
        second = Doing(lambda: store.fill(A))
        waiting.wait()
        waiting.open()
        gate.open()
        with first.result() as one, second.result() as two:
            one.write(range(4), content(A))
            assert two.complete
        assert store.usage()[0].files == 1


def test_blocks_left_by_an_earlier_process_are_verified_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
    with opened(tier(tmp_path, 20)) as store, store.fill(A) as one, store.fill(A) as two:
        reads: list[int] = []
        real = files.pread_into

        def counting(fd: int, buffer: memoryview, at: int) -> int:
            reads.append(at)
            return real(fd, buffer, at)

        monkeypatch.setattr(files, "pread_into", counting)
        gate = Gate(monkeypatch, files, "pread_into")
        first = Doing(lambda: one.missing(range(4)))
        gate.wait()
        waiting = _waiting(monkeypatch, store, A)
        second = Doing(lambda: two.missing(range(4)))
        waiting.wait()
        waiting.open()
        gate.open()
        assert first.result() == second.result() == []
        assert sorted(reads) == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]


# -- demotion --------------------------------------------------------------------------------------------------------


def _two_tiers(root: Path) -> tuple[Any, Any]:
    return tier(root / "m", 10, high=0.9, low=0.1), tier(root / "s", 60, "SSD")


def test_demotion_passes_by_a_mapped_file(tmp_path: Path) -> None:
    with opened(*_two_tiers(tmp_path), policy="lru") as store:
        put(store, A)
        file = store.lease(A, hit=False)
        assert file is not None
        view = file.view(0, A.size)
        file.close()
        put(store, B)
        put(store, C)
        assert _media(store)["a"] == "MEM"
        assert view == content(A)
        del view
        put(store, version("d"))
        put(store, version("e"))
        assert _media(store)["a"] == "SSD"
        assert _whole(store, A) == content(A)


def test_reader_that_comes_during_the_copy_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    with opened(*_two_tiers(tmp_path), metrics=metrics) as store:
        put(store, A)
        put(store, B)
        gate = Gate(monkeypatch, moving, "copy_down", after=True)
        writer = Doing(lambda: put(store, C))
        gate.wait()
        with store.lease(A) or pytest.fail("no lease") as file:  # the copy is whole, but not yet published
            gate.open()
            writer.result()
            assert _media(store) == {"a": "MEM", "b": "SSD", "c": "MEM"}
            assert file.pread(0, 9**9) == content(A)
            assert [path.name for path in (tmp_path / "s").rglob("*.data")] == [f"{B.object_id}.data"]
            assert [usage.used for usage in store.usage()] == [allocated(path) for path in store.paths]


def test_reader_finds_the_file_at_every_point_of_a_demotion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name, after in (
        (moving, "copy_down", False),
        (moving, "copy_down", True),
        (moving, "remove", False),
        (moving, "remove", True),
    ):
        with monkeypatch.context() as patch, opened(*_two_tiers(tmp_path)) as store:
            store.purge()
            put(store, A)
            put(store, B)
            gate = Gate(patch, owner, name, after=after)
            writer = Doing(lambda store=store: put(store, C))
            gate.wait()
            with StoreView(store.paths).open(A) or pytest.fail(f"not found at {name}") as file:
                assert file.complete
                assert file.pread(0, 9**9) == content(A)
            gate.open()
            writer.result()
            assert _whole(store, A) == content(A)


@pytest.mark.parametrize("under_way", [False, True])
def test_bytes_of_a_tier_are_free_only_when_the_moved_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    upper, held = tmp_path / "m", []

    def look() -> None:
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the descriptor of this very listing
                target = str(link.readlink())
                if target.startswith(str(upper)) and target.endswith("(deleted)"):
                    held.append(target)

    with opened(tier(upper, 5, high=1.0), tier(tmp_path / "s", 30, "SSD")) as store:
        leave, give = Tier.leave, Tier.give

        def leaving(home: Tier, key: str, amount: int) -> None:
            if home.rank == 0 and amount:
                look()
            leave(home, key, amount)

        def giving(home: Tier, amount: int) -> None:
            if home.rank == 0 and amount:
                look()
            give(home, amount)

        monkeypatch.setattr(Tier, "leave", leaving)
        monkeypatch.setattr(Tier, "give", giving)
        put(store, A, range(2) if under_way else None)
        with store.fill(A) if under_way else contextlib.nullcontext(), store.fill(B) as filling:
            filling.write(range(4), content(B))
            if under_way:
                put(store, A)
        assert sorted(_media(store).values()) == ["MEM", "SSD"]
        assert held == []
        assert allocated(upper) == store.usage()[0].used


def test_mapping_without_a_lease_survives_demotion(tmp_path: Path) -> None:
    with opened(*_two_tiers(tmp_path), policy="lru") as store:
        put(store, A)
        with open(index.data_path(store.paths[0], A.object_id), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for name in "bcde":
            put(store, version(name))
        assert _media(store)["a"] == "SSD"
        assert mapped[:] == content(A)
        mapped.close()


def test_fill_cancels_a_demotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(*_two_tiers(tmp_path)) as store:
        put(store, A, range(3))
        put(store, B)
        gate = Gate(monkeypatch, files, "pread_into")  # in the middle of the copy
        pressure = Doing(lambda: put(store, C))
        gate.wait()
        waiting = _waiting(monkeypatch, store, A)
        fill = Doing(lambda: store.fill(A))
        waiting.wait()
        waiting.open()
        gate.open()
        with fill.result() as filling:
            assert filling.missing(range(4)) == [3]
            pressure.result()
            assert _media(store)["a"] == "MEM"
        assert [usage.used for usage in store.usage()] == [allocated(path) for path in store.paths]


def test_writers_of_one_object_move_it_down_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    tiers = tier(tmp_path / "m", 10), tier(tmp_path / "s", 30, "SSD"), tier(tmp_path / "h", 30, "HDD")
    with opened(*tiers, metrics=metrics) as store:
        put(store, A)
        lease = store.lease(A)
        assert lease is not None
        fat = version("fat", 9)
        with store.fill(fat) as filling:
            filling.write(range(1), part(fat, range(1)))
            gate = Gate(monkeypatch, moving, "copy_down")
            first = Doing(lambda: filling.write(range(1, 8), part(fat, range(1, 8))))
            gate.wait()
            waiting = _waiting(monkeypatch, store, fat)
            second = Doing(lambda: filling.write(range(8, 9), part(fat, range(8, 9))))
            waiting.wait()
            waiting.open()
            gate.open()
            first.result()
            second.result()
            assert filling.complete
        assert _media(store) == {"a": "MEM", "fat": "SSD"}
        assert metrics.snapshot()[DEMOTED_BYTES] == BLOCK + 4096
        assert _whole(store, fat) == content(fat)
        lease.close()


# -- restarts --------------------------------------------------------------------------------------------------------


def test_reader_lives_through_a_restart_of_the_worker(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        put(store, B, range(2))
        with OtherReader(store.paths) as complete, OtherReader(store.paths) as partial:
            assert complete.open(A) == [True, True]
            assert partial.open(B, range(2)) == [False, True]
            store.close()
            with opened(tier(tmp_path, 20)) as restarted:
                assert complete.read(0, A.size) == content(A)
                assert restarted.evict(lambda _: True) == 0
                put(restarted, B)
                assert partial.read(0, B.size) == content(B)


# -- everything at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["sieve", "lru"])
def test_many_threads_and_little_room(tmp_path: Path, policy: str) -> None:
    versions = [version(f"{number}", 1 + number % 7) for number in range(24)]
    contents = {of: content(of) for of in versions}
    tiers = tier(tmp_path / "m", 24, high=0.9, low=0.6), tier(tmp_path / "s", 30, "SSD", high=0.9, low=0.6)
    with opened(*tiers, policy=policy, background=True) as store:

        def fill(seed: int) -> int:
            random_, full = random.Random(seed), 0
            for _ in range(150):
                of = random_.choice(versions)
                start = random_.randrange(of.block_count)
                blocks = range(start, min(start + 3, of.block_count))
                try:
                    with store.fill(of, random_.random() < 0.3) as filling:
                        for block in filling.missing(blocks):
                            offset, length = of.block_extent(block)
                            filling.write(range(block, block + 1), contents[of][offset : offset + length])
                        for block in blocks:
                            offset, length = of.block_extent(block)
                            assert filling.read(block)[1] == contents[of][offset : offset + length]
                except CacheFullError:
                    full += 1
                for usage in store.usage():
                    assert usage.used <= usage.quota
            return full

        def read(seed: int) -> int:
            random_, hits = random.Random(seed), 0
            view = StoreView(store.paths)
            for _ in range(1500):
                of = random_.choice(versions)
                file = view.open(of)
                if file is None:
                    continue
                with file:
                    there = [i for i in range(of.block_count) if file.has(range(i, i + 1))]
                    for block in there:
                        offset, length = of.block_extent(block)
                        assert file.pread(offset, length) == contents[of][offset : offset + length]
                        hits += 1
            return hits

        fills = [Doing(lambda seed=seed: fill(seed)) for seed in range(4)]
        reads = [Doing(lambda seed=seed: read(seed)) for seed in range(2)]
        assert sum(doing.result() for doing in fills) < 150
        assert sum(doing.result() for doing in reads) > 0
        store.close()  # ends the background thread
        for usage in store.usage():
            assert allocated(usage.path) == usage.used
