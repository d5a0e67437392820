"""The client: right bytes from wherever they can be had, of one version, through every failure of the cache."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.client import ClusterState, ObjectReader
from raycache.errors import (
    DatasetNotFoundError,
    NotAFileError,
    ObjectNotFoundError,
    PathError,
    StaleObjectError,
    UnderStoreError,
    WorkerUnavailableError,
)
from raycache.fuse.reach import problem_of
from raycache.membership import Membership
from raycache.store import LocalFile, StoreView
from tests.conftest import s3_mount_options
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
from tests.support.seaweed import SeaweedS3
from tests.support.stores import Doing
from tests.support.waiting import until

SIZE = 9 * BLOCK + 4567
DATA = noise(SIZE)


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    """The under-store: a directory with `a` and a few objects of particular sizes."""
    directory = tmp_path / "bucket"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "a").write_bytes(DATA)
    (directory / "empty").write_bytes(b"")
    (directory / "block").write_bytes(noise(BLOCK, 1))
    (directory / "blocks").write_bytes(noise(2 * BLOCK, 2))
    (directory / "deep" / "er" / "leaf").write_bytes(b"leaf")
    return directory


@pytest.fixture
def cache(tmp_path: Path, bucket_dir: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as embedded:
        yield embedded


def read_all(cache: Embedded | object, path: str = "a") -> bytes:
    client = cache.client if isinstance(cache, Embedded) else cache
    with closing(client.open("ds", path)) as reader:  # type: ignore[attr-defined]
        return bytes(reader.read_at(0, reader.size))


# -- what a read gives --------------------------------------------------------------------------------------


def test_sequential_reads_cold_then_warm(cache: Embedded) -> None:
    for _ in range(2):
        with closing(cache.client.open("ds", "a")) as reader:
            pieces = [reader.read_at(offset, 10_000) for offset in range(0, SIZE, 10_000)]
            assert b"".join(pieces) == DATA
    assert cache.spies["ds"].bytes == SIZE


def test_random_reads_cold_and_warm(cache: Embedded) -> None:
    chance = random.Random(7)
    with closing(cache.client.open("ds", "a")) as reader:
        for _ in range(200):
            offset, length = chance.randrange(SIZE + 10), chance.choice([0, 1, 4096, BLOCK, 3 * BLOCK])
            expected = DATA[offset : offset + length]
            assert reader.read_at(offset, length) == expected
            buffer = bytearray(length)
            assert reader.readinto_at(offset, memoryview(buffer)) == len(expected)
            assert buffer[: len(expected)] == expected
    assert cache.spies["ds"].bytes <= SIZE


def test_views_cold_and_warm(cache: Embedded) -> None:
    chance = random.Random(8)
    views = []
    with closing(cache.client.open("ds", "a")) as reader:
        for _ in range(200):
            offset, length = chance.randrange(SIZE + 10), chance.choice([0, 1, 4096, BLOCK, 3 * BLOCK])
            views.append((offset, length, reader.read_view(offset, length)))
            assert views[-1][2].readonly
    for offset, length, view in views:  # the reader is closed, the views are not
        assert view == DATA[offset : offset + length]
    assert cache.spies["ds"].bytes <= SIZE


def test_views_of_an_object_larger_than_the_cache(tmp_path: Path, bucket_dir: Path) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with (
        Embedded(tmp_path / "small", dataset, quota=4 * BLOCK) as small,
        closing(small.client.open("ds", "a")) as reader,
    ):
        views = [reader.read_view(offset, BLOCK) for offset in range(0, SIZE, BLOCK)]
        assert b"".join(views) == DATA


def test_sixteen_readers_read_a_cold_object_once(cache: Embedded) -> None:
    def read(number: int) -> bytes:
        with closing(cache.client.open("ds", "a")) as reader:
            offsets = list(range(0, SIZE, BLOCK // 2))
            random.Random(number).shuffle(offsets)
            parts = {offset: reader.read_at(offset, BLOCK // 2) for offset in offsets}
            return b"".join(parts[offset] for offset in sorted(parts))

    assert set(at_once(16, read)) == {DATA}
    assert cache.spies["ds"].bytes == SIZE


def test_one_reader_serves_many_threads(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:

        def read(number: int) -> bool:
            chance = random.Random(number)
            for _ in range(50):
                offset = chance.randrange(SIZE)
                if reader.read_at(offset, 30_000) != DATA[offset : offset + 30_000]:
                    return False
            return True

        assert all(at_once(8, read))


@pytest.mark.parametrize(("path", "size"), [("empty", 0), ("block", BLOCK), ("blocks", 2 * BLOCK)])
def test_sizes_at_the_edges(cache: Embedded, bucket_dir: Path, path: str, size: int) -> None:
    expected = (bucket_dir / path).read_bytes()
    for _ in range(2):
        with closing(cache.client.open("ds", path)) as reader:
            assert reader.size == size
            assert reader.read_at(0, size + 100) == expected
            assert reader.read_at(size, 10) == b""
            assert reader.read_at(size + 5, 10) == b""
            assert reader.readinto_at(size, memoryview(bytearray(3))) == 0
            if size:
                assert reader.read_at(size - 1, 10) == expected[-1:]
    with cache.client.local_path("ds", path) as local:
        assert Path(local).read_bytes() == expected


def test_negative_offsets_are_refused(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        for _ in range(2):
            with pytest.raises(ValueError, match="negative"):
                reader.read_at(-1, 5)
            with pytest.raises(ValueError, match="negative"):
                reader.read_at(5, -1)
            reader.read_at(0, SIZE)


def test_a_closed_reader_reads_no_more(cache: Embedded) -> None:
    reader = cache.client.open("ds", "a")
    assert reader.read_at(0, 3) == DATA[:3]
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read_at(0, 3)


def test_views_share_the_mapping_and_outlive_reader_and_eviction(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(BLOCK, 10)  # not sequential: nothing is read ahead
        assert reader.view_at(0, 10) is None
        assert reader.complete_local() is None
        reader.read_at(0, SIZE)
        view = reader.view_at(5, SIZE)
        assert view is not None
        assert reader.complete_local() is not None
    assert cache.stores["ds"].evict(lambda _: True) == 0  # the view still holds the lease
    assert cache.stores["ds"].purge() > 0
    assert view == DATA[5:]
    assert view.readonly


# -- names --------------------------------------------------------------------------------------------------


def test_names(cache: Embedded) -> None:
    client = cache.client
    assert [dataset.name for dataset in client.datasets()] == ["ds"]
    assert client.info("ds").kind == "directory"
    assert client.info("ds", "deep/er").kind == "directory"
    assert client.info("ds", "/deep//er/leaf/").size == 4
    assert [info.path for info in client.list("ds")] == ["a", "block", "blocks", "deep", "empty"]
    assert [info.path for info in client.walk("ds", "deep")] == ["deep/er/leaf"]
    assert sorted(info.path for info in client.walk("ds"))[-2:] == ["deep/er/leaf", "empty"]


def test_binding_reads_nothing_and_opening_what_was_listed_asks_nobody(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.spies["ds"].reads == []
    listed = cache.client.list("ds")

    def refuse(*_: object) -> None:
        raise AssertionError("the store was asked")

    for source in (cache.engine.volume("ds").source, cache.client._source("ds")):
        monkeypatch.setattr(source, "info", refuse)
        monkeypatch.setattr(source, "list", refuse)
    for info in listed:
        if info.kind == "file":
            with closing(cache.client.open("ds", info.path)) as reader:
                assert reader.version == info.version
    assert cache.spies["ds"].reads == []


@pytest.mark.parametrize("path", ["../a", "deep/../../a", "deep/..", ".."])
def test_a_path_cannot_leave_its_dataset(cache: Embedded, path: str) -> None:
    for call in (cache.client.info, cache.client.list, cache.client.open):
        with pytest.raises(PathError):
            call("ds", path)  # type: ignore[operator]


def test_what_is_not_there(cache: Embedded) -> None:
    with pytest.raises(ObjectNotFoundError):
        cache.client.open("ds", "nothing")
    with pytest.raises(FileNotFoundError):
        cache.client.list("ds", "nothing")
    with pytest.raises(NotAFileError):
        cache.client.open("ds", "deep")
    with pytest.raises(DatasetNotFoundError, match="ds"):  # names those that there are
        cache.client.open("other", "a")


def test_secrets_show_nowhere(tmp_path: Path) -> None:
    secret = "s3cr3t-value"
    dataset = dataset_of("ds", {"": "s3://bucket"}, {"secret_access_key": secret})
    with Embedded(tmp_path / "tier", dataset) as cache:
        state = ClusterState(Membership(), {"ds": dataset}, token=secret)
        for shown in (cache.client, cache.client.dataset("ds"), cache.client._source("ds"), state):
            assert secret not in repr(shown)
        with pytest.raises(TypeError, match="bound to its process"):
            pickle.dumps(cache.client)


# -- one version --------------------------------------------------------------------------------------------


def test_overwritten_while_open_and_cached(cache: Embedded, bucket_dir: Path) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(0, SIZE)
        (bucket_dir / "a").write_bytes(noise(SIZE, 5))
        assert reader.read_at(0, SIZE) == DATA
    cache.client.invalidate("ds", "a")
    assert read_all(cache) == noise(SIZE, 5)


def test_overwritten_while_open_and_not_cached(cache: Embedded, bucket_dir: Path) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        assert reader.read_at(BLOCK, 10) == DATA[BLOCK : BLOCK + 10]  # not sequential: nothing is read ahead
        (bucket_dir / "a").write_bytes(noise(SIZE, 5))
        with pytest.raises(StaleObjectError):
            reader.read_at(8 * BLOCK, 10)
        assert reader.read_at(BLOCK, 10) == DATA[BLOCK : BLOCK + 10]
    assert read_all(cache) == noise(SIZE, 5)  # the failure made the name be asked again


def test_deleted_while_open_and_not_cached(cache: Embedded, bucket_dir: Path) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        (bucket_dir / "a").unlink()
        with pytest.raises(StaleObjectError):
            reader.read_at(0, 10)
    with pytest.raises(FileNotFoundError):
        cache.client.open("ds", "a")


def test_local_path_of_an_overwritten_object(cache: Embedded, bucket_dir: Path) -> None:
    cache.client.info("ds", "a")
    (bucket_dir / "a").write_bytes(noise(SIZE, 5))
    with pytest.raises(StaleObjectError), cache.client.local_path("ds", "a"):
        pass
    with cache.client.local_path("ds", "a") as path:
        assert Path(path).read_bytes() == noise(SIZE, 5)


# -- the cache can only help --------------------------------------------------------------------------------


def test_an_object_larger_than_all_tiers(tmp_path: Path, bucket_dir: Path) -> None:
    data = noise(60 * BLOCK, 3)
    (bucket_dir / "big").write_bytes(data)
    tiers = [tmp_path / "mem", tmp_path / "ssd"]
    with Embedded(tiers, dataset_of("ds", {"": f"file://{bucket_dir}"}), quota=8 * BLOCK) as cache:
        for _ in range(2):
            with closing(cache.client.open("ds", "big")) as reader:
                pieces = [reader.read_at(offset, 50_000) for offset in range(0, len(data), 50_000)]
                assert b"".join(pieces) == data
                assert reader.local_file() is None
        with cache.client.local_path("ds", "big") as path:
            assert Path(path).read_bytes() == data
        assert not os.path.exists(path)
        for tier in cache.stores["ds"].usage():
            assert tier.used <= tier.quota


def test_a_detached_dataset_is_read_from_the_store(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        store = cache.engine.detach("ds")
        assert store is not None
        store.close()
        assert reader.read_at(0, SIZE) == DATA
    assert cache.metrics.snapshot()[m.FALLBACKS] > 0


def test_a_purged_store_is_filled_again(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(BLOCK, BLOCK)
        cache.stores["ds"].purge()
        assert reader.read_at(0, SIZE) == DATA
        assert reader.read_at(5, SIZE) == DATA[5:]
    assert cache.spies["ds"].bytes <= SIZE + BLOCK
    assert cache.engine.cached_bytes(reader.version) == SIZE


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_a_disk_that_fails_under_the_local_file(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(0, SIZE)
        local = reader.complete_local()
        assert local is not None
        broken = local.fileno()
        original: Callable[..., object] = getattr(os, call)

        def failing(fd: int, *rest: object) -> object:
            if fd == broken:
                raise OSError(5, "Input/output error")
            return original(fd, *rest)

        monkeypatch.setattr(os, call, failing)
        buffer = bytearray(SIZE)
        assert reader.read_at(17, 100_000) == DATA[17:100_017]
        assert reader.readinto_at(0, memoryview(buffer)) == SIZE
        assert buffer == DATA
    assert cache.metrics.snapshot()[m.FALLBACKS] > 0


def test_a_local_file_that_was_cut_short(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(0, SIZE)
        os.truncate(cache.files()[0], BLOCK)
        buffer = bytearray(SIZE)
        assert reader.readinto_at(0, memoryview(buffer)) == SIZE
        assert buffer == DATA
        assert reader.read_at(0, SIZE) == DATA
        view = reader.view_at(0, SIZE)
        if view is not None:  # the blocks that were cut off have been put in their places already
            assert bytes(view) == DATA
            view.release()


def test_no_descriptor_is_left_for_a_mapping(cache: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with closing(cache.client.open("ds", "a")) as reader:
        reader.read_at(0, SIZE)
        with monkeypatch.context() as patch:
            patch.setattr("raycache.store.local_file.mmap.mmap", refuse)
            assert reader.view_at(0, SIZE) is None
        assert reader.read_at(0, SIZE) == DATA


def test_a_dataset_that_was_deleted_under_an_open_reader(cache: Embedded) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        store = cache.engine.detach("ds")
        assert store is not None
        store.close()
        assert problem_of(cache.client, "ds") == ""
        cache.client._update(ClusterState(Membership(), {}))
        assert problem_of(cache.client, "ds") == "the dataset has been deleted"
        with pytest.raises(DatasetNotFoundError, match="has been deleted"):
            reader.read_at(0, SIZE)


def test_a_local_file_that_cannot_be_opened(cache: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_all(cache) == DATA

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.stores["ds"], "lease", refuse)
    assert read_all(cache) == DATA


def test_rot_on_disk_is_repaired_after_a_restart(tmp_path: Path, bucket_dir: Path) -> None:
    dataset = dataset_of("ds", {"": f"file://{bucket_dir}"})
    with Embedded(tmp_path / "tier", dataset) as cache:
        assert read_all(cache) == DATA
        [file] = cache.files()
    damage(file, 4 * BLOCK)
    with Embedded(tmp_path / "tier", dataset) as cache:
        assert read_all(cache) == DATA
        assert cache.spies["ds"].reads == [Read("a", 4 * BLOCK, BLOCK)]


def test_the_stores_failure_is_told_as_it_is(cache: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UnderStoreError("the store is down", where="s3://bucket")

    def once_more(*_: object) -> None:
        raise AssertionError("the engine of this very process has tried until its deadline")

    cache.spies["ds"].before = fail
    monkeypatch.setattr(cache.client._source("ds"), "read", once_more)
    with closing(cache.client.open("ds", "a")) as reader, pytest.raises(UnderStoreError, match="down"):
        reader.read_at(0, SIZE)


@pytest.mark.parametrize("left", [0, BLOCK + 100])
def test_a_cache_file_that_somebody_cut_short_never_gives_zeros(cache: Embedded, left: int) -> None:
    with closing(cache.client.open("ds", "a")) as reader:
        assert reader.read_at(0, 3 * BLOCK) == DATA[: 3 * BLOCK]
        # What is fetched ahead must have been written: it would make the file long again behind everybody's back.
        until(lambda: not cache.engine._fetcher._inflight, "nothing is on its way")
        [file] = cache.files()
        os.truncate(file, left)
        # What is fetched now would make the file long enough again, with zeros in between.
        assert reader.read_at(4 * BLOCK, SIZE) == DATA[4 * BLOCK :]
        assert reader.read_at(0, SIZE) == DATA
    for _ in range(2):
        assert read_all(cache) == DATA


def test_a_store_that_does_not_tell_a_name_is_asked_once(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UnderStoreError("the store is down", where="s3://bucket")

    def once_more(*_: object) -> None:
        raise AssertionError("the engine of this very process has tried until its deadline")

    for method in ("info", "list"):
        monkeypatch.setattr(cache.engine.volume("ds").source, method, fail)
        monkeypatch.setattr(cache.client._source("ds"), method, once_more)
    with pytest.raises(UnderStoreError, match="down"):
        cache.client.info("ds", "a")
    with pytest.raises(UnderStoreError, match="down"):
        cache.client.list("ds", "")


# -- with workers -------------------------------------------------------------------------------------------


@pytest.fixture
def workers(tmp_path: Path, bucket_dir: Path) -> Iterator[Workers]:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 2) as cluster:
        yield cluster


def far_bytes(client: object) -> int:
    return client.metrics.snapshot().get(m.STORE_BYTES, 0)  # type: ignore[attr-defined,no-any-return]


def test_clients_on_every_host_read_and_the_store_is_read_once(workers: Workers) -> None:
    clients = [workers.client(0), workers.client(1), workers.client(None)]
    assert set(at_once(12, lambda n: read_all(clients[n % 3]))) == {DATA}
    assert workers.store_bytes == SIZE
    assert [far_bytes(client) for client in clients] == [0, 0, 0]


def test_a_warm_client_opens_the_workers_file_itself(workers: Workers) -> None:
    client = workers.client(0)
    assert read_all(client) == DATA
    workers.nodes[0].server.close()
    workers.nodes[1].server.close()
    with closing(client.open("ds", "a")) as reader:
        assert reader.read_at(0, SIZE) == DATA
        assert reader.complete_local() is not None


def test_a_reader_that_cannot_tell_the_boot_asks_the_worker(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox that names no boot, a process trusts nobody's files but its own: slower, and right."""
    client = workers.client(0)
    original = StoreView.open

    def opened(view: StoreView, version: ObjectVersion, *, hit: bool = True) -> LocalFile | None:
        file = original(view, version, hit=hit)
        if file is not None:
            file._boot = bytes(16)
        return file

    monkeypatch.setattr(StoreView, "open", opened)
    for _ in range(2):
        assert read_all(client) == DATA
    assert workers.store_bytes == SIZE


