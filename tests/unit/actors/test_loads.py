"""Loads are kept, run, and taken up again; sizes are counted in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.actors import kv as keys
from raycache.actors import loads
from raycache.actors.events import KEPT, Events
from raycache.actors.kv import get_json
from raycache.actors.loads import Loads
from raycache.actors.scan import Scans
from raycache.blocks import FileInfo, MiB
from raycache.errors import AccessDeniedError, DatasetNotFoundError, NotFoundError, SpecError
from raycache.operations import Operation
from tests.support.embedded import BLOCK, PATIENCE_S, dataset_of, noise
from tests.support.raylesscluster import RaylessCluster, with_tiers

EVERYTHING = {"target": [{"path": "/", "replicas": 1}], "loadMetadata": False}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RaylessCluster]:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(noise(3 * BLOCK))
    dataset = with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 8 * MiB, "SSD")
    with RaylessCluster(2) as cluster:
        cluster.hold(dataset)
        yield cluster


def new_loads(cluster: RaylessCluster, ready: Callable[[str], None] | None = None) -> Loads:
    def known(name: str) -> None:
        if name not in cluster.datasets:
            raise DatasetNotFoundError("no such dataset", where=name)

    return Loads(cluster.kv, Events(), cluster.client, ready or known)


def ended(runner: Loads, name: str) -> Operation:
    deadline = time.monotonic() + PATIENCE_S
    while not runner.get(name).ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return runner.get(name)


def test_a_load_runs_to_complete_and_is_stored(cluster: RaylessCluster) -> None:
    runner = new_loads(cluster)
    assert runner.submit("one", "ds", EVERYTHING) == "created"
    load = ended(runner, "one")
    assert (load.phase, load.bytes_cached, load.files) == ("Complete", 3 * BLOCK, 1)
    assert loads.row(load)["bytes_total"] == 3 * BLOCK
    assert runner.submit("one", "ds", EVERYTHING) == "unchanged"
    assert [data["phase"] for data in get_json(cluster.kv, keys.OPERATIONS)] == ["Complete"]
    other = {**EVERYTHING, "target": [{"path": "/a", "replicas": 2}]}
    assert runner.submit("one", "ds", other) == "configured"
    assert ended(runner, "one").bytes_cached == 6 * BLOCK
    runner.delete("one")
    with pytest.raises(NotFoundError, match="no such load"):
        runner.get("one")
    runner.close()


def test_a_failed_load_says_why_and_is_run_again_when_asked(cluster: RaylessCluster) -> None:
    runner = new_loads(cluster)
    missing = {**EVERYTHING, "target": [{"path": "/nothing", "replicas": 1}]}
    runner.submit("bad", "ds", missing)
    load = ended(runner, "bad")
    assert load.phase == "Failed"
    assert "nothing" in load.message
    assert runner.submit("bad", "ds", missing) == "configured"
    ended(runner, "bad")
    runner.submit("gone", "other", EVERYTHING)
    assert "no such dataset" in ended(runner, "gone").message
    runner.close()


def test_a_running_load_is_taken_up_by_the_next_coordinator(cluster: RaylessCluster) -> None:
    reached, held = threading.Event(), threading.Event()

    def ready(name: str) -> None:
        reached.set()
        assert held.wait(PATIENCE_S)

    first = new_loads(cluster, ready)
    first.submit("one", "ds", EVERYTHING)
    assert reached.wait(PATIENCE_S)
    with pytest.raises(SpecError, match="still running"):
        first.submit("one", "ds", {**EVERYTHING, "loadMetadata": True})
    second = new_loads(cluster)  # what is stored says that it was executing
    second.resume()
    load = ended(second, "one")
    assert (load.phase, load.attempt) == ("Complete", 2)
    held.set()
    first.close()
    second.close()


def test_a_load_that_is_deleted_while_it_runs_ends(cluster: RaylessCluster) -> None:
    reached, held = threading.Event(), threading.Event()

    def ready(name: str) -> None:
        reached.set()
        assert held.wait(PATIENCE_S)

    runner = new_loads(cluster, ready)
    runner.submit("one", "ds", EVERYTHING)
    assert reached.wait(PATIENCE_S)
    runner.delete_of("ds")
    held.set()
    runner.close()  # waits for it
    assert runner.all() == []
    assert get_json(cluster.kv, keys.OPERATIONS) == []


class Source:
    """A dataset's object stores, as a scan sees them."""

    def __init__(self, gate: threading.Event, error: Exception | None = None) -> None:
        self.gate = gate
        self.error = error

    def walk(self, path: str) -> Iterator[FileInfo]:
        yield FileInfo("a", "file")
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        yield FileInfo("b", "file")

    def close(self) -> None:
        """Nothing is open."""


def scanned(scans: Scans, name: str, **expected: Any) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while not expected.items() <= scans.row(name).items():
        assert time.monotonic() < deadline, scans.row(name)
        time.sleep(0.01)
    return scans.row(name)


def test_a_scan_tells_what_it_has_found_so_far() -> None:
    gate = threading.Event()
    scans = Scans(lambda dataset: Source(gate))
    dataset = dataset_of("ds", {"": "s3://bucket"})
    assert scans.row("ds")["ufs_total_files"] is None
    scans.want({"ds": dataset})
    scanned(scans, "ds", ufs_scanning=True, ufs_total_files=1)
    gate.set()
    scanned(scans, "ds", ufs_scanning=False, ufs_total_files=2)
    scans.want({})
    assert scans.row("ds")["ufs_total_files"] is None
    scans.close()


def test_a_scan_that_fails_says_why() -> None:
    gate = threading.Event()
    gate.set()
    scans = Scans(lambda dataset: Source(gate, AccessDeniedError("the store refused", where="s3://bucket")))
    scans.want({"ds": dataset_of("ds", {"": "s3://bucket"})})
    row = scanned(scans, "ds", ufs_scanning=False)
    assert row["error"] == "s3://bucket: the store refused"
    assert row["ufs_total_size"] is None
    scans.close()


def test_events_are_counted_bounded_and_forgotten() -> None:
    events = Events(clock=lambda: 5.0)
    events.add("Dataset", "ds", "Created", "by an apply")
    events.add("Dataset", "ds", "NotPlaced", "no memory", type="Warning")
    events.add("Dataset", "ds", "NotPlaced", "no memory", type="Warning")
    assert [(e["reason"], e["count"], e["time"]) for e in events.of("Dataset", "ds")] == [
        ("Created", 1, 5.0),
        ("NotPlaced", 2, 5.0),
    ]
    for number in range(2 * KEPT):
        events.add("Dataset", "ds", "Configured", str(number))
    assert len(events.of("Dataset", "ds")) == KEPT
    events.forget("Dataset", "ds")
    assert events.of("Dataset", "ds") == []
