"""The engine: blocks come in once, are checked, and whatever fails on the way is passed by."""

from __future__ import annotations

import mmap
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from raycache import metrics as m
from raycache.blocks import MiB, ObjectVersion
from raycache.engine.fetch import FETCH_SIZE, PEER_PARALLEL, STORE_PARALLEL
from raycache.errors import (
    CacheFullError,
    DatasetNotFoundError,
    ObjectNotFoundError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.store import LocalFile, files
from raycache.store.filling import Filling
from raycache.store.scrubbing import Scrubber
from raycache.ufs.base import ObjectInfo
from raycache.ufs.local import LocalDirectory
from raycache.ufs.retry import Backoff, Failure, Retrier
from tests.support.embedded import (
    BLOCK,
    PATIENCE_S,
    Embedded,
    Read,
    Workers,
    at_once,
    damage,
    data_files,
    dataset_of,
    noise,
)
from tests.support.stores import Doing
from tests.support.waiting import until

SIZE = 5 * BLOCK + 123


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    """The under-store: a directory with one object `a`."""
    directory = tmp_path / "bucket"
    directory.mkdir()
    (directory / "a").write_bytes(noise(SIZE))
    return directory


def version_of(cache: Embedded | Workers, path: str = "a") -> ObjectVersion:
    engine = cache.engine if isinstance(cache, Embedded) else cache.nodes[0].engine
    version = engine.info("ds", path).value.version
    assert version is not None
    return version


def lease(cache: Embedded, version: ObjectVersion) -> LocalFile:
    local = cache.engine.open_local(version)
    assert local is not None
    return local


def test_blocks_come_once_and_stay(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        for _ in range(2):
            cache.engine.ensure(version, range(version.block_count))
        assert cache.spies["ds"].bytes == SIZE
        assert cache.engine.cached_bytes(version) == SIZE
        with lease(cache, version) as local:
            assert local.complete
            assert local.pread(0, SIZE) == noise(SIZE)


def test_only_the_asked_blocks_and_those_ahead_come(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        cache.engine.ensure(version, range(1, 2))
        assert cache.spies["ds"].reads == [Read("a", BLOCK, BLOCK)]
        cache.engine.ensure(version, range(0), ahead=range(3, 5))
        cache.engine.ensure(version, range(3, 5))  # waits for what is under way
        assert cache.spies["ds"].reads[1:] == [Read("a", 3 * BLOCK, 2 * BLOCK)]


def test_sixteen_readers_make_one_fetch_of_each_block(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        asked = threading.Semaphore(0)
        fetcher = cache.engine._fetcher
        request = fetcher.request

        def counted(*args: object, **kwargs: object) -> object:
            waiting = request(*args, **kwargs)  # type: ignore[arg-type]
            asked.release()
            return waiting

        monkeypatch.setattr(fetcher, "request", counted)
        opened = threading.Event()

        def hold(_: Read) -> None:
            if not opened.is_set():  # until all sixteen have asked
                for _ in range(16):
                    assert asked.acquire(timeout=PATIENCE_S)
                opened.set()

        cache.spies["ds"].before = hold
        at_once(16, lambda _: cache.engine.ensure(version, range(version.block_count)))
        assert cache.spies["ds"].bytes == SIZE


def test_a_failed_fetch_reaches_all_who_wait_and_is_not_remembered(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)

        def fail(_: Read) -> None:
            raise UnderStoreError("the store is down", where="s3://bucket")

        cache.spies["ds"].before = fail

        def ensure(_: int) -> str:
            with pytest.raises(UnderStoreError) as raised:
                cache.engine.ensure(version, range(2))
            return raised.value.what

        assert at_once(4, ensure) == ["the store is down"] * 4
        cache.spies["ds"].before = lambda _: None
        cache.engine.ensure(version, range(2))
        assert cache.engine.cached_bytes(version) == 2 * BLOCK


def test_stream_gives_blocks_in_order_with_their_checksums(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        cache.engine.ensure(version, range(2, 3))
        blocks = [(crc, bytes(data)) for crc, data in cache.engine.stream(version, range(1, 6))]
        assert b"".join(data for _, data in blocks) == noise(SIZE)[BLOCK:]
        assert [crc for crc, _ in blocks] == [crc32c(data) for _, data in blocks]
        assert cache.spies["ds"].bytes == SIZE - BLOCK


def test_a_tier_full_of_leased_files_is_streamed_past(tmp_path: Path, bucket_dir: Path) -> None:
    (bucket_dir / "b").write_bytes(noise(SIZE, 1))
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset, quota=8 * BLOCK) as cache:
        version, other = version_of(cache), version_of(cache, "b")
        cache.engine.ensure(version, range(version.block_count))
        with lease(cache, version):
            with pytest.raises(CacheFullError):
                cache.engine.ensure(other, range(other.block_count))
            data = b"".join(bytes(data) for _, data in cache.engine.stream(other, range(other.block_count)))
        assert data == noise(SIZE, 1)
        assert cache.metrics.snapshot()[m.BYPASSED_BYTES] > 0
        assert cache.engine.cached_bytes(version) == SIZE
        cache.engine.ensure(other, range(other.block_count))  # nobody reads `a` any more: there is room


def test_an_object_larger_than_the_tier_streams_right(tmp_path: Path, bucket_dir: Path) -> None:
    (bucket_dir / "big").write_bytes(noise(40 * BLOCK, 2))
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset, quota=8 * BLOCK) as cache:
        version = version_of(cache, "big")
        for _ in range(2):
            blocks = cache.engine.stream(version, range(version.block_count))
            assert b"".join(bytes(data) for _, data in blocks) == noise(40 * BLOCK, 2)
        assert sum(tier.used for tier in cache.stores["ds"].usage()) <= 8 * BLOCK


def test_a_quota_below_one_block_serves_from_the_store(tmp_path: Path, bucket_dir: Path) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset, quota=1024) as cache:
        version = version_of(cache)
        with pytest.raises(CacheFullError):
            cache.engine.ensure(version, range(1))
        data = b"".join(bytes(data) for _, data in cache.engine.stream(version, range(version.block_count)))
        assert data == noise(SIZE)


def test_a_block_that_rotted_on_disk_is_fetched_again_after_a_restart(
    tmp_path: Path, bucket_dir: Path
) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset) as cache:
        cache.engine.ensure(version_of(cache), range(6))
        [file] = cache.files()
    damage(file, 3 * BLOCK + 17)
    with Embedded(tmp_path / "tier", dataset) as cache:
        version = version_of(cache)
        cache.engine.ensure(version, range(6))
        assert cache.spies["ds"].reads == [Read("a", 3 * BLOCK, BLOCK)]
        assert cache.metrics.snapshot()[m.CORRUPT_BLOCKS] == 1
        with lease(cache, version) as local:
            assert local.pread(0, SIZE) == noise(SIZE)


@pytest.mark.parametrize("boot", ["the same boot", "another boot, 16"])
def test_after_a_restart_everything_is_verified_before_its_first_use_and_nothing_is_fetched(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset) as cache:
        cache.engine.ensure(version_of(cache), range(6))
    if boot == "another boot, 16":
        monkeypatch.setattr(files, "boot_id", boot.encode)
    verified: list[int] = []
    original = files.pread_into

    def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
        verified.append(offset)
        return original(fd, buffer, offset)

    with Embedded(tmp_path / "tier", dataset) as cache:
        monkeypatch.setattr(files, "pread_into", pread_into)
        version = version_of(cache)
        with lease(cache, version) as local:
            for block in range(6):
                assert not local.has(range(block, block + 1)), "not before it is verified"
                cache.engine.ensure(version, range(block, block + 1))
                assert verified == [each * BLOCK for each in range(block + 1)]
                assert local.has(range(block + 1))
            assert local.complete
            assert local.pread(0, SIZE) == noise(SIZE)
        assert cache.spies["ds"].reads == [], "warm is warm"


def test_recheck_drops_what_does_not_match(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        assert cache.engine.recheck(version, range(6)) == ()  # nothing is there
        cache.engine.ensure(version, range(6))
        assert cache.engine.recheck(version, range(6)) == ()
        damage(cache.files()[0], BLOCK)
        release = threading.Event()

        def held_up(read: Read) -> None:
            assert release.wait(PATIENCE_S)

        cache.spies["ds"].before = held_up  # it is sent for at once
        try:
            assert cache.engine.recheck(version, range(6)) == (1,)
            assert cache.engine.cached_bytes(version) == SIZE - BLOCK
        finally:
            release.set()
        assert cache.engine.ensure(version, range(6))
        assert cache.engine.cached_bytes(version) == SIZE


def test_an_overwritten_object_is_stale_and_its_name_asked_again(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version = version_of(cache)
        (bucket_dir / "a").write_bytes(noise(SIZE, 9))
        assert version_of(cache) == version  # still believed
        with pytest.raises(StaleObjectError):
            cache.engine.ensure(version, range(1))
        assert version_of(cache) != version
        assert cache.engine.cached_bytes(version) == 0


@pytest.mark.parametrize(("mode", "sees_change"), [("strict", True), ("ttl", False), ("immutable", False)])
def test_consistency_modes(tmp_path: Path, bucket_dir: Path, mode: str, sees_change: bool) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"}, consistency_mode=mode)
    with Embedded(tmp_path / "tier", dataset) as cache:
        before = version_of(cache)
        listed = cache.engine.list("ds", "").value
        (bucket_dir / "a").write_bytes(noise(SIZE + 1, 9))
        (bucket_dir / "new").write_bytes(b"new")
        assert (version_of(cache) != before) == sees_change
        assert (cache.engine.list("ds", "").value != listed) == sees_change
        cache.engine.invalidate("ds")
        assert version_of(cache) != before
        assert [info.path for info in cache.engine.list("ds", "").value] == ["a", "new"]


def test_missing_and_detached(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        with pytest.raises(ObjectNotFoundError):
            cache.engine.info("ds", "nothing")
        version = version_of(cache)
        store = cache.engine.detach("ds")
        assert store is not None
        store.close()
        assert cache.engine.detach("ds") is None
        with pytest.raises(DatasetNotFoundError):
            cache.engine.ensure(version, range(1))
        with pytest.raises(DatasetNotFoundError):
            cache.engine.info("ds", "a")


# -- several workers ----------------------------------------------------------------------------------------


def test_the_store_is_read_once_however_many_workers_want_it(tmp_path: Path, bucket_dir: Path) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as workers:
        version = version_of(workers)
        at_once(12, lambda n: workers.nodes[n % 3].engine.ensure(version, range(version.block_count)))
        assert workers.store_bytes == SIZE
        owner = workers.owner_of(version)
        for number, node in enumerate(workers.nodes):
            [status] = node.store.objects()
            assert status.complete
            assert status.secondary == (number != owner)
            assert data_files(node.store)[0].read_bytes() == noise(SIZE)


def test_a_dead_owner_is_passed_by(tmp_path: Path, bucket_dir: Path) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as workers:
        version = version_of(workers)
        owner = workers.owner_of(version)
        workers.nodes[owner].server.close()
        other = workers.nodes[1 - owner]
        other.engine.ensure(version, range(version.block_count))
        assert other.spy.bytes == SIZE
        assert other.metrics.snapshot()[m.FALLBACKS] >= 1


def test_an_owner_without_the_dataset_is_passed_by(tmp_path: Path, bucket_dir: Path) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as workers:
        version = version_of(workers)
        owner = workers.owner_of(version)
        store = workers.nodes[owner].engine.detach("ds")
        assert store is not None
        store.close()
        other = workers.nodes[1 - owner]
        other.engine.ensure(version, range(version.block_count))
        assert other.spy.bytes == SIZE


def test_a_damaged_block_is_noticed_by_its_receiver_and_mended_at_its_sender(
    tmp_path: Path, bucket_dir: Path
) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as workers:
        version = version_of(workers)
        owner = workers.nodes[workers.owner_of(version)]
        other = workers.nodes[1 - workers.owner_of(version)]
        owner.engine.ensure(version, range(version.block_count))
        damage(data_files(owner.store)[0], 2 * BLOCK)
        other.engine.ensure(version, range(version.block_count))
        assert data_files(other.store)[0].read_bytes() == noise(SIZE)
        assert owner.metrics.snapshot()[m.CORRUPT_BLOCKS] == 1
        owner.engine.ensure(version, range(version.block_count))
        assert data_files(owner.store)[0].read_bytes() == noise(SIZE)


def test_a_block_that_rots_under_a_mapping_is_mended_though_nobody_asks_for_it(
    tmp_path: Path, bucket_dir: Path
) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 1) as workers:
        version, (node,) = version_of(workers), workers.nodes
        node.engine.ensure(version, range(version.block_count))
        with data_files(node.store)[0].open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with mapped:
            damage(data_files(node.store)[0], 2 * BLOCK)
            assert mapped[:] != noise(SIZE)
            scrubber = Scrubber(node.store._space, node.metrics, media=("MEM",), quiet=lambda path: True)
            scrubber.mend = node.store._scrubber.mend
            scrubber.scrub()
            until(lambda: mapped[:] == noise(SIZE), "the right bytes")
        assert node.metrics.snapshot()[m.CORRUPT_BLOCKS] == 1


def test_a_stale_version_stops_at_the_owner(tmp_path: Path, bucket_dir: Path) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as workers:
        version = version_of(workers)
        other = workers.nodes[1 - workers.owner_of(version)]
        (bucket_dir / "a").write_bytes(noise(SIZE, 9))
        with pytest.raises(StaleObjectError):
            other.engine.ensure(version, range(1))
        assert other.spy.reads == []


def test_a_listing_is_made_once_for_all_workers(tmp_path: Path, bucket_dir: Path) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as workers:
        calls: list[str] = []
        for node in workers.nodes:
            source = node.engine.volume("ds").source
            original = source.list

            def listed(path: str, original: object = original) -> object:
                calls.append(path)
                return original(path)  # type: ignore[operator]

            source.list = listed  # type: ignore[method-assign,assignment]
        listings = [node.engine.list("ds", "").value for node in workers.nodes]
        assert [info.path for info in listings[0]] == ["a"]
        assert listings[0] == listings[1] == listings[2]
        assert calls == [""]


def test_stats_of_a_path_at_the_same_time_are_one_head_at_the_store(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as workers:
        heads: list[str] = []
        original = LocalDirectory.head
        flights = [node.engine.volume("ds")._flights for node in workers.nodes]

        def head(self: LocalDirectory, key: str) -> ObjectInfo:
            heads.append(key)
            asking = ("info", "a", 0)
            until(
                lambda: max(flight.waiters(asking) for flight in flights) == 11,
                "all others wait for this one",
            )
            return original(self, key)

        monkeypatch.setattr(LocalDirectory, "head", head)
        infos = at_once(12, lambda number: workers.nodes[number % 3].engine.info("ds", "a").value)
        assert heads == ["a"]
        assert infos == infos[:1] * 12


def test_who_had_a_name_forgotten_does_not_get_what_was_asked_for_before(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        asked, go_on = threading.Event(), threading.Event()
        original = LocalDirectory.head

        def head(self: LocalDirectory, key: str) -> ObjectInfo:
            found = original(self, key)
            if not asked.is_set():
                asked.set()
                assert go_on.wait(PATIENCE_S)
            return found

        monkeypatch.setattr(LocalDirectory, "head", head)
        first = Doing(lambda: cache.engine.info("ds", "a").value.size)
        assert asked.wait(PATIENCE_S)
        (bucket_dir / "a").write_bytes(b"new")
        cache.engine.invalidate("ds", "a")
        assert cache.engine.info("ds", "a").value.size == 3
        go_on.set()
        assert first.result() == SIZE
        assert cache.engine.info("ds", "a").value.size == 3, "and what came late is not remembered"


def test_workers_that_take_each_other_for_the_owner_do_not_wait_for_each_other(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the news of a rebalance is on its way: each asks the other, before it has heard of it."""
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as workers:
        version = version_of(workers)
        both_ask = threading.Barrier(2)
        for node, other in zip(workers.nodes, reversed(workers.nodes), strict=True):
            monkeypatch.setattr(node.engine.peers, "owners", lambda *_, owner=other.worker: [owner])

            def stream(*args: Any, original: Any = node.engine.peers.stream_blocks, **options: Any) -> Any:
                if not options.get("held"):  # who is asked for what he holds waits for nobody
                    both_ask.wait(PATIENCE_S)
                return original(*args, **options)

            monkeypatch.setattr(node.engine.peers, "stream_blocks", stream)
        reads = [Doing(partial(node.engine.ensure, version, range(1))) for node in workers.nodes]
        for read in reads:
            read.result()
        for node in workers.nodes:
            assert node.engine.cached_bytes(version) == BLOCK
            assert node.metrics.snapshot().get(m.FALLBACKS, 0) == 0


def test_a_bounded_wait_ends_without_the_blocks_and_they_come_all_the_same(
    tmp_path: Path, bucket_dir: Path
) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version, gate = version_of(cache), threading.Event()

        def hold(read: Read) -> None:
            assert gate.wait(PATIENCE_S)

        cache.spies["ds"].before = hold
        assert not cache.engine.ensure(version, range(2), patience_s=0.0)
        gate.set()
        assert cache.engine.ensure(version, range(2), patience_s=PATIENCE_S)
        assert cache.spies["ds"].bytes == 2 * BLOCK


def test_a_store_that_fails_does_not_hold_up_the_end(tmp_path: Path, bucket_dir: Path) -> None:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        version, source = version_of(cache), cache.engine.volume("ds").source
        trying = threading.Event()
        hours = Backoff(deadline_s=36_000, base_s=36_000, cap_s=36_000)
        retrier = Retrier(lambda *_: Failure(UnderStoreError("down"), True), (OSError,), hours, cache.metrics)

        def fail() -> None:
            trying.set()
            raise OSError

        store = source._store(source._mounts[""])
        store.pour = lambda *_: retrier.call(fail, "a")  # type: ignore[method-assign]
        store.close = retrier.close  # type: ignore[method-assign]
        reading = Doing(partial(cache.engine.ensure, version, range(1)))
        assert trying.wait(PATIENCE_S)
        Doing(cache.engine.close).result()
        with pytest.raises(UnderStoreError):
            reading.result()


@pytest.mark.parametrize("stuck", [1, STORE_PARALLEL, 4 * STORE_PARALLEL])
def test_keys_that_hang_do_not_keep_up_the_others(tmp_path: Path, stuck: int) -> None:
    bucket, healthy = tmp_path / "bucket", FETCH_SIZE + BLOCK
    bucket.mkdir()
    for number in range(stuck):
        with open(bucket / f"stuck-{number}", "wb") as file:
            file.truncate(2 * STORE_PARALLEL * FETCH_SIZE)  # enough runs for every thread there is
    (bucket / "healthy").write_bytes(noise(healthy))
    hanging, release = threading.Semaphore(0), threading.Event()

    def hang(read: Read) -> None:
        if read.path.startswith("stuck"):
            hanging.release()
            assert release.wait(PATIENCE_S)
            raise UnderStoreError("it hung, and the test is over", where=read.path)

    dataset = dataset_of("ds", {"": f"file://{bucket}"}, block_size=FETCH_SIZE)
    with Embedded(tmp_path / "tier", dataset) as cache:
        cache.spies["ds"].before = hang
        try:
            for number in range(stuck):
                version = version_of(cache, f"stuck-{number}")
                assert not cache.engine.ensure(version, range(version.block_count), patience_s=0)
            for _ in range(max(stuck, STORE_PARALLEL)):
                assert hanging.acquire(timeout=PATIENCE_S)
            version = version_of(cache, "healthy")
            assert cache.engine.ensure(version, range(version.block_count))
            with lease(cache, version) as local:
                assert local.pread(0, healthy) == noise(healthy)
            assert not release.is_set()
        finally:
            release.set()


def test_an_object_that_hangs_while_it_is_to_be_moved_does_not_keep_up_the_others(
    tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket_dir / "stuck").write_bytes(noise(SIZE))
    hangs, moves, release = threading.Event(), threading.Event(), threading.Event()

    def hang(read: Read) -> None:
        if read.path == "stuck" and not release.is_set():
            hangs.set()
            assert release.wait(PATIENCE_S)

    asked = Filling.missing

    def moved_meanwhile(filling: Filling, blocks: range) -> list[int]:
        found = asked(filling, blocks)
        if filling.version.path == "stuck" and blocks.start == 3 and not moves.is_set():
            # Its tier is full: it is to go down, and that waits for the fetch that hangs.
            with filling._object.cond:
                filling._object.moving = True
            moving.append(filling)
            moves.set()
        return found

    moving: list[Filling] = []
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as cache:
        stuck, well = version_of(cache, "stuck"), version_of(cache)
        cache.spies["ds"].before = hang
        first = Doing(partial(cache.engine.ensure, stuck, range(2)))
        try:
            assert hangs.wait(PATIENCE_S)
            monkeypatch.setattr(Filling, "missing", moved_meanwhile)
            second = Doing(partial(cache.engine.ensure, stuck, range(3, 4)))
            assert moves.wait(PATIENCE_S)
            assert Doing(partial(cache.engine.ensure, well, range(well.block_count))).result()
            assert not release.is_set()
        finally:
            for filling in moving:
                with filling._object.cond:
                    filling._object.moving = False
                    filling._object.cond.notify_all()
            release.set()
        assert first.result()
        assert second.result()


def test_a_key_that_hangs_at_its_owner_does_not_keep_up_those_who_ask_the_owner(
    tmp_path: Path, bucket_dir: Path
) -> None:
    with open(bucket_dir / "stuck", "wb") as file:
        file.truncate(2 * PEER_PARALLEL * FETCH_SIZE)
    release, hangs = threading.Event(), threading.Event()

    def hang(read: Read) -> None:
        if read.path == "stuck":
            hangs.set()
            assert release.wait(PATIENCE_S)
            raise UnderStoreError("it hung, and the test is over", where=read.path)

    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"}, block_size=FETCH_SIZE)
    with Workers(tmp_path, dataset, quota=1024 * MiB) as workers:
        for node in workers.nodes:
            node.spy.before = hang
        try:
            stuck, well = version_of(workers, "stuck"), version_of(workers, "a")
            asking = workers.nodes[1 - workers.owner_of(stuck)].engine
            assert not asking.ensure(stuck, range(stuck.block_count), patience_s=0)
            assert hangs.wait(PATIENCE_S)
            for node in workers.nodes:
                assert node.engine.ensure(well, range(well.block_count))
            assert not release.is_set()
        finally:
            release.set()
