"""Hot data: those that have a segment serve it on, and nobody gets a wrong byte, waits in a circle, or fails for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.engine import held, peers, tracker
from raycache.engine.tracker import Tracker
from raycache.errors import RaycacheError
from tests.support.embedded import BLOCK, Node, Workers, a_bucket, data_files, dataset_of, noise
from tests.support.stores import Doing, Gate

BLOCKS = 12
SIZE = (BLOCKS - 1) * BLOCK + 77
ALL = range(BLOCKS)


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    return a_bucket(tmp_path, noise(SIZE))


@pytest.fixture
def workers(tmp_path: Path, bucket_dir: Path) -> Iterator[Workers]:
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 4) as workers:
        yield workers


@pytest.fixture
def version(workers: Workers) -> ObjectVersion:
    version = workers.nodes[0].engine.info("ds", "a").value.version
    assert version is not None
    return version


def parted(workers: Workers, version: ObjectVersion) -> tuple[Node, list[Node]]:
    """The owner, and the others."""
    owner = workers.nodes[workers.owner_of(version)]
    return owner, [node for node in workers.nodes if node is not owner]


def count(node: Node, name: str) -> int:
    return node.metrics.snapshot().get(name, 0)


@pytest.fixture
def busy(workers: Workers, version: ObjectVersion) -> Iterator[None]:
    """The owner is sending something to somebody else all the time."""
    owner, _ = parted(workers, version)
    with owner.service.tracker.request("another object", range(1), "", shares=False):
        yield


def has_all(node: Node) -> bool:
    (path,) = data_files(node.store)
    return path.read_bytes() == noise(SIZE)


def test_an_owner_that_sends_to_nobody_else_sends_itself(workers: Workers, version: ObjectVersion) -> None:
    owner, others = parted(workers, version)
    for node in others:
        assert node.engine.ensure(version, ALL)
        assert has_all(node)
    assert count(owner, m.REDIRECTS) == 0
    assert count(owner, m.SENT_BYTES) == 3 * SIZE


@pytest.mark.usefixtures("busy")
def test_those_who_have_it_serve_it_on(workers: Workers, version: ObjectVersion) -> None:
    owner, others = parted(workers, version)
    for node in others:
        assert node.engine.ensure(version, ALL)
        assert has_all(node)
    assert workers.store_bytes == SIZE
    assert count(owner, m.SENT_BYTES) == SIZE
    assert [count(node, m.SENT_BYTES) for node in others] == [SIZE, SIZE, 0], "each of them once"
    assert sum(count(node, m.SHARED_BYTES) for node in others) == 2 * SIZE


@pytest.mark.usefixtures("busy")
def test_those_who_ask_at_the_same_moment_get_it_from_each_other(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has a byte yet: one is sent the blocks, the others wait for it, or for each other."""
    owner, others = parted(workers, version)
    gate = Gate(monkeypatch, owner.spy, "before")
    reading = [Doing(lambda node=node: node.engine.ensure(version, ALL)) for node in others]  # type: ignore[misc]
    gate.wait()
    gate.open()
    for one in reading:
        assert one.result()
    assert all(has_all(node) for node in others)
    assert workers.store_bytes == SIZE
    assert count(owner, m.SENT_BYTES) == SIZE
    assert sum(count(node, m.SENT_BYTES) for node in others) == 2 * SIZE


@pytest.mark.usefixtures("busy")
def test_a_holder_that_has_evicted_it_is_passed_by(workers: Workers, version: ObjectVersion) -> None:
    owner, (first, second, third) = parted(workers, version)
    first.engine.ensure(version, ALL)
    first.store.evict(lambda _: True)
    for node in (second, third):
        assert node.engine.ensure(version, ALL)
        assert has_all(node)
    assert workers.store_bytes == SIZE
    assert count(owner, m.SENT_BYTES) == 2 * SIZE
    assert count(second, m.SENT_BYTES) == SIZE, "the one that lost it is not named again"


@pytest.mark.usefixtures("busy")
def test_a_holder_that_is_gone_is_passed_by(workers: Workers, version: ObjectVersion) -> None:
    _, (first, second, _third) = parted(workers, version)
    first.engine.ensure(version, ALL)
    first.server.close()
    assert second.engine.ensure(version, ALL)
    assert has_all(second)
    assert workers.store_bytes == SIZE


