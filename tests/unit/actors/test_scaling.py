"""How many nodes hold a dataset: by what its workers report, kept over a restart of the coordinator, and explained."""

from __future__ import annotations

from typing import Any

import pytest

from raycache.actors.asking import RETRY_S, Asking, Bundle, bundles
from raycache.actors.assignment import Node
from raycache.actors.events import Events
from raycache.actors.retiring import Retiring
from raycache.actors.scaling import ASK_S, Heard, Scaling
from raycache.actors.tuning import Tuning
from raycache.autoscaling import Policy
from raycache.errors import ClusterUnavailableError
from raycache.ghosts import EXTRA
from raycache.observations import WorkerReport
from raycache.spec import ReplicaRange, ResolvedDataset
from tests.support.embedded import dataset_of
from tests.support.raylesscluster import MemoryKv

MiB = 1 << 20
TUNING = Tuning(Policy(keep_s=100, look_s=8, calm_s=40, again_s=5, idle_s=60), retire_s=30)
CHURN = tuple(50 * MiB if step == EXTRA.index(1.0) else 0 for step in range(len(EXTRA)))
"""Twice the room would have had 50 MiB."""


class Cluster:
    """What the reconciler tells, with counters that run on."""

    def __init__(self, replicas: object, nodes: int = 4) -> None:
        self.kv, self.events, self.now = MemoryKv(), Events(), 1000.0
        self.dataset = dataset_of("ds", {"": "file:///nowhere"}, replicas=replicas)
        self.nodes = nodes
        self.read_at = self.now
        self.regretted = [0] * len(EXTRA)
        self.restart()

    def restart(self) -> None:
        """The coordinator is killed, and back."""
        self.scaling = Scaling(self.kv, self.events, TUNING, lambda: self.now)

    def look(self, unheld: float | None = None) -> None:
        count = self.scaling.holders("ds") or 0
        report: dict[str, Any] = WorkerReport(
            age_s=self.now, quota=10 * MiB, used=9 * MiB, warm=MiB, regretted=tuple(self.regretted)
        ).to_wire() | {"idle_s": self.now - self.read_at}
        heard = {f"node{n}": Heard({"ds": report}) for n in range(min(count, self.nodes))}
        if unheld is not None:
            heard["other"] = Heard(unheld={"ds": unheld, "unknown": 0.0})
        self.scaling.look({"ds": self.dataset}, {"ds": self.nodes}, heard)

    def run(self, seconds: int, *, churn: int = 0, read: bool = True) -> None:
        """Time passes, with `churn` bytes regretted per worker and second."""
        for _ in range(seconds):
            self.now += 1
            self.read_at = self.now if read else self.read_at
            self.regretted[EXTRA.index(1.0)] += churn
            self.look()

    @property
    def reasons(self) -> list[str]:
        return [event["message"] for event in self.events.of("Dataset", "ds")]


def bounds(least: int, most: int | None, ask: bool = False) -> ReplicaRange:
    return ReplicaRange(min=least, max=most, ask_for_nodes=ask)


@pytest.mark.parametrize("replicas", [3, "all", bounds(2, 2)])
def test_a_fixed_number_stays_as_the_spec_says(replicas: object) -> None:
    cluster = Cluster(replicas)
    cluster.run(30, churn=MiB)
    assert cluster.scaling.holders("ds") is None
    assert cluster.scaling.described("ds") is None


def test_what_a_mount_needs_does_not_come_and_go() -> None:
    dataset = dataset_of("ds", {"": "file:///nowhere"}, replicas=bounds(1, 3), mount_path="/mnt/ds")
    assert not dataset.autoscaled
    assert dataset.replica_bounds == (1, 3)


def test_it_begins_with_the_least_grows_with_need_and_says_why() -> None:
    cluster = Cluster(bounds(1, 3))
    cluster.look()
    assert cluster.scaling.holders("ds") == 1
    cluster.run(6, churn=MiB)
    described = cluster.scaling.described("ds") or {}
    assert (described["target"], described["cause"]) == (1, "hold")
    assert "looking since" in described["reason"]
    cluster.run(6, churn=MiB)
    described = cluster.scaling.described("ds") or {}
    assert (described["target"], described["min"], described["max"], described["nodes"]) == (2, 1, 3, 4)
    assert described["last_change"]["cause"] == "churn"
    assert "had been evicted not long ago" in described["last_change"]["reason"]
    assert cluster.reasons[-1].startswith("from 1 to 2 workers (churn): ")


def test_a_coordinator_that_is_killed_goes_on_with_what_was_decided() -> None:
    cluster = Cluster(bounds(1, 3))
    cluster.run(12, churn=MiB)
    assert cluster.scaling.holders("ds") == 2
    cluster.restart()
    assert cluster.scaling.holders("ds") == 2
    cluster.look()
    described = cluster.scaling.described("ds") or {}
    assert described["target"] == 2
    assert described["last_change"]["cause"] == "churn"


