"""Has the kernel forget the names that were invalidated on the cluster.

The kernel believes a name for as long as it was told, in the mode `immutable` for good. So this looks, every time it
is called, what the client has heard of, and has those names expire: they are looked up again when they are used next.
Who has a file open keeps it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from raycache.client import Client
from raycache.fuse import statefiles
from raycache.fuse.inodes import Inodes

log = logging.getLogger(__name__)

HEARD = "heard.json"
"""File of the state directory: the epoch up to which the kernel was told. The next server goes on from there."""


class Forgetting:
    """See above. For one thread.

    Args:
        client: hears of invalidations.
        dataset: name of the dataset.
        inodes: what the kernel may know.
        expire: has a name in a directory (its node id) expire.
        directory: the mount's state directory.
        first: whether no server was there before this one, and the kernel knows nothing.
    """

    def __init__(
        self,
        client: Client,
        dataset: str,
        inodes: Inodes,
        expire: Callable[[int, bytes], None],
        directory: str,
        *,
        first: bool,
    ) -> None:
        self._client = client
        self._dataset = dataset
        self._inodes = inodes
        self._expire = expire
        self._file = os.path.join(directory, HEARD)
        self._again: list[str] = []
        self._heard = int(statefiles.read_json(self._file).get("epoch", 0))
        self._written = self._heard
        if first:
            self._heard, _ = client.invalidated(dataset, 0)

    def look(self) -> None:
        """Tell the kernel what is new. What was told by the last call is told once more: a reply may have been under
        way to the kernel that was made before, and taken for newer. After that it is written down."""
        done = self._heard
        self._heard, paths = self._client.invalidated(self._dataset, self._heard)
        for parent, name in self._inodes.names_around({*self._again, *paths}):
            self._expire(parent, name)
        self._again = paths
        if done != self._written:
            self._written = done
            try:
                statefiles.write_json(self._file, {"epoch": done})
            except OSError as error:  # the next server will tell the kernel more than it must
                log.warning("%s is not written: %s", self._file, error)
