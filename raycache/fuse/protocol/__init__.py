"""The kernel's FUSE protocol, version 7: requests from bytes, replies to bytes. Pure: no descriptor, no clock.

A request is one message read from `/dev/fuse`: `parse` makes it a `Request`, or raises `ProtocolError`, whatever the
bytes are. A reply is a body made by one of `replies`' functions behind a `replies.header`; the session adds that.
`negotiate` answers `INIT`.

The structures are those of `include/uapi/linux/fuse.h` of Linux 6.18 (protocol 7.45), all in the byte order of the
host; they have not changed since 7.31 except at their ends.
"""

from __future__ import annotations

from raycache.fuse.protocol.constants import (
    ROOT_ID,
    UNIQUE_RESEND,
    Init,
    Notify,
    Opcode,
    Open,
)
from raycache.fuse.protocol.negotiation import Negotiated, Wanted, negotiate
from raycache.fuse.protocol.replies import Attr, DirBuffer
from raycache.fuse.protocol.requests import (
    Access,
    BatchForget,
    Body,
    Flush,
    Forget,
    GetAttr,
    GetXattr,
    InitRequest,
    Interrupt,
    ListXattr,
    Lookup,
    Lseek,
    OpenRequest,
    ProtocolError,
    Read,
    Release,
    Request,
    Statx,
    parse,
)

__all__ = [
    "ROOT_ID",
    "UNIQUE_RESEND",
    "Access",
    "Attr",
    "BatchForget",
    "Body",
    "DirBuffer",
    "Flush",
    "Forget",
    "GetAttr",
    "GetXattr",
    "Init",
    "InitRequest",
    "Interrupt",
    "ListXattr",
    "Lookup",
    "Lseek",
    "Negotiated",
    "Notify",
    "Opcode",
    "Open",
    "OpenRequest",
    "ProtocolError",
    "Read",
    "Release",
    "Request",
    "Statx",
    "Wanted",
    "negotiate",
    "parse",
]
