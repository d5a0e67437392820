"""A mount of a cluster's dataset: what is invalidated is seen, whatever the kernel was told to believe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.fuse import mounts
from raycache.fuse.configs import cluster_config
from tests.support.embedded import dataset_of
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers
from tests.support.waiting import until


class ClusterMount:
    """A directory of files, a worker that caches it as immutable, and a mount over the worker."""

    def __init__(self, directory: Path, cluster: RaylessCluster) -> None:
        self.source, self.point = directory / "source", directory / "mnt"
        self.root = str(directory / "state")
        self.cluster = cluster
        for name in ("dir/file", "other/file"):
            (self.source / name).parent.mkdir(parents=True)
            (self.source / name).write_bytes(b"old")
        self.point.mkdir()
        dataset = dataset_of("ds", {"": f"file://{self.source}"}, consistency_mode="immutable")
        cluster.hold(with_tiers(dataset, directory, 8 * MiB, "SSD"))
        address = cluster.membership.workers[0].address
        mounts.start(str(self.point), cluster_config(dataset, [address], TOKEN), "ds", root=self.root)

    def size(self, name: str) -> int:
        return (self.point / name).stat().st_size


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[ClusterMount]:
    with RaylessCluster(1) as cluster:
        mount = ClusterMount(tmp_path, cluster)
        yield mount
        mounts.unmount(str(mount.point), root=mount.root, force=True)


def test_names_of_a_mount_are_looked_up_anew(mount: ClusterMount) -> None:
    assert sorted(os.listdir(mount.point / "dir")) == ["file"]
    assert (mount.size("dir/file"), mount.size("other/file")) == (3, 3)
    with open(mount.point / "dir" / "file", "rb", buffering=0) as file:
        assert file.read() == b"old"
        for name in ("dir/file", "other/file", "dir/more", "fresh/file"):
            (mount.source / name).parent.mkdir(exist_ok=True)
            (mount.source / name).write_bytes(b"the new one")
        assert (mount.size("dir/file"), mount.size("other/file")) == (3, 3), "immutable: nobody asks"

        mount.cluster.invalidate("ds", "dir", "fresh/file")
        until(lambda: mount.size("dir/file") == len(b"the new one"), "the mount has heard of it")
        until(lambda: "fresh" in os.listdir(mount.point), "the directory above has changed, too")
        assert (mount.point / "dir" / "file").read_bytes() == b"the new one"
        assert sorted(os.listdir(mount.point / "dir")) == ["file", "more"]
        assert (mount.point / "fresh" / "file").read_bytes() == b"the new one"
        assert mount.size("other/file") == 3, "what was not declared changed is believed as before"
        assert os.pread(file.fileno(), 3, 0) == b"old", "what is open goes on"

    (mount.source / "dir" / "file").unlink()
    mount.cluster.invalidate("ds", "dir/file")
    until(lambda: not (mount.point / "dir" / "file").exists(), "that it is gone")


def test_what_was_invalidated_while_no_server_was_there_is_told_by_the_next(mount: ClusterMount) -> None:
    def server(other_than: int = 0) -> int:
        told = mounts.status(str(mount.point), mount.root)
        said = told.details.get("pid")
        return told.server_pid if said == told.server_pid != other_than else 0

    assert mount.size("dir/file") == 3
    former = until(server, "a server answers")
    os.kill(former, signal.SIGSTOP)  # it hears of nothing more
    (mount.source / "dir" / "file").write_bytes(b"the new one")
    mount.cluster.invalidate("ds", "")
    os.kill(former, signal.SIGKILL)
    until(lambda: server(former), "another server answers")
    until(lambda: mount.size("dir/file") == len(b"the new one"), "it has told the kernel")
