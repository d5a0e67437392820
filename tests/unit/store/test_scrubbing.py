"""The scrubber finds what has rotted, drops it where nobody can be hurt, and disturbs nobody."""

from __future__ import annotations

import errno
import json
import mmap
import os
import threading
from pathlib import Path

import pytest

from raycache.blocks import KiB, MiB, ObjectVersion
from raycache.errors import CacheFullError, IntegrityError
from raycache.metrics import CORRUPT_BLOCKS, PEER_BYTES, SCRUBBED_BYTES, STORE_BYTES, Metrics
from raycache.store import LocalStore, StoreView, index
from raycache.store.cached_object import CachedObject
from raycache.store.quiet import Quiet, busy_ms_of
from raycache.store.scrubbing import EVERY_S, Position, Scrubber
from raycache.store.uncached import CHUNK, UncachedReader, be_idle
from tests.support.stores import BLOCK, Doing, Gate, content, opened, part, put, tier, version

ALL = ("SSD", "HDD", "MEM")


def scrubber(store: LocalStore, **changes: object) -> Scrubber:
    """One that does not wait for anything."""
    options = {"media": ALL, "rate": float("inf"), "quiet": lambda path: True} | changes
    return Scrubber(store._space, store.metrics, **options)  # type: ignore[arg-type]


def data_of(store: LocalStore, of: ObjectVersion) -> Path:
    for path in store.paths:
        found = Path(index.data_path(path, of.object_id))
        if found.exists():
            return found
    raise AssertionError("no data file")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


@pytest.fixture(params=["MEM", "SSD", "HDD"])
def medium(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_sound_tier_stays_as_it_is(tmp_path: Path, medium: str) -> None:
    whole, some = version("whole", 2.5), version("some", 6)
    with opened(tier(tmp_path, 40, medium)) as store:
        put(store, whole)
        put(store, some, range(2, 4))
        scrubber(store).scrub()
        counts = store.metrics.snapshot()
        assert counts[SCRUBBED_BYTES] == 4.5 * BLOCK
        assert CORRUPT_BLOCKS not in counts
        with store.lease(whole) or pytest.fail("no lease") as file:
            assert file.complete
        assert store.contains(some).count(True) == 2


def test_a_bad_block_of_an_incomplete_file_is_dropped_and_counted(tmp_path: Path, medium: str) -> None:
    of = version("some", 6)
    with opened(tier(tmp_path, 40, medium)) as store:
        put(store, of, range(2, 5))
        flip(data_of(store, of), 3 * BLOCK + 17)
        with store.lease(of) or pytest.fail("no lease") as file:
            assert file.has(range(3, 4))
            scrubber(store).scrub()
            assert not file.has(range(3, 4)), "who has it open sees it, too"
            assert file.has(range(2, 3))
        assert store.metrics.snapshot()[CORRUPT_BLOCKS] == 1
        with store.fill(of) as filling:
            assert filling.missing(range(2, 5)) == [3]
            filling.write(range(3, 4), part(of, range(3, 4)))
            assert bytes(filling.read(3)[1]) == part(of, range(3, 4))


def test_a_bad_block_of_a_complete_file_is_never_served_again(tmp_path: Path, medium: str) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, medium)) as store:
        put(store, of)
        path = data_of(store, of)
        with store.lease(of) or pytest.fail("no lease") as before:
            assert before.complete
            view = before.view(0, of.size)
            flip(path, 2 * BLOCK + 5)
            scrubber(store).scrub()
            assert path.stat().st_blocks * 512 >= of.size, "no hole in what somebody has mapped"
            with StoreView(store.paths).open(of) or pytest.fail("no file") as fresh:
                for file in (before, fresh):
                    assert not file.complete
                    assert file.has(range(2))
                    assert not file.has(range(2, 3))
                    assert file.pread(0, 2 * BLOCK) == part(of, range(2))
                    with pytest.raises(IntegrityError):
                        file.pread(2 * BLOCK, 10)
                    with pytest.raises(IntegrityError):
                        file.view(2 * BLOCK, 10)
                # Mended in place: also for who has it mapped.
                put(store, of)
                assert before.complete
                assert fresh.complete
                assert view == before.pread(0, of.size) == fresh.pread(0, of.size) == content(of)
            view.release()


def test_who_may_have_it_mapped_is_helped_at_once(tmp_path: Path) -> None:
    """Nobody opens the file again, and the damage goes all the same; a file that was never complete can wait."""
    whole, some = version("whole"), version("some", 6)
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, whole)
        put(store, some, range(2))
        with data_of(store, whole).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for of in (whole, some):
            flip(data_of(store, of), 5)
        asked: list[ObjectVersion] = []

        def mend(of: ObjectVersion, blocks: range) -> None:
            asked.append(of)
            put(store, of, blocks)

        scrub = scrubber(store)
        scrub.mend = mend
        scrub.scrub()
        assert asked == [whole]
        assert mapped[:] == content(whole)
        mapped.close()


