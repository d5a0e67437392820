"""Tiers that are resized or emptied under fills and mappings, forced with gates."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycache.errors import CacheFullError
from raycache.filesystem import RaycacheFileSystem, arrow_filesystem
from raycache.store import LocalStore, files, moving
from tests.support.embedded import Embedded, dataset_of, noise
from tests.support.stores import BLOCK, Doing, Gate, allocated, content, opened, part, put, tier, version
from tests.support.waiting import until

A, B = version("a"), version("b")
SIZE = 4 * BLOCK


def _bytes_of(store: LocalStore) -> bytes:
    with store.lease(A) or pytest.fail("no lease") as file:
        return file.pread(0, A.size)


def _writing(monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> Gate:
    """A gate before (after) the next block is written."""
    return Gate(monkeypatch, files, "pwrite_all", when=lambda fd, data, at: len(data) >= BLOCK, after=after)


# -- resize against fill -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_quota_is_lowered_below_a_fill_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """What is being written stays whole, and leaves once it is nobody's; the ledger is right throughout."""
    with opened(tier(tmp_path, 20)) as store:
        put(store, B)
        gate = _writing(monkeypatch, after=after)
        writer = Doing(lambda: put(store, A))
        gate.wait()
        store.resize([tier(tmp_path, 2)])
        assert {status.version.path for status in store.objects()} == {"a"}, "B was nobody's"
        gate.open()
        writer.result()
        assert _bytes_of(store) == content(A)
        assert store.usage()[0].used == allocated(tmp_path)
        store.reclaim()
        assert store.objects() == []
        assert store.usage()[0].used == allocated(tmp_path)


def test_fill_that_needs_more_room_than_a_lowered_quota_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path, 20)) as store, store.fill(A) as filling:
        gate = _writing(monkeypatch)
        writer = Doing(lambda: filling.write(range(2), part(A, range(2))))
        gate.wait()
        store.resize([tier(tmp_path, 3)])
        gate.open()
        writer.result()
        with pytest.raises(CacheFullError):
            filling.write(range(2, 4), part(A, range(2, 4)))
        assert filling.missing(range(4)) == [2, 3]
        assert filling.read(1)[1] == part(A, range(1, 2))
        store.resize([tier(tmp_path, 20)])
        filling.write(range(2, 4), part(A, range(2, 4)))
        assert filling.complete
        assert store.usage()[0].used == allocated(tmp_path)


def test_quota_is_lowered_in_the_middle_of_a_demotion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, lower = tier(tmp_path / "m", 6, high=0.9, low=0.1), tier(tmp_path / "s", 20, "SSD")
    with opened(upper, lower) as store:
        put(store, A)
        gate = Gate(monkeypatch, moving, "copy_down", after=True)
        writer = Doing(lambda: put(store, B))
        gate.wait()
        resizing = Doing(lambda: store.resize([upper, tier(tmp_path / "s", 1, "SSD")]))
        gate.open()
        writer.result()
        resizing.result()
        store.reclaim()
        for usage in store.usage():
            assert usage.used == allocated(usage.path) <= usage.quota
        put(store, A)
        assert _bytes_of(store) == content(A)


# -- demotion against what fronts have mapped --------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """Two tiers, of which the upper one holds two of the objects."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for number, name in enumerate("abcdef"):
        (bucket / name).write_bytes(noise(SIZE, number))
    dataset = dataset_of("ds", {"": f"file://{bucket}"}, eviction_policy="lru")
    tiers = [tmp_path / "m", tmp_path / "s"]
    with Embedded(tiers, dataset, quota=10 * BLOCK) as embedded:
        monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: embedded.client)
        RaycacheFileSystem.clear_instance_cache()
        yield embedded
        RaycacheFileSystem.clear_instance_cache()


def _read(cache: Embedded, name: str) -> bytes:
    with closing(cache.client.open("ds", name)) as reader:
        return reader.read_at(0, SIZE)


def _medium(cache: Embedded, name: str) -> str:
    return {status.version.path: status.medium for status in cache.stores["ds"].objects()}.get(name, "")


def _arrow_buffer(cache: Embedded) -> Any:
    with arrow_filesystem().open_input_file("ds/a") as file:
        return file.read_buffer(SIZE)


def _fsspec_view(cache: Embedded) -> Any:
    with RaycacheFileSystem().open_file("ds/a") as file:
        return file.read_buffer(SIZE)


def _reader_view(cache: Embedded) -> Any:
    with closing(cache.client.open("ds", "a")) as reader:
        return reader.read_view(0, SIZE)


def _unleased(cache: Embedded) -> Any:
    """As a program has it that was told the path once, and holds no lease any more."""
    with cache.client.local_path("ds", "a") as path, pa.memory_map(path) as mapped:
        return mapped.read_buffer(SIZE)


HANDED_OUT: dict[str, Callable[[Embedded], Any]] = {
    "arrow": _arrow_buffer,
    "fsspec": _fsspec_view,
    "reader": _reader_view,
    "unleased": _unleased,
}


@pytest.mark.parametrize("kind", HANDED_OUT)
@pytest.mark.parametrize("copied", [False, True])
def test_mapped_while_it_is_being_demoted(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, kind: str, copied: bool
) -> None:
    """Whoever comes in the middle of the copy gets the bytes, and keeps them, wherever the file is afterwards."""
    _read(cache, "a")
    gate = Gate(monkeypatch, moving, "copy_down", after=copied)
    others = Doing(lambda: [_read(cache, name) for name in "bcd"])
    gate.wait()
    buffer = HANDED_OUT[kind](cache)
    gate.open()
    assert others.result() == [noise(SIZE, number) for number in (1, 2, 3)]
    assert bytes(buffer) == noise(SIZE)
    for name in "efbcd":
        _read(cache, name)
    assert bytes(buffer) == noise(SIZE)
    if kind != "unleased":
        assert _medium(cache, "a") == "MEM", "nothing is gained by unlinking what is mapped"
    del buffer
    gc.collect()
    for name in "efbcd":
        _read(cache, name)
    until(lambda: _medium(cache, "a") != "MEM", "it leaves once nobody has it mapped")
    assert _read(cache, "a") == noise(SIZE)
