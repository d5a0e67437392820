"""Reads against whatever may happen at the same time: a fetch that fails, a reader that leaves, eviction, other names.

Every interleaving is forced with gates.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from raycache.blocks import ObjectVersion
from raycache.client import Client
from raycache.engine import Engine, fetch
from raycache.errors import (
    StaleObjectError,
    UnderStoreError,
    WorkerUnavailableError,
)
from raycache.fairpool import FairPool
from raycache.filesystem import RaycacheFileSystem, arrow_filesystem
from raycache.store import LocalStore
from raycache.store.scrubbing import Scrubber
from raycache.ufs import DatasetSource
from tests.support.embedded import (
    BLOCK,
    PATIENCE_S,
    Embedded,
    Spy,
    a_bucket,
    damage,
    data_files,
    dataset_of,
    noise,
)
from tests.support.stores import Doing, Gate
from tests.support.waiting import until

BLOCKS = 6
SIZE = (BLOCKS - 1) * BLOCK + 123
DATA, OTHER = noise(SIZE), noise(SIZE, 1)


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    return a_bucket(tmp_path, DATA)


@pytest.fixture
def cache(tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """An embedded cache of the dataset `ds`, which all fronts of this process use."""
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": f"file://{bucket_dir}"})) as embedded:
        monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: embedded.client)
        RaycacheFileSystem.clear_instance_cache()
        yield embedded
        RaycacheFileSystem.clear_instance_cache()


def version_of(cache: Embedded) -> ObjectVersion:
    version = cache.engine.info("ds", "a").value.version
    assert version is not None
    return version


def read(client: Client) -> bytes:
    with closing(client.open("ds", "a")) as reader:
        return reader.read_at(0, reader.size)


def replace(bucket_dir: Path, data: bytes) -> None:
    """A new version at once, as a PUT makes one."""
    (bucket_dir / "fresh").write_bytes(data)
    (bucket_dir / "fresh").replace(bucket_dir / "a")


def fetching(monkeypatch: pytest.MonkeyPatch, spy: Spy, offset: int | None = None) -> Gate:
    """A gate before the next read of the object store (that begins at `offset`)."""
    return Gate(monkeypatch, spy, "before", when=lambda read: offset in (None, read.offset))


def asking(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> threading.Semaphore:
    """Counts who has asked for blocks, and from then on only waits for them."""
    asked = threading.Semaphore(0)
    request = engine._fetcher.request

    def counted(*args: object, **kwargs: object) -> object:
        waiting = request(*args, **kwargs)  # type: ignore[arg-type]
        asked.release()
        return waiting

    monkeypatch.setattr(engine._fetcher, "request", counted)
    return asked


# -- who fetches, and who waits for it -------------------------------------------------------------------------


def test_leader_that_fails_fails_who_waits_for_it_and_nobody_after(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, spy = version_of(cache), cache.spies["ds"]

    def fail(_: object) -> None:
        raise UnderStoreError("the store is down", where="file://bucket")

    spy.before = fail
    gate, asked = fetching(monkeypatch, spy), asking(monkeypatch, cache.engine)
    readers = [Doing(lambda: cache.engine.ensure(version, range(2))) for _ in range(5)]
    gate.wait()
    for _ in readers:
        assert asked.acquire(timeout=PATIENCE_S)
    monkeypatch.undo()
    spy.before = lambda _: None
    gate.open()
    for reader in readers:
        with pytest.raises(UnderStoreError, match="the store is down"):
            reader.result()
    assert len(spy.reads) == 1
    assert cache.engine.cached_bytes(version) == 0
    assert cache.engine.ensure(version, range(2)), "whoever asks now has it tried again"


def test_waiter_that_gives_up_leaves_the_fetch_to_the_others(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, spy = version_of(cache), cache.spies["ds"]
    gate = fetching(monkeypatch, spy)
    leader = Doing(lambda: cache.engine.ensure(version, range(BLOCKS)))
    gate.wait()
    assert not cache.engine.ensure(version, range(2), patience_s=0.0)
    gate.open()
    assert leader.result()
    assert cache.engine.ensure(version, range(2), patience_s=0.0)
    assert len(spy.reads) == 1


def test_leader_that_gives_up_leaves_the_fetch_to_who_waits(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, spy = version_of(cache), cache.spies["ds"]
    gate, asked = fetching(monkeypatch, spy), asking(monkeypatch, cache.engine)
    assert not cache.engine.ensure(version, range(BLOCKS), patience_s=0.0)
    waiter = Doing(lambda: cache.engine.ensure(version, range(BLOCKS)))
    for _ in range(2):
        assert asked.acquire(timeout=PATIENCE_S)
    gate.open()
    assert waiter.result()
    assert spy.bytes == SIZE


def test_stream_that_is_left_in_the_middle_of_a_fetch(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks on their way arrive and are kept; the object is nobody's any more, so it can be evicted."""
    monkeypatch.setattr(fetch, "FETCH_SIZE", BLOCK)
    version, spy, store = version_of(cache), cache.spies["ds"], cache.stores["ds"]
    gate = fetching(monkeypatch, spy, BLOCK)
    stream = cache.engine.stream(version, range(BLOCKS))
    assert bytes(next(stream)[1]) == DATA[:BLOCK]
    gate.wait()
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert store.evict(lambda _: True) == 0, "the fetch still holds it"
    gate.open()
    assert cache.engine.ensure(version, range(BLOCKS))
    assert len(spy.reads) == BLOCKS
    until(lambda: store.evict(lambda _: True) > 0, "nobody holds it any more")
    assert read(cache.client) == DATA


