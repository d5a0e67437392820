"""A load: complete means that every byte is there; else it says what is missing and why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raycache.actors.loader import Cancelled, Load, Outcome, Target
from raycache.blocks import KiB, MiB
from raycache.engine import Peers
from raycache.errors import ObjectNotFoundError, OperationFailedError
from raycache.membership import Worker
from raycache.spec import ResolvedDataset
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import RaylessCluster, with_tiers

FILES = {"a": 3 * BLOCK + 5, "b": 1, "c/d": 2 * BLOCK, "c/empty": 0}
TOTAL = sum(FILES.values())


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    directory = tmp_path / "bucket"
    for name, size in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(noise(size))
    return directory


@pytest.fixture
def dataset(tmp_path: Path, bucket: Path) -> ResolvedDataset:
    return with_tiers(dataset_of("ds", {"": f"file://{bucket}"}), tmp_path, 8 * MiB, "SSD")


def small(dataset: ResolvedDataset, root: Path, quota: int, *media: str) -> ResolvedDataset:
    """The dataset as a later version of the spec has it, with little room."""
    return with_tiers(dataset, root / "small", quota, *media).model_copy(update={"generation": 2})


@pytest.fixture
def cluster(dataset: ResolvedDataset) -> Iterator[RaylessCluster]:
    with RaylessCluster(3) as cluster:
        cluster.hold(dataset)
        yield cluster


class Watched:
    """A load, and what it told while it ran."""

    def __init__(self, cluster: RaylessCluster, *targets: Target) -> None:
        self.cluster = cluster
        self.targets = targets
        self.sized: list[tuple[int, int, bool]] = []
        self.progress: list[int] = []
        self.cancelled = threading.Event()

    def run(self) -> Outcome:
        with closing(self.cluster.client()) as client:
            return Load(
                client,
                "ds",
                self.targets,
                load_metadata=True,
                sized=lambda *size: self.sized.append(size),
                progressed=self.progress.append,
                cancelled=self.cancelled,
            ).run()


def cached(cluster: RaylessCluster) -> list[int]:
    """Bytes in each worker's store."""
    held = [node.usage()["datasets"]["ds"] for node in cluster.nodes.values()]
    return [item["primary_bytes"] + item["secondary_bytes"] for item in held]


def test_a_load_fetches_everything_once(cluster: RaylessCluster) -> None:
    watched = Watched(cluster, Target("/"))
    assert watched.run() == Outcome(TOTAL, ())
    assert watched.sized[-1] == (len(FILES), TOTAL, True)
    assert watched.progress[-1] == TOTAL
    assert watched.progress == sorted(watched.progress)
    assert sum(cached(cluster)) == TOTAL
    fetched = sum(node.metrics.snapshot().get("fetched_store_bytes", 0) for node in cluster.nodes.values())
    assert fetched == TOTAL


@pytest.mark.parametrize(("replicas", "copies"), [(2, 2), ("all", 3)])
def test_copies_come_from_the_owner_and_not_from_the_store(
    cluster: RaylessCluster, replicas: int, copies: int
) -> None:
    assert Watched(cluster, Target("/", replicas)).run() == Outcome(copies * TOTAL, ())
    assert sum(cached(cluster)) == copies * TOTAL
    metrics = [node.metrics.snapshot() for node in cluster.nodes.values()]
    assert sum(counts.get("fetched_store_bytes", 0) for counts in metrics) == TOTAL
    assert sum(counts.get("fetched_peer_bytes", 0) for counts in metrics) == (copies - 1) * TOTAL


def test_paths_select_and_overlap_counts_once(cluster: RaylessCluster) -> None:
    assert Watched(cluster, Target("/c"), Target("/c/d"), Target("/b")).run().bytes_cached == 2 * BLOCK + 1
    assert Watched(cluster, Target("/b", 2), Target("/b", 1)).run().bytes_cached == 2


def test_a_second_load_fetches_nothing(cluster: RaylessCluster) -> None:
    Watched(cluster, Target("/")).run()
    before = [node.metrics.snapshot() for node in cluster.nodes.values()]
    assert Watched(cluster, Target("/")).run() == Outcome(TOTAL, ())
    assert [node.metrics.snapshot() for node in cluster.nodes.values()] == before


def test_what_is_not_there_cannot_be_loaded(cluster: RaylessCluster, dataset: ResolvedDataset) -> None:
    with pytest.raises(ObjectNotFoundError):
        Watched(cluster, Target("/nothing")).run()
    with pytest.raises(OperationFailedError, match="4 copies are wanted and 3 nodes"):
        Watched(cluster, Target("/", 4)).run()
    cluster.hold(dataset, on=[next(iter(cluster.nodes))])
    with pytest.raises(OperationFailedError, match="2 copies are wanted and 1 node holds the dataset"):
        Watched(cluster, Target("/", 2)).run()


def test_a_dataset_that_nobody_holds_cannot_be_loaded(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset, on=[])
    with pytest.raises(OperationFailedError, match="no worker holds the dataset"):
        Watched(cluster, Target("/")).run()


def evicted(cluster: RaylessCluster) -> int:
    return sum(node.metrics.snapshot().get("evicted_bytes", 0) for node in cluster.nodes.values())