@pytest.mark.usefixtures("busy")
def test_a_holder_that_falls_silent_is_passed_by_and_left_alone(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, (first, second, _) = parted(workers, version)
    first.engine.ensure(version, ALL)
    monkeypatch.setattr(peers, "HELD_TIMEOUT_S", 0.3)
    over = threading.Event()

    def silent(*_: object) -> Iterator[tuple[int, memoryview]]:
        over.wait(60.0)
        yield from ()

    monkeypatch.setattr(first.engine, "stream_held", silent)
    try:
        assert second.engine.ensure(version, ALL)
        assert has_all(second)
        assert count(owner, m.SENT_BYTES) == 2 * SIZE
        assert not second.engine.peers.reachable(first.engine.peers.self_id)
    finally:
        over.set()


@pytest.mark.usefixtures("busy")
def test_a_holder_that_fails_in_the_middle_gives_what_it_gave(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, (first, second, _) = parted(workers, version)
    first.engine.ensure(version, ALL)
    stream_held = first.engine.stream_held

    def failing(*args: object) -> Iterator[tuple[int, memoryview]]:
        for number, found in enumerate(stream_held(*args)):  # type: ignore[arg-type]
            if number == 5:
                raise RaycacheError("it fails")
            yield found

    monkeypatch.setattr(first.engine, "stream_held", failing)
    assert second.engine.ensure(version, ALL)
    assert has_all(second)
    assert workers.store_bytes == SIZE
    assert count(owner, m.SENT_BYTES) == SIZE + SIZE - 5 * BLOCK


@pytest.mark.usefixtures("busy")
def test_what_a_holder_waits_for_in_vain_comes_from_elsewhere(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's fetch from the owner breaks while the second one waits for it."""
    owner, (first, second, _) = parted(workers, version)
    stream = owner.engine.stream
    asked = []

    def failing(*args: object, **kwargs: object) -> Iterator[tuple[int, memoryview]]:
        asked.append(args)
        if len(asked) == 1:
            raise RaycacheError("it fails")
        return stream(*args, **kwargs)  # type: ignore[arg-type]

    gate = Gate(monkeypatch, owner.engine, "stream")
    reading = Doing(lambda: first.engine.ensure(version, ALL))
    gate.wait()
    waiting = Gate(monkeypatch, first.engine, "stream_held", after=True)
    also = Doing(lambda: second.engine.ensure(version, ALL))
    waiting.wait()
    monkeypatch.setattr(owner.engine, "stream", failing)
    waiting.open()
    gate.open()
    assert reading.result()
    assert also.result()
    assert has_all(first)
    assert has_all(second)


@pytest.mark.usefixtures("busy")
def test_a_reader_without_a_worker_reads_from_who_has_it(workers: Workers, version: ObjectVersion) -> None:
    owner, others = parted(workers, version)
    others[0].engine.ensure(version, ALL)
    client = workers.client()
    with closing(client.open("ds", "a")) as reader:
        assert reader.read_at(0, SIZE) == noise(SIZE)
    assert count(owner, m.SENT_BYTES) == SIZE
    assert client.metrics.snapshot()[m.SHARED_BYTES] == SIZE


@pytest.mark.usefixtures("busy")
def test_a_holder_never_gives_bytes_of_another_version(
    workers: Workers, version: ObjectVersion, bucket_dir: Path
) -> None:
    owner, (first, second, _) = parted(workers, version)
    first.engine.ensure(version, ALL)
    (bucket_dir / "a").write_bytes(noise(SIZE, 9))
    for node in workers.nodes:
        node.engine.invalidate("ds", "", hop=True)
    newer = second.engine.info("ds", "a").value.version
    assert newer is not None
    assert newer != version
    data = b"".join(bytes(data) for _, data in second.engine.stream(newer, ALL))
    assert data == noise(SIZE, 9)
    assert count(owner, m.REDIRECTS) == 0


def test_a_block_on_its_way_is_waited_for_with_signs_of_life(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SIGN_S", 0.01)
    owner, (first, second, _) = parted(workers, version)
    gate = Gate(monkeypatch, owner.spy, "before")
    filling = Doing(lambda: first.engine.ensure(version, range(1)))
    gate.wait()
    found = first.engine.stream_held(version, range(1), True)
    assert next(found) == held.NOT_YET
    over_the_wire = second.engine.peers.stream_blocks(
        first.worker, version, range(1), held=True, arriving=True
    )
    waiting = Doing(lambda: [bytes(data) for _, data in over_the_wire])
    gate.open()
    assert filling.result()
    assert waiting.result() == [noise(SIZE)[:BLOCK]]
    assert [bytes(data) for _, data in found if data] == [noise(SIZE)[:BLOCK]]


# -- the tracker alone --------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def busy_tracker(clock: Clock) -> Iterator[Tracker]:
    one = Tracker(lambda id: id != "away", clock)
    with one.request("other", range(1), "", shares=False):
        yield one


def ask(one: Tracker, asker: str, blocks: range = ALL) -> list[str]:
    with one.request("object", blocks, asker, shares=True) as named:
        return named


def test_each_is_named_in_turn(busy_tracker: Tracker) -> None:
    assert ask(busy_tracker, "a") == []
    assert [ask(busy_tracker, asker)[0] for asker in "bcd"] == ["a", "b", "c"]


def test_chains_are_short(busy_tracker: Tracker) -> None:
    parents = {f"{n:03}": (ask(busy_tracker, f"{n:03}") or [""])[0] for n in range(100)}

    def depth(worker: str) -> int:
        return 1 + depth(parents[worker]) if parents[worker] else 1

    assert max(map(depth, parents)) == tracker.MAX_DEPTH
    assert list(parents.values()).count("") == 1, "the owner sends one copy"


def test_who_asks_again_is_not_sent_to_who_waits_for_him(busy_tracker: Tracker) -> None:
    assert ask(busy_tracker, "a") == []
    assert ask(busy_tracker, "b") == ["a"]
    assert ask(busy_tracker, "a") == [], "b may be waiting for a"
    assert ask(busy_tracker, "b") == ["a"], "what a has now is younger than what b had asked for"


def test_nobody_waits_for_long(busy_tracker: Tracker, clock: Clock) -> None:
    ask(busy_tracker, "a")
    ask(busy_tracker, "b")
    clock.now += tracker.RECENT_S
    assert ask(busy_tracker, "a") == ["b"]


def test_only_who_has_all_of_it_and_can_be_reached_is_named(busy_tracker: Tracker) -> None:
    ask(busy_tracker, "away")
    assert ask(busy_tracker, "a") == []
    assert ask(busy_tracker, "b", range(6)) == ["a"]
    assert ask(busy_tracker, "c", range(3, 9)) == ["a"]
    busy_tracker.missed("object", range(3), ["a"])
    assert ask(busy_tracker, "d", range(3)) == ["b"]


def test_what_is_remembered_is_bounded(busy_tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MAX_BLOCKS", 4)
    ask(busy_tracker, "a", range(8))
    assert ask(busy_tracker, "b", range(3)) == []
    assert ask(busy_tracker, "c", range(3)) == ["b"]
