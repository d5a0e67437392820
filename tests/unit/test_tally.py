"""CACHE HIT RATIO: what programs read, and how much of it was in their node's cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raycache.actors import rows
from raycache.actors.loader import Load, Target
from raycache.blocks import MiB, ObjectVersion
from raycache.client import Client
from raycache.client.tally import Tallies, Tally
from raycache.errors import WorkerUnavailableError
from raycache.filesystem import RaycacheFileSystem
from raycache.filesystem.file import RaycacheFile
from raycache.spec import ResolvedDataset
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import RaylessCluster, with_tiers

DATA = noise(40 * BLOCK + 7)
HALF = 20 * BLOCK


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(DATA)
    return with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 8 * MiB, "SSD")


@pytest.fixture
def cluster(dataset: ResolvedDataset) -> Iterator[RaylessCluster]:
    with RaylessCluster(2) as cluster:
        cluster.hold(dataset)
        yield cluster


def hit_and_missed(cluster: RaylessCluster) -> tuple[int, int]:
    usage = rows.dataset_usage("ds", {name: node.usage() for name, node in cluster.nodes.items()})
    return usage["hit"], usage["missed"]


def opened(cluster: RaylessCluster, use: Callable[[Client, Any], object], node: str = "node0") -> None:
    """Use the file in a process of its own, as far as the cache can see."""
    with closing(cluster.client(node)) as client:
        reader = client.open("ds", "a")
        with RaycacheFile(RaycacheFileSystem(), "ds/a", reader, lambda version: reader) as file:
            use(client, file)


def whole(client: Client, file: Any) -> None:
    assert file.read() == DATA


def in_small_pieces(client: Client, file: Any) -> None:
    while file.read(4096):
        pass


@pytest.mark.parametrize("read", [whole, in_small_pieces])
def test_a_cold_scan_is_missed_however_well_readahead_hid_it_and_a_second_one_is_hit(
    cluster: RaylessCluster, dataset: ResolvedDataset, read: Callable[[Client, Any], None]
) -> None:
    opened(cluster, read)
    assert hit_and_missed(cluster) == (0, len(DATA))
    opened(cluster, read)
    assert hit_and_missed(cluster) == (len(DATA), len(DATA))
    scan = {"ufs_total_size": len(DATA), "ufs_total_files": 1, "ufs_scanning": False, "error": ""}
    usages = {name: node.usage() for name, node in cluster.nodes.items()}
    assert rows.dataset_row(dataset, 0.0, scan, usages, ("Bound", ""))["hit_ratio"] == 0.5


def test_what_was_loaded_ahead_is_hit(cluster: RaylessCluster) -> None:
    with closing(cluster.client()) as client:
        events: dict[str, Any] = {"sized": lambda *_: None, "progressed": lambda _: None}
        Load(client, "ds", [Target("/", "all")], cancelled=threading.Event(), **events).run()
    assert hit_and_missed(cluster) == (0, 0)
    opened(cluster, whole, "node0")
    opened(cluster, whole, "node1")
    assert hit_and_missed(cluster) == (2 * len(DATA), 0)


def test_small_reads_count_with_what_was_read(cluster: RaylessCluster) -> None:
    def ends(client: Client, file: Any) -> None:
        file.seek(HALF)
        file.read(10)
        file.seek(0)
        file.read(10)

    opened(cluster, ends)
    assert hit_and_missed(cluster) == (0, 20)


def test_what_is_handed_out_whole_counts_whole(cluster: RaylessCluster) -> None:
    opened(cluster, whole)

    def uses(client: Client, file: Any) -> None:
        assert file.mapped().size == len(DATA)
        assert file.readinto(bytearray(100)) == 100
        assert file.read_buffer(1000).size == 1000
        with client.local_path("ds", "a") as path:
            assert Path(path).read_bytes() == DATA

    opened(cluster, uses)
    assert hit_and_missed(cluster) == (2 * len(DATA) + 1100, len(DATA))


def test_a_node_without_a_worker_tells_another_and_has_missed_all(cluster: RaylessCluster) -> None:
    opened(cluster, whole)
    opened(cluster, whole, "elsewhere")
    assert hit_and_missed(cluster) == (0, 2 * len(DATA))


def test_what_nobody_took_is_told_with_the_next_report() -> None:
    version = ObjectVersion("ds", "a", "file:///a", len(DATA), '"1"', block_size=BLOCK)
    told: list[tuple[str, int, int]] = []
    failing = [True]

    def report(*news: Any) -> None:
        if failing:
            raise WorkerUnavailableError("away")
        told.append(news)

    tallies = Tallies(report)
    tally = tallies.open(version)
    tally.read += HALF
    tallies.tell()
    failing.clear()
    tally.bring([range(1)])
    tallies.tell()
    tallies.tell()
    assert told == [("ds", HALF - BLOCK, BLOCK)], "once, and corrected by what came after"
    tally.read += 1
    tallies.close(tally)
    tallies.close(tally)
    tallies.stop()
    assert told[1:] == [("ds", 1, 0)]


def test_a_block_counts_once_and_no_more_than_was_read() -> None:
    tally = Tally(ObjectVersion("ds", "a", "file:///a", len(DATA), '"1"', block_size=BLOCK))
    tally.bring([range(2), range(1, 3)])
    assert tally.news() == (0, 0)
    tally.read += 4 * BLOCK
    assert tally.news() == (BLOCK, 3 * BLOCK)
    tally.read += BLOCK
    tally.past += BLOCK
    assert tally.news() == (0, BLOCK)
