"""Numbers of the protocol, by the names that `include/uapi/linux/fuse.h` gives them (less the `FUSE_`)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

VERSION = 7
"""FUSE_KERNEL_VERSION."""

MINOR = 45
"""FUSE_KERNEL_MINOR_VERSION of Linux 6.18, the newest this package knows."""

MINOR_MIN = 31
"""The oldest minor version spoken (Linux 5.4): READDIRPLUS, MAX_PAGES and EXPLICIT_INVAL_DATA are all there."""

ROOT_ID = 1
"""Node id of the mount's root."""

UNIQUE_RESEND = 1 << 63
"""Set in `unique` of a request that the kernel hands out again after NOTIFY_RESEND. It is part of the id from then on:
`request_find` in `fs/fuse/dev.c` compares all 64 bits, so the reply (and an INTERRUPT's) must carry it."""

MIN_READ_BUFFER = 8192
"""FUSE_MIN_READ_BUFFER: a read(2) of the device with less room, bytes, is refused with EINVAL."""

NAME_MAX = 1024
"""Longest name, bytes, that every kernel takes (FUSE_NAME_LOW_MAX of `fs/fuse/fuse_i.h`). One that is longer, in a
reply to READDIR, makes the kernel refuse the whole directory with EIO."""


class Opcode(IntEnum):
    """What a request asks for. Not all that exist: a read-only file system answers the others with ENOSYS or EROFS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})
"""Requests that nobody waits for."""


class Init(IntFlag):
    """Flags of INIT. Bits from 32 on travel in `flags2`, which INIT_EXT announces."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class Open(IntFlag):
    """Flags of a reply to OPEN and OPENDIR (FOPEN_…)."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class Notify(IntEnum):
    """What a message to the kernel that answers no request says."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


EXPIRE_ONLY = 1 << 0
"""Flag of INVAL_ENTRY: look the name up again before its next use, rather than drop it now (7.38)."""

GETATTR_FH = 1 << 0
"""Flag of GETATTR and STATX: the handle is valid."""

STATX_BASIC_STATS = 0x7FF
"""Mask of the fields of statx(2) that stat(2) has too."""
