"""INIT: what the kernel offers, what is wanted, what is agreed."""

from __future__ import annotations

import errno
import mmap
from struct import Struct
from typing import NamedTuple

from raycache.fuse.protocol.constants import MINOR, MINOR_MIN, VERSION, Init
from raycache.fuse.protocol.requests import InitRequest, ProtocolError

# struct fuse_init_out: major minor max_readahead flags | max_background congestion_threshold max_write time_gran |
# max_pages map_alignment flags2 max_stack_depth | request_timeout unused[11]
_INIT_OUT = Struct("=IIIIHHIIHHIIH22x")

_PAGE = mmap.PAGESIZE
_MAX_PAGES = 0xFFFF
_U32_MAX = 0xFFFFFFFF

_ALWAYS = (
    Init.ASYNC_READ  # several READs of one file at a time: readahead is useless without
    | Init.BIG_WRITES
    | Init.PARALLEL_DIROPS  # LOOKUP and READDIR of one directory at a time
    | Init.ASYNC_DIO
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO  # with the first listing, and afterwards where the program looks its names up
    | Init.MAX_PAGES
    # A node's bytes never change (another version is another node), so no change of attributes drops pages.
    | Init.EXPLICIT_INVAL_DATA
    | Init.HAS_EXPIRE_ONLY
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.HAS_RESEND
)
"""Asked of every kernel that offers it. Left out on purpose: AUTO_INVAL_DATA and CACHE_SYMLINKS (nothing changes, and
there are no links), WRITEBACK_CACHE (excludes PASSTHROUGH), NO_OPEN_SUPPORT (every open counts), HANDLE_KILLPRIV
(nothing is written), locks (the kernel's own do), SPLICE_… (the kernel does not ask whether a reply was spliced)."""


class Wanted(NamedTuple):
    """What the server would like.

    Attributes:
        passthrough: let the kernel read files itself.
        max_readahead: bytes. The kernel takes the smaller of this and the mount's `read_ahead_kb` at the time of
            the reply, so it is not cut down to what INIT told: that may have been raised since.
        max_read: largest READ, bytes; 1 MiB (256 pages) is the most that kernels grant by default
            (`fs.fuse.max_pages_limit`). The mount option `max_read` bounds it as well.
        max_write: largest WRITE, bytes, which a read-only mount never sees; every reader of the device needs a
            buffer of this size and 80 bytes, so it is the kernel's least.
        max_background: requests that may be under way with nobody waiting: readahead.
        congestion_threshold: of which so many make the kernel stop reading ahead.
    """

    passthrough: bool = True
    max_readahead: int = 16 << 20
    max_read: int = 1 << 20
    max_write: int = 4096
    max_background: int = 64
    congestion_threshold: int = 48


DEFAULT = Wanted()


class Negotiated(NamedTuple):
    """What was agreed. INIT comes once per mount, not once per server: whoever takes over must be told.

    Attributes:
        reply: the body that answers INIT.
        minor: minor version spoken; 0 if another INIT is to come (the kernel's major version is newer).
        flags: `Init` flags that hold; the kernel may still leave PASSTHROUGH off (`CAP_SYS_ADMIN` shows at the ioctl).
        max_read: largest READ, bytes.
    """

    reply: bytes
    minor: int
    flags: int
    max_read: int

    @property
    def passthrough(self) -> bool:
        """Whether files may be opened in passthrough."""
        return bool(self.flags & Init.PASSTHROUGH)

    @property
    def resend(self) -> bool:
        """Whether a server that takes over can ask for the unanswered requests."""
        return bool(self.flags & Init.HAS_RESEND)


def negotiate(request: InitRequest, wanted: Wanted = DEFAULT) -> Negotiated:
    """The answer to INIT.

    Raises:
        ProtocolError: the kernel's version is too old (before Linux 5.4); its errno, EPROTO, answers INIT.
    """
    if request.major > VERSION:
        # The rule of fuse.h: name our own major version, and the kernel sends another INIT.
        return Negotiated(_INIT_OUT.pack(VERSION, MINOR, *[0] * 11), 0, 0, 0)
    if request.major < VERSION or request.minor < MINOR_MIN:
        error = ProtocolError(
            f"the kernel speaks FUSE {request.major}.{request.minor}, older than {VERSION}.{MINOR_MIN}",
            where="INIT",
            hint="Linux 5.4 or newer is needed",
        )
        error.errno = errno.EPROTO
        raise error
    flags = request.flags & (_ALWAYS | (Init.PASSTHROUGH if wanted.passthrough else 0))
    if request.flags & Init.INIT_EXT:
        flags |= Init.INIT_EXT
    else:
        flags &= _U32_MAX  # flags2 would not be looked at
    pages = max(1, min(_MAX_PAGES, wanted.max_read // _PAGE))
    if not flags & Init.MAX_PAGES:
        pages = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ
    minor = min(request.minor, MINOR)
    reply = _INIT_OUT.pack(
        *(VERSION, minor, min(wanted.max_readahead, _U32_MAX), flags & _U32_MAX),
        *(wanted.max_background, wanted.congestion_threshold, wanted.max_write),
        1,  # time_gran: our times are exact to the nanosecond
        *(pages, 0, flags >> 32),
        # One level: the backing file may lie on a plain file system, not on another stacked one.
        *(1 if flags & Init.PASSTHROUGH else 0, 0),
    )
    return Negotiated(reply, minor, int(flags), pages * _PAGE)
