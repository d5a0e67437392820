"""What the journal's records say, as bytes: nodes made, referenced and forgotten, handles opened and released.

A record is a length (of what follows the kind), a CRC-32 (of the kind and what follows it), a kind and a payload,
little-endian. References are counted as differences, and ids are never used twice. So the order in which
threads' records come matters only for what a name leads to, and a replay may sum up first and drop what nobody
holds at its end.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple
from zlib import crc32

from raycache.blocks import FileInfo, ObjectVersion

ROOT_ID = 1
"""The root's node id, FUSE_ROOT_ID of the kernel's include/uapi/linux/fuse.h. It is in no record."""

Mode = Literal["passthrough", "cached"]
"""How a handle is read: by the kernel from a backing file (FOPEN_PASSTHROUGH), or from us through the page cache."""

_FORMAT = 1
"""Layout of the records. A file of another layout restores nothing."""

_HEAD = struct.Struct("<II")
_START = struct.Struct("<BQQQ")
_NODE = struct.Struct("<QQB5I")
_VERSION = struct.Struct("<QqQ")
_OPENED = struct.Struct("<QQIIB")

START, NODE, REFERENCED, FORGOTTEN, OPENED, RELEASED, ASKED = range(1, 8)

_DIRECTORY, _HAS_VERSION, _SAME_PATH, _PREFIX, _SUPERSEDED = 1, 2, 4, 8, 16
_PASSTHROUGH, _OF_DIRECTORY = 1, 2


class NodeEntry(NamedTuple):
    """A node as the journal knows it."""

    info: FileInfo
    """Path and version."""
    references: int
    """Lookups the kernel has not forgotten."""
    current: bool
    """Whether the path leads to it; not so for a version that another one has replaced."""


class HandleEntry(NamedTuple):
    """An open file or directory as the journal knows it."""

    node_id: int
    mode: Mode
    backing_id: int
    """What FUSE_DEV_IOC_BACKING_OPEN returned; 0 for none."""
    flags: int
    """open(2) flags of the request."""
    directory: bool
    unique: int = 0
    """Number of the request that it was opened for: the kernel sends it again if the answer never came to it."""


@dataclass
class State:
    """All nodes and handles that are alive, and the ids to give out next."""

    nodes: dict[int, NodeEntry] = field(default_factory=dict)
    handles: dict[int, HandleEntry] = field(default_factory=dict)
    next_node: int = ROOT_ID + 1
    next_handle: int = 1
    generation: int = 0
    """How many servers of this mount came before."""


def _record(kind: int, payload: bytes) -> bytes:
    body = bytes((kind,)) + payload
    return _HEAD.pack(len(payload), crc32(body)) + body


def node_made(node_id: int, info: FileInfo, references: int, *, current: bool = True) -> bytes:
    """The record of a node: new, or with news of the same version, or leading its path again.

    Args:
        node_id: the node.
        info: its path and version.
        references: how many references to add.
        current: whether the path leads to it from now on.
    """
    flags = (_DIRECTORY if info.kind == "directory" else 0) | (0 if current else _SUPERSEDED)
    path = info.path.encode("utf-8", "surrogatepass")
    version = info.version
    if version is None:
        return _record(NODE, _NODE.pack(node_id, references, flags, len(path), 0, 0, 0, 0) + path)
    # A version's path is the entry's, and an object's address mostly ends with it: said once.
    own, store = version.path, version.store
    if own == info.path:
        own, flags = "", flags | _SAME_PATH
    if store.endswith(info.path):
        store, flags = store[: len(store) - len(info.path)], flags | _PREFIX
    texts = (own, version.dataset, store, version.etag)
    parts = [path, *(text.encode("utf-8", "surrogatepass") for text in texts)]
    head = _NODE.pack(node_id, references, flags | _HAS_VERSION, *map(len, parts))
    numbers = _VERSION.pack(version.size, version.mtime_ns, version.block_size)
    return _record(NODE, head + b"".join(parts) + numbers)


def referenced(node_ids: Sequence[int]) -> bytes:
    """The record of one more reference to each of these nodes."""
    return _record(REFERENCED, struct.pack(f"<{len(node_ids)}Q", *node_ids))


def forgotten(counts: Sequence[tuple[int, int]]) -> bytes:
    """The record of references given back: pairs of node id and how many."""
    return _record(FORGOTTEN, struct.pack(f"<{2 * len(counts)}Q", *chain.from_iterable(counts)))


def opened(fh: int, handle: HandleEntry) -> bytes:
    """The record of an open file or directory."""
    flags = (_PASSTHROUGH if handle.mode == "passthrough" else 0) | (_OF_DIRECTORY if handle.directory else 0)
    record = _record(OPENED, _OPENED.pack(fh, handle.node_id, handle.backing_id, handle.flags, flags))
    return record + _record(ASKED, struct.pack("<QQ", fh, handle.unique)) if handle.unique else record


def released(fh: int) -> bytes:
    """The record of a handle that is no more."""
    return _record(RELEASED, struct.pack("<Q", fh))


def nothing(record: bytes) -> None:
    """Where records go that nobody keeps."""


def encode(state: State) -> bytes:
    """Records that replay to this state."""
    start = _START.pack(_FORMAT, state.generation, state.next_node, state.next_handle)
    parts = [_record(START, start)]
    parts += (
        node_made(node_id, node.info, node.references, current=node.current)
        for node_id, node in state.nodes.items()
    )
    parts += (opened(fh, handle) for fh, handle in state.handles.items())
    return b"".join(parts)


def decode(data: bytes) -> tuple[State, int]:
    """The state that records lead to, and how many bytes of them could be read.

    It ends, without an error, at the first record that is torn, corrupt or of an unknown kind or layout.
    """
    replay = _Replay()
    end = 0
    for kind, payload, next_end in _records(data):
        if (end == 0) != (kind == START):
            break
        try:
            replay.apply(kind, payload)
        except (struct.error, ValueError):
            break  # its CRC is right: another program's, or another layout
        end = next_end
    return replay.finish(), end


def _records(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    at = 0
    while at + _HEAD.size < len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + 1 + length
        body = data[at + _HEAD.size : end]
        if end > len(data) or crc32(body) != checksum:
            return
        yield body[0], body[1:], end
        at = end


class _Replay:
    """Sums records up. Nothing is dropped before the end: a thread's record of a reference may come after the
    record of another's forgetting the same node."""

    def __init__(self) -> None:
        self._state = State()
        self._infos: dict[int, FileInfo] = {}
        self._references: dict[int, int] = {}
        self._leads: dict[str, int] = {}

    def apply(self, kind: int, payload: bytes) -> None:
        state = self._state
        if kind == NODE:
            node_id, references, info, current = _node(payload)
            self._infos[node_id] = info
            self._count(node_id, references)
            if current:
                self._leads[info.path] = node_id
            state.next_node = max(state.next_node, node_id + 1)
        elif kind == REFERENCED:
            for node_id in _numbers(payload):
                self._count(node_id, 1)
        elif kind == FORGOTTEN:
            numbers = _numbers(payload)
            for node_id, count in zip(numbers[::2], numbers[1::2], strict=True):
                self._count(node_id, -count)
        elif kind == OPENED:
            fh, node_id, backing_id, open_flags, flags = _OPENED.unpack(payload)
            mode: Mode = "passthrough" if flags & _PASSTHROUGH else "cached"
            state.handles[fh] = HandleEntry(
                node_id, mode, backing_id, open_flags, bool(flags & _OF_DIRECTORY)
            )
            state.next_handle = max(state.next_handle, fh + 1)
        elif kind == ASKED:
            fh, unique = _numbers(payload)
            if fh in state.handles:
                state.handles[fh] = state.handles[fh]._replace(unique=unique)
        elif kind == RELEASED:
            for fh in _numbers(payload):
                state.handles.pop(fh, None)
        elif kind == START:
            layout, generation, next_node, next_handle = _START.unpack(payload)
            if layout != _FORMAT:
                raise ValueError(layout)
            state.generation, state.next_node, state.next_handle = generation, next_node, next_handle
        else:
            raise ValueError(kind)

    def finish(self) -> State:
        state = self._state
        held = {handle.node_id for handle in state.handles.values()}
        for node_id, info in self._infos.items():
            references = max(self._references[node_id], 0)
            if references or node_id in held:
                current = self._leads.get(info.path) == node_id
                state.nodes[node_id] = NodeEntry(info, references, current)
        known = state.nodes.keys() | {ROOT_ID}
        state.handles = {fh: handle for fh, handle in state.handles.items() if handle.node_id in known}
        return state

    def _count(self, node_id: int, difference: int) -> None:
        self._references[node_id] = self._references.get(node_id, 0) + difference


def _numbers(payload: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(payload) // 8}Q", payload)


def _node(payload: bytes) -> tuple[int, int, FileInfo, bool]:
    node_id, references, flags, *lengths = _NODE.unpack_from(payload)
    path, own, dataset, store, etag = _strings(payload, _NODE.size, lengths)
    version = None
    if flags & _HAS_VERSION:
        size, mtime_ns, block_size = _VERSION.unpack(payload[_NODE.size + sum(lengths) :])
        version = ObjectVersion(
            dataset=sys.intern(dataset),
            path=path if flags & _SAME_PATH else own,
            store=store + path if flags & _PREFIX else store,
            size=size,
            etag=etag,
            mtime_ns=mtime_ns,
            block_size=block_size,
        )
    kind: Literal["file", "directory"] = "directory" if flags & _DIRECTORY else "file"
    return node_id, references, FileInfo(path, kind, version), not flags & _SUPERSEDED


def _strings(payload: bytes, at: int, lengths: Iterable[int]) -> Iterator[str]:
    for length in lengths:
        yield payload[at : at + length].decode("utf-8", "surrogatepass")
        at += length
