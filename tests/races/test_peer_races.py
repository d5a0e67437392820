"""Streams between workers against what happens to the workers meanwhile, forced with gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.engine import fetch
from raycache.errors import RaycacheError
from raycache.membership import Membership
from tests.support.embedded import BLOCK, Node, Workers, a_bucket, data_files, dataset_of, noise
from tests.support.stores import Doing, Gate

BLOCKS = 12
SIZE = (BLOCKS - 1) * BLOCK + 77
DATA = noise(SIZE)
HALF = BLOCKS // 2


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    return a_bucket(tmp_path, DATA)


@pytest.fixture
def workers(tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Three workers that fetch block by block, so that a stream can be stopped in its middle."""
    monkeypatch.setattr(fetch, "FETCH_SIZE", BLOCK)
    with Workers(tmp_path, dataset_of("ds", {"": f"file://{bucket_dir}"}), 3) as workers:
        yield workers


@pytest.fixture
def version(workers: Workers) -> ObjectVersion:
    version = workers.nodes[0].engine.info("ds", "a").value.version
    assert version is not None
    return version


def in_the_middle(monkeypatch: pytest.MonkeyPatch, node: Node) -> Gate:
    """A gate before a worker reads the middle of the object from the store."""
    return Gate(monkeypatch, node.spy, "before", when=lambda read: read.offset == HALF * BLOCK)


def without(membership: Membership, number: int) -> Membership:
    return membership.without_worker(f"worker-{number}").rebalanced()


def take(workers: Workers, membership: Membership) -> None:
    """Every worker hears of it."""
    for node in workers.nodes:
        node.engine.peers.update(membership)


def test_owner_leaves_while_another_worker_streams_from_it(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The news closes the connection under the stream; what was not had from there comes from somewhere else."""
    number = workers.owner_of(version)
    owner, other = workers.nodes[number], workers.nodes[number - 1]
    gate = in_the_middle(monkeypatch, owner)
    filling = Doing(lambda: other.engine.ensure(version, range(BLOCKS)))
    gate.wait()
    take(workers, without(workers.membership, number))
    gate.open()
    assert filling.result()
    (path,) = data_files(other.store)
    assert path.read_bytes() == DATA


def test_owner_changes_while_a_client_streams_from_it(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that has begun goes on at the former owner, which is still there: nothing is fetched twice."""
    number = workers.owner_of(version)
    gate = in_the_middle(monkeypatch, workers.nodes[number])
    client = workers.client()
    with closing(client.open("ds", "a")) as reader:
        reading = Doing(lambda: reader.read_at(0, SIZE))
        gate.wait()
        changed = workers.membership.draining(f"worker-{number}").rebalanced()
        take(workers, changed)
        client.peers.update(changed)
        gate.open()
        assert reading.result() == DATA
        assert reader.read_at(0, SIZE) == DATA
    assert workers.store_bytes == SIZE


@pytest.mark.parametrize("near", [False, True])
def test_worker_is_stopped_in_the_middle_of_a_stream(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    """Readers on its own node and afar go on without it, and get every byte once."""
    number = workers.owner_of(version)
    node = workers.nodes[number]
    gate = in_the_middle(monkeypatch, node)
    client = workers.client(number if near else None)
    with closing(client.open("ds", "a")) as reader:
        reading = Doing(lambda: reader.read_at(0, SIZE))
        gate.wait()
        stopping = Doing(node.close)
        assert reading.result() == DATA, "nobody waits for a worker that ends"
        gate.open()
        stopping.result()
        assert reader.read_at(0, SIZE) == DATA


def test_stream_of_a_worker_whose_dataset_is_detached_meanwhile(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = workers.owner_of(version)
    owner, other = workers.nodes[number], workers.nodes[number - 1]
    gate = in_the_middle(monkeypatch, owner)
    filling = Doing(lambda: other.engine.ensure(version, range(BLOCKS)))
    gate.wait()
    store = owner.engine.detach("ds")
    assert store is not None
    store.purge()
    store.close()
    gate.open()
    assert filling.result()
    (path,) = data_files(other.store)
    assert path.read_bytes() == DATA


def test_two_workers_both_fetch_when_their_leader_fails(
    workers: Workers, version: ObjectVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's fetch fails under those who wait for it on other nodes: they have it from elsewhere."""
    number = workers.owner_of(version)
    owner = workers.nodes[number]
    others = [node for node in workers.nodes if node is not owner]

    def fail(_: object) -> None:
        raise RaycacheError("the owner cannot reach the store", where="file://bucket")

    owner.spy.before = fail
    gate = Gate(monkeypatch, owner.spy, "before")
    fillings = [Doing(partial(node.engine.ensure, version, range(1))) for node in others]
    gate.wait()
    gate.open()
    for filling in fillings:
        assert filling.result()
    for node in others:
        assert node.engine.cached_bytes(version) == BLOCK
    assert sum(node.metrics.snapshot().get(m.FALLBACKS, 0) for node in others) >= 1
