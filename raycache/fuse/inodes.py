"""Nodes: what a node id of the kernel stands for, and how often the kernel holds it.

A node is one path **and one version**. When the version of a path changes, its name leads to another node; the
old one stays, for those who have it open, until the kernel has forgotten it and its last handle is released. A
directory has no version: it is one node for as long as the kernel knows it, also when a file was in its place in
the meantime.

A node holds its path itself (the string that its `FileInfo` has anyway), not its parent: it needs no other node
to live. 100,000 files take 187 bytes each here, and 671 with their `FileInfo`, `ObjectVersion` and strings, which
are shared with whoever else holds them (Python 3.11; `tests/unit/fuse/test_inodes.py` measures it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from raycache.blocks import FileInfo
from raycache.errors import StaleObjectError
from raycache.fuse.records import ROOT_ID, NodeEntry, State, forgotten, node_made, nothing, referenced


class StaleNodeError(StaleObjectError):
    """No node has that id. The VFS looks the path up again when it hears ESTALE (LOOKUP_REVAL)."""


def _stale(node_id: int) -> StaleNodeError:
    return StaleNodeError("no node has this id", where=f"node {node_id}", hint="look the path up again")


class Node:
    """One path and version the kernel knows. Read its attributes from any thread; only `Inodes` sets them.

    Attributes:
        id: 64 bit, never given out again while the mount lives.
        info: path, kind and version; of the same version the last that was looked up.
        references: lookups the kernel has not forgotten.
        holds: handles that are open.
        gone: whether the store has been found not to have this version any more, since it was last looked up.
    """

    __slots__ = ("gone", "holds", "id", "info", "references")

    def __init__(self, node_id: int, info: FileInfo, references: int = 0) -> None:
        self.id = node_id
        self.info = info
        self.references = references
        self.holds = 0
        self.gone = False

    def __repr__(self) -> str:
        return f"<Node {self.id} {self.info.path!r} references={self.references} holds={self.holds}>"


def _same_version(one: FileInfo, other: FileInfo) -> bool:
    """Whether two entries of one path are one version. Hashing (`object_id`) is left to those that differ
    somewhere: the id would be kept in each of them."""
    if one is other or one == other:
        return True
    if one.version is None or other.version is None:
        return one.version is other.version and one.kind == other.kind
    return one.version.object_id == other.version.object_id


def _above(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first, down to the root ("")."""
    while path:
        path = path.rpartition("/")[0]
        yield path