def test_small_reads_from_afar_fetch_no_block_twice(workers: Workers) -> None:
    with closing(workers.client(None).open("ds", "a")) as reader:
        pieces = [reader.read_at(offset, 5_000) for offset in range(0, SIZE, 5_000)]
    assert b"".join(pieces) == DATA
    assert workers.store_bytes == SIZE


def test_workers_that_end_while_a_reader_reads(workers: Workers) -> None:
    for number in (0, None):
        with closing(workers.client(number).open("ds", "a")) as reader:
            data = reader.read_at(0, BLOCK)
            for node in workers.nodes:
                node.server.close()
            while len(data) < SIZE:
                data += reader.read_at(len(data), 40_000)
            assert data == DATA


def test_no_worker_at_all(workers: Workers) -> None:
    for node in workers.nodes:
        node.server.close()
    for number in (0, None):
        client = workers.client(number)
        assert [info.path for info in client.list("ds")][:2] == ["a", "block"]
        assert read_all(client) == DATA
        assert far_bytes(client) >= SIZE


def test_a_damaged_block_never_reaches_a_client_afar(workers: Workers) -> None:
    client = workers.client(None)
    assert read_all(client) == DATA
    for node in workers.nodes:
        for file in data_files(node.store):
            damage(file, 3 * BLOCK + 1)
    for _ in range(2):
        assert read_all(client) == DATA
    assert sum(node.metrics.snapshot().get(m.CORRUPT_BLOCKS, 0) for node in workers.nodes) == 1


