"""`mountPath` on a real Ray cluster: mounted by the workers, kept over their death, gone with the dataset."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache import mountinfo
from raycache.actors import kv as keys
from raycache.errors import MountError, NotMountedError
from raycache.fuse import device, mounts
from tests.fuse.conftest import WHY_NOT
from tests.support.cache import Cache
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

DATA = random.Random(5).randbytes(9 << 20)


@pytest.fixture
def point(cache: Cache) -> Iterator[Path]:
    """A path to mount at, which is not there yet. What is left mounted below its directory goes after the test."""
    directory = cache.directory / "mounts"
    directory.mkdir()
    yield directory / "ds"
    for entry in mountinfo.mounts():
        if entry.point.startswith(f"{directory}/"):
            with contextlib.suppress(MountError):
                mounts.unmount(entry.point, force=True)
                device.unmount(entry.point, lazy=True)


def spec(cache: Cache, point: Path | None) -> str:
    """The dataset's spec, with a `mountPath` or without."""
    text = cache.spec()
    return (
        text if point is None else text.replace("spec:\n  mounts:", f"spec:\n  mountPath: {point}\n  mounts:")
    )


def mounted(point: Path) -> bool:
    entry = mountinfo.mounted_at(str(point))
    return entry is not None and (entry.kind, entry.source) == (device.KIND, "ds")


def supervisor_of(point: Path) -> int:
    """The supervisor of what is mounted; 0 while nothing is."""
    try:
        return mounts.status(str(point)).supervisor_pid
    except NotMountedError:
        return 0


def test_a_dataset_is_mounted_where_its_spec_says(cache: Cache, point: Path) -> None:
    cache.put("dir/file", DATA)
    results = cache.admin.apply(spec(cache, point))
    assert not [warning for row in results for warning in row["warnings"]]
    assert mounted(point)
    assert (point / "dir" / "file").read_bytes() == DATA

    # The three nodes share this machine: one has mounted it, the others find it mounted.
    described = cache.admin.describe("datasets", "ds")
    assert described["mount"] == {"path": str(point), "mounted_on": 3, "nodes": 3, "problems": {}}
    rows = cache.admin.get("workers")
    assert [[(m["dataset"], m["path"], m["state"]) for m in row["mounts"]] for row in rows] == [
        [("ds", str(point), "mounted")]
    ] * 3

    # Workers die: the mount goes on, and those that come after them adopt it.
    before = mounts.status(str(point))
    pids = cache.worker_pids()
    with open(point / "dir" / "file", "rb") as file:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(DATA).digest()
    until(
        lambda: len(now := cache.worker_pids()) == 3 and not set(now.values()) & set(pids.values()),
        "the workers are back",
    )
    until(lambda: cache.admin.describe("datasets", "ds")["mount"]["mounted_on"] == 3, "the mount is adopted")
    after = mounts.status(str(point))
    assert (after.supervisor_pid, after.mount["device"]) == (before.supervisor_pid, before.mount["device"])
    cache.put("later", b"later")
    cache.admin.load("ds", ["/"])  # lists afresh
    until(lambda: (point / "later").exists(), "what is new is seen", 60.0)

    # Supervisor and server die: what is left is dead, and a worker mounts it anew.
    left = mounts.status(str(point))
    for pid in (left.supervisor_pid, left.server_pid):
        os.kill(pid, signal.SIGKILL)
    until(
        lambda: supervisor_of(point) not in (0, left.supervisor_pid),
        "it is mounted anew",
        60.0,
    )
    assert (point / "dir" / "file").read_bytes() == DATA

    # Another path, no path, no dataset.
    other = point.with_name("other")
    cache.admin.apply(spec(cache, other))
    assert mounted(other)
    assert not point.exists(), "the directory was made for the mount, and goes with it"
    cache.admin.apply(spec(cache, None))
    assert not mounted(other)
    cache.admin.apply(spec(cache, point))
    assert mounted(point)
    cache.admin.delete("datasets", "ds")
    assert not mountinfo.mounted_at(str(point))
    assert not point.exists()


def test_a_node_that_cannot_mount_holds_the_dataset_all_the_same(cache: Cache, point: Path) -> None:
    cache.put("file", DATA)
    point.mkdir()
    (point / "mine").write_bytes(b"")
    results = cache.admin.apply(spec(cache, point))
    (warning,) = [warning for row in results for warning in row["warnings"]]
    assert warning.startswith("dataset ds: not mounted on 3 nodes, such as ")
    assert warning.endswith(f": {point}: the directory is not empty")
    assert cache.read("file") == DATA
    described = cache.admin.describe("datasets", "ds")
    assert described["status"]["phase"] == "Bound"
    assert described["mount"]["mounted_on"] == 0
    assert set(described["mount"]["problems"].values()) == {f"{point}: the directory is not empty"}
    assert {"NotMounted"} <= {event["reason"] for event in described["events"]}
    (point / "mine").unlink()
    until(lambda: mounted(point), "it is tried again", 60.0)
    assert (point / "file").read_bytes() == DATA
    # After the test, the stop must leave nothing mounted: the fixture looks.


def raycache(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYCACHE_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "raycache.cli", *words],
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_line_mounts_a_dataset_of_the_cluster(cache: Cache, point: Path) -> None:
    cache.put("file", DATA)
    cache.apply()
    point.mkdir()
    inside = {"RAY_ADDRESS": cache.cluster.address}
    token = keys.RayKv().get(keys.TOKEN)
    assert token is not None
    outside = {
        "RAYCACHE_ADDRESS": cache.admin.get("workers")[0]["address"],
        "RAYCACHE_TOKEN": token.decode(),
        "RAY_ADDRESS": "127.0.0.1:1",
    }
    for environ in (inside, outside):
        done = raycache("mount", "ds", str(point), **environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"ds is mounted at {point} (")
        assert (point / "file").read_bytes() == DATA
        assert raycache("mount", "ds", str(point), **environ).returncode == 1
        assert raycache("mount", "--status", str(point)).returncode == 0
        assert raycache("unmount", str(point)).stdout == f"{point} is unmounted\n"
        assert raycache("mount", "--status", str(point)).returncode == 4
        assert raycache("mount", "no-such", str(point), **environ).returncode == 4
    assert raycache("mount", "ds", str(point), **outside | {"RAYCACHE_TOKEN": "wrong"}).returncode == 5
    assert raycache("mount", "ds", str(point), RAY_ADDRESS="127.0.0.1:1").returncode == 3
