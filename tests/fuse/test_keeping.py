"""Mounts that workers keep: made, adopted, shared by nodes of a machine, made to follow, and ended; for real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache import mountinfo
from raycache.actors.mounting import run_program
from raycache.blocks import MiB
from raycache.errors import MountBusyError
from raycache.fuse import keeping, mounts, statefiles
from raycache.fuse.configs import cluster_config
from raycache.spec import Owner, ResolvedDataset
from tests.fuse.conftest import mounted_under
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers
from tests.support.waiting import until

DATA = noise(3 * BLOCK + 5)


class Kept:
    """A dataset over a worker, and requests to the program about it.

    Args:
        directory: the test's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = str(directory / "state")
        self.point = directory / "at"
        (directory / "bucket").mkdir()
        for name in "ab":
            (directory / "bucket" / name).write_bytes(DATA)
        plain = dataset_of("ds", {"": f"file://{directory}/bucket"})
        tiers = with_tiers(plain, directory, 8 * MiB, "SSD")
        self.dataset = tiers.model_copy(update={"mount_path": str(self.point)})
        self.cluster = RaylessCluster(1)
        self.cluster.hold(tiers)  # without the path: the worker itself keeps nothing here
        self.address = self.cluster.membership.workers[0].address

    def keep(self, node: str = "node0", **changes: Any) -> dict[str, Any]:
        request = {
            "dataset": self.dataset.model_copy(update=changes.pop("dataset", {})).wire(),
            "node": node,
            "address": self.address,
            "others": [],
            "token": TOKEN,
        }
        return keeping.keep(request | changes, self.root)

    def release(self, node: str, keep: dict[str, str] | None = None, **changes: Any) -> list[str]:
        request = {"node": node, "token": TOKEN, "keep": keep or {}, "nodes": ["node0", "node1"]}
        return keeping.release(request | changes, self.root)

    def sweep(self, *names: str, token: str = TOKEN) -> list[str]:
        return keeping.sweep({"names": names, "token": token}, self.root)

    def status(self) -> mounts.MountStatus:
        return mounts.status(str(self.point), self.root)

    def config(self) -> dict[str, Any]:
        return statefiles.read_json(f"{self.status().state_dir}/config.json")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    yield kept
    for found in mounts.find(kept.root):
        if found.state not in ("failed", "ended"):
            mounts.unmount(found.mountpoint, force=True, root=kept.root)
    kept.cluster.stop("everything")


def test_kept_and_released(kept: Kept) -> None:
    told = kept.keep()
    assert told["point"] == str(kept.point)
    assert told["served"].split(":")[0] in ("passthrough", "user space")
    entry = mountinfo.mounted_at(str(kept.point))
    assert entry is not None
    assert told["device"] == entry.device
    assert (kept.point / "a").read_bytes() == DATA
    assert kept.release("node0", {"ds": str(kept.point)}) == [], "it is still wanted"
    assert kept.release("node7") == [], "it is not that node's"
    assert kept.release("node0") == [str(kept.point)]
    assert not kept.point.exists(), "the directory was made for the mount"


def test_a_directory_that_was_there_stays(kept: Kept) -> None:
    kept.point.mkdir()
    kept.keep()
    assert kept.release("node0") == [str(kept.point)]
    assert kept.point.is_dir()


def test_adopted_as_it_is(kept: Kept) -> None:
    kept.keep()
    before = kept.status()
    kept.keep()
    after = kept.status()
    assert (before.server_pid, before.supervisor_pid) == (after.server_pid, after.supervisor_pid)
    assert after.starts == 1
    kept.release("node0")


def test_two_nodes_on_one_machine(kept: Kept) -> None:
    kept.keep("node0")
    kept.keep("node1", address="127.0.0.1:1")
    assert sorted(kept.config()["keepers"]) == ["node0", "node1"]
    assert kept.release("node0") == []
    assert (kept.point / "a").read_bytes() == DATA
    assert list(kept.config()["keepers"]) == ["node1"]
    assert kept.release("node1") == [str(kept.point)]


def test_a_node_that_is_gone_keeps_nothing(kept: Kept) -> None:
    kept.keep("node0")
    kept.keep("node-of-old", address="127.0.0.1:1")
    assert kept.release("node0") == [str(kept.point)]