def test_to_none_when_nobody_reads_and_back_as_soon_as_somebody_does() -> None:
    cluster = Cluster(bounds(0, 3))
    cluster.look()
    assert cluster.scaling.holders("ds") == 1, "somebody is about to read"
    cluster.run(12, churn=MiB)
    cluster.run(20)
    before = cluster.scaling.holders("ds")
    cluster.run(100, read=False)
    assert cluster.scaling.holders("ds") == 0
    assert "(idle): nothing has been read" in cluster.reasons[-1]
    cluster.run(200, read=False)
    cluster.restart()
    cluster.look()
    assert cluster.scaling.holders("ds") == 0
    cluster.look(unheld=0.5)
    assert cluster.scaling.holders("ds") == before, "as many as before, at once"
    assert "(wake): data is read again" in cluster.reasons[-1]


def test_a_load_wakes_it_too() -> None:
    cluster = Cluster(bounds(0, 3))
    cluster.look()
    assert not cluster.scaling.wake("ds"), "it is awake"
    cluster.run(61, read=False)
    assert cluster.scaling.holders("ds") == 0
    assert cluster.scaling.wake("ds")
    cluster.look()
    assert cluster.scaling.holders("ds") == 1
    assert not cluster.scaling.wake("other")


def test_bounds_are_followed_at_once() -> None:
    cluster = Cluster(bounds(1, 3))
    cluster.run(12, churn=MiB)
    cluster.dataset = cluster.dataset.model_copy(update={"replicas": bounds(3, 4)})
    cluster.look()
    assert cluster.scaling.holders("ds") == 3
    cluster.nodes = 2
    cluster.look()
    assert cluster.scaling.holders("ds") == 3, "min holds, whatever nodes there are"
    cluster.dataset = cluster.dataset.model_copy(update={"replicas": 2})
    cluster.look()
    assert cluster.scaling.holders("ds") is None
    cluster.restart()
    assert cluster.scaling.holders("ds") is None


def test_nodes_are_asked_for_where_that_is_wished_and_waited_for_not_for_ever() -> None:
    cluster = Cluster(bounds(1, 8), nodes=1)
    cluster.run(12, churn=MiB)
    assert (cluster.scaling.holders("ds"), cluster.scaling.short()) == (1, {})
    cluster = Cluster(bounds(1, 8, ask=True), nodes=1)
    cluster.run(12, churn=MiB)
    assert cluster.scaling.short() == {"ds": 2}
    assert (cluster.scaling.described("ds") or {})["asks_for_nodes"]
    cluster.run(int(ASK_S))
    assert (cluster.scaling.holders("ds"), cluster.scaling.short()) == (1, {})


def test_ray_is_asked_once_for_each_list_and_again_if_it_did_not_take_it() -> None:
    kv, now, asked = MemoryKv(), [0.0], list[int]()
    answers = [ClusterUnavailableError("not now"), None, None]

    def request(wanted: list[Bundle]) -> None:
        asked.append(len(wanted))
        if (answer := answers.pop(0)) is not None:
            raise answer

    asking = Asking(kv, request, lambda: now[0])
    asking.want([])
    assert asked == []
    two = [Bundle(MiB, {"zone": "a"})] * 2
    for _ in range(3):
        asking.want(two)
    assert asked == [2]
    now[0] += RETRY_S
    for _ in range(3):
        asking.want(two)
    Asking(kv, request).want(two)
    assert asked == [2, 2]
    Asking(kv, request).want([])
    assert asked == [2, 2, 0]


def test_a_node_that_is_asked_for_has_room_for_one_worker() -> None:
    dataset = dataset_of("ds", {"": "file:///nowhere"}, node_selector={"zone": "a"})
    nodes = [Node("a", labels={"zone": "a"}, memory=8), Node("b", labels={"zone": "a"}, memory=9), Node("c")]
    assert bundles(dataset, 3, nodes, 4) == [Bundle(8, {"zone": "a"})] * 3
    assert bundles(dataset, 1, [], 4) == [Bundle(4, {"zone": "a"})]
    assert bundles(dataset, 1, [], 0) == [Bundle(1, {"zone": "a"})]


def test_a_worker_that_holds_nothing_for_a_while_ends_until_it_is_needed() -> None:
    kv = MemoryKv()
    retiring = Retiring(kv, 30)
    assert retiring.due(["a", "b"], 0) == []
    assert retiring.due(["a"], 20) == [], "b holds something"
    assert retiring.due(["a", "b"], 30) == ["a"]
    assert "a" in retiring
    assert "b" not in retiring
    assert "a" in Retiring(kv, 30), "a coordinator that is killed goes on with it"
    retiring.recall(["a", "b"])
    assert "a" not in retiring
    assert retiring.due(["a", "b"], 60) == [], "they have just come"
    assert retiring.due(["a", "b"], 90) == ["a", "b"]
    retiring.retain(["b"])
    assert "a" not in retiring


def test_what_it_goes_by_can_be_set_for_a_cluster() -> None:
    kv = MemoryKv()
    assert Tuning.of(kv) == Tuning()
    assert Tuning().report_s == 15.0
    TUNING.store(kv)
    assert Tuning.of(kv) == TUNING
    assert TUNING.report_s == 1.0


def test_other_datasets_are_let_alone() -> None:
    cluster = Cluster(bounds(1, 3))
    other = ResolvedDataset.from_wire(cluster.dataset.wire() | {"name": "other"})
    cluster.scaling.look({"ds": cluster.dataset, "other": other}, {"ds": 4}, {})
    assert cluster.scaling.holders("other") == 1
    cluster.look()
    assert cluster.scaling.holders("other") is None
