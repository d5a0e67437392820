"""What Ray is told: the node with most bytes, its zone, then any; and nothing that could keep a task from running."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import ray
from ray._common.ray_option_utils import validate_task_options

import raycache
from raycache.errors import SpecError
from raycache.locality import Node, node_options
from tests.support.raylesscluster import RaylessCluster

pytestmark = pytest.mark.usefixtures("client")


def read_on(cluster: RaylessCluster, node: str, path: str) -> None:
    with closing(cluster.client(node)) as client, closing(client.open("ds", path)) as reader:
        reader.read_at(0, reader.size)


def owner(path: str) -> str:
    return raycache.nodes_for(path).nodes[0].node_id


def test_node_zone_any() -> None:
    nodes = {"n": Node("n", "z", {}), "m": Node("m", "", {})}
    assert node_options("n", nodes) == {
        "label_selector": {"ray.io/node-id": "n"},
        "fallback_strategy": [
            {"label_selector": {"ray.io/availability-zone": "z"}},
            {"label_selector": {}},
        ],
    }
    options = node_options("m", nodes, {"gpu": "a100"})
    assert options == {
        "label_selector": {"gpu": "a100", "ray.io/node-id": "m"},
        "fallback_strategy": [{"label_selector": {"gpu": "a100"}}],
    }
    for accepted in (options, node_options("n", nodes)):
        validate_task_options(accepted, in_options=True)


def test_the_node_with_most_bytes() -> None:
    path = "ds/table/part-0.bin"
    node = owner(path)
    assert raycache.scheduling_options(path)["label_selector"] == {"ray.io/node-id": node}
    assert raycache.scheduling_options(path, planned=False) == {}, "nobody holds any of it yet"


def test_a_node_that_ray_does_not_know_is_not_named(
    cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "ds/table/part-0.bin"
    gone = owner(path)
    left = next(node for node in cluster.nodes if node != gone)
    monkeypatch.setattr(
        "raycache.locality.scheduling.live_nodes", lambda: {left: Node(left, "", {"CPU": 1.0})}
    )
    assert raycache.scheduling_options(path) == {}
    read_on(cluster, left, "table/part-0.bin")
    assert raycache.scheduling_options(path)["label_selector"] == {"ray.io/node-id": left}


class Groups:
    """Ray's placement groups: ready only when they ask for no more than is `granted`."""

    def __init__(self, granted: str) -> None:
        self.granted = granted
        self.made: list[list[dict[str, str]] | None] = []
        self.removed = 0

    def make(self, bundles: Any, *, bundle_label_selector: Any = None, **_: Any) -> Any:
        self.made.append(bundle_label_selector)
        wish = (
            "any"
            if bundle_label_selector is None
            else next(key for one in bundle_label_selector for key in one)
        )

        class Group:
            wait = staticmethod(lambda timeout: wish == self.granted)

        return Group

    def remove(self, group: Any) -> None:
        self.removed += 1


@pytest.mark.parametrize(
    ("granted", "tries"), [("ray.io/node-id", 1), ("ray.io/availability-zone", 2), ("any", 3)]
)
def test_a_placement_group_asks_for_less_and_less(
    cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch, granted: str, tries: int
) -> None:
    for path in ("table/part-0.bin", "table/part-1.bin"):
        for node in ("node0", "node1"):  # which have a zone
            read_on(cluster, node, path)
    groups = Groups(granted)
    monkeypatch.setattr(ray.util, "placement_group", groups.make)
    monkeypatch.setattr(ray.util, "remove_placement_group", groups.remove)
    raycache.placement_group(
        ["ds/table/part-0.bin", "ds/table/part-1.bin"],
        [{"CPU": 1}] * 2,
        "SPREAD",
        planned=False,
        patience_s=0,
    )
    assert len(groups.made) == tries
    assert groups.removed == tries - 1
    assert groups.made[0] is not None
    nodes = {selector["ray.io/node-id"] for selector in groups.made[0]}
    assert len(nodes) == 2
    assert nodes <= set(cluster.nodes)
    if tries == 3:
        assert groups.made[1] == [{"ray.io/availability-zone": "z1"}] * 2
        assert groups.made[2] is None


def test_a_placement_group_of_nothing() -> None:
    with pytest.raises(SpecError, match="bundle"):
        raycache.placement_group("ds/table", [])
