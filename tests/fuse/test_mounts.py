"""Starting, finding, and ending mounts; what is refused, and what is left."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from pathlib import Path

import pytest

from raycache import mountinfo
from raycache.errors import MountBusyError, MountError, NotFoundError, NotMountedError
from raycache.fuse import mounts
from raycache.fuse.mounts import MountOptions
from tests.fuse.conftest import STUB, Stage, mounted_under, processes_of


def test_what_is_found(stage: Stage) -> None:
    assert mounts.find(stage.root) == []
    stage.start()
    (found,) = mounts.find(stage.root)
    assert found.mountpoint == str(stage.point)
    assert found.state == "serving"
    assert found.supervisor_pid
    assert found.server_pid == stage.server()
    assert found.starts == 1
    assert found.mount["privileged"]
    assert found.mount["readahead_kib"] == 4096
    kib = Path(f"/sys/class/bdi/{found.mount['device']}/read_ahead_kb").read_text()
    assert kib.strip() == "4096"
    stage.unmount()
    assert mounts.find(stage.root) == []
    left = [path for path in Path(stage.root).rglob("*") if path.is_file() and path.name != "LOCK"]
    assert left == []


def test_secrets_are_the_owners_alone(stage: Stage) -> None:
    status = stage.start(token="s3cret")
    state = Path(status.state_dir)
    assert "s3cret" in (state / "config.json").read_text()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("config.json", "mount.json", "status.json", "log"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    for pid in processes_of(stage.directory):
        assert b"s3cret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"s3cret" not in Path(f"/proc/{pid}/environ").read_bytes()
    stage.unmount()


def test_nothing_but_its_own_descriptors_reaches_the_server(stage: Stage) -> None:
    mine = os.open(stage.directory, os.O_RDONLY)
    os.set_inheritable(mine, True)
    try:
        stage.start()
    finally:
        os.close(mine)
    files = [str(link.readlink()) for link in Path(f"/proc/{stage.server()}/fd").iterdir()]
    assert files.count("/dev/fuse") == 1
    assert sum(name.startswith("socket:") for name in files) == 1
    assert str(stage.directory) not in files
    stage.unmount()


def test_mounted_already(stage: Stage) -> None:
    stage.start()
    with pytest.raises(MountBusyError, match="raycache has ds mounted here already"):
        stage.start()
    assert stage.status().state == "serving"
    stage.unmount()


def test_two_at_once(stage: Stage) -> None:
    outcomes: list[str] = []

    def begin() -> None:
        try:
            outcomes.append(stage.start().state)
        except MountBusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["busy", "busy", "serving"]
    assert len(mounted_under(stage.directory)) == 1
    stage.unmount()


def test_a_mount_point_that_cannot_be(stage: Stage) -> None:
    (stage.point / "file").touch()
    with pytest.raises(MountBusyError, match="not empty"):
        stage.start()
    with pytest.raises(MountError, match="Not a directory"):
        mounts.start(str(stage.point / "file"), {}, "ds", root=stage.root)
    with pytest.raises(NotFoundError, match="does not exist"):
        mounts.start(str(stage.directory / "absent"), {}, "ds", root=stage.root)
    stage.start(options=MountOptions(over=True))
    assert os.listdir(stage.point) == []
    stage.unmount()
    assert os.listdir(stage.point) == ["file"]


def test_something_else_is_mounted_there(stage: Stage) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"other", os.fsencode(stage.point), b"tmpfs", 0, None) == 0
    try:
        with pytest.raises(MountBusyError, match=r"tmpfs \(other\) is mounted here"):
            stage.start()
        with pytest.raises(NotMountedError):
            stage.unmount()
        stage.start(options=MountOptions(over=True))
        stage.unmount()
        assert [entry.source for entry in mounted_under(stage.directory)] == ["other"]
    finally:
        assert libc.umount2(os.fsencode(stage.point), 0) == 0


def test_nothing_to_unmount(stage: Stage) -> None:
    with pytest.raises(NotMountedError, match="nothing mounted here"):
        stage.unmount()
    with pytest.raises(NotMountedError):
        stage.status()


def test_a_server_program_that_is_not_there(stage: Stage) -> None:
    with pytest.raises(MountError, match="the server cannot be started"):
        mounts.start(str(stage.point), {}, "ds", command=("/no/such/program",), root=stage.root)
    assert mounted_under(stage.directory) == []


def test_a_link_to_the_mount_point(stage: Stage) -> None:
    data = stage.file("a", b"bytes")
    link = stage.directory / "link"
    link.symlink_to("mnt")
    status = mounts.start(
        str(link), {"files": {"a": str(stage.sources["a"])}}, "ds", command=STUB, root=stage.root
    )
    assert status.mountpoint == str(stage.point)
    assert (link / "a").read_bytes() == data
    assert mounts.unmount(str(link), root=stage.root).state == "ended"


def test_an_odd_source_and_mount_point(stage: Stage) -> None:
    point = stage.directory / "a b,c\\d"
    point.mkdir()
    mounts.start(str(point), {"files": {}}, "s3://b/x y,z\\w", command=STUB, root=stage.root)
    entry = mountinfo.mounted_at(str(point))
    assert entry is not None
    assert entry.source == "s3://b/x y,z\\w"
    assert mounts.unmount(str(point), root=stage.root).state == "ended"


def test_who_started_it_may_go(stage: Stage) -> None:
    """The supervisor is nobody's child, in a session of its own, and holds nothing of the starter's."""
    status = stage.start()
    fields = Path(f"/proc/{status.supervisor_pid}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(fields[1]), int(fields[3])
    assert parent != os.getpid()
    assert session != os.getsid(0)
    assert str(Path(f"/proc/{status.supervisor_pid}/fd/0").readlink()) == "/dev/null"
    assert str(Path(f"/proc/{status.supervisor_pid}/cwd").readlink()) == "/"
    stage.unmount()
