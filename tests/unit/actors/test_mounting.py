"""`mountPath` without mounting anything: what a worker asks the shim for, when, and what is told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raycache import mountinfo
from raycache.actors import mount_reports, mounting, rows
from raycache.actors.assignment import Node
from raycache.actors.events import Events
from raycache.actors.mounting import NodeMounts
from raycache.actors.node import NodeWorker
from raycache.actors.seat import Seat
from raycache.blocks import MiB
from raycache.errors import MountBusyError, MountError
from raycache.mountinfo import MountEntry
from raycache.spec import ResolvedDataset
from tests.support.embedded import PATIENCE_S, dataset_of
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers


class FakeShim:
    """Keeps a mount table of its own in the place of the machine's.

    Args:
        monkeypatch: of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.supervisor = os.getpid()
        self._mounted: dict[str, MountEntry] = {}
        self._devices = iter(range(100))
        self._changed = threading.Condition()
        monkeypatch.setattr(mountinfo, "mounts", lambda: list(self._mounted.values()))

    def __call__(self, request: Mapping[str, Any]) -> Any:
        with self._changed:
            self.requests.append(dict(request))
            self._changed.notify_all()
            if self.failure is not None:
                raise self.failure
            if request["do"] == "keep":
                return self._keep(request)
            kept = request.get("keep", {})
            gone = [p for p, e in self._mounted.items() if p != kept.get(e.source)]
            if request["do"] == "sweep":
                gone = [p for p, entry in self._mounted.items() if entry.source in request["names"]]
            for point in gone:
                self.lose(point)
            return gone

    def _keep(self, request: Mapping[str, Any]) -> dict[str, Any]:
        dataset = ResolvedDataset.from_wire(request["dataset"])
        assert dataset.mount_path is not None
        entry = self._mounted.get(dataset.mount_path)
        if entry is None:
            device = f"0:{next(self._devices)}"
            entry = MountEntry(device, dataset.mount_path, mounting.KIND, dataset.name, "")
            self._mounted[entry.point] = entry
        return {
            "point": entry.point,
            "device": entry.device,
            "supervisor": self.supervisor,
            "served": "passthrough",
        }

    def lose(self, point: str) -> None:
        """End a mount behind everybody's back."""
        del self._mounted[point]

    @property
    def points(self) -> list[str]:
        """What is mounted."""
        return sorted(self._mounted)

    def done(self, what: str) -> int:
        """How many requests of a kind there were."""
        return sum(request["do"] == what for request in self.requests)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for something that a request brings about."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S)


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> FakeShim:
    monkeypatch.setattr(mounting, "LOOK_S", 0.01)
    monkeypatch.setattr(mounting, "FIRST_RETRY_S", 0.01)
    return FakeShim(monkeypatch)


@contextmanager
def kept_by(shim: FakeShim) -> Iterator[NodeMounts]:
    mounts = NodeMounts("node0", "t0ken", "10.0.0.1:7", lambda: {"node1": "10.0.0.2:7"}, shim)
    try:
        yield mounts
    finally:
        mounts.close()


def at(path: str | None, name: str = "ds", generation: int = 1) -> ResolvedDataset:
    return dataset_of(name, {"": "s3://b"}).model_copy(
        update={"mount_path": path, "generation": generation, "name": name}
    )


def until(mounts: NodeMounts, state: str, generation: int = 1, name: str = "ds") -> dict[str, Any]:
    """What is told of a mount once it is so."""
    deadline = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        told = mounts.report().get(name, {})
        if (told.get("state"), told.get("generation")) == (state, generation):
            return told
        deadline.wait(0.01)
    raise AssertionError(f"never {state}: {mounts.report()}")


