"""Real mounts, under the test's own directory. What a test leaves mounted or running is found, ended, and blamed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raycache import mountinfo
from raycache.errors import MountError
from raycache.fuse import device, mounts
from raycache.fuse.mounts import MountOptions, MountStatus
from tests.conftest import FAILED
from tests.support import fuse_stub
from tests.support.waiting import until

STUB = (sys.executable, "-P", fuse_stub.__file__)


def _why_not() -> str:
    """Why nothing can be mounted here; "" if it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse that this user may open"
    if device.passthrough_support().reason.startswith("this process does not have"):
        return "this process may not mount (no CAP_SYS_ADMIN)"
    return ""


WHY_NOT = _why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if WHY_NOT and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


def mounted_under(directory: Path) -> list[mountinfo.MountEntry]:
    """What is mounted below a directory, the topmost first."""
    inside = [entry for entry in mountinfo.mounts() if entry.point.startswith(f"{directory}/")]
    return inside[::-1]


def processes_of(directory: Path) -> dict[int, str]:
    """Processes that have the directory in their arguments, but not this one: by id, what they were started as."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{directory}/" in command and int(name) != os.getpid():
                found[int(name)] = command.strip()
    return found


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves mounts or processes, after ending them."""
    yield
    left = [f"mount {entry.point} ({entry.source})" for entry in mounted_under(tmp_path)]
    deadline = time.monotonic() + 5.0
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    left += [f"process {pid}: {command}" for pid, command in processes_of(tmp_path).items()]
    for pid in processes_of(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for entry in mounted_under(tmp_path):
        with contextlib.suppress(MountError):
            device.unmount(entry.point, lazy=True)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


class Stage:
    """A mount point, files to serve, and a place for state, all in the test's directory.

    Args:
        directory: the test's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.point = directory / "mnt"
        self.root = str(directory / "state")
        self.sources: dict[str, Path] = {}
        self.point.mkdir()

    def file(self, name: str, data: bytes) -> bytes:
        """A file that the stub serves; its bytes."""
        path = self.directory / f"source-{name}"
        path.write_bytes(data)
        self.sources[name] = path
        return data

    def start(
        self, *, options: MountOptions | None = None, tuning: Mapping[str, Any] | None = None, **config: Any
    ) -> MountStatus:
        """Mount with the stub; `config` is of the stub."""
        config["files"] = {name: str(path) for name, path in self.sources.items()}
        return mounts.start(
            str(self.point), config, "ds", options, command=STUB, root=self.root, tuning=tuning
        )

    def status(self) -> MountStatus:
        """How it is."""
        return mounts.status(str(self.point), self.root)

    def unmount(self, **how: Any) -> MountStatus:
        """Unmount."""
        return mounts.unmount(str(self.point), root=self.root, **how)

    def server(self, other_than: int = 0) -> int:
        """Process id of a server that answers and is not `other_than`."""

        def found() -> int:
            status = self.status()
            said = status.details.get("pid")
            return status.server_pid if said == status.server_pid != other_than else 0

        pid: int = until(found, "a server answers")
        return pid

    def log(self) -> str:
        """What supervisor and servers printed."""
        return Path(self.status().state_dir, "log").read_text()


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage; a mount that the test left is ended by force."""
    stage = Stage(tmp_path)
    yield stage
    for left in mounts.find(stage.root):
        if left.state != "failed":
            # The test should have: _nothing_left could not tell any more that it did not.
            with contextlib.suppress(MountError):
                mounts.unmount(left.mountpoint, force=True, root=stage.root)
            if not request.node.stash.get(FAILED, False):
                pytest.fail(f"the test left {left.mountpoint} mounted: {left.state}", pytrace=False)
