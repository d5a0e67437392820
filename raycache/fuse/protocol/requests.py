"""Requests: one message read from /dev/fuse, as a `Request`."""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple, TypeAlias

from raycache.errors import RaycacheError
from raycache.fuse.protocol.constants import GETATTR_FH, UNIQUE_RESEND, Opcode

Buffer: TypeAlias = bytes | bytearray | memoryview


class ProtocolError(RaycacheError, ValueError):
    """A message that is not what the protocol says it is. It can be answered (`errno`) if `unique` is not None."""

    errno = errno.EIO

    def __init__(
        self, what: str, *, where: str = "a FUSE request", hint: str = "", unique: int | None = None
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.unique = unique


class InitRequest(NamedTuple):
    """INIT: the kernel's versions and what it can. `flags` has the 64 bits of flags and flags2 (see `Init`)."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Lookup(NamedTuple):
    """LOOKUP of a name, one component without `/`, in the directory `nodeid`."""

    name: bytes


class Forget(NamedTuple):
    """FORGET: give back so many references of `nodeid`. Not to be answered."""

    references: int


class BatchForget(NamedTuple):
    """BATCH_FORGET: as many (node id, references). Not to be answered."""

    forgets: tuple[tuple[int, int], ...]


class GetAttr(NamedTuple):
    """GETATTR, through the handle `fh` if there is one."""

    fh: int | None


class OpenRequest(NamedTuple):
    """OPEN or OPENDIR with the flags of open(2)."""

    flags: int


class Read(NamedTuple):
    """READ of `size` bytes from `offset`; READDIR and READDIRPLUS: up to `size` bytes, from entry `offset` on.
    `flags` are the handle's flags of open(2)."""

    fh: int
    offset: int
    size: int
    flags: int


class Release(NamedTuple):
    """RELEASE or RELEASEDIR of a handle: the last to hear of it."""

    fh: int
    flags: int


class GetXattr(NamedTuple):
    """GETXATTR: room for `size` bytes; 0 asks for the size."""

    size: int
    name: bytes


class ListXattr(NamedTuple):
    """LISTXATTR: room for `size` bytes; 0 asks for the size."""

    size: int


class Access(NamedTuple):
    """ACCESS with the mask of access(2)."""

    mask: int


class Interrupt(NamedTuple):
    """INTERRUPT of the request with this `unique` (all 64 bits)."""

    unique: int


class Flush(NamedTuple):
    """FLUSH: one of the handle's descriptors was closed."""

    fh: int


class Lseek(NamedTuple):
    """LSEEK: SEEK_DATA or SEEK_HOLE, the others the kernel does itself."""

    fh: int
    offset: int
    whence: int


class Statx(NamedTuple):
    """STATX, through the handle `fh` if there is one; `flags` and `mask` are statx(2)'s."""

    fh: int | None
    flags: int
    mask: int


Body: TypeAlias = (
    InitRequest
    | Lookup
    | Forget
    | BatchForget
    | GetAttr
    | OpenRequest
    | Read
    | Release
    | GetXattr
    | ListXattr
    | Access
    | Interrupt
    | Flush
    | Lseek
    | Statx
)


class Request(NamedTuple):
    """One request.

    Attributes:
        opcode: an `Opcode`, or a number that this package does not know.
        unique: names the request in its reply; all 64 bits, with UNIQUE_RESEND where the kernel set it.
        nodeid: the node it is about; 0 where it is about none.
        uid, gid, pid: who asks, as the mount's namespaces number them; 0 for what the kernel asks by itself.
        resent: handed out before, to a server that may have served it and died before its reply.
        body: by opcode; None for those without one (STATFS, DESTROY) and those that only write.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    resent: bool
    body: Body | None


# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding.
_HEADER = Struct("=IIQQIII4x")
HEADER_SIZE = _HEADER.size
_UNIQUE = Struct("=8xQ")

_INIT = Struct("=IIII")
_FLAGS2 = Struct("=I")
_U32 = Struct("=I4x")
_U64 = Struct("=Q")
_FORGET_ONE = Struct("=QQ")
_GETATTR = Struct("=I4xQ")
_READ = Struct("=QQI4x8xI4x")  # fh, offset, size, read_flags, lock_owner, flags, padding
_RELEASE = Struct("=QI4x8x")  # fh, flags, release_flags, lock_owner
_FLUSH = Struct("=Q8x8x")  # fh, unused, padding, lock_owner
_LSEEK = Struct("=QQI4x")
_STATX = Struct("=I4xQII")


class _BadBody(Exception):
    pass


def _init(data: Buffer, end: int) -> InitRequest:
    major, minor, readahead, flags = _INIT.unpack_from(data, HEADER_SIZE)
    after = HEADER_SIZE + _INIT.size
    if end >= after + 4:  # flags2 came with 7.36
        flags |= _FLAGS2.unpack_from(data, after)[0] << 32
    return InitRequest(major, minor, readahead, flags)


def _name(data: Buffer, start: int, end: int) -> bytes:
    text = bytes(data[start:end])
    name = text[:-1]
    if text[-1:] != b"\0" or not name or b"\0" in name or b"/" in name:
        raise _BadBody("a name that is empty, has no end, or contains '/'")
    return name


def _lookup(data: Buffer, end: int) -> Lookup:
    return Lookup(_name(data, HEADER_SIZE, end))


def _forget(data: Buffer, end: int) -> Forget:
    return Forget(*_U64.unpack_from(data, HEADER_SIZE))


def _batch_forget(data: Buffer, end: int) -> BatchForget:
    start = HEADER_SIZE + _U32.size
    stop = start + _U32.unpack_from(data, HEADER_SIZE)[0] * _FORGET_ONE.size
    if stop > end:
        raise _BadBody("fewer entries than its count says")
    return BatchForget(tuple(_FORGET_ONE.iter_unpack(data[start:stop])))


def _getattr(data: Buffer, end: int) -> GetAttr:
    flags, fh = _GETATTR.unpack_from(data, HEADER_SIZE)
    return GetAttr(fh if flags & GETATTR_FH else None)


def _open(data: Buffer, end: int) -> OpenRequest:
    return OpenRequest(*_U32.unpack_from(data, HEADER_SIZE))


def _read(data: Buffer, end: int) -> Read:
    return Read(*_READ.unpack_from(data, HEADER_SIZE))


def _release(data: Buffer, end: int) -> Release:
    return Release(*_RELEASE.unpack_from(data, HEADER_SIZE))


def _getxattr(data: Buffer, end: int) -> GetXattr:
    (size,) = _U32.unpack_from(data, HEADER_SIZE)
    text = bytes(data[HEADER_SIZE + _U32.size : end])
    if len(text) < 2 or text.find(b"\0") != len(text) - 1:  # unlike a file's, this name may contain '/'
        raise _BadBody("an attribute's name that is empty or has no end")
    return GetXattr(size, text[:-1])


def _listxattr(data: Buffer, end: int) -> ListXattr:
    return ListXattr(*_U32.unpack_from(data, HEADER_SIZE))


def _access(data: Buffer, end: int) -> Access:
    return Access(*_U32.unpack_from(data, HEADER_SIZE))


def _interrupt(data: Buffer, end: int) -> Interrupt:
    return Interrupt(*_U64.unpack_from(data, HEADER_SIZE))


def _flush(data: Buffer, end: int) -> Flush:
    return Flush(*_FLUSH.unpack_from(data, HEADER_SIZE))


def _lseek(data: Buffer, end: int) -> Lseek:
    return Lseek(*_LSEEK.unpack_from(data, HEADER_SIZE))


def _statx(data: Buffer, end: int) -> Statx:
    getattr_flags, fh, flags, mask = _STATX.unpack_from(data, HEADER_SIZE)
    return Statx(fh if getattr_flags & GETATTR_FH else None, flags, mask)


# How to read a body, and the bytes it has at least. A kernel newer than this package may send more: its structures
# only ever grow at the end.
_BODIES: dict[int, tuple[Callable[[Buffer, int], Body], int]] = {
    Opcode.INIT: (_init, _INIT.size),
    Opcode.LOOKUP: (_lookup, 2),
    Opcode.FORGET: (_forget, _U64.size),
    Opcode.BATCH_FORGET: (_batch_forget, _U32.size),
    Opcode.GETATTR: (_getattr, _GETATTR.size),
    Opcode.OPEN: (_open, _U32.size),
    Opcode.OPENDIR: (_open, _U32.size),
    Opcode.READ: (_read, _READ.size),
    Opcode.READDIR: (_read, _READ.size),
    Opcode.READDIRPLUS: (_read, _READ.size),
    Opcode.RELEASE: (_release, _RELEASE.size),
    Opcode.RELEASEDIR: (_release, _RELEASE.size),
    Opcode.GETXATTR: (_getxattr, _U32.size + 2),
    Opcode.LISTXATTR: (_listxattr, _U32.size),
    Opcode.ACCESS: (_access, _U32.size),
    Opcode.INTERRUPT: (_interrupt, _U64.size),
    Opcode.FLUSH: (_flush, _FLUSH.size),
    Opcode.LSEEK: (_lseek, _LSEEK.size),
    Opcode.STATX: (_statx, _STATX.size),
}
# Keyed by plain numbers: hashing an enum's member costs more than all the rest of the look-up.
_BODIES = {int(opcode): entry for opcode, entry in _BODIES.items()}


def parse(data: Buffer) -> Request:
    """The request in `data`: exactly what one read(2) of the device gave. Nothing of `data` is kept.

    Raises:
        ProtocolError: shorter or longer than its header says, or with a body that is no such request's.
    """
    size = len(data)
    if size < HEADER_SIZE:
        unique = _UNIQUE.unpack_from(data)[0] if size >= _UNIQUE.size else None
        raise ProtocolError(f"{size} bytes are no request", unique=unique)
    length, opcode, unique, nodeid, uid, gid, pid = _HEADER.unpack_from(data)
    if length != size:
        raise ProtocolError(f"operation {opcode}: {size} bytes, and its header says {length}", unique=unique)
    found = _BODIES.get(opcode)
    body: Body | None = None
    if found is not None:
        read, smallest = found
        if size < HEADER_SIZE + smallest:
            raise ProtocolError(f"operation {opcode}: a body of {size - HEADER_SIZE} bytes", unique=unique)
        try:
            body = read(data, size)
        except _BadBody as error:
            raise ProtocolError(f"operation {opcode}: {error}", unique=unique) from None
    return Request(opcode, unique, nodeid, uid, gid, pid, unique >= UNIQUE_RESEND, body)
