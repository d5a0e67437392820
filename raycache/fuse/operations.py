"""One method per operation of the kernel: a request in, a reply out.

What changes the tables is in the journal before its reply is written. Whatever would write is refused with EROFS;
what does not exist here with ENOSYS, which the kernel takes once and for all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from raycache.errors import ReadOnlyError, StaleObjectError
from raycache.fuse.attributes import Xattrs
from raycache.fuse.handles import Asked, Handle, Handles
from raycache.fuse.inodes import Inodes, StaleNodeError
from raycache.fuse.journal import Journal
from raycache.fuse.protocol import (
    UNIQUE_RESEND,
    Access,
    BatchForget,
    Forget,
    GetXattr,
    InitRequest,
    ListXattr,
    Lookup,
    Negotiated,
    Opcode,
    OpenRequest,
    Read,
    Release,
    Request,
    negotiate,
    replies,
)
from raycache.fuse.protocol.negotiation import Wanted
from raycache.fuse.serving import Serving
from raycache.fuse.session import Deferred, Reply
from raycache.fuse.tree import Tree

SIZE = 1 << 50
"""Bytes that statfs(2) tells: an object store is as large as one likes."""

_WRITES = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
        Opcode.COPY_FILE_RANGE_64,
        Opcode.TMPFILE,
    }
)

Answer = Reply | Deferred | None


class Operations:
    """The handler of a session.

    Args:
        tree: answers about names.
        serving: opens and reads files.
        xattrs: answers about extended attributes.
        inodes: the mount's nodes.
        handles: the mount's open files and directories.
        journal: where their changes are kept.
        agreed: called with what INIT agreed on.
        passthrough: why passthrough is not to be asked for; "" to ask.
    """

    def __init__(
        self,
        tree: Tree,
        serving: Serving,
        xattrs: Xattrs,
        inodes: Inodes,
        handles: Handles,
        journal: Journal,
        *,
        agreed: Callable[[Negotiated], None],
        passthrough: str = "",
    ) -> None:
        self._tree = tree
        self._serving = serving
        self._xattrs = xattrs
        self._inodes = inodes
        self._handles = handles
        self._journal = journal
        self._agreed = agreed
        self._no_passthrough = passthrough
        # Keyed by plain numbers: hashing an enum's member costs more than all the rest of the look-up.
        self._by_opcode: dict[int, Callable[[Request], Answer]] = {
            int(opcode): method
            for opcode, method in {
                Opcode.INIT: self._init,
                Opcode.LOOKUP: self._lookup,
                Opcode.FORGET: self._forget,
                Opcode.BATCH_FORGET: self._forget,
                Opcode.GETATTR: lambda request: self._tree.attributes(request.nodeid),
                Opcode.STATX: lambda request: self._tree.statx(request.nodeid),
                Opcode.OPEN: self._open,
                Opcode.READ: self._read,
                Opcode.RELEASE: self._release,
                Opcode.OPENDIR: self._opendir,
                Opcode.READDIR: self._readdir,
                Opcode.READDIRPLUS: self._readdir,
                Opcode.RELEASEDIR: self._release,
                Opcode.STATFS: lambda request: replies.statfs(SIZE, SIZE),
                Opcode.GETXATTR: self._getxattr,
                Opcode.LISTXATTR: self._listxattr,
                Opcode.ACCESS: self._access,
                Opcode.DESTROY: lambda request: b"",
            }.items()
        }

    def __call__(self, request: Request) -> Answer:
        """Serve a request. Raises RaycacheError and OSError, whose errno is the answer."""
        method = self._by_opcode.get(request.opcode)
        if method is None:
            raise _refusal(request.opcode)
        answer = method(request)
        if request.opcode == Opcode.READ:
            return answer  # changes nothing
        if not isinstance(answer, Deferred):
            self._journal.flush()
            return answer
        call, undo = answer.call, answer.undo

        def later() -> Reply | None:
            reply = call()
            self._journal.flush()
            return reply

        def take_back() -> None:
            if undo is not None:
                undo()
            self._journal.flush()

        return Deferred(later, take_back)

    def _init(self, request: Request) -> Answer:
        assert isinstance(request.body, InitRequest)
        agreed = negotiate(request.body, Wanted(passthrough=not self._no_passthrough))
        if agreed.minor:
            self._agreed(agreed)
        return agreed.reply

    def _lookup(self, request: Request) -> Answer:
        assert isinstance(request.body, Lookup)
        return self._tree.lookup(request.nodeid, request.body.name)

    def _forget(self, request: Request) -> Answer:
        if isinstance(request.body, BatchForget):
            self._inodes.forget_all(request.body.forgets)
        elif isinstance(request.body, Forget):
            self._inodes.forget(request.nodeid, request.body.references)
        return None

    def _open(self, request: Request) -> Answer:
        assert isinstance(request.body, OpenRequest)
        flags = request.body.flags
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise ReadOnlyError("the filesystem is read-only")
        again = self._opened_before(request)
        if again is not None:
            return self._serving.open_again(again)
        node = self._inodes.get(request.nodeid)
        if not self._inodes.is_current(node.id):
            # A later look-up found another version. The VFS hears ESTALE and looks the path up again.
            raise StaleNodeError("the file has been replaced", where=node.info.path)
        return self._serving.open(node, Asked(flags, request.unique & ~UNIQUE_RESEND))

    def _opened_before(self, request: Request) -> Handle | None:
        """What a server that died has opened for a request, if the kernel never heard of it."""
        if not request.resent:
            return None
        handle = self._handles.opened_for(request.unique & ~UNIQUE_RESEND)
        return handle if handle is not None and handle.node_id == request.nodeid else None

    def _read(self, request: Request) -> Answer:
        body = request.body
        assert isinstance(body, Read)
        node = self._inodes.get(request.nodeid)
        answer = self._serving.read(self._handles.get(body.fh), node, body.offset, body.size)
        if not isinstance(answer, Deferred):
            return answer
        call = answer.call

        def later() -> Reply | None:
            try:
                return call()
            except StaleObjectError:
                self._inodes.distrust(node.id)
                raise

        return Deferred(later, answer.undo)

    def _release(self, request: Request) -> Answer:
        assert isinstance(request.body, Release)
        if request.opcode == Opcode.RELEASE:
            return self._serving.release(request.body.fh)
        self._tree.release_directory(request.body.fh)
        return b""

    def _opendir(self, request: Request) -> Answer:
        assert isinstance(request.body, OpenRequest)
        again = self._opened_before(request)
        if again is not None:
            return self._tree.open_directory_again(again)
        asked = Asked(request.body.flags, request.unique & ~UNIQUE_RESEND)
        return self._tree.open_directory(self._inodes.get(request.nodeid), asked)

    def _readdir(self, request: Request) -> Answer:
        body = request.body
        assert isinstance(body, Read)
        return self._tree.read_directory(
            self._inodes.get(request.nodeid),
            self._handles.get(body.fh),
            body.offset,
            body.size,
            plus=request.opcode == Opcode.READDIRPLUS,
        )

    def _getxattr(self, request: Request) -> Answer:
        assert isinstance(request.body, GetXattr)
        return self._xattrs.get(self._inodes.get(request.nodeid), request.body.name, request.body.size)

    def _listxattr(self, request: Request) -> Answer:
        assert isinstance(request.body, ListXattr)
        return self._xattrs.list(self._inodes.get(request.nodeid), request.body.size)

    def _access(self, request: Request) -> Answer:
        assert isinstance(request.body, Access)
        if request.body.mask & os.W_OK:
            raise ReadOnlyError("the filesystem is read-only")
        self._inodes.get(request.nodeid)
        return b""


def _refusal(opcode: int) -> OSError:
    if opcode in _WRITES:
        return ReadOnlyError("the filesystem is read-only")
    code = errno.ENOTTY if opcode == Opcode.IOCTL else errno.ENOSYS
    return OSError(code, os.strerror(code))
