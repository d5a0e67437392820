"""What can be said of the device without mounting anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raycache import mountinfo
from raycache.errors import MountError, NotMountedError
from raycache.fuse import device, fusermount


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("user_allow_other\n", True),
        ("  user_allow_other  # everybody\nmount_max = 3", True),
        ("#user_allow_other\n", False),
        ("no_user_allow_other", False),
        ("", False),
    ],
)
def test_what_fuse_conf_allows(tmp_path: Path, text: str, allowed: bool) -> None:
    (tmp_path / "fuse.conf").write_text(text)
    assert fusermount.allows_other(str(tmp_path / "fuse.conf")) is allowed
    assert not fusermount.allows_other(str(tmp_path / "absent"))


@pytest.mark.parametrize("release", ["6.8.12-generic", "5.15.0", "odd"])
def test_passthrough_needs_a_kernel(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert device.passthrough_support() == device.Passthrough(False, f"Linux {release} is older than 6.9")


def test_readahead_of_what_is_not_there() -> None:
    assert not device.raise_readahead("0:0", 4096)


def test_nothing_to_unmount(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root is told so by umount(2)")
    with pytest.raises(NotMountedError):
        device.unmount(str(tmp_path))


def test_a_machine_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="no /dev/fuse"):
        device.mount(str(tmp_path), "ds")


def test_what_is_not_fuse_cannot_be_dead(tmp_path: Path) -> None:
    assert device.clear_dead(str(tmp_path)) == 0
    assert mountinfo.mounted_at("/proc") is None or device.clear_dead("/proc") == 0


def test_the_supervisor_imports_nothing_large() -> None:
    program = "import sys, raycache.fuse.supervisor; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = loaded.stdout.split()
    ours = {name for name in names if name.startswith("raycache")}
    assert ours == {
        "raycache",
        "raycache.errors",
        "raycache.mountinfo",
        "raycache.fuse",
        "raycache.fuse.device",
        "raycache.fuse.fusermount",
        "raycache.fuse.serverprocess",
        "raycache.fuse.statefiles",
        "raycache.fuse.supervisor",
    }
    large = {
        "ray",
        "pyarrow",
        "numpy",
        "pydantic",
        "subprocess",
        "logging",
        "dataclasses",
        "inspect",
        "asyncio",
    }
    assert not large & set(names)
