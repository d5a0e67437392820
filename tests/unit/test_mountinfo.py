"""The mount table: odd names, covered mounts, and the mount that a path lies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycache import mountinfo

TABLE = b"""\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:5 / /dev rw - devtmpfs devtmpfs rw,mode=755
23 22 0:6 / /dev/shm rw - tmpfs tmpfs rw,huge=within_size
24 21 0:50 / /a\\040b\\134\\011c ro master:2 propagate_from:1 - fuse.raycache s3://x\\043y ro,user_id=0
25 21 0:51 / /mnt rw - tmpfs below rw
26 21 0:52 / /mnt rw - ext4 above rw
27 21 0:53 / /latin\xe9 rw - tmpfs none rw
not a line of a mount table
"""


@pytest.fixture(autouse=True)
def _table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_bytes(TABLE)
    monkeypatch.setattr(mountinfo, "_MOUNTS", str(tmp_path / "mountinfo"))


def test_escapes_and_optional_fields() -> None:
    entry = mountinfo.mounted_at("/a b\\\tc")
    assert entry == mountinfo.MountEntry("0:50", "/a b\\\tc", "fuse.raycache", "s3://x#y", "ro,user_id=0")


def test_a_name_that_is_not_utf_8() -> None:
    assert mountinfo.mounted_at(os.fsdecode(b"/latin\xe9")) is not None


def test_the_topmost_of_two_mounts_counts() -> None:
    entry = mountinfo.mounted_at("/mnt")
    assert entry is not None
    assert entry.source == "above"


def test_nothing_mounted_exactly_there() -> None:
    assert mountinfo.mounted_at("/dev/shm/x") is None
    assert mountinfo.mounted_at("/de") is None


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/dev/shm/x/y", "/dev/shm"),
        ("/dev/shmx", "/dev"),
        ("/dev", "/dev"),
        ("/etc", "/"),
        ("/mnt/x", "/mnt"),
    ],
)
def test_the_mount_that_a_path_lies_on(path: str, point: str) -> None:
    entry = mountinfo.mount_of(path)
    assert entry is not None
    assert entry.point == point
    assert entry.source != "below"


def test_without_proc_nothing_is_mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountinfo, "_MOUNTS", str(tmp_path / "absent"))
    assert mountinfo.mounts() == []
    assert mountinfo.mounted_at("/") is None
    assert mountinfo.mount_of("/") is None