def test_what_is_wanted_is_mounted_and_told(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.leave({"ds": at("/m")})
        mounts.want({"ds": at("/m"), "plain": at(None, "plain")})
        told = until(mounts, "mounted")
        assert told == {
            "path": "/m",
            "generation": 1,
            "state": "mounted",
            "problem": "",
            "served": "passthrough",
        }
        assert list(mounts.report()) == ["ds"]
        (request,) = shim.requests
        assert request["dataset"]["name"] == "ds"
        assert {k: request[k] for k in ("node", "address", "others", "token")} == {
            "node": "node0",
            "address": "10.0.0.1:7",
            "others": ["10.0.0.2:7"],
            "token": "t0ken",
        }
    assert shim.points == []


def test_without_a_mount_path_nothing_is_asked(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.leave({"ds": at(None)})
        mounts.want({"ds": at(None)})
        mounts.sweep(["ds"])
        assert mounts.report() == {}
    assert shim.requests == []


def test_a_changed_path_and_a_removed_one(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        until(mounts, "mounted")
        mounts.leave({"ds": at("/n", generation=2)})
        assert shim.points == [], "unmounted before anything else happens"
        assert shim.requests[-1]["nodes"] == ["node0", "node1"]
        mounts.want({"ds": at("/n", generation=2)})
        until(mounts, "mounted", 2)
        assert shim.points == ["/n"]
        mounts.leave({"ds": at(None, generation=3)})
        mounts.want({"ds": at(None, generation=3)})
        assert (shim.points, mounts.report()) == ([], {})


def test_a_changed_spec_is_passed_on(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        until(mounts, "mounted")
        mounts.want({"ds": at("/m")})
        mounts.want({"ds": at("/m", generation=2)})
        until(mounts, "mounted", 2)
        assert shim.done("keep") == 2
        assert shim.points == ["/m"]


def test_a_failure_is_told_and_tried_again(shim: FakeShim) -> None:
    shim.failure = MountBusyError("the directory is not empty\n2026-11-24 the log", where="/m")
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        assert until(mounts, "failed")["problem"] == "/m: the directory is not empty"
        shim.failure = None
        assert until(mounts, "mounted")["problem"] == ""


def test_a_bug_in_the_shim_is_told_too(shim: FakeShim) -> None:
    shim.failure = ZeroDivisionError()
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        assert "internal error" in until(mounts, "failed")["problem"]
        shim.failure = None


def test_what_somebody_unmounted_is_mounted_again(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        until(mounts, "mounted")
        shim.lose("/m")
        shim.wait(lambda: shim.done("keep") == 2)
        until(mounts, "mounted")


def test_a_mount_whose_supervisor_was_killed_is_asked_for_again(shim: FakeShim) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    shim.supervisor = child.pid
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        until(mounts, "mounted")
        shim.supervisor = os.getpid()
        child.communicate()
        shim.wait(lambda: shim.done("keep") == 2)


def test_what_an_earlier_worker_left_is_found(shim: FakeShim) -> None:
    with kept_by(shim) as mounts:
        mounts.want({"ds": at("/m")})
        until(mounts, "mounted")
        mounts._closed = True  # killed: nothing is cleaned up
        again = NodeMounts("node0", "t0ken", "10.0.0.1:8", dict, shim)
        again.leave({"ds": at("/n")})
        assert shim.points == []
        again.close()


def test_a_worker_mounts_and_unmounts(shim: FakeShim, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    dataset = with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 8 * MiB, "SSD")
    dataset = dataset.model_copy(update={"mount_path": "/m"})
    with RaylessCluster(0) as cluster:
        node = cluster.nodes["node0"] = NodeWorker(cluster.kv, "node0", "127.0.0.1", shim)
        cluster.hold(dataset)
        until(node._mounts, "mounted")
        assert node.ping(-1)["mounts"]["ds"]["state"] == "mounted"
        assert shim.requests[0]["token"] == TOKEN
        assert shim.requests[0]["address"] == node.ping(-1)["worker"]["address"]
        # One that cannot be attached here is mounted all the same.
        (tmp_path / "file").write_bytes(b"")
        bad = with_tiers(dataset, tmp_path / "file", MiB, "SSD").model_copy(update={"generation": 2})
        assert cluster.hold(bad)["node0"]["failures"]
        until(node._mounts, "mounted", 2)
        cluster.hold()
        assert shim.points == []
        cluster.hold(dataset)
        until(node._mounts, "mounted")
        node.sweep({"ds": dataset.wire()}, "memory")
        assert shim.done("sweep") == 1
        node.stop("everything")
        assert shim.points == []


def test_the_program_tells_errors_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real program, on what needs no right to mount."""
    request = {"do": "sweep", "token": "nobody's", "names": []}
    assert mounting.run_program(request) == []
    (tmp_path / "file").write_bytes(b"")
    dataset = at(f"{tmp_path}/file/below")
    keep = {"do": "keep", "dataset": dataset.wire(), "node": "n", "address": "127.0.0.1:1", "others": []}
    with pytest.raises(MountError, match="the directory cannot be made: Not a directory"):
        mounting.run_program({**keep, "token": "t"})
    with pytest.raises(MountError, match="the FUSE shim failed"):
        mounting.run_program({"do": "nothing"})
    monkeypatch.setattr(mounting, "PROGRAM", ("/no/such/program",))
    with pytest.raises(MountError, match="cannot be run"):
        mounting.run_program(request)
    monkeypatch.setattr(mounting, "PROGRAM", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(mounting, "TIMEOUT_S", 0.1)
    with pytest.raises(MountError, match="not done within"):
        mounting.run_program(request)


# -- what the coordinator makes of it


def seat(node: str, **mount: Any) -> Seat:
    worker = {"id": node, "host_id": "h", "address": "a", "node_id": node, "weights": {}, "stores": {}}
    report = {
        "worker": worker,
        "generations": {"ds": 1},
        "failures": {},
        "mounts": {"ds": mount} if mount else {},
    }
    return Seat(Node(node), 0.0, report=report)


MOUNTED = {"path": "/m", "generation": 1, "state": "mounted", "problem": "", "served": "passthrough"}
FAILED = {"path": "/m", "generation": 1, "state": "failed", "problem": "/m: not empty", "served": ""}


def test_what_is_told_of_several_nodes() -> None:
    seats = [seat("a", **MOUNTED), seat("b", **FAILED), seat("c", **FAILED), Seat(Node("d"), 0.0)]
    assert mount_reports.summary(at("/m"), seats) == {
        "path": "/m",
        "mounted_on": 1,
        "nodes": 3,
        "problems": {"b": "/m: not empty", "c": "/m: not empty"},
    }
    assert rows.by_reason("ds", "mounted", mount_reports.problems("ds", seats)) == (
        "dataset ds: not mounted on 2 nodes, such as b: /m: not empty",
    )
    told = mount_reports.of_worker(seats[0])
    assert told == [
        {"dataset": "ds", "path": "/m", "state": "mounted", "served": "passthrough", "problem": ""}
    ]
    json.dumps(told)


def test_an_apply_waits_until_every_mount_is_decided() -> None:
    def decided(generation: int, path: str | None, *seats: Seat) -> bool:
        plan = {one.node.id: {"ds": at(path, generation=generation)} for one in seats}
        return mount_reports.decided("ds", plan, seats)

    assert decided(1, None, seat("a"))
    assert not decided(1, "/m", seat("a"))
    assert not decided(1, "/m", seat("a", **MOUNTED | {"state": "pending"}))
    assert not decided(2, "/m", seat("a", **MOUNTED))
    assert decided(1, "/m", seat("a", **MOUNTED), seat("b", **FAILED), Seat(Node("c"), 0.0))


def test_events() -> None:
    events = Events(clock=lambda: 0.0)
    watch = mount_reports.MountEvents(events)
    for state in (MOUNTED, FAILED, FAILED, FAILED | {"state": "pending", "problem": ""}, MOUNTED):
        watch.look([seat("a", **state)])
    watch.look([])
    told = [(event["type"], event["reason"], event["message"]) for event in events.of("Dataset", "ds")]
    assert told == [
        ("Warning", "NotMounted", "node a: /m: not empty"),
        ("Normal", "Mounted", "node a: at /m"),
    ]