class Inodes:
    """The nodes of a mount. Thread-safe.

    Every change is handed to `record` in the order in which it happened, before the method returns. Whoever
    answers the kernel flushes the journal between the two.

    Args:
        state: what a journal restored.
        record: takes the journal's records (`Journal.add`). Called under the lock: it must not do I/O.
    """

    def __init__(self, state: State | None = None, record: Callable[[bytes], object] = nothing) -> None:
        state = state or State()
        self._lock = threading.Lock()
        self._record = record
        self._next = state.next_node
        root = Node(ROOT_ID, FileInfo("", "directory"))
        self._nodes = {ROOT_ID: root}
        self._names = {"": root}
        """What each path leads to."""
        self._older: dict[str, list[Node]] = {}
        """Nodes of a path that it does not lead to. Few: versions that were replaced while they were in use."""
        for node_id, entry in state.nodes.items():
            node = self._nodes[node_id] = Node(node_id, entry.info, entry.references)
            if entry.current:
                self._names[entry.info.path] = node
            else:
                self._older.setdefault(entry.info.path, []).append(node)

    def __len__(self) -> int:
        """Number of nodes beside the root."""
        return len(self._nodes) - 1

    def get(self, node_id: int) -> Node:
        """The node of an id.

        Raises:
            StaleNodeError: there is none.
        """
        node = self._nodes.get(node_id)
        if node is None:
            raise _stale(node_id)
        return node

    def path_of(self, node_id: int) -> str:
        """Path inside the dataset; "" for the root.

        Raises:
            StaleNodeError: no node has that id.
        """
        return self.get(node_id).info.path

    def is_current(self, node_id: int) -> bool:
        """Whether the path of a node still leads to it: no later lookup told of another version, and no read found
        this one gone.

        Raises:
            StaleNodeError: no node has that id.
        """
        with self._lock:
            node = self.get(node_id)
            return self._names.get(node.info.path) is node and not node.gone

    def distrust(self, node_id: int) -> None:
        """The store does not have the version of this node any more. Whoever opens its path next has to look it up
        again, however long the last answer was to be believed. A node that nobody knows is let pass."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.gone = True

    def lookup(self, parent_id: int, info: FileInfo) -> Node:
        """The node of an entry, made if there is none of this version, with one reference more.

        Args:
            parent_id: the directory it is in.
            info: the entry.

        Raises:
            StaleNodeError: no node has the parent's id.
            ValueError: the entry is not one of that directory.
        """
        return self.lookup_all(parent_id, (info,))[0]

    def lookup_all(self, parent_id: int, infos: Sequence[FileInfo]) -> list[Node]:
        """`lookup` of many entries of one directory (READDIRPLUS), with one reference more to each."""
        with self._lock:
            parent = self.get(parent_id).info.path
            for info in infos:
                if info.path.rpartition("/")[0] != parent or not info.path:
                    raise ValueError(f"{info.path!r} is not an entry of {parent!r}")
            found: list[Node] = []
            known: list[int] = []
            for info in infos:
                node = self._find(info)
                if node is None:
                    node = self._make(info)
                else:
                    known.append(node.id)
                node.references += 1
                node.gone = False
                found.append(node)
            if known:
                self._record(referenced(known))
            return found

    def names_around(self, paths: Collection[str]) -> list[tuple[int, bytes]]:
        """The names at some paths, below them, and of the directories above them that the kernel may know, each once
        with each node of the directory it is in; the path "" is all.

        One pass over the names, however many paths there are, and not under the lock: those who look a name up would
        wait for it.
        """
        if not paths:
            return []
        with self._lock:
            nodes = list(self._nodes.values())
        above = {parent for path in paths for parent in _above(path)}
        below = dict.fromkeys(paths, True)  # whether a name is one of the paths, or lies below one
        below.setdefault("", False)
        directories: dict[str, list[int]] = {"": [ROOT_ID]}
        found: set[str] = set()
        for node in nodes:
            info = node.info
            if not info.path:
                continue
            if info.version is None:
                directories.setdefault(info.path, []).append(node.id)
            parent = info.path.rpartition("/")[0]
            if parent not in below:
                line = [parent, *takewhile(lambda one: one not in below, _above(parent))]
                below.update(dict.fromkeys(line, below[line[-1].rpartition("/")[0]]))
            if below[parent] or info.path in above or info.path in paths:
                found.add(info.path)
        return [
            (directory, name.encode(errors="surrogateescape"))
            for parent, _, name in (path.rpartition("/") for path in found)
            for directory in directories.get(parent, ())
        ]

    def forget(self, node_id: int, count: int = 1) -> None:
        """Give references back (FORGET). An id nobody knows is let pass: this request has no reply, and a node may
        have been lost with its journal. The root stays."""
        self.forget_all(((node_id, count),))

    def forget_all(self, counts: Iterable[tuple[int, int]]) -> None:
        """`forget` for pairs of node id and count (BATCH_FORGET)."""
        with self._lock:
            done: list[tuple[int, int]] = []
            for node_id, count in counts:
                node = self._nodes.get(node_id)
                if node is None or node_id == ROOT_ID:
                    continue
                count = min(count, node.references)
                node.references -= count
                done.append((node_id, count))
                self._drop_if_unused(node)
            if done:
                self._record(forgotten(done))

    def hold(self, node_id: int) -> Node:
        """Keep a node while a handle of it is open. Not recorded: the handles are.

        Raises:
            StaleNodeError: no node has that id.
        """
        with self._lock:
            node = self.get(node_id)
            node.holds += 1
            return node

    def unhold(self, node_id: int) -> None:
        """End one `hold`."""
        with self._lock:
            node = self.get(node_id)
            node.holds -= 1
            self._drop_if_unused(node)

    def snapshot(self, cut: Callable[[], object]) -> State:
        """A copy of all nodes (no handles), for the journal to be written anew.

        Args:
            cut: called while nothing can be recorded: records before it are in the copy, later ones are not.
        """
        with self._lock:
            cut()
            state = State(next_node=self._next)
            for node in self._nodes.values():
                current = self._names.get(node.info.path) is node
                state.nodes[node.id] = NodeEntry(node.info, node.references, current)
            del state.nodes[ROOT_ID]
            return state

    def _find(self, info: FileInfo) -> Node | None:
        path = info.path
        node = self._names.get(path)
        if node is not None and _same_version(node.info, info):
            if node.info is not info:
                # The newer object is the one the metadata cache holds: let the older one go, with its path.
                changed = node.info != info
                del self._names[path]
                self._names[path] = node
                node.info = info
                if changed:
                    self._record(node_made(node.id, info, 0))
            return node
        for older in self._older.get(path, ()):
            if _same_version(older.info, info):
                self._leave_older(older)
                self._supersede(node)
                self._names[path] = older
                older.info = info
                self._record(node_made(older.id, info, 0))
                return older
        self._supersede(node)
        return None

    def _make(self, info: FileInfo) -> Node:
        node = Node(self._next, info)
        self._next += 1
        self._nodes[node.id] = node
        self._names[info.path] = node
        self._record(node_made(node.id, info, 1))
        return node

    def _supersede(self, node: Node | None) -> None:
        if node is not None:
            del self._names[node.info.path]
            self._older.setdefault(node.info.path, []).append(node)

    def _leave_older(self, node: Node) -> None:
        others = self._older[node.info.path]
        others.remove(node)
        if not others:
            del self._older[node.info.path]

    def _drop_if_unused(self, node: Node) -> None:
        if node.references or node.holds or node.id == ROOT_ID:
            return
        del self._nodes[node.id]
        if self._names.get(node.info.path) is node:
            del self._names[node.info.path]
        else:
            self._leave_older(node)
