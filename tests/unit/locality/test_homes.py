"""Where files are: what workers hold, in which tier, and where the rest will be; and what URLs mean."""

from __future__ import annotations

from contextlib import closing

import pytest

import raycache
from raycache.blocks import MiB, ObjectVersion
from raycache.client import Client
from raycache.engine import MAX_ROOTS, Held
from raycache.errors import DatasetNotFoundError, ObjectNotFoundError, PathError, RaycacheError, SpecError
from raycache.locality import files_of, homes_of
from raycache.locality.homes import roots_of
from tests.support.embedded import BLOCK
from tests.support.raylesscluster import RaylessCluster
from tests.unit.locality.conftest import FILES

TOTAL = sum(FILES.values())


def names(versions: list[ObjectVersion]) -> list[str]:
    return [version.path for version in versions]


def read_on(cluster: RaylessCluster, node: str, path: str) -> None:
    with closing(cluster.client(node)) as client, closing(client.open("ds", path)) as reader:
        reader.read_at(0, reader.size)


@pytest.mark.usefixtures("client")
def test_of_what_nobody_has_read_placement_tells(cluster: RaylessCluster) -> None:
    found = raycache.nodes_for("raycache://ds")
    assert (found.files, found.size, found.not_cached) == (len(FILES), TOTAL, TOTAL)
    assert sum(node.planned for node in found.nodes) == TOTAL
    assert all(node.cached == 0 and node.tiers == {} for node in found.nodes)
    assert {node.node_id for node in found.nodes} <= set(cluster.nodes)
    assert sum(found.by_node(planned=False).values()) == 0


@pytest.mark.usefixtures("client")
def test_what_is_read_is_where_placement_said(cluster: RaylessCluster) -> None:
    before = raycache.nodes_for("raycache://ds/table")
    with closing(cluster.client()) as client:  # on no node: no copies
        for info in client.walk("ds", "table"):
            with closing(client.open("ds", info.path)) as reader:
                reader.read_at(0, reader.size)
    after = raycache.nodes_for("raycache://ds/table")
    assert after.not_cached == 0
    assert after.by_node(planned=False) == before.by_node()
    assert all(set(node.tiers) <= {"MEM", "SSD"} for node in after.nodes)
    usages = {node_id: node.usage()["datasets"]["ds"] for node_id, node in cluster.nodes.items()}
    assert {node.node_id: node.cached for node in after.nodes} == {
        node_id: usage["primary_bytes"] for node_id, usage in usages.items() if usage["primary_bytes"]
    }


@pytest.mark.usefixtures("client")
def test_a_copy_counts_on_each_node_that_has_it(cluster: RaylessCluster) -> None:
    for node in cluster.nodes:
        read_on(cluster, node, "table/part-0.bin")
    found = raycache.nodes_for(["raycache://ds/table/part-0.bin"] * 2)
    assert found.files == 1, "a file that is named twice counts once"
    assert found.by_node() == dict.fromkeys(cluster.nodes, 3 * BLOCK)
    assert found.not_cached == 0


def test_each_worker_is_asked_once(
    cluster: RaylessCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    call = client.peers.call
    monkeypatch.setattr(
        client.peers,
        "call",
        lambda worker, action, *rest: asked.append(action) or call(worker, action, *rest),
    )
    homes_of(client, files_of(client, "ds"))
    assert asked.count("holdings") == len(cluster.nodes)


def test_an_old_version_is_not_taken_for_the_new_one(cluster: RaylessCluster, client: Client) -> None:
    read_on(cluster, "node0", "table/part-1.bin")
    (version,) = files_of(client, "ds/table/part-1.bin")
    changed = ObjectVersion.from_wire({**version.to_wire(), "mtime_ns": 1, "etag": ""})
    known, unknown = homes_of(client, [version, changed])
    assert known.absent == 0
    assert unknown.absent == version.size
    assert not unknown.cached


def test_a_worker_that_is_gone_holds_nothing(cluster: RaylessCluster, client: Client) -> None:
    for node in cluster.nodes:
        read_on(cluster, node, "table/part-2.bin")
    cluster.nodes["node1"].stop("nothing")
    (home,) = homes_of(client, files_of(client, "ds/table/part-2.bin"))
    assert set(home.cached) == {"node0", "node2"}
    assert home.absent == 0


def test_parts_of_a_file_on_several_nodes(client: Client) -> None:
    """Segments are told apart: what one node lacks of a segment, another may have."""
    from raycache.locality.homes import _home

    version = ObjectVersion("ds", "big", "s", size=600 * MiB, etag='"x"', block_size=4 * MiB)
    copies = [
        ("node0", Held(version.object_id, "MEM", (256 * MiB, 0, 8 * MiB))),
        ("node1", Held(version.object_id, "SSD", (4 * MiB, 100 * MiB, 88 * MiB))),
    ]
    home = _home(client, version, copies)
    assert home.cached == {"node0": {"MEM": 264 * MiB}, "node1": {"SSD": 192 * MiB}}
    assert home.absent == 156 * MiB == sum(home.planned.values())


def test_files_of_directories_patterns_and_lists(client: Client) -> None:
    assert names(files_of(client, "raycache://ds/table/")) == [
        "table/_SUCCESS",
        "table/deep/part-3.bin",
        "table/part-0.bin",
        "table/part-1.bin",
        "table/part-2.bin",
    ]
    assert "table/_SUCCESS" not in names(files_of(client, "fsspec+raycache://ds/table", hidden=False))
    assert names(files_of(client, "ds/table/_SUCCESS", hidden=False)) == ["table/_SUCCESS"]
    assert names(files_of(client, "ds/table/*.bin")) == [f"table/part-{n}.bin" for n in range(3)]
    assert names(files_of(client, "ds/table/**/part-[13].bin")) == [
        "table/deep/part-3.bin",
        "table/part-1.bin",
    ]
    assert names(files_of(client, "ds/t*")) == names(files_of(client, "ds/table"))
    assert names(files_of(client, "ds/odd/[1].bin")) == ["odd/[1].bin"], "a name that is there is no pattern"
    many = [f"ds/table/part-{number % 3}.bin" for number in range(12)]
    assert names(files_of(client, many)) == [path.removeprefix("ds/") for path in many]


@pytest.mark.parametrize(
    ("urls", "error"),
    [
        ("s3://bucket/key", SpecError),
        ([], SpecError),
        ("raycache://", SpecError),
        ("raycache://ds/../x", PathError),
        ("raycache://other/x", DatasetNotFoundError),
        ("raycache://ds/nothing", ObjectNotFoundError),
        ("raycache://ds/table/*.nothing", ObjectNotFoundError),
    ],
)
@pytest.mark.usefixtures("client")
def test_what_is_no_file_of_raycache(urls: str | list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        raycache.nodes_for(urls)


def test_many_paths_are_asked_for_by_their_directories() -> None:
    paths = [f"a/{n % 7}/{n}" for n in range(MAX_ROOTS + 1)]
    assert roots_of(paths) == [f"a/{n}" for n in range(7)]
    assert roots_of([f"{n}" for n in range(MAX_ROOTS + 1)]) == [""]
    assert roots_of(["b", "a"]) == ["a", "b"]


def test_an_answer_that_is_none() -> None:
    with pytest.raises(RaycacheError, match="not a list"):
        Held.from_wire(["id"])
