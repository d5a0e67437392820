"""Growing and shrinking: what the workers have goes from one to the other, and the object store is not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.errors import RaycacheError
from raycache.membership import Membership, Worker
from tests.support.embedded import BLOCK, Workers, at_once, damage, data_files, dataset_of, noise

SIZE = 11 * BLOCK + 123
NAMES = [f"part-{number:03d}" for number in range(6)]
TOTAL = SIZE * len(NAMES)


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "bucket"
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_bytes(noise(SIZE))
    return directory


@pytest.fixture
def workers(tmp_path: Path, bucket_dir: Path) -> Iterator[Workers]:
    """Three workers, of which only the first is a member."""
    with Workers(tmp_path / "tiers", dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as made:
        membership = made.membership
        for number in (1, 2):
            membership = membership.without_worker(f"worker-{number}")
        publish(made, replace(membership, tables={}, former={}).rebalanced())
        yield made


def publish(workers: Workers, membership: Membership) -> None:
    """Tell all workers."""
    workers.membership = membership
    for node in workers.nodes:
        node.engine.peers.update(membership)


def resized(workers: Workers, *numbers: int) -> Membership:
    """The membership in which these own everything; others that were members are leaving."""
    membership = workers.membership
    for node in workers.nodes:
        if node.worker.id in {f"worker-{number}" for number in numbers}:
            membership = membership.with_worker(node.worker)
        elif (member := membership.worker(node.worker.id)) is not None:
            membership = membership.with_worker(leaving(member))
    return membership.rebalanced()


def leaving(worker: Worker) -> Worker:
    return replace(worker, weights={"ds": 0})


def versions(workers: Workers) -> list[ObjectVersion]:
    found = [workers.nodes[0].engine.info("ds", name).value.version for name in NAMES]
    return [version for version in found if version is not None]


def read_all(workers: Workers, number: int) -> None:
    """Read everything at a worker, as a reader without a cache of its own does, and look at it."""
    for version in versions(workers):
        data = b"".join(
            bytes(data)
            for _, data in workers.nodes[number].engine.stream(version, range(version.block_count))
        )
        assert data == noise(SIZE)


def counted(workers: Workers, name: str) -> int:
    return sum(node.metrics.snapshot().get(name, 0) for node in workers.nodes)


def test_growth_moves_what_is_read_from_worker_to_worker_and_asks_the_store_for_nothing(
    workers: Workers,
) -> None:
    read_all(workers, 0)
    assert workers.store_bytes == TOTAL
    publish(workers, resized(workers, 0, 1))
    publish(workers, resized(workers, 0, 1, 2))
    for number in (1, 2):
        read_all(workers, number)
    assert workers.store_bytes == TOTAL
    assert counted(workers, m.MOVED_BYTES) > 0
    # What has moved lies with its new owners: the first one may go now.
    membership = resized(workers, 1, 2)
    publish(workers, membership.without_worker("worker-0").with_tables(membership.tables))


def test_many_readers_of_what_has_moved_make_one_transfer_of_each_block(workers: Workers) -> None:
    read_all(workers, 0)
    publish(workers, resized(workers, 1))  # worker 0 is leaving, and owns nothing
    at_once(8, lambda _: read_all(workers, 1))
    assert workers.store_bytes == TOTAL
    assert workers.nodes[1].metrics.snapshot()[m.MOVED_BYTES] == TOTAL


def test_only_what_the_former_owner_lacks_comes_from_the_store(workers: Workers) -> None:
    version = versions(workers)[0]
    for block in (1, 2, 5):
        workers.nodes[0].engine.ensure(version, range(block, block + 1))
    before = workers.store_bytes
    publish(workers, resized(workers, 1))
    list(workers.nodes[1].engine.stream(version, range(version.block_count)))
    assert workers.store_bytes - before == SIZE - 3 * BLOCK
    assert counted(workers, m.MOVED_BYTES) == 3 * BLOCK


def test_a_worker_that_has_not_heard_of_a_change_hears_of_it_from_who_asks_it(workers: Workers) -> None:
    read_all(workers, 0)
    membership = resized(workers, 1)
    workers.nodes[1].engine.peers._refresh = lambda epoch: membership
    workers.nodes[2].engine.peers.update(membership)
    read_all(workers, 2)
    assert workers.nodes[1].engine.peers.membership is membership
    assert workers.store_bytes == TOTAL


def test_a_former_owner_that_dies_in_the_middle_costs_no_reader_anything(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(workers, 0)
    publish(workers, resized(workers, 1))
    engine = workers.nodes[0].engine
    stream_held = engine.stream_held

    def dying(version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
        for number, found in enumerate(stream_held(version, blocks)):
            if number == 3:
                raise RaycacheError("the worker is gone")
            yield found

    monkeypatch.setattr(engine, "stream_held", dying)
    version = versions(workers)[0]
    data = b"".join(bytes(d) for _, d in workers.nodes[1].engine.stream(version, range(version.block_count)))
    assert data == noise(SIZE)
    # Runs of one segment: three blocks of each came.
    assert workers.store_bytes - TOTAL + counted(workers, m.MOVED_BYTES) == SIZE
    assert workers.store_bytes > TOTAL


def test_a_former_owner_that_is_dead_is_passed_by(workers: Workers) -> None:
    read_all(workers, 0)
    publish(workers, resized(workers, 1))
    found = versions(workers)
    workers.nodes[0].server.close()
    for version in found:
        data = b"".join(
            bytes(d) for _, d in workers.nodes[1].engine.stream(version, range(version.block_count))
        )
        assert data == noise(SIZE)


def test_a_former_owner_never_gives_bytes_of_another_version(workers: Workers, bucket_dir: Path) -> None:
    read_all(workers, 0)
    (bucket_dir / NAMES[0]).write_bytes(noise(SIZE + 1)[1:])
    workers.nodes[0].engine.invalidate("ds", "", hop=True)
    publish(workers, resized(workers, 1))
    version = versions(workers)[0]
    data = b"".join(bytes(d) for _, d in workers.nodes[1].engine.stream(version, range(version.block_count)))
    assert data == noise(SIZE + 1)[1:]
    assert counted(workers, m.MOVED_BYTES) == 0


def test_a_damaged_block_of_a_former_owner_is_not_taken(workers: Workers) -> None:
    read_all(workers, 0)
    for path in data_files(workers.nodes[0].store):
        damage(path, BLOCK)
    publish(workers, resized(workers, 1))
    read_all(workers, 1)


def test_who_is_asked_for_what_he_holds_asks_nobody(workers: Workers) -> None:
    version = versions(workers)[0]
    with pytest.raises(RaycacheError, match="does not have"):
        list(workers.nodes[0].engine.stream_held(version, range(2)))
    assert workers.nodes[0].engine.present(version, range(2)) == []
    assert workers.store_bytes == 0


def test_two_that_take_each_other_for_the_owner_come_to_an_end(workers: Workers) -> None:
    alone: Any = workers.membership
    workers.nodes[0].engine.peers.update(replace(resized(workers, 1), epoch=alone.epoch + 1))
    workers.nodes[1].engine.peers.update(replace(alone, epoch=alone.epoch + 1))
    version = versions(workers)[0]
    at_once(2, lambda n: list(workers.nodes[n].engine.stream(version, range(version.block_count))))
    assert workers.store_bytes <= 2 * SIZE
