"""Names that are declared changed: who sees it at once, and who when he has looked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raycache.actors import cluster_state
from raycache.api import connect, disconnect
from raycache.blocks import MiB
from raycache.client import Client
from raycache.engine import peers
from raycache.errors import DatasetNotFoundError, ObjectNotFoundError, WorkerUnavailableError
from raycache.spec import ResolvedDataset
from tests.support.embedded import PATIENCE_S, dataset_of
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers

NODES = 3


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A directory with files at several depths, so that the directories belong to several workers."""
    path = tmp_path / "bucket"
    for number in range(8):
        (path / "dir" / f"sub{number}").mkdir(parents=True)
        (path / "dir" / f"sub{number}" / "file").write_bytes(b"old")
    (path / "a").write_bytes(b"old")
    return path


@pytest.fixture
def dataset(tmp_path: Path, bucket: Path) -> ResolvedDataset:
    plain = dataset_of("ds", {"": f"file://{bucket}"}, consistency_mode="immutable")
    return with_tiers(plain, tmp_path, 8 * MiB, "SSD")


@pytest.fixture
def cluster(dataset: ResolvedDataset) -> Iterator[RaylessCluster]:
    with RaylessCluster(NODES) as cluster:
        cluster.hold(dataset)
        yield cluster


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes between any two operations: everybody looks what is new in each."""
    monkeypatch.setattr(peers, "REFRESH_INTERVAL_S", 0.0)


def read(client: Client, path: str) -> bytes:
    with closing(client.open("ds", path)) as reader:
        return bytes(reader.read_at(0, reader.size))


def names(client: Client, directory: str = "") -> list[str]:
    return [info.path for info in client.list("ds", directory)]


def learn(cluster: RaylessCluster, client: Client | None = None) -> None:
    """Have every worker, and a client, know all names of the dataset, and believe them for good."""
    for node in cluster.nodes:
        with closing(cluster.client(node)) as one:
            list(one.walk("ds"))
    if client is not None:
        list(client.walk("ds"))
        read(client, "a")


def overwrite(bucket: Path) -> None:
    (bucket / "a").write_bytes(b"the new one")
    for path in bucket.glob("dir/*/file"):
        path.write_bytes(b"the new one")


@pytest.mark.parametrize("tell", [True, False], ids=["workers were told", "no worker could be told"])
def test_who_connects_afterwards_sees_it_at_once(cluster: RaylessCluster, bucket: Path, tell: bool) -> None:
    learn(cluster)
    overwrite(bucket)
    cluster.invalidate("ds", "a", "dir", tell=tell)
    for node in (*cluster.nodes, ""):
        with closing(cluster.client(node)) as client:
            for path in ("a", *(f"dir/sub{number}/file" for number in range(8))):
                assert client.info("ds", path).size == len(b"the new one")
                assert read(client, path) == b"the new one"


def test_a_client_that_was_there_before_sees_it_when_it_looks(
    cluster: RaylessCluster, bucket: Path, looks: None
) -> None:
    with closing(cluster.client("node1")) as client:
        learn(cluster, client)
        with closing(client.open("ds", "dir/sub1/file")) as reader:
            assert reader.read_at(0, 3) == b"old"
            overwrite(bucket)
            assert read(client, "a") == b"old", "immutable: nobody asks"
            cluster.invalidate("ds", "dir/sub1")
            assert read(client, "dir/sub1/file") == b"the new one"
            assert read(client, "a") == b"old", "what was not declared changed is believed as before"
            assert reader.read_at(0, 3) == b"old", "what is open goes on"
            cluster.invalidate("ds", "")
            assert read(client, "a") == b"the new one"


def test_within_the_second_after_it_has_looked_a_client_believes_what_it_knows(
    cluster: RaylessCluster, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "REFRESH_INTERVAL_S", 1e9)
    with closing(cluster.client("node1")) as client:
        learn(cluster, client)
        overwrite(bucket)
        cluster.invalidate("ds", "")
        assert client.info("ds", "a").size == len(b"old")
        monkeypatch.setattr(peers, "REFRESH_INTERVAL_S", 0.0)
        assert client.info("ds", "a").size == len(b"the new one")


def test_names_that_came_and_went_are_no_error(cluster: RaylessCluster, bucket: Path, looks: None) -> None:
    with closing(cluster.client("node2")) as client:
        learn(cluster, client)
        (bucket / "a").unlink()
        (bucket / "new" / "er").mkdir(parents=True)
        (bucket / "new" / "er" / "file").write_bytes(b"new")
        assert names(client) == ["a", "dir"]
        cluster.invalidate("ds", "a", "new/er/file", "never/was")
        assert names(client) == ["dir", "new"], "the directories above have changed with it"
        with pytest.raises(ObjectNotFoundError):
            client.open("ds", "a")
        assert read(client, "new/er/file") == b"new"


def test_a_client_outside_ray_hears_of_it_from_the_workers(
    cluster: RaylessCluster, bucket: Path, looks: None
) -> None:
    address = cluster.membership.workers[0].address
    try:
        client = connect(address, TOKEN)
        learn(cluster, client)
        overwrite(bucket)
        cluster.invalidate("ds", "a")
        assert read(client, "a") == b"the new one"
    finally:
        disconnect()


def test_who_connects_afterwards_outside_ray_sees_it_at_once(cluster: RaylessCluster, bucket: Path) -> None:
    learn(cluster)
    overwrite(bucket)
    cluster.invalidate("ds", "a", tell=False)
    try:
        client = connect(cluster.membership.workers[0].address, TOKEN)
        assert client.info("ds", "a").size == len(b"the new one")
        assert read(client, "a") == b"the new one"
    finally:
        disconnect()


def test_a_worker_whose_cluster_is_silent_tells_who_connects_what_it_knows(
    cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release, get = threading.Event(), threading.Event(), cluster.kv.get

    def silent(key: str) -> bytes | None:
        asked.set()
        assert release.wait(PATIENCE_S)
        return get(key)

    monkeypatch.setattr(peers, "REFRESH_PATIENCE_S", 0.1)
    monkeypatch.setattr(cluster.kv, "get", silent)
    try:
        client = connect(cluster.membership.workers[0].address, TOKEN)
        assert asked.is_set()
        assert client.datasets() == list(cluster.datasets.values())
    finally:
        release.set()
        disconnect()


def test_what_a_worker_says_that_has_heard_less_is_not_taken(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"bound elsewhere")
    late = cluster.nodes["node0"]._state
    bound = dataset_of("ds", {"": f"file://{tmp_path / 'elsewhere'}"}, consistency_mode="immutable")
    cluster.invalidate("ds", "a")
    cluster.hold(with_tiers(bound, tmp_path / "other", 8 * MiB, "SSD"))
    cluster.invalidate("ds", "a")
    answers = [late]
    state = cluster_state.read(cluster.kv)
    client = Client(state, refresh=lambda epoch: cluster_state.from_wire(answers.pop(), TOKEN))
    with closing(client):
        with pytest.raises(DatasetNotFoundError):
            client.dataset("one that is not there, so that it is asked")
        assert not answers
        assert client.dataset("ds") == cluster.datasets["ds"]
        assert read(client, "a") == b"bound elsewhere"


def test_who_has_missed_more_than_is_remembered_forgets_everything(
    cluster: RaylessCluster, bucket: Path, looks: None
) -> None:
    with closing(cluster.client("node0")) as client:
        learn(cluster, client)
        overwrite(bucket)
        cluster.invalidate("ds", "a", tell=False)
        cluster.invalidate("ds", *map(str, range(200)), tell=False)
        assert read(client, "a") == b"the new one"


def test_an_answer_of_a_worker_that_cannot_hear_of_it_is_not_remembered(
    cluster: RaylessCluster, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(cluster)
    overwrite(bucket)
    cut = [node._peers for node in cluster.nodes.values()]

    def unreachable(epoch: int) -> Any:
        raise WorkerUnavailableError("cut off")

    with monkeypatch.context() as patch:
        for one in cut:
            patch.setattr(one, "_refresh", unreachable)
        cluster.invalidate("ds", "a", tell=False)
        client = cluster.client("node0")
        assert client.info("ds", "a").size == len(b"old"), "better than nothing"
    with closing(client):
        for node in cluster.nodes.values():
            node.ping(cluster.membership.epoch)
        assert client.info("ds", "a").size == len(b"the new one")


def test_the_filesystems_own_invalidation_reaches_every_worker(cluster: RaylessCluster, bucket: Path) -> None:
    addresses = ",".join(worker.address for worker in cluster.membership.workers)
    learn(cluster)
    try:
        files = fsspec.filesystem("raycache", address=addresses, skip_instance_cache=True)
        files._connected = None
        files._connect = lambda: connect(addresses, TOKEN)
        for number in range(8):
            assert files.info(f"ds/dir/sub{number}/file")["size"] == len(b"old")
        overwrite(bucket)
        (bucket / "dir" / "sub9").mkdir()
        (bucket / "dir" / "sub9" / "file").write_bytes(b"new")
        files.invalidate_cache("ds/dir")
        for number in range(8):
            assert files.info(f"ds/dir/sub{number}/file")["size"] == len(b"the new one")
        assert files.ls("ds/dir/sub9", detail=False) == ["ds/dir/sub9/file"]
        assert files.info("ds/a")["size"] == len(b"old")
    finally:
        disconnect()