def test_a_damaged_file_is_given_up_if_the_store_holds_other_bytes(tmp_path: Path) -> None:
    """Then the recorded checksum has rotted, or the store lies: nothing else may come under somebody's mapping."""
    of = version("whole")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
        with store.lease(of) or pytest.fail("no lease") as old:
            view = old.view(0, of.size)
            flip(data_of(store, of), 5)
            damaged = bytes(view)
            scrubber(store).scrub()
            with store.fill(of) as filling:
                assert filling.missing(range(4)) == [0]
                with pytest.raises(CacheFullError, match="given up"):
                    filling.write(range(1), bytes(BLOCK))
            assert StoreView(store.paths).open(of) is None
            assert bytes(view) == damaged
            put(store, of)
            with store.lease(of) or pytest.fail("no lease") as new:
                assert new.complete
                assert new.pread(0, of.size) == content(of)
            view.release()


def test_a_reader_of_before_a_restart_does_not_get_what_has_rotted_since(tmp_path: Path) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
        file = StoreView(store.paths).open(of)
        assert file is not None
        assert file.complete
    with file, opened(tier(tmp_path, 40)) as store:
        assert file.complete, "a restart alone does not take it away"
        flip(data_of(store, of), 3 * BLOCK)
        scrubber(store).scrub()
        assert not file.complete
        assert file.has(range(3))
        assert not file.has(range(3, 4))
        put(store, of)
        assert file.complete


def test_what_an_earlier_process_left_is_verified_on_the_way(tmp_path: Path) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of)
    with opened(tier(tmp_path, 40, "SSD")) as store:
        scrubber(store).scrub()
        with store.lease(of) or pytest.fail("no lease") as file:
            assert file.complete


def test_an_index_that_cannot_be_written_does_not_keep_the_object_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of)
    with opened(tier(tmp_path, 40, "SSD")) as store:

        def failing(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(index, "write_states", failing)
            scrubber(store).scrub()
        assert store.evict(lambda _: True) > 0
        assert store.objects() == []


def test_memory_is_not_looked_through_unless_asked(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, "MEM")) as store:
        put(store, version("a"))
        Scrubber(store._space, store.metrics, rate=float("inf"), quiet=lambda path: True).scrub()
        assert SCRUBBED_BYTES not in store.metrics.snapshot()


def test_disks_come_before_memory(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "m", 9), tier(tmp_path / "s", 40, "SSD")) as store:
        put(store, version("small"))
        put(store, version("large", 20))
        seen: list[str] = []

        def quiet(path: str) -> bool:
            seen.append(path)
            return True

        scrubber(store, quiet=quiet).scrub()
        assert seen == [store.paths[1]] * 20 + [store.paths[0]] * 4


def test_it_goes_on_where_it_stood(tmp_path: Path) -> None:
    versions = [version(f"{number}", 3) for number in range(4)]
    now = [1_000_000.0]
    with opened(tier(tmp_path, 40, "SSD")) as store:
        for of in versions:
            put(store, of)
        left = [5]

        def some(path: str) -> bool:
            if left[0] == 0:
                first.stop()
                return False
            left[0] -= 1
            return True

        first = scrubber(store, quiet=some, clock=lambda: now[0])
        first.scrub()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 5 * BLOCK
        at = Position.load(str(tmp_path))
        assert at == Position(sorted(of.object_id for of in versions)[1], 2, now[0])
    now[0] += 10
    with opened(tier(tmp_path, 40, "SSD")) as store:
        scrubber(store, clock=lambda: now[0]).scrub()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 7 * BLOCK
        scrubber(store, clock=lambda: now[0]).scrub()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 7 * BLOCK, "the next pass is not due"
        now[0] += EVERY_S
        scrubber(store, clock=lambda: now[0]).scrub()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 19 * BLOCK


@pytest.mark.parametrize(
    "text", ["", "{", '{"object_id": "x"}', "[]", '{"object_id":1,"block":"x","began":0}']
)
def test_a_position_that_makes_no_sense_is_the_beginning(tmp_path: Path, text: str) -> None:
    (tmp_path / "SCRUB").write_text(text)
    assert Position.load(str(tmp_path)) == Position()


def test_a_clock_that_was_set_back_does_not_put_a_pass_off_for_years(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, version("a"))
        (tmp_path / "SCRUB").write_text(json.dumps({"object_id": "", "block": 0, "began": 5e9}))
        scrubber(store, clock=lambda: 1e9).scrub()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 4 * BLOCK


