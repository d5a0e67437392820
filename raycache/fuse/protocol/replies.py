"""Replies and notifications. A reply is a body, made here, behind a `header`; a notification is whole."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from raycache.fuse.protocol.constants import (
    EXPIRE_ONLY,
    NAME_MAX,
    STATX_BASIC_STATS,
    Notify,
)

FOREVER_S = 1 << 31
"""The longest timeout told, seconds: 68 years, which every kernel's counter of jiffies can hold."""

_NS = 1_000_000_000
_U32_MAX = 0xFFFFFFFF
_U64_MAX = 0xFFFFFFFFFFFFFFFF
_ERRNO_MAX = 511
_EIO = 5

_HEADER = Struct("=IiQ")  # struct fuse_out_header: len, error, unique
HEADER_SIZE = _HEADER.size
# struct fuse_attr: ino size blocks atime mtime ctime | atimensec mtimensec ctimensec mode nlink uid gid rdev
# blksize flags
_ATTR = Struct("=6Q10I")
_ENTRY = Struct("=QQQQII")  # struct fuse_entry_out less attr: nodeid generation entry_valid attr_valid …nsec
_ATTR_OUT = Struct("=QI4x")  # struct fuse_attr_out less attr
_OPEN = Struct("=QIi")  # struct fuse_open_out: fh open_flags backing_id
_STATFS = Struct(
    "=QQQQQIII4x24x"
)  # struct fuse_kstatfs: blocks bfree bavail files ffree bsize namelen frsize
_XATTR = Struct("=I4x")
_LSEEK = Struct("=Q")
# struct fuse_statx_out: attr_valid attr_valid_nsec flags spare[2], and struct fuse_statx: mask blksize attributes
# nlink uid gid mode spare | ino size blocks attributes_mask | atime btime ctime mtime (sec nsec reserved) | rdev dev
# spare[14]
_STATX = Struct("=QII16xIIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
_DIRENT = Struct("=QQII")  # struct fuse_dirent less name: ino off namelen type
_INVAL_INODE = Struct("=Qqq")
_INVAL_ENTRY = Struct("=QII")

ENTRY_SIZE = _ENTRY.size + _ATTR.size
"""Bytes of struct fuse_entry_out."""

NO_ENTRY = bytes(ENTRY_SIZE)
"""The entry of a name in READDIRPLUS that is only listed, not looked up (`.`, `..`): it counts no reference."""


class Attr(NamedTuple):
    """A node's attributes: sizes in bytes, times in nanoseconds since 1970; `mode` with the type of file."""

    ino: int
    size: int
    mode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    ctime_ns: int = 0
    blksize: int = 4096

    @property
    def blocks(self) -> int:
        """Blocks of 512 bytes, as if nothing were sparse."""
        return -(-self.size // 512)


def _split(seconds: float) -> tuple[int, int]:
    """A timeout as whole seconds and nanoseconds; what is negative or no number is no time at all."""
    if not seconds > 0:
        return 0, 0
    if seconds >= FOREVER_S:
        return FOREVER_S, 0
    whole = int(seconds)
    return whole, min(int((seconds - whole) * _NS), _NS - 1)


def _pack_attr(attr: Attr) -> bytes:
    atime, atime_ns = divmod(attr.atime_ns, _NS)
    mtime, mtime_ns = divmod(attr.mtime_ns, _NS)
    ctime, ctime_ns = divmod(attr.ctime_ns, _NS)
    return _ATTR.pack(
        attr.ino,
        attr.size,
        attr.blocks,
        atime & _U64_MAX,  # the kernel takes them for signed
        mtime & _U64_MAX,
        ctime & _U64_MAX,
        atime_ns,
        mtime_ns,
        ctime_ns,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        0,
        attr.blksize,
        0,
    )


def header(unique: int, length: int, error: int = 0) -> bytes:
    """What stands before a reply's body.

    Args:
        unique: the request's, all 64 bits.
        length: bytes of the body.
        error: 0, or an errno (positive); the body is then empty.
    """
    return _HEADER.pack(HEADER_SIZE + length, -error, unique)


def error(unique: int, code: int | None) -> bytes:
    """A whole reply that says `code` (an errno). One that the kernel would not take is told as EIO."""
    if code is None or not 0 < code <= _ERRNO_MAX:
        code = _EIO
    return _HEADER.pack(HEADER_SIZE, -code, unique)


def entry(nodeid: int, attr: Attr, entry_s: float, attr_s: float, *, generation: int = 0) -> bytes:
    """LOOKUP: a node was found, and its reference is counted.

    Args:
        nodeid: the node's id, not 0.
        attr: its attributes.
        entry_s: how long the name may be used without another LOOKUP, seconds; `math.inf` for good.
        attr_s: how long the attributes may be, seconds.
        generation: tells two nodes apart that had the same id one after the other.
    """
    entry_whole, entry_ns = _split(entry_s)
    attr_whole, attr_ns = _split(attr_s)
    return _ENTRY.pack(nodeid, generation, entry_whole, attr_whole, entry_ns, attr_ns) + _pack_attr(attr)


def negative_entry(entry_s: float) -> bytes:
    """LOOKUP: there is no such name, and the kernel may remember that for `entry_s` seconds. No reference counts."""
    whole, ns = _split(entry_s)
    return _ENTRY.pack(0, 0, whole, 0, ns, 0) + bytes(_ATTR.size)


def attributes(attr: Attr, attr_s: float) -> bytes:
    """GETATTR: attributes that may be used for `attr_s` seconds."""
    return _ATTR_OUT.pack(*_split(attr_s)) + _pack_attr(attr)


def statx(attr: Attr, attr_s: float) -> bytes:
    """STATX: the fields that stat(2) has, no time of birth."""
    atime, mtime, ctime = (divmod(ns, _NS) for ns in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns))
    return _STATX.pack(
        *(*_split(attr_s), 0),
        *(STATX_BASIC_STATS, attr.blksize, 0, attr.nlink, attr.uid, attr.gid, attr.mode),
        *(attr.ino, attr.size, attr.blocks, 0),
        *(*atime, 0, 0, *ctime, *mtime),
        *(0, 0, 0, 0),
    )


def opened(fh: int, flags: int = 0, backing_id: int = 0) -> bytes:
    """OPEN and OPENDIR: a handle, `Open` flags, and for PASSTHROUGH the id of a registered backing file."""
    return _OPEN.pack(fh, flags, backing_id)


def statfs(
    size: int, available: int, *, files: int = 0, block: int = 4096, name_max: int = NAME_MAX
) -> bytes:
    """STATFS: bytes of the file system and bytes available, told in blocks of `block` bytes; number of files."""
    free = available // block
    return _STATFS.pack(-(-size // block), free, free, files, 0, block, name_max, block)


def xattr_size(size: int) -> bytes:
    """GETXATTR and LISTXATTR that asked for the size: so many bytes."""
    return _XATTR.pack(size)


def lseek(offset: int) -> bytes:
    """LSEEK: where the data, or the hole, begins."""
    return _LSEEK.pack(offset)


def valid_name(name: bytes) -> bool:
    """Whether the kernel takes this name in a listing. One that it doesn't take spoils the whole listing."""
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name


class DirBuffer:
    """The body of a reply to READDIR or READDIRPLUS, filled entry by entry until the next has no room.

    Args:
        size: the request's `size`: the most bytes it may have.
        plus: READDIRPLUS: each name with its entry.
    """

    __slots__ = ("_body", "_plus", "_size")

    def __init__(self, size: int, *, plus: bool = False) -> None:
        self._body = bytearray()
        self._size = size
        self._plus = plus

    def __len__(self) -> int:
        return len(self._body)

    @property
    def body(self) -> bytearray:
        """The reply's body. Empty, it says that the listing has come to its end."""
        return self._body

    def fits(self, name: bytes) -> bool:
        """Whether there is room for an entry of this name: to be asked before its reference is counted."""
        return len(self._body) + self.length(name) <= self._size

    def add(self, name: bytes, ino: int, mode: int, offset: int, entry: bytes = NO_ENTRY) -> bool:
        """Append an entry; False, and nothing appended, if it has no room.

        Args:
            name: as `valid_name` has it.
            ino: its inode's number, not 0.
            mode: of which the type of file is told.
            offset: what READDIR is to ask for to go on after this entry.
            entry: READDIRPLUS: `entry(…)`, which counts a reference, or NO_ENTRY.

        Raises:
            ValueError: a name that would make the kernel refuse the listing: a bug of the caller.
        """
        if not valid_name(name):
            raise ValueError(f"{name!r} cannot be listed")
        length = self.length(name)
        if len(self._body) + length > self._size:
            return False
        stop = len(self._body) + length
        if self._plus:
            self._body += entry
        self._body += _DIRENT.pack(
            ino, offset, len(name), (mode >> 12) & 15
        )  # DT_… are the type's bits of mode
        self._body += name
        self._body += bytes(stop - len(self._body))
        return True

    def length(self, name: bytes) -> int:
        """Bytes that an entry of this name takes."""
        # FUSE_DIRENT_ALIGN: every entry starts at a multiple of 8.
        return -(-(_DIRENT.size + len(name)) // 8) * 8 + (ENTRY_SIZE if self._plus else 0)


def _notification(code: Notify, body: bytes = b"") -> bytes:
    # No unique: that makes it a notification, and the error's place holds its code.
    return _HEADER.pack(HEADER_SIZE + len(body), code, 0) + body


def notify_resend() -> bytes:
    """Hand out again all requests that were read and not answered (Linux 6.9; EINVAL before)."""
    return _notification(Notify.RESEND)


def notify_inval_entry(parent: int, name: bytes, *, expire_only: bool = False) -> bytes:
    """Forget what the name stands for. `expire_only`: keep what is in use, look it up again (HAS_EXPIRE_ONLY)."""
    flags = EXPIRE_ONLY if expire_only else 0
    return _notification(Notify.INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), flags) + name + b"\0")


def notify_inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """Forget a node's attributes and the pages of a byte range; length 0: to the end; offset -1: no pages."""
    return _notification(Notify.INVAL_INODE, _INVAL_INODE.pack(nodeid, offset, length))
