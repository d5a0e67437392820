"""Where state directories are, and which are cleared away."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycache import mountinfo
from raycache.errors import AccessDeniedError, MountError
from raycache.fuse import mounts, statedirs, statefiles
from raycache.fuse.statefiles import Process
from raycache.settings import Settings


def _tmpfs_at(monkeypatch: pytest.MonkeyPatch, *points: str) -> None:
    table = [mountinfo.MountEntry("0:1", "/", "overlay", "overlay", "")]
    table += [mountinfo.MountEntry("0:2", point, "tmpfs", "tmpfs", "") for point in points]
    monkeypatch.setattr(mountinfo, "mounts", lambda: table)


def test_roots_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = Settings(state_dir="/home/x/.local/state/raycache", runtime_dir="/run/user/0")
    _tmpfs_at(monkeypatch, os.path.realpath("/run"), "/dev/shm")
    assert statedirs.roots(settings)[0] == "/run/raycache/mounts"
    _tmpfs_at(monkeypatch, "/dev/shm")  # a container: /run is part of its image
    assert statedirs.roots(settings)[0] == "/dev/shm/raycache-0/mounts"
    _tmpfs_at(monkeypatch)
    assert statedirs.roots(settings)[0] == "/run/raycache/mounts"


def test_roots_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    settings = Settings(state_dir=f"{tmp_path}/state/raycache", runtime_dir=f"{tmp_path}/run")
    _tmpfs_at(monkeypatch, f"{tmp_path}/run", "/dev/shm")
    assert statedirs.roots(settings) == [
        f"{tmp_path}/run/raycache/mounts",
        "/dev/shm/raycache-1000/mounts",
        f"{tmp_path}/state/raycache/mounts",
    ]
    _tmpfs_at(monkeypatch)
    settings = Settings(state_dir=f"{tmp_path}/state/raycache")
    assert statedirs.roots(settings)[-1] == f"{tmp_path}/state/raycache/mounts"


def test_a_mount_point_through_links(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "to-a").symlink_to("a")
    (tmp_path / "a/to-b").symlink_to("../to-a/b")
    real = os.path.realpath(tmp_path)
    assert statedirs.real_mountpoint(f"{tmp_path}/to-a/to-b") == f"{real}/a/b"
    assert statedirs.real_mountpoint(f"{tmp_path}/a/absent/") == f"{real}/a/absent"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="too many"):
        statedirs.real_mountpoint(f"{tmp_path}/loop")


def test_somebody_elses_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(AccessDeniedError):
        statedirs.make_home(str(tmp_path / "root"), "/mnt")


def _slot(home: str, **status: object) -> str:
    directory = statedirs.new_slot(home)
    statefiles.write_json(os.path.join(directory, "mount.json"), {"mountpoint": "/mnt/x", "source": "ds"})
    if status:
        statefiles.write_json(os.path.join(directory, "status.json"), status)
    return directory


def test_what_nobody_uses_is_cleared_away(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    home = statedirs.make_home(root, "/mnt/x")
    killed = _slot(home, state="serving", supervisor=Process(2**22, 1))
    failed = _slot(home, state="failed", error="it died")
    unfinished = _slot(home)
    used = _slot(home, state="serving", supervisor=statefiles.process(os.getpid()))
    lock = statefiles.lock(os.path.join(used, "LOCK"))
    assert lock is not None
    try:
        found = mounts.find(root)
    finally:
        os.close(lock)
    # Somebody holds it and it is not in the tree: it serves open files.
    assert [(one.state, one.state_dir) for one in found] == [("failed", failed), ("detached", used)]
    assert found[0].error == "it died"
    assert found[1].supervisor_pid == os.getpid()
    assert not os.path.exists(killed)
    assert not os.path.exists(unfinished)


def test_nothing_is_cleared_away_under_whoever_is_mounting(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    home = statedirs.make_home(root, "/mnt/x")
    unfinished = _slot(home)
    lock = statefiles.lock(os.path.join(home, "LOCK"))
    assert lock is not None
    try:
        assert [one.state for one in mounts.find(root)] == ["starting"]
    finally:
        os.close(lock)
    assert os.path.exists(unfinished)


@pytest.mark.parametrize("left", [[], ["LOCK"], ["LOCK", "KEEPING"]])
def test_a_mount_point_of_which_nothing_is_left_goes(tmp_path: Path, left: list[str]) -> None:
    home = Path(statedirs.make_home(str(tmp_path / "root"), "/mnt/x"))
    for name in left:
        (home / name).touch()
    assert mounts.find(str(tmp_path / "root")) == []
    assert not home.exists()


def test_a_mount_point_that_somebody_uses_stays(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    home = statedirs.make_home(root, "/mnt/x")
    for name in ("LOCK", "KEEPING"):
        lock = statedirs.lock_home(home, name)
        assert lock is not None
        assert mounts.find(root) == []
        assert os.path.exists(os.path.join(home, name))
        os.close(lock)
    Path(home, "MADE").touch()
    assert mounts.find(root) == []
    assert os.path.exists(os.path.join(home, "MADE"))


def test_a_lock_whose_file_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = statedirs.make_home(str(tmp_path / "root"), "/mnt/x")
    path = os.path.join(home, "LOCK")
    take = statefiles.lock
    taken: list[int] = []

    def overtaken(path: str, *, wait: bool = False) -> int | None:
        lock = take(path, wait=wait)
        assert lock is not None
        if not taken:
            os.unlink(path)
        taken.append(lock)
        return lock

    monkeypatch.setattr(statefiles, "lock", overtaken)
    lock = statedirs.lock_home(home)
    assert lock is not None
    assert len(taken) == 2
    assert os.path.samestat(os.fstat(lock), Path(path).stat())
    statedirs.prune(home)
    os.close(lock)
    with pytest.raises(FileNotFoundError):
        statedirs.lock_home(home)


def test_one_at_a_time_while_others_clear_away(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    inside = threading.Lock()

    def use(_: int) -> None:
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError):
                home = statedirs.make_home(root, "/mnt/x")
                lock = statedirs.lock_home(home, "KEEPING", wait=True)
                assert lock is not None
                try:
                    assert inside.acquire(blocking=False), "two hold the lock of one mount point"
                    Path(home, "MADE").touch()
                    os.unlink(os.path.join(home, "MADE"))
                    inside.release()
                finally:
                    os.close(lock)

    def look(_: int) -> None:
        for _ in range(300):
            assert mounts.find(root) == []

    with ThreadPoolExecutor(6) as pool:
        for done in [*(pool.submit(use, n) for n in range(4)), *(pool.submit(look, n) for n in range(2))]:
            done.result()
    assert mounts.find(root) == []
    assert os.listdir(root) == []
