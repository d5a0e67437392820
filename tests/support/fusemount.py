"""A mount of a dataset with the real server, an embedded cache, and a directory (or a bucket) behind it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycache.blocks import KiB, MiB
from raycache.errors import MountError
from raycache.fuse import mounts, reach
from raycache.fuse.mounts import MountOptions, MountStatus
from raycache.spec import TierSpec
from tests.support.embedded import dataset_of
from tests.support.waiting import until

BLOCK = 64 * KiB
SMALL = 8 * MiB
"""Bytes up to which a file is fetched by its open (`serving.SMALL`)."""

NAME = "ds"

MARKERS = 100
"""Open directories that mark a status as one that came after them: more than a test has open otherwise."""


ENDING_S = 3.0
"""Seconds that a server gets to end after its last file was closed."""


class FuseMount:
    """A mount below a directory: the files at `source`, seen at `point`.

    Args:
        directory: the test's own. Its processes and mounts can be told by it.
        source_uri: what to mount; "" for the directory `source`.
        source_options: options of that store.
    """

    def __init__(
        self, directory: Path, source_uri: str = "", source_options: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.point = directory / "mnt"
        self.source = directory / "source"
        self.tier = directory / "tier"
        self.root = str(directory / "state")
        self._uri = source_uri or f"file://{self.source}"
        self._options = source_options
        for path in (self.point, self.source, self.tier):
            path.mkdir()

    def put(self, name: str, data: bytes) -> bytes:
        """A new version of a file of the source, at once, as an object store has it; the bytes."""
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.directory / "fresh"
        fresh.write_bytes(data)
        os.replace(fresh, path)
        return data

    def start(
        self,
        *,
        quota: int = 256 * MiB,
        memory: int = 0,
        passthrough: bool = True,
        options: MountOptions | None = None,
        tuning: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> MountStatus:
        """Mount.

        Args:
            quota: bytes of the cache.
            memory: bytes of a memory tier above it; 0 for none.
            passthrough: let the kernel read files itself, where it can.
            options, tuning: as of `mounts.start`.
            changes: fields of the dataset.
        """
        dataset = dataset_of(NAME, {"": self._uri}, self._options, **changes)
        tiers = [TierSpec(medium="SSD", path=str(self.tier), quota=quota)]
        if memory:
            path = str(self.directory / "memory")
            tiers.insert(0, TierSpec(medium="MEM", path=path, quota=memory, huge_pages=False))
        dataset = dataset.model_copy(update={"tiers": tiers})
        return mounts.start(
            str(self.point),
            reach.embedded_config(dataset) | {"passthrough": passthrough},
            NAME,
            options,
            root=self.root,
            tuning={"young_s": 0.0} | dict(tuning or {}),
        )

    def status(self) -> MountStatus:
        """How it is."""
        return mounts.status(str(self.point), self.root)

    def unmount(self, **how: Any) -> MountStatus:
        """Unmount."""
        return mounts.unmount(str(self.point), root=self.root, **how)

    def log(self) -> str:
        """What supervisor and servers printed."""
        return Path(self.status().state_dir, "log").read_text()

    def server(self, other_than: int = 0) -> int:
        """Process id of a server that answers and is not `other_than`."""

        def found() -> int:
            status = self.status()
            said = status.details.get("pid")
            return status.server_pid if said == status.server_pid != other_than else 0

        pid: int = until(found, "a server answers")
        return pid

    def details(self) -> dict[str, Any]:
        """What the server says now, not what it said some time ago."""
        markers = [os.open(self.point, os.O_RDONLY | os.O_DIRECTORY) for _ in range(MARKERS)]
        try:
            told: dict[str, Any] = until(
                lambda: (told := self.status().details).get("open", 0) >= MARKERS and told, "a word"
            )
        finally:
            for fd in markers:
                os.close(fd)
        until(lambda: self.status().details.get("open", 0) < MARKERS, "the markers are closed")
        return told

    def reads(self) -> int:
        """READs that this server has answered from user space."""
        return int(self.details()["reads"])

    def xattr(self, name: str, attribute: str) -> str:
        """A `user.raycache.*` attribute of a file."""
        return os.getxattr(self.point / name, f"user.raycache.{attribute}").decode()

    def cached_bytes(self, name: str) -> int:
        """Bytes of a file in the local store."""
        return int(self.xattr(name, "cached_bytes"))

    def until_complete(self, name: str) -> None:
        """Wait until a file is whole in the local store."""
        size = (self.point / name).stat().st_size
        until(lambda: self.cached_bytes(name) == size, f"{name} is complete")

    def end(self) -> str:
        """Unmount what a test left, by force; what that was, "" for nothing."""
        left = self._left()
        deadline = time.monotonic() + ENDING_S
        while left and all(found.state == "detached" for found in left) and time.monotonic() < deadline:
            # A server that is ending has no memory any more, and so no command line, before its lock is free.
            time.sleep(0.02)
            left = self._left()
        for found in left:
            with contextlib.suppress(MountError):
                mounts.unmount(found.mountpoint, force=True, root=self.root)
        return ", ".join(f"{found.mountpoint}: {found.state}" for found in left)

    def _left(self) -> list[mounts.MountStatus]:
        return [found for found in mounts.find(self.root) if found.state != "failed"]
