"""Reads go on, and are right, while the disk under a tier fails, and when it comes back."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache import metrics as m
from raycache.actors import tier_reports
from raycache.actors.assignment import Node
from raycache.actors.rows import worker_row
from raycache.cli.kinds import find_kind
from raycache.engine import EngineService
from raycache.store import health
from tests.support.embedded import BLOCK, Embedded, Workers, dataset_of, noise
from tests.support.sickdisk import SickDisk

SIZE = 5 * BLOCK + 123
NAMES = [f"{number}" for number in range(12)]


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    directory = tmp_path / "bucket"
    directory.mkdir()
    for number, name in enumerate(NAMES):
        (directory / name).write_bytes(noise(SIZE, number))
    return f"file://{directory}"


@pytest.fixture
def cache(tmp_path: Path, bucket: str) -> Iterator[Embedded]:
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": bucket})) as cache:
        yield cache


def read_all(cache: Embedded, names: list[str] = NAMES) -> None:
    for name in names:
        with closing(cache.client.open("ds", name)) as reader:
            buffer = bytearray(SIZE)
            assert reader.readinto_at(0, memoryview(buffer)) == SIZE
            assert buffer == noise(SIZE, int(name))
            assert reader.read_at(BLOCK - 7, 1000) == buffer[BLOCK - 7 : BLOCK + 993]
            assert reader.read_view(3, 70_000) == buffer[3:70_003]


KINDS = [("read",), ("write",), ("index",), ("unlink",), ("create",), ("open",), ()]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EUCLEAN])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "+".join(kinds) or "all")
def test_reads_go_on_whatever_fails(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], code: int
) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "tier")
    with Embedded(tmp_path / "tier", dataset_of("ds", {"": bucket}), quota=40 * BLOCK) as cache:
        read_all(cache, NAMES[:4])
        disk.fail(code, *kinds)
        read_all(cache)  # cold, warm, and with evictions
        disk.heal()
        cache.stores["ds"].probe()
        read_all(cache)
        [usage] = cache.stores["ds"].usage()
        assert usage.state == "healthy"
        assert usage.used <= usage.quota


def test_a_handle_that_is_open_when_the_disk_fails_and_when_it_comes_back(
    cache: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "tier")
    with closing(cache.client.open("ds", "3")) as reader:
        assert reader.read_at(0, SIZE) == noise(SIZE, 3)
        disk.fail(errno.EIO)
        for offset in range(0, SIZE, 10_000):
            assert reader.read_at(offset, 10_000) == noise(SIZE, 3)[offset : offset + 10_000]
        # Not each of them tried the disk: it may be one that takes seconds to fail.
        assert disk.calls["read"] < 10
        disk.heal()
        cache.stores["ds"].probe()
        for _ in range(200):
            assert reader.read_at(0, SIZE) == noise(SIZE, 3)
        assert reader.complete_local() is not None
    assert cache.metrics.snapshot()[m.FALLBACKS] > 0


def test_a_block_that_a_reader_cannot_read_is_fetched_anew(
    cache: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "tier")
    read_all(cache, ["0"])
    fetched = cache.spies["ds"].bytes
    disk.fail(errno.EIO, "read")
    with closing(cache.client.open("ds", "0")) as reader:
        assert reader.read_at(0, BLOCK) == noise(SIZE, 0)[:BLOCK]
    disk.heal()
    read_all(cache, ["0"])
    assert cache.spies["ds"].bytes == fetched + BLOCK, "once, whether by itself or for this reader"
    assert cache.stores["ds"].usage()[0].state == "healthy"


def test_other_tiers_are_used_while_one_is_down(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SickDisk(monkeypatch, tmp_path / "a")
    with Embedded([tmp_path / "a", tmp_path / "b"], dataset_of("ds", {"": bucket})) as cache:
        disk.fail(errno.EIO)
        read_all(cache)
        cache.stores["ds"].probe()
        assert [usage.state for usage in cache.stores["ds"].usage()] == ["down", "healthy"]
        read_all(cache)
        before = cache.spies["ds"].bytes
        read_all(cache)
        assert cache.spies["ds"].bytes == before  # warm: in the other tier


def test_others_read_on_from_a_worker_whose_disk_fails(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workers(tmp_path / "workers", dataset_of("ds", {"": bucket}), 2) as workers:
        version = workers.nodes[0].engine.info("ds", "0").value.version
        assert version is not None
        owner = workers.owner_of(version)
        workers.nodes[owner].engine.ensure(version, range(version.block_count))
        disk = SickDisk(monkeypatch, tmp_path / "workers" / str(owner))
        disk.fail(errno.EIO)
        for client in (workers.client(1 - owner), workers.client(owner), workers.client()):
            with closing(client.open("ds", "0")) as reader:
                assert reader.read_at(0, SIZE) == noise(SIZE, 0)


def test_what_people_are_shown(cache: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(id="n" * 40, address="10.0.0.1", labels={})
    columns = {column.title: column for column in find_kind("workers").columns}

    def shown() -> tuple[str, str]:
        usage = EngineService(cache.engine, dict).usage()
        report = {"sick_tiers": tier_reports.sick({"ds": cache.stores["ds"].usage()})}
        row = worker_row(node, None, "", usage)
        assert row["tiers"][0]["path"] == cache.stores["ds"].paths[0]
        return columns["TIERS"].value(row), tier_reports.problem(report)

    assert shown() == ("healthy", "")
    disk = SickDisk(monkeypatch, tmp_path / "tier")
    disk.fail(errno.EIO, "create")
    read_all(cache, NAMES[: health.SUSPECT])
    told, problem = shown()
    assert told == "MEM of ds unstable (Input/output error)"
    assert problem.startswith("tier MEM of dataset ds is unstable: Input/output error (")