def test_it_stops_for_a_tier_that_is_in_use(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, version("a"))
        asked, may = threading.Event(), threading.Event()

        def quiet(path: str) -> bool:
            asked.set()
            return may.is_set()

        scrub = scrubber(store, quiet=quiet)
        scrub.start()
        done = Doing(scrub.scrub)
        asked.wait()
        assert SCRUBBED_BYTES not in store.metrics.snapshot()
        may.set()
        done.result()
        assert store.metrics.snapshot()[SCRUBBED_BYTES] == 4 * BLOCK
        scrub.stop()


def test_eviction_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of)
        gate = Gate(monkeypatch, UncachedReader, "checksum")
        scrub = Doing(scrubber(store).scrub)
        gate.wait()
        assert store.evict(lambda _: True) > 0
        gate.open()
        scrub.result()
        assert CORRUPT_BLOCKS not in store.metrics.snapshot()
        assert store.objects() == []


def test_a_block_that_is_dropped_and_filled_while_it_is_read_is_not_taken_for_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("some", 6)
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of, range(4))
        real, calls = UncachedReader.checksum, []

        def torn(self: UncachedReader, fd: int, extent: object) -> int:
            calls.append(extent)
            return real(self, fd, extent) ^ (len(calls) == 1)  # type: ignore[arg-type]

        monkeypatch.setattr(UncachedReader, "checksum", torn)
        scrubber(store).scrub()
        assert CORRUPT_BLOCKS not in store.metrics.snapshot()
        assert store.contains(of).count(True) == 4


def test_a_sector_that_cannot_be_read_is_a_bad_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of)
        real = UncachedReader.checksum

        def failing(self: UncachedReader, fd: int, extent: object) -> int:
            if extent == of.block_extent(1):
                raise OSError(5, os.strerror(5))
            return real(self, fd, extent)  # type: ignore[arg-type]

        monkeypatch.setattr(UncachedReader, "checksum", failing)
        scrubber(store).scrub()
        assert store.contains(of) == [True, False, True, True]
        assert store.metrics.snapshot()[CORRUPT_BLOCKS] == 1


def test_closing_the_store_while_a_bad_block_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = version("whole")
    with opened(tier(tmp_path, 40, "SSD")) as store:
        put(store, of)
        flip(data_of(store, of), 5)
        gate = Gate(monkeypatch, CachedObject, "leave_io")
        scrub = Doing(scrubber(store).scrub)
        gate.wait()
        closing = Doing(store.close)
        gate.open()
        closing.result()
        scrub.result()


class TestQuiet:
    def test_traffic_and_a_busy_disk_are_not_quiet(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        metrics, now, busy = Metrics(), [0.0], [100]
        monkeypatch.setattr("raycache.store.quiet.busy_ms_of", lambda path: busy[0])
        quiet = Quiet(metrics, lambda: now[0])

        def after(seconds: float, busy_ms: int = 0) -> bool:
            now[0] += seconds
            busy[0] += busy_ms
            return quiet("/tier")

        assert not after(0), "the first look tells nothing"
        assert after(1)
        assert after(2, 900)
        assert not after(2, 1100)
        assert after(1)
        metrics.add(STORE_BYTES, 1)
        assert after(0.5), "asked once a second"
        assert not after(1)
        metrics.add(PEER_BYTES, 1)
        assert not after(1)
        assert after(1)

    def test_what_the_kernel_tells_of_a_disk(self, tmp_path: Path) -> None:
        device = tmp_path.stat().st_dev
        folder = tmp_path / f"{os.major(device)}:{os.minor(device)}"
        folder.mkdir()
        (folder / "stat").write_text("    1  2  3  4  5  6  7  8  9  1234  11  0 0 0 0 0 0\n")
        assert busy_ms_of(str(tmp_path), str(tmp_path)) == 1234
        assert busy_ms_of("/dev/shm") == 0


class TestUncachedReader:
    @pytest.mark.parametrize("directory", ["disk", "/dev/shm"])
    @pytest.mark.parametrize("size", [1, 4096, 4097, CHUNK, CHUNK + 1, 3 * MiB + 5])
    def test_checksums_of_all_sizes(self, tmp_path: Path, directory: str, size: int) -> None:
        from crc32c import crc32c

        from raycache.blocks import Extent

        path = (tmp_path if directory == "disk" else Path(directory)) / f"raycache-test-{os.getpid()}"
        data = os.urandom(size + 64 * KiB)
        path.write_bytes(data)
        reader = UncachedReader()
        try:
            fd = reader.open(str(path))
            try:
                for start in (0, 64 * KiB, 7):
                    assert reader.checksum(fd, Extent(start, size)) == crc32c(data[start : start + size])
                with pytest.raises(OSError, match="shorter"):
                    reader.checksum(fd, Extent(64 * KiB, size + 1))
            finally:
                os.close(fd)
        finally:
            path.unlink()


def test_a_thread_can_be_idle() -> None:
    assert Doing(be_idle).result()
