"""A worker that leaves: what only it has goes to the others first, while it serves, and what cannot go is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycache.blocks import ObjectVersion
from raycache.engine import Leaving
from raycache.engine.leaving import LATE, NO_ROOM, NOBODY
from raycache.errors import WorkerUnavailableError
from raycache.store import TierConfig
from tests.support.embedded import PATIENCE_S, Workers, dataset_of
from tests.unit.test_elastic import NAMES, SIZE, TOTAL, publish, read_all, resized, versions

# The fixtures of the growing cluster are those of the shrinking one.
from tests.unit.test_elastic import bucket_dir as bucket_dir


@pytest.fixture
def workers(tmp_path: Path, bucket_dir: Path) -> Iterator[Workers]:
    """Three workers, each of which has what it owns."""
    with Workers(tmp_path / "tiers", dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as made:
        for version in versions(made):
            made.nodes[made.owner_of(version)].engine.ensure(version, range(version.block_count))
        yield made


def leave(workers: Workers, number: int, timeout_s: float = PATIENCE_S) -> Leaving:
    engine = workers.nodes[number].engine
    return Leaving(engine.volume("ds"), engine.peers, timeout_s)


def gone(workers: Workers, *numbers: int) -> None:
    """These have left for good, and nothing of them can be asked."""
    membership = workers.membership
    for number in numbers:
        membership = membership.without_worker(f"worker-{number}")
        workers.nodes[number].server.close()
    publish(workers, membership.with_tables(membership.tables))


def held(workers: Workers, number: int) -> int:
    return sum(status.bytes_cached for status in workers.nodes[number].store.objects())


def fullest(workers: Workers) -> tuple[int, int]:
    """The worker that has most, and another one."""
    number = max(range(3), key=lambda number: held(workers, number))
    return number, (number + 1) % 3


def test_three_become_one_and_the_store_is_not_asked_again(workers: Workers) -> None:
    assert workers.store_bytes == TOTAL
    publish(workers, resized(workers, 0))
    for number in (1, 2):
        leaving = leave(workers, number)
        assert leaving.wait(PATIENCE_S)
        progress = leaving.report()
        assert progress.ended
        assert progress.left == {}
        assert progress.moved == progress.total == held(workers, number)
    gone(workers, 1, 2)
    assert held(workers, 0) == TOTAL
    read_all(workers, 0)
    assert workers.store_bytes == TOTAL


def test_what_the_owner_has_already_is_not_sent(workers: Workers) -> None:
    publish(workers, resized(workers, 0, 2))
    read_all(workers, 0)
    read_all(workers, 2)
    leaving = leave(workers, 1)
    assert leaving.wait(PATIENCE_S)
    assert leaving.report().moved == 0
    assert leaving.report().elsewhere == leaving.report().total == held(workers, 1)


def test_readers_read_on_while_it_leaves(workers: Workers) -> None:
    publish(workers, resized(workers, 0))
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            read_all(workers, 2)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_on)
        try:
            for number in (1, 2):
                assert leave(workers, number).wait(PATIENCE_S)
        finally:
            done.set()
        reader.result(PATIENCE_S)
    assert workers.store_bytes == TOTAL


def test_what_there_is_no_room_for_is_left_behind_and_nothing_is_evicted_for_it(workers: Workers) -> None:
    store = workers.nodes[0].store
    used = sum(tier.used for tier in store.usage())
    quota = int((used + 1.5 * SIZE) / 0.95)
    path = store.paths[0]
    store.resize([TierConfig("MEM", path, quota, high=0.95, low=0.9, huge_pages=False)])
    before = held(workers, 0)
    publish(workers, resized(workers, 0))
    leavings = [leave(workers, number) for number in (1, 2)]
    assert all(leaving.wait(PATIENCE_S) for leaving in leavings)
    left = sum(leaving.report().left.get(NO_ROOM, 0) for leaving in leavings)
    moved = sum(leaving.report().moved for leaving in leavings)
    assert left > 0
    assert held(workers, 0) == before + moved
    assert sum(tier.used for tier in store.usage()) <= quota


def test_when_the_time_is_up_the_rest_is_left_behind(workers: Workers) -> None:
    number, other = fullest(workers)
    publish(workers, resized(workers, other))
    leaving = leave(workers, number, timeout_s=0.0)
    assert leaving.wait(PATIENCE_S)
    assert leaving.report().left == {LATE: held(workers, number)}


def test_what_was_used_last_goes_first(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    number, other = fullest(workers)
    publish(workers, resized(workers, other))
    order: list[str] = []
    engine = workers.nodes[other].engine
    take = engine.take

    def noted(version: ObjectVersion, blocks: range, source: str) -> object:
        order.append(version.path)
        return take(version, blocks, source)

    monkeypatch.setattr(engine, "take", noted)
    monkeypatch.setattr("raycache.engine.leaving.MOVE_PARALLEL", 1)
    found = {version.path: version for version in versions(workers)}
    for name in reversed(NAMES):
        local = workers.nodes[number].engine.open_local(found[name])
        if local is not None:
            local.close()
    used = [version.path for version in workers.nodes[number].store.by_use()]
    assert len(used) > 1
    assert leave(workers, number).wait(PATIENCE_S)
    assert list(dict.fromkeys(order)) == used


def test_the_last_worker_leaves_with_what_it_has_and_says_so(workers: Workers) -> None:
    publish(workers, resized(workers, 0))
    assert leave(workers, 1).wait(PATIENCE_S)
    leaving = leave(workers, 0)
    assert leaving.wait(PATIENCE_S)
    assert leaving.report().left.keys() == {NOBODY}


def test_an_owner_that_does_not_answer_is_asked_again(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(workers, resized(workers, 0))
    engine = workers.nodes[0].engine
    take, failed = engine.take, threading.Event()

    def failing(version: ObjectVersion, blocks: range, source: str) -> object:
        if not failed.is_set():
            failed.set()
            raise WorkerUnavailableError("the worker is being restarted")
        return take(version, blocks, source)

    monkeypatch.setattr(engine, "take", failing)
    monkeypatch.setattr("raycache.engine.leaving.PAUSE_S", 0.0)
    leaving = leave(workers, 1)
    assert leaving.wait(PATIENCE_S)
    assert failed.is_set()
    assert leaving.report().left == {}


def test_it_can_be_stopped_and_the_rest_stays(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    number, other = fullest(workers)
    publish(workers, resized(workers, other))
    engine = workers.nodes[other].engine
    take, asked, go_on = engine.take, threading.Event(), threading.Event()

    def held_up(version: ObjectVersion, blocks: range, source: str) -> object:
        asked.set()
        assert go_on.wait(PATIENCE_S)
        return take(version, blocks, source)

    monkeypatch.setattr(engine, "take", held_up)
    monkeypatch.setattr("raycache.engine.leaving.MOVE_PARALLEL", 1)
    leaving = leave(workers, number)
    assert asked.wait(PATIENCE_S)
    leaving._stop.set()
    go_on.set()
    assert leaving.wait(PATIENCE_S)
    assert leaving.report().left.keys() == {"it was stopped"}
    read_all(workers, number)  # what there is is still served
    assert workers.store_bytes == TOTAL
