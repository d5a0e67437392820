"""Open files and directories, and the I/O mode of each inode.

The kernel keeps an inode in one I/O mode at a time (`fs/fuse/iomode.c`): while a file is open for passthrough,
every other open of its inode must be passthrough of the same backing file; while one is open through the page
cache, none may be passthrough. An open that breaks this fails in the program with EIO, so it is refused here,
before the kernel hears of it. A handle counts here from before its OPEN is answered until its RELEASE arrives,
which is longer than the kernel counts it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from raycache.errors import RaycacheError
from raycache.fuse.inodes import Inodes
from raycache.fuse.records import HandleEntry, Mode, State, nothing, opened, released


class BadHandleError(RaycacheError, OSError):
    """No handle has that number."""

    errno = errno.EBADF


class IoModeError(RaycacheError, OSError):
    """The inode is open in the other I/O mode. Decide again how to serve it."""

    errno = errno.EBUSY
    retryable = True


class Asked(NamedTuple):
    """What the kernel asked for with OPEN or OPENDIR."""

    flags: int
    """open(2) flags."""
    unique: int
    """Number of the request, without UNIQUE_RESEND."""


class Handle:
    """An open file or directory.

    Attributes:
        fh: 64 bit, never given out again while the mount lives.
        node_id: what is open.
        mode: "passthrough" or "cached"; a directory's is "cached".
        backing_id: the registered backing file (FUSE_DEV_IOC_BACKING_OPEN), 0 for none. It may be another than
            the one `open` was given: then that one is not needed, and the caller closes it.
        flags: open(2) flags of the request.
        directory: whether it is a directory.
        unique: number of the request; 0 if that is not known.
        restored: whether it was opened by a server before this one: its `state` has to be made again when it is
            first needed.
        state: what whoever serves it needs (a reader, a directory's listing). Not looked at here.
    """

    __slots__ = ("backing_id", "directory", "fh", "flags", "mode", "node_id", "restored", "state", "unique")

    def __init__(self, fh: int, entry: HandleEntry, *, restored: bool = False, state: Any = None) -> None:
        self.fh = fh
        self.node_id = entry.node_id
        self.mode: Mode = entry.mode
        self.backing_id = entry.backing_id
        self.flags = entry.flags
        self.directory = entry.directory
        self.unique = entry.unique
        self.restored = restored
        self.state = state

    def __repr__(self) -> str:
        return f"<Handle {self.fh} of node {self.node_id}, {self.mode}>"

    @property
    def entry(self) -> HandleEntry:
        """What the journal keeps of it."""
        return HandleEntry(self.node_id, self.mode, self.backing_id, self.flags, self.directory, self.unique)


class Released(NamedTuple):
    """What `Handles.release` leaves to the caller."""

    handle: Handle
    """Its `state` is the caller's to close."""
    backing_id: int | None
    """The backing file to close (FUSE_DEV_IOC_BACKING_CLOSE): no passthrough handle of the node is left."""


class _IoMode:
    """The files open on one node."""

    __slots__ = ("backing_id", "cached", "passthrough")

    def __init__(self) -> None:
        self.cached = 0
        self.passthrough = 0
        self.backing_id = 0


class Handles:
    """The handles of a mount. Thread-safe.

    Args:
        inodes: the nodes; those with an open handle are held there.
        state: what a journal restored, the same that `inodes` was made from.
        record: takes the journal's records (`Journal.add`). Called under the lock: it must not do I/O.
    """

    def __init__(
        self, inodes: Inodes, state: State | None = None, record: Callable[[bytes], object] = nothing
    ) -> None:
        state = state or State()
        self._lock = threading.Lock()
        self._inodes = inodes
        self._record = record
        self._next = state.next_handle
        self._handles: dict[int, Handle] = {}
        self._modes: dict[int, _IoMode] = {}
        self._asked = {entry.unique: fh for fh, entry in state.handles.items() if entry.unique}
        for fh, entry in state.handles.items():
            inodes.hold(entry.node_id)
            self._handles[fh] = handle = Handle(fh, entry, restored=True)
            self._count(handle)

    def __len__(self) -> int:
        """Number of open handles."""
        return len(self._handles)

    @property
    def entries(self) -> int:
        """Number of nodes and handles: what the journal has to keep."""
        return len(self._inodes) + len(self._handles)

    def all(self) -> list[Handle]:
        """All handles that are open now."""
        with self._lock:
            return list(self._handles.values())

    def get(self, fh: int) -> Handle:
        """The handle of a number.

        Raises:
            BadHandleError: there is none.
        """
        handle = self._handles.get(fh)
        if handle is None:
            raise BadHandleError("no open file has this handle", where=f"handle {fh}")
        return handle

    def opened_for(self, unique: int) -> Handle | None:
        """The handle that a server before this one opened for a request; None if there is none. If the kernel asks
        again, it has not heard of it: the answer is that handle, for nobody would ever release it otherwise.

        Args:
            unique: number of the request, without UNIQUE_RESEND.
        """
        return self._handles.get(self._asked.get(unique, 0))

    def may_passthrough(self, node_id: int) -> bool:
        """Whether a passthrough open of a node is allowed now: no cached handle of it is open. Another thread may
        change that; `open` decides."""
        io_mode = self._modes.get(node_id)
        return io_mode is None or io_mode.cached == 0

    def backing_of(self, node_id: int) -> int | None:
        """The backing file that every open of a node has to share now; None if it is not open for passthrough.
        It may be released any moment: `open` with no backing id shares it safely."""
        io_mode = self._modes.get(node_id)
        return io_mode.backing_id or None if io_mode else None

    def open(
        self,
        node_id: int,
        mode: Mode = "cached",
        *,
        backing_id: int = 0,
        flags: int = 0,
        directory: bool = False,
        unique: int = 0,
        state: Any = None,
    ) -> Handle:
        """A new handle. The node is held until it is released.

        Args:
            node_id: what is opened.
            mode: how it is served.
            backing_id: for passthrough, the backing file that was registered for it. If the node has one already,
                the handle has that one: compare, and close yours. 0 shares the one the node has.
            flags: open(2) flags.
            directory: whether it is a directory.
            unique: number of the request that asks for it, without UNIQUE_RESEND.
            state: see `Handle`.

        Raises:
            StaleNodeError: no node has that id.
            IoModeError: the node is open in the other mode, or there is no backing file to share. Nothing was
                opened, and a backing file that was registered for it is the caller's to close.
        """
        if (mode == "cached" and backing_id) or (mode == "passthrough" and directory):
            raise ValueError(f"{mode}, backing id {backing_id}, directory {directory}")
        self._inodes.hold(node_id)
        try:
            with self._lock:
                entry = self._admit(HandleEntry(node_id, mode, backing_id, flags, directory, unique))
                handle = Handle(self._next, entry, state=state)
                self._next += 1
                self._handles[handle.fh] = handle
                self._count(handle)
                self._record(opened(handle.fh, entry))
        except IoModeError:
            self._inodes.unhold(node_id)
            raise
        return handle

    def release(self, fh: int) -> Released:
        """End a handle (RELEASE, RELEASEDIR).

        Close the backing file it returns before the journal is flushed: should the server die in between, its
        successor tries again, and the kernel says ENOENT, which does no harm. The other way round it would stay
        registered, and its object in the store, until the mount ends.

        Raises:
            BadHandleError: no handle has that number.
        """
        with self._lock:
            handle = self.get(fh)
            del self._handles[fh]
            backing_id = self._uncount(handle)
            self._record(released(fh))
        self._inodes.unhold(handle.node_id)
        return Released(handle, backing_id)

    def snapshot(self, cut: Callable[[], object]) -> State:
        """A copy of all nodes and handles; see `Inodes.snapshot`."""
        with self._lock:
            state = self._inodes.snapshot(cut)
            state.next_handle = self._next
            state.handles = {fh: handle.entry for fh, handle in self._handles.items()}
            return state

    def _admit(self, entry: HandleEntry) -> HandleEntry:
        """The entry as the kernel will take it. Raises IoModeError if it would not."""
        io_mode = self._modes.get(entry.node_id)
        if entry.directory:
            return entry
        if io_mode is None:
            if entry.mode == "passthrough" and not entry.backing_id:
                raise IoModeError("no backing file to share", where=f"node {entry.node_id}")
            return entry
        if entry.mode == "passthrough" and io_mode.cached:
            raise IoModeError("open through the page cache", where=f"node {entry.node_id}")
        if entry.mode == "cached" and io_mode.passthrough:
            raise IoModeError("open for passthrough", where=f"node {entry.node_id}")
        return entry._replace(backing_id=io_mode.backing_id)

    def _count(self, handle: Handle) -> None:
        if handle.directory:
            return
        io_mode = self._modes.setdefault(handle.node_id, _IoMode())
        if handle.mode == "passthrough":
            io_mode.passthrough += 1
            io_mode.backing_id = handle.backing_id
        else:
            io_mode.cached += 1

    def _uncount(self, handle: Handle) -> int | None:
        if handle.directory:
            return None
        io_mode = self._modes[handle.node_id]
        if handle.mode == "passthrough":
            io_mode.passthrough -= 1
        else:
            io_mode.cached -= 1
        if io_mode.passthrough or io_mode.cached:
            return None
        del self._modes[handle.node_id]
        return handle.backing_id or None
