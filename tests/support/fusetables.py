"""The tables of a mount over their journal, and entries to put in them."""

from __future__ import annotations

from raycache.blocks import FileInfo, ObjectVersion
from raycache.fuse.handles import Handles
from raycache.fuse.inodes import Inodes
from raycache.fuse.journal import Journal
from raycache.fuse.records import State


def file(path: str, etag: str = '"1"', *, size: int = 1000, mtime_ns: int = 7) -> FileInfo:
    version = ObjectVersion("train", path, f"s3://bucket/prefix/{path}", size, etag, mtime_ns)
    return FileInfo(path, "file", version)


def directory(path: str) -> FileInfo:
    return FileInfo(path, "directory")


class Tables:
    """What a server has: nodes and handles, recorded in a journal."""

    def __init__(self, path: str, generation: int = 0) -> None:
        self.path = path
        self.journal, self.restored = Journal.open(path, generation=generation)
        self.inodes = Inodes(self.restored, self.journal.add)
        self.handles = Handles(self.inodes, self.restored, self.journal.add)
        self.journal.attach(self.handles)

    def state(self) -> State:
        """What is alive now, without the ids to come."""
        return living(self.handles.snapshot(lambda: None))


def living(state: State) -> State:
    return State(state.nodes, state.handles)