def test_it_follows_the_spec_and_the_worker_under_open_files(kept: Kept) -> None:
    kept.keep()
    before = kept.status()
    with open(kept.point / "a", "rb", buffering=0) as file:
        assert file.read(100) == DATA[:100]
        # As after a restart: the worker has another address.
        kept.cluster.nodes.pop("node0").stop("nothing")
        kept.cluster.nodes["node0"] = kept.cluster.new_worker("node0")
        kept.cluster.hold(kept.dataset.model_copy(update={"mount_path": None}))
        address = kept.cluster.membership.workers[0].address
        owner = Owner.from_wire({"uid": 7, "gid": 8, "mode": "0440"})
        kept.keep(address=address, dataset={"generation": 2, "owner": owner})
        assert kept.config()["cluster"]["addresses"][0] == address
        until(lambda: kept.status().server_pid not in (0, before.server_pid), "another server has taken over")
        # (Of "a", the kernel knows already whose it is.)
        found = (kept.point / "b").stat()
        assert found.st_uid == 7
        assert (found.st_gid, found.st_mode & 0o7777) == (8, 0o440)
        assert file.read(100) == DATA[100:200]
    assert kept.status().supervisor_pid == before.supervisor_pid
    kept.release("node0")


def test_a_worker_that_came_back_elsewhere_is_found_by_the_same_server(kept: Kept) -> None:
    kept.keep()
    before = kept.status()
    assert (kept.point / "a").read_bytes() == DATA
    kept.cluster.nodes.pop("node0").stop("everything")
    worker = kept.cluster.nodes["node0"] = kept.cluster.new_worker("node0")
    kept.cluster.hold(kept.dataset)
    kept.keep(address=kept.cluster.membership.workers[0].address)
    names = iter(range(1_000_000))

    def reads_another_file_through_it() -> bool:
        name = f"file-{next(names)}"
        (kept.directory / "bucket" / name).write_bytes(DATA)
        assert (kept.point / name).read_bytes() == DATA
        return bool(worker.usage()["datasets"]["ds"]["objects"])

    until(reads_another_file_through_it, "it has heard of it")
    after = kept.status()
    assert (before.server_pid, after.starts) == (after.server_pid, 1)
    kept.release("node0")


def test_killed_with_everything(kept: Kept) -> None:
    kept.keep()
    before = kept.status()
    for pid in (before.supervisor_pid, before.server_pid):
        os.kill(pid, signal.SIGKILL)
    until(lambda: kept.status().state == "dead", "nobody serves it any more")
    kept.keep()
    assert (kept.point / "a").read_bytes() == DATA
    assert len(mounted_under(kept.directory)) == 1
    kept.release("node0")
    assert not kept.point.exists(), "it was made for the mount that died"


def test_swept_whoever_kept_it(kept: Kept) -> None:
    kept.keep("node0")
    assert kept.sweep("other") == []
    assert kept.sweep("ds", token="of another cluster") == []
    assert kept.sweep("ds") == [str(kept.point)]


def test_what_a_user_mounted_is_used_and_left_alone(kept: Kept) -> None:
    kept.point.mkdir()
    config = cluster_config(kept.dataset, [kept.address], TOKEN)
    mounts.start(str(kept.point), config, "ds", root=kept.root)
    assert kept.keep()["point"] == str(kept.point)
    assert kept.release("node0") == []
    assert kept.sweep("ds") == []
    assert kept.status().state == "serving"
    after = mounts.unmount(str(kept.point), root=kept.root)
    assert (after.state, after.mount["kept"]) == ("ended", False)
    kept.keep()
    after = mounts.unmount(str(kept.point), root=kept.root)
    assert (after.state, after.mount["kept"]) == ("ended", True)


def test_a_user_is_told_that_the_dataset_was_deleted(kept: Kept) -> None:
    kept.point.mkdir()
    mounts.start(str(kept.point), cluster_config(kept.dataset, [kept.address], TOKEN), "ds", root=kept.root)
    assert kept.status().details["problem"] == ""
    kept.cluster.hold()
    # Nobody reads: the server finds out by itself.
    until(lambda: kept.status().details["problem"] == "the dataset has been deleted", "that it is told")
    assert kept.status().state == "serving"


def test_something_else_is_there(kept: Kept) -> None:
    kept.point.mkdir()
    (kept.point / "file").touch()
    with pytest.raises(MountBusyError, match="not empty"):
        kept.keep()
    (kept.point / "file").unlink()
    kept.keep()
    with pytest.raises(MountBusyError, match="has ds mounted here already"):
        kept.keep(dataset={"name": "other"})
    with pytest.raises(MountBusyError, match="has ds mounted here already"):
        kept.keep(token="of another cluster")
    kept.release("node0")


def test_as_a_program(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker runs; state directories are where they usually are."""
    dataset: ResolvedDataset = kept.dataset
    request = {"do": "keep", "dataset": dataset.wire(), "node": "node0", "token": TOKEN}
    told = run_program({**request, "address": kept.address, "others": []})
    try:
        assert (kept.point / "a").read_bytes() == DATA
        assert mounts.status(told["point"]).source == "ds"
    finally:
        freed = run_program({"do": "release", "node": "node0", "token": TOKEN, "keep": {}, "nodes": []})
    assert str(kept.point) in freed
