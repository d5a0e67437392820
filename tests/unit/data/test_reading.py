"""What raycache.data asks of Ray Data: a read for each node, of the files it holds, with options for the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import ray.data

import raycache
import raycache.data
from raycache.client import Client
from raycache.data import footers
from raycache.errors import ClusterUnavailableError, ObjectNotFoundError, SpecError
from raycache.locality import Node
from tests.support.raylesscluster import RaylessCluster

TABLE = [f"ds/table/{name}" for name in ("deep/part-3.bin", "part-0.bin", "part-1.bin", "part-2.bin")]


class Part:
    """What a reader returned."""

    def __init__(self, paths: list[str], options: dict[str, Any]) -> None:
        self.paths = paths
        self.options = options
        self.parts = [self]
        self.footer_actors = os.environ.get(footers.VARIABLE)

    def union(self, *others: Part) -> Part:
        self.parts = [self, *others]
        return self

    @property
    def node(self) -> str | None:
        return self.options.get("label_selector", {}).get("ray.io/node-id")


def reader(paths: list[str], **options: Any) -> Part:
    return Part(paths, options)


def read(*args: Any, **options: Any) -> list[Part]:
    return list(raycache.data.read(reader, *args, **options).parts)


@pytest.fixture
def preserve_order() -> Iterator[None]:
    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True
    yield
    options.preserve_order = False


@pytest.mark.usefixtures("client")
def test_each_file_is_read_once_on_the_node_that_will_keep_it() -> None:
    parts = read("raycache://ds/table")
    assert sorted(path for part in parts for path in part.paths) == TABLE
    for part in parts:
        for path in part.paths:
            assert raycache.nodes_for(path).nodes[0].node_id == part.node
        assert part.options["fallback_strategy"][-1] == {"label_selector": {}}
    assert len({part.node for part in parts}) == len(parts)


@pytest.mark.usefixtures("client")
def test_tasks_take_no_cpu_but_no_more_run_than_there_are() -> None:
    cpus = {"node0": 4, "node1": 2, "node2": 1}
    for part in read("raycache://ds/table"):
        assert part.options["num_cpus"] == 0
        assert part.options["concurrency"] == min(cpus[str(part.node)], len(part.paths))
    for part in read("raycache://ds/table", num_cpus=2):
        assert part.options["num_cpus"] == 2
        assert "concurrency" not in part.options


@pytest.mark.usefixtures("client")
def test_a_step_for_each_part_has_the_options_of_its_read() -> None:
    seen: list[tuple[Part, dict[str, Any]]] = []
    parts = read(TABLE, include_paths=True, each=lambda part, near: seen.append((part, near)) or part)
    assert [part for part, _ in seen] == parts
    for part, near in seen:
        assert near.pop("compute").size == part.options["concurrency"]
        assert near == {
            name: part.options[name] for name in ("num_cpus", "label_selector", "fallback_strategy")
        }


@pytest.mark.usefixtures("client", "preserve_order")
def test_order_is_kept() -> None:
    parts = read("raycache://ds/table")
    assert [path for part in parts for path in part.paths] == TABLE
    assert [path for part in read(["ds/odd", "ds/table"], max_groups=2) for path in part.paths] == [
        "ds/odd/1.bin",
        "ds/odd/[1].bin",
        "ds/odd/empty",
        *TABLE,
    ]


@pytest.mark.usefixtures("client")
def test_numbers_are_for_the_whole() -> None:
    parts = read(TABLE, override_num_blocks=30, concurrency=6, include_paths=True)
    assert 28 <= sum(part.options["override_num_blocks"] for part in parts) <= 33
    assert all(part.options["concurrency"] >= 1 for part in parts)
    assert all(part.options["include_paths"] for part in parts)


@pytest.mark.usefixtures("client")
def test_labels_of_the_caller_are_required_everywhere() -> None:
    for part in read(
        TABLE, label_selector={"disk": "fast"}, fallback_strategy=[{"label_selector": {"x": "y"}}]
    ):
        assert part.options["label_selector"]["disk"] == "fast"
        *ours, last = part.options["fallback_strategy"]
        assert all(one["label_selector"]["disk"] == "fast" for one in ours)
        assert last == {"label_selector": {"x": "y"}}


@pytest.mark.usefixtures("client")
def test_one_group_is_no_union(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read("ds/table/part-0.bin")) == 1
    monkeypatch.setattr(
        "raycache.data.reading.live_nodes", lambda: {"other": Node("other", "", {"CPU": 1.0})}
    )
    (part,) = read("raycache://ds/table")
    assert part.node is None, "no live node has any of it: anywhere"
    assert "num_cpus" not in part.options
    assert part.paths == TABLE


@pytest.mark.usefixtures("client")
def test_footer_actors_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for total in (None, "2"):
        if total:
            monkeypatch.setenv(footers.VARIABLE, total)
        for part in read("raycache://ds/table"):
            assert part.footer_actors is not None
            assert 1 <= int(part.footer_actors) <= len(part.paths)
        assert os.environ.get(footers.VARIABLE) == total


@pytest.mark.usefixtures("client")
def test_what_cannot_be_read() -> None:
    with pytest.raises(SpecError, match="not a path of raycache"):
        read("s3://bucket/table")
    with pytest.raises(SpecError, match="filesystem"):
        read("raycache://ds/table", filesystem=object())
    with pytest.raises(ObjectNotFoundError):
        read("raycache://ds/nothing")


def test_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycache.actors.joining.find_address", lambda address=None: None)
    with pytest.raises(ClusterUnavailableError, match="no Ray cluster"):
        raycache.data.read_parquet("raycache://ds/table")


def test_prefetch_fetches_at_the_owners(cluster: RaylessCluster, client: Client) -> None:
    with raycache.data.prefetch("raycache://ds/table") as ahead:
        assert ahead.wait(60)
    assert ahead.error is None
    found = raycache.nodes_for(TABLE)
    assert found.not_cached == 0
    assert sum(node.cached for node in found.nodes) == found.size
    with closing(cluster.client("node0")) as other:
        assert other.info("ds", "table/_SUCCESS").size == 1
    assert raycache.nodes_for("ds/table/_SUCCESS").not_cached == 1


@pytest.mark.usefixtures("client")
def test_read_prefetches_if_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("raycache.data.reading.Prefetch", lambda client, files: seen.append(files))
    read("ds/table")
    assert not seen
    read("ds/table", prefetch=True)
    assert [f"ds/{version.path}" for version in seen[0]] == TABLE


@pytest.mark.usefixtures("client")
def test_hints_for_workers_to_come() -> None:
    weights = raycache.nodes_for("ds/table").by_node()
    hints = raycache.data.locality_hints("ds/table", 6)
    assert hints is not None
    assert len(hints) == 6
    assert hints[0] == max(weights, key=lambda node: weights[node])