def test_client_closed_while_one_reader_fetches_and_another_waits_its_turn(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way ends well, what has not begun is given up, and nobody is left waiting."""
    version, spy, fetcher = version_of(cache), cache.spies["ds"], cache.engine._fetcher
    fetcher._store_pool.shutdown(cancel=True)
    fetcher._store_pool = FairPool("raycache-store", 1, 1)
    gate, asked = fetching(monkeypatch, spy), asking(monkeypatch, cache.engine)
    first = Doing(lambda: cache.engine.ensure(version, range(1)))
    gate.wait()
    second = Doing(lambda: cache.engine.ensure(version, range(2, 3)))
    for _ in range(2):
        assert asked.acquire(timeout=PATIENCE_S)
    joining = Gate(
        monkeypatch, threading.Thread, "join", when=lambda self, *_: self.name.startswith("raycache-store")
    )
    closing_ = Doing(cache.client.close)
    joining.wait()  # the queue has been emptied, and now the close waits for what is under way
    joining.open()
    gate.open()
    assert first.result()
    with pytest.raises(WorkerUnavailableError):
        second.result()
    closing_.result()
    assert spy.bytes == BLOCK


def test_client_closed_under_a_reader(cache: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = fetching(monkeypatch, cache.spies["ds"])
    reader = cache.client.open("ds", "a")
    reading = Doing(lambda: reader.read_at(0, SIZE))
    gate.wait()
    joining = Gate(
        monkeypatch, threading.Thread, "join", when=lambda self, *_: self.name.startswith("raycache-store")
    )
    closing_ = Doing(cache.client.close)
    joining.wait()
    joining.open()
    gate.open()
    closing_.result()
    assert reading.result() == DATA, "it had begun before"
    reader.close()


# -- eviction against every front ------------------------------------------------------------------------------


def _local_path(client: Client) -> bytes:
    with client.local_path("ds", "a") as path:
        return Path(path).read_bytes()


def _fsspec(client: Client) -> bytes:
    with RaycacheFileSystem().open("ds/a", "rb") as file:
        return bytes(file.read())


def _arrow(client: Client) -> bytes:
    with arrow_filesystem().open_input_file("ds/a") as file:
        return bytes(file.read_buffer(SIZE))


def _views(client: Client) -> bytes:
    with closing(client.open("ds", "a")) as reader:
        return b"".join(reader.read_view(at, BLOCK) for at in range(0, SIZE, BLOCK))


FRONTS: dict[str, Callable[[Client], bytes]] = {
    "reader": read,
    "views": _views,
    "local path": _local_path,
    "fsspec": _fsspec,
    "fsspec, whole": lambda client: bytes(RaycacheFileSystem().cat_file("ds/a")),
    "pyarrow": _arrow,
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("warm", [False, True])
def test_evicted_just_before_a_reader_takes_its_lease(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, front: str, warm: bool
) -> None:
    if warm:
        read(cache.client)
    gate = Gate(monkeypatch, LocalStore, "lease")
    reading = Doing(lambda: FRONTS[front](cache.client))
    gate.wait()
    cache.stores["ds"].evict(lambda _: True)
    gate.open()
    assert reading.result() == DATA


@pytest.mark.parametrize("front", FRONTS)
def test_evicted_every_time_before_a_reader_takes_its_lease(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    lease = LocalStore.lease

    def late(self: LocalStore, *args: object, **kwargs: object) -> object:
        until(lambda: self.evict(lambda _: True) >= 0 and not self.objects(), "evicted")
        return lease(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "lease", late)
    assert FRONTS[front](cache.client) == DATA


def test_what_each_front_hands_out_survives_eviction_and_purge(cache: Embedded) -> None:
    read(cache.client)
    store = cache.stores["ds"]
    reader = cache.client.open("ds", "a")
    assert reader.read_at(0, 1) == DATA[:1]
    view = reader.read_view(0, SIZE)
    file = RaycacheFileSystem().open("ds/a", "rb")
    assert file.read(1) == DATA[:1]
    with arrow_filesystem().open_input_file("ds/a") as source:
        buffer = source.read_buffer(SIZE)
    with cache.client.local_path("ds", "a") as path:
        mapped = pa.memory_map(path)
        assert store.evict(lambda _: True) == 0, "all of them hold a lease"
        assert store.purge() > 0
        assert reader.read_at(0, SIZE) == DATA
        assert view == DATA
        assert file.read() == DATA[1:]
        assert buffer.to_pybytes() == DATA
        assert mapped.read() == DATA
    mapped.close()
    file.close()
    reader.close()


# -- a fill under way against what is known of the object -------------------------------------------------------


def test_fill_of_an_object_whose_name_is_forgotten_meanwhile(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = fetching(monkeypatch, cache.spies["ds"])
    reading = Doing(lambda: read(cache.client))
    gate.wait()
    cache.client.invalidate("ds", "a")
    gate.open()
    assert reading.result() == DATA
    assert read(cache.client) == DATA
    assert cache.spies["ds"].bytes == SIZE, "it is the same version, so it is still cached"


def test_fill_of_an_object_that_is_overwritten_meanwhile(
    cache: Embedded, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, spy = version_of(cache), cache.spies["ds"]
    gate, asked = fetching(monkeypatch, spy), asking(monkeypatch, cache.engine)
    readers = [Doing(lambda: read(cache.client)) for _ in range(3)]
    gate.wait()
    for _ in readers:
        assert asked.acquire(timeout=PATIENCE_S)
    replace(bucket_dir, OTHER)
    gate.open()
    for reader in readers:
        with pytest.raises(StaleObjectError):
            reader.result()
    assert cache.engine.cached_bytes(version) == 0
    assert read(cache.client) == OTHER


def test_fill_of_an_object_that_is_overwritten_after_its_first_part(
    cache: Embedded, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_SIZE", BLOCK)
    version = version_of(cache)
    cache.engine.ensure(version, range(1))
    gate = fetching(monkeypatch, cache.spies["ds"], 2 * BLOCK)
    reader = cache.client.open("ds", "a")
    reading = Doing(lambda: reader.read_at(0, SIZE))
    gate.wait()
    replace(bucket_dir, OTHER)
    gate.open()
    with pytest.raises(StaleObjectError):
        reading.result()
    assert reader.read_at(0, BLOCK) == DATA[:BLOCK], "what had arrived is of the version that was opened"
    reader.close()
    assert read(cache.client) == OTHER


@pytest.mark.parametrize("purged", [False, True])
def test_fill_of_a_dataset_that_is_detached_meanwhile(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, purged: bool
) -> None:
    gate = fetching(monkeypatch, cache.spies["ds"])
    reading = Doing(lambda: read(cache.client))
    gate.wait()
    store = cache.engine.detach("ds")
    assert store is not None
    if purged:
        store.purge()
    store.close()
    gate.open()
    assert reading.result() == DATA, "the object store has it"
    assert read(cache.client) == DATA


def test_fill_of_a_dataset_that_is_attached_anew_meanwhile(
    cache: Embedded, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spec was applied with another TTL: reads that were under way go on."""
    gate = fetching(monkeypatch, cache.spies["ds"])
    reading = Doing(lambda: read(cache.client))
    gate.wait()
    changed = dataset_of("ds", {"": f"file://{bucket_dir}"}, metadata_ttl=1.0)
    cache.engine.attach(changed, cache.stores["ds"])
    gate.open()
    assert reading.result() == DATA
    assert read(cache.client) == DATA


def test_fill_of_a_dataset_that_is_bound_elsewhere_meanwhile(
    cache: Embedded, bucket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, store = version_of(cache), cache.stores["ds"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_bytes(OTHER)
    gate = fetching(monkeypatch, cache.spies["ds"])
    stream = cache.engine.stream(version, range(BLOCKS))
    streaming = Doing(lambda: b"".join(bytes(data) for _, data in stream))
    gate.wait()
    cache.engine.attach(dataset_of("ds", {"": f"file://{elsewhere}"}), store)
    gate.open()
    assert streaming.result() == DATA, "it had begun before"
    assert store.objects() == [], "nobody can ask for it again, so it is not kept"
    with pytest.raises(StaleObjectError):
        cache.engine.ensure(version, range(BLOCKS))
    changed = version_of(cache)
    assert b"".join(bytes(data) for _, data in cache.engine.stream(changed, range(BLOCKS))) == OTHER


@pytest.mark.parametrize("what", ["info", "list"])
def test_name_that_is_forgotten_while_another_thread_asks_for_it(
    cache: Embedded, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What was asked for before the invalidation may be just what had to be forgotten: nobody is told it later."""

    def size(client: Client) -> int:
        if what == "info":
            return client.info("ds", "a").size
        (entry,) = client.list("ds")
        return entry.size

    gate = Gate(monkeypatch, DatasetSource, what, after=True)
    first = Doing(lambda: size(cache.client))
    gate.wait()
    replace(bucket_dir, b"new")
    cache.client.invalidate("ds", "a")
    gate.open()
    assert first.result() == SIZE
    assert size(cache.client) == 3


# -- damage under a mapping ---------------------------------------------------------------------------------------


def test_readers_while_a_damaged_block_is_mended(cache: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the file mapped sees the damage until the block has come again; who reads does not see it at all."""
    read(cache.client)
    store, spy = cache.stores["ds"], cache.spies["ds"]
    (path,) = data_files(store)
    reader = cache.client.open("ds", "a")
    assert reader.read_at(0, 1) == DATA[:1]
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        damage(path, 2 * BLOCK)
        gate = fetching(monkeypatch, spy)
        scrubber = Scrubber(store._space, cache.metrics, media=("MEM",), quiet=lambda path: True)
        scrubber.mend = store._scrubber.mend
        scrubber.scrub()
        gate.wait()
        asked = asking(monkeypatch, cache.engine)
        readings = [Doing(lambda: reader.read_at(0, SIZE)), Doing(lambda: read(cache.client))]
        for _ in readings:
            assert asked.acquire(timeout=PATIENCE_S)
        assert mapped[:] != DATA
        assert reader.read_at(0, BLOCK) == DATA[:BLOCK], "the other blocks are read on meanwhile"
        gate.open()
        assert [reading.result() for reading in readings] == [DATA, DATA]
        assert mapped[:] == DATA
    assert spy.bytes == SIZE + BLOCK
    reader.close()