def test_stale_from_afar(workers: Workers, bucket_dir: Path) -> None:
    for number in (0, None):
        client = workers.client(number)
        with closing(client.open("ds", "a")) as reader:
            (bucket_dir / "a").write_bytes(noise(SIZE, 20 + (number is None)))
            with pytest.raises(StaleObjectError):
                reader.read_at(0, 10)
        assert read_all(client) == noise(SIZE, 20 + (number is None))
        for node in workers.nodes:
            node.store.purge()


def test_a_worker_with_a_bug_of_its_own_is_passed_by(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    for node in workers.nodes:
        for name in ("info", "list", "ensure", "stream"):
            monkeypatch.setattr(node.engine, name, fail)
    for number in (0, None):
        client = workers.client(number)
        assert [info.path for info in client.list("ds")][:2] == ["a", "block"]
        assert read_all(client) == DATA


def test_a_frozen_worker_is_passed_by(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and says nothing. A worker that only waits for its store says so again and again."""
    monkeypatch.setattr("raycache.client.near.PATIENCE_S", 0.05)
    monkeypatch.setattr("raycache.client.near.GRACE_S", 0.05)
    thaw = threading.Event()
    for node in workers.nodes:
        monkeypatch.setattr(node.engine, "ensure", lambda *_, **__: thaw.wait(PATIENCE_S))
        monkeypatch.setattr(node.engine, "stream", lambda *_, **__: iter([]))
    client = workers.client(0)
    try:
        assert Doing(lambda: read_all(client)).result() == DATA
    finally:
        thaw.set()
    assert client.metrics.snapshot()[m.FALLBACKS] > 0


def test_a_slow_store_is_waited_for(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycache.client.near.PATIENCE_S", 0.0)
    monkeypatch.setattr("raycache.client.near.ENSURE_ROUNDS", 1_000_000)
    asked, gate = threading.Event(), threading.Event()
    again = threading.Semaphore(0)
    client = workers.client(0)
    version = client.info("ds", "a").version
    assert version is not None
    node = workers.nodes[0]

    def hold(read: Read) -> None:
        asked.set()
        assert gate.wait(PATIENCE_S)

    for each in workers.nodes:
        each.spy.before = hold
    ensure = node.engine.ensure

    def counted(*args: Any, **options: Any) -> bool:
        again.release()
        return ensure(*args, **options)

    monkeypatch.setattr(node.engine, "ensure", counted)
    reading = Doing(lambda: read_all(client))
    assert asked.wait(PATIENCE_S)
    for _ in range(3):
        assert again.acquire(timeout=PATIENCE_S)
    gate.set()
    assert reading.result() == DATA
    assert workers.store_bytes == SIZE
    assert far_bytes(client) == 0


def test_connections_to_workers_that_left_are_closed(workers: Workers) -> None:
    client = workers.client(None)
    assert read_all(client) == DATA
    former = [client.peers.pool.get(node.worker.address) for node in workers.nodes]
    alone = workers.membership.without_worker("worker-0")
    client.peers.update(alone)
    assert client.peers.pool.get(workers.nodes[1].worker.address) is former[1]
    assert client.peers.pool.get(workers.nodes[0].worker.address) is not former[0]
    with pytest.raises(WorkerUnavailableError):
        next(former[0].stream({}))


# -- on a real S3 server ------------------------------------------------------------------------------------


def test_s3(tmp_path: Path, s3_server: SeaweedS3, bucket: str) -> None:
    s3_server.put(bucket, "dir/a", DATA)
    s3_server.put(bucket, "dir/empty", b"")
    dataset = dataset_of("ds", {"": f"s3://{bucket}/dir"}, s3_mount_options(s3_server))
    with Embedded(tmp_path / "tier", dataset) as cache:
        assert [info.path for info in cache.client.list("ds")] == ["a", "empty"]
        with closing(cache.client.open("ds", "a")) as reader:
            assert reader.version.etag
            assert reader.read_at(BLOCK - 5, 10) == DATA[BLOCK - 5 : BLOCK + 5]
            s3_server.put(bucket, "dir/a", noise(SIZE, 5))
            _stale_or_old(reader)
        assert read_all(cache) == noise(SIZE, 5)
        assert read_all(cache, "empty") == b""


def _stale_or_old(reader: ObjectReader) -> None:
    """What was read ahead may still be had; the rest is stale; nothing is mixed."""
    stale = 0
    for offset in range(0, SIZE, BLOCK):
        try:
            assert reader.read_at(offset, BLOCK) == DATA[offset : offset + BLOCK]
        except StaleObjectError:
            stale += 1
    assert stale < SIZE // BLOCK
    reader._client.invalidate("ds", "a")