@pytest.mark.parametrize("media", [["SSD"], ["MEM", "SSD"]])
def test_what_does_not_fit_is_missing_and_pushes_nothing_out(
    cluster: RaylessCluster, bucket: Path, dataset: ResolvedDataset, tmp_path: Path, media: list[str]
) -> None:
    for number in range(12):
        (bucket / f"big{number}").write_bytes(noise(MiB, number))
    cluster.hold(small(dataset, tmp_path, 2 * MiB, *media))
    before = evicted(cluster)
    outcome = Watched(cluster, Target("/")).run()
    total = TOTAL + 12 * MiB
    assert outcome.bytes_cached == total - sum(item.bytes for item in outcome.missing)
    assert outcome.missing
    assert {item.reason for item in outcome.missing} == {
        "there is no room for it in the cache's capacity; raise the quota, or load less"
    }
    assert evicted(cluster) == before
    assert sum(cached(cluster)) == outcome.bytes_cached >= 3 * MiB
    fetched = sum(node.metrics.snapshot()["fetched_store_bytes"] for node in cluster.nodes.values())
    assert fetched == outcome.bytes_cached, "what does not fit is not even asked of the store"


def test_a_load_that_is_too_large_fetches_nothing_when_it_is_run_again(
    cluster: RaylessCluster, bucket: Path, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    for number in range(12):
        (bucket / f"big{number}").write_bytes(noise(MiB, number))
    cluster.hold(small(dataset, tmp_path, 2 * MiB, "SSD"))
    first = Watched(cluster, Target("/")).run()
    before = [node.metrics.snapshot() for node in cluster.nodes.values()]
    assert Watched(cluster, Target("/")).run() == first
    assert [node.metrics.snapshot() for node in cluster.nodes.values()] == before


def test_what_is_there_is_kept_before_anything_is_fetched(
    cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that went beside it took its place: a load that was run again fetched anew, now and then."""
    Watched(cluster, Target("/c")).run()
    calls: list[tuple[str, str]] = []
    call = Peers.call

    def noted(self: Peers, worker: Worker, action: str, payload: Any, timeout_s: float | None) -> Any:
        if action != "ensure":
            return call(self, worker, action, payload, timeout_s)
        path = payload["version"]["path"]
        calls.append(("asked", path))
        answer = call(self, worker, action, payload, timeout_s)
        calls.append(("answered", path))
        return answer

    monkeypatch.setattr(Peers, "call", noted)
    assert Watched(cluster, Target("/")).run() == Outcome(TOTAL, ())
    assert calls.index(("answered", "c/d")) < min(calls.index(("asked", path)) for path in ("a", "b"))


def test_a_load_takes_the_place_of_what_was_there_however_much_that_was_used(
    cluster: RaylessCluster, bucket: Path, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    for number in range(20):
        (bucket / "former").mkdir(exist_ok=True)
        (bucket / "former" / f"{number}").write_bytes(noise(4 * BLOCK, number))
    for number in range(14):
        (bucket / "wanted").mkdir(exist_ok=True)
        (bucket / "wanted" / f"{number}").write_bytes(noise(2 * BLOCK, number))
    cluster.hold(small(dataset, tmp_path, 2 * MiB, "SSD"), on=["node0"])
    with closing(cluster.client("node0")) as client:
        for _ in range(3):
            for info in client.walk("ds", "former"):
                with closing(client.open("ds", info.path)) as reader:
                    reader.read_at(0, reader.size)
    # 28 of the tier's 32 blocks: more than eviction would leave if it saw no difference between old and new.
    outcome = Watched(cluster, Target("/wanted")).run()
    assert outcome == Outcome(28 * BLOCK, ())


def test_an_object_that_changes_under_the_load_is_missing_with_its_reason(
    cluster: RaylessCluster, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(cluster, Target("/"))

    def change(files: int, size: int, final: bool) -> None:
        (bucket / "a").write_bytes(noise(FILES["a"] + 1, 7))

    monkeypatch.setattr(watched, "sized", _Calls(change))
    outcome = watched.run()
    assert [item.path for item in outcome.missing] == ["a"]
    assert outcome.missing[0].reason.startswith("StaleObjectError")
    assert outcome.bytes_cached == TOTAL - outcome.missing[0].bytes


class _Calls:
    def __init__(self, function: object) -> None:
        self.append = lambda size: function(*size)  # type: ignore[operator]


def test_a_cancelled_load_ends(cluster: RaylessCluster) -> None:
    watched = Watched(cluster, Target("/"))
    watched.cancelled.set()
    with pytest.raises(Cancelled):
        watched.run()
    assert sum(cached(cluster)) == 0


def test_a_worker_lost_during_the_load_is_made_up_for_by_the_others(
    cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "raycache.actors.loader.ROUND_PAUSE_S", 1.1
    )  # longer than a client's refresh interval
    lost = cluster.nodes.pop("node1")
    watched = Watched(cluster, Target("/"))
    lost.stop("everything")

    class Publishing:
        """The coordinator notices after the first round."""

        def append(self, size: int) -> None:
            if "node1" in cluster.seats:
                cluster.publish()

    monkeypatch.setattr(watched, "progress", Publishing())
    assert watched.run() == Outcome(TOTAL, ())
    assert sum(cached(cluster)) == TOTAL


def test_blocks_of_a_large_object_are_counted_by_segment(
    cluster: RaylessCluster, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycache.blocks.SEGMENT_SIZE", 128 * KiB)
    (bucket / "large").write_bytes(noise(MiB, 3))
    outcome = Watched(cluster, Target("/large")).run()
    assert outcome == Outcome(MiB, ())
    assert all(0 < size < MiB for size in cached(cluster)), "segments spread over the workers"
