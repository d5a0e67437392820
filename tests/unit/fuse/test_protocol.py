"""Requests from bytes and replies to bytes, against the structures of the kernel's fuse.h."""

from __future__ import annotations

import errno
import math
import mmap
import stat
import struct
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raycache.fuse import protocol
from raycache.fuse.protocol import (
    UNIQUE_RESEND,
    Attr,
    DirBuffer,
    Init,
    InitRequest,
    Opcode,
    Open,
    ProtocolError,
    Request,
    Wanted,
    negotiate,
    parse,
    replies,
)
from tests.unit.fuse.fake_kernel import message

U32, U64 = 4, 8


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder, signed=value < 0)


def _fields(*pairs: tuple[int, int]) -> bytes:
    return b"".join(_number(value, size) for value, size in pairs)


# -- requests ---------------------------------------------------------------------------------------------------------

READ_IN = _fields((11, U64), (4096, U64), (131072, U32), (0, U32), (99, U64), (0o100000, U32), (0, U32))
ATTR = Attr(
    ino=5, size=1025, mode=stat.S_IFREG | 0o444, nlink=1, uid=3, gid=4, mtime_ns=7_000_000_008, blksize=4096
)


def test_a_header_is_forty_bytes() -> None:
    data = _fields(
        (40, U32), (17, U32), (6, U64), (1, U64), (1000, U32), (1001, U32), (77, U32), (0, 2), (0, 2)
    )
    assert parse(data) == Request(Opcode.STATFS, 6, 1, 1000, 1001, 77, False, None)


@pytest.mark.parametrize(
    ("opcode", "body", "expected"),
    [
        (Opcode.LOOKUP, b"na\xffme\0", protocol.Lookup(b"na\xffme")),
        (Opcode.FORGET, _number(1 << 40, U64), protocol.Forget(1 << 40)),
        (
            Opcode.BATCH_FORGET,
            _fields((2, U32), (0, U32), (5, U64), (1, U64), (6, U64), (9, U64)),
            protocol.BatchForget(((5, 1), (6, 9))),
        ),
        (Opcode.GETATTR, _fields((1, U32), (0, U32), (8, U64)), protocol.GetAttr(8)),
        (Opcode.GETATTR, _fields((0, U32), (0, U32), (8, U64)), protocol.GetAttr(None)),
        (Opcode.OPEN, _fields((0o400000, U32), (0, U32)), protocol.OpenRequest(0o400000)),
        (Opcode.OPENDIR, _fields((0o200000, U32), (0, U32)), protocol.OpenRequest(0o200000)),
        (Opcode.READ, READ_IN, protocol.Read(11, 4096, 131072, 0o100000)),
        (Opcode.READDIR, READ_IN, protocol.Read(11, 4096, 131072, 0o100000)),
        (Opcode.READDIRPLUS, READ_IN, protocol.Read(11, 4096, 131072, 0o100000)),
        (Opcode.RELEASE, _fields((3, U64), (1, U32), (1, U32), (4, U64)), protocol.Release(3, 1)),
        (Opcode.RELEASEDIR, _fields((3, U64), (1, U32), (0, U32), (0, U64)), protocol.Release(3, 1)),
        (Opcode.STATFS, b"", None),
        (Opcode.DESTROY, b"", None),
        (
            Opcode.GETXATTR,
            _fields((64, U32), (0, U32)) + b"user.a/b\0",
            protocol.GetXattr(64, b"user.a/b"),
        ),
        (Opcode.LISTXATTR, _fields((64, U32), (0, U32)), protocol.ListXattr(64)),
        (Opcode.ACCESS, _fields((4, U32), (0, U32)), protocol.Access(4)),
        (Opcode.INTERRUPT, _number(6, U64), protocol.Interrupt(6)),
        (Opcode.FLUSH, _fields((3, U64), (0, U32), (0, U32), (4, U64)), protocol.Flush(3)),
        (Opcode.LSEEK, _fields((3, U64), (7, U64), (4, U32), (0, U32)), protocol.Lseek(3, 7, 4)),
        (
            Opcode.STATX,
            _fields((1, U32), (0, U32), (3, U64), (0x800, U32), (0xFFF, U32)),
            protocol.Statx(3, 0x800, 0xFFF),
        ),
        (Opcode.SETATTR, bytes(88), None),
        (9999, b"not of this time", None),
    ],
)
def test_bodies(opcode: int, body: bytes, expected: protocol.Body | None) -> None:
    data = message(opcode, body, unique=6, nodeid=12)
    request = parse(memoryview(bytearray(data)))
    assert request == Request(opcode, 6, 12, 1000, 1001, 7, False, expected)
    assert type(request.body) is type(expected)
    if expected is None:
        return
    with pytest.raises(ProtocolError) as caught:
        parse(message(opcode, body[:-1] if body[-1:] == b"\0" else body[: len(body) - 1], unique=6))
    assert (caught.value.unique, caught.value.errno) == (6, errno.EIO)
    if opcode not in (Opcode.LOOKUP, Opcode.GETXATTR):
        # A newer kernel's structure is longer at its end.
        assert parse(message(opcode, body + bytes(8), unique=6)).body == expected


def test_nothing_of_the_buffer_is_kept() -> None:
    buffer = bytearray(message(Opcode.LOOKUP, b"name\0"))
    request = parse(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert request.body == protocol.Lookup(b"name")


def test_init_with_and_without_its_second_flags() -> None:
    old = _fields((7, U32), (31, U32), (131072, U32), (0x21, U32))
    assert parse(message(Opcode.INIT, old)).body == InitRequest(7, 31, 131072, 0x21)
    new = old + _number(0xA0, U32) + bytes(44)
    assert parse(message(Opcode.INIT, new)).body == InitRequest(7, 31, 131072, 0xA0_0000_0021)


def test_a_resent_request_keeps_its_bit() -> None:
    request = parse(message(Opcode.STATFS, unique=6 | UNIQUE_RESEND))
    assert request.resent
    assert request.unique == 6 | UNIQUE_RESEND


@pytest.mark.parametrize("name", [b"\0", b"a", b"", b"a\0b\0", b"a/b\0", b"a\0\0"])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(message(Opcode.LOOKUP, name))


@pytest.mark.parametrize("length", [0, 39, 55, 57, 1 << 31])
def test_the_length_must_be_the_message_s(length: int) -> None:
    data = bytearray(message(Opcode.GETATTR, bytes(16), unique=6))
    data[:4] = _number(length, U32)
    with pytest.raises(ProtocolError) as caught:
        parse(data)
    assert caught.value.unique == 6


@pytest.mark.parametrize(("size", "unique"), [(0, None), (15, None), (16, 6), (39, 6)])
def test_shorter_than_a_header(size: int, unique: int | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(message(Opcode.STATFS, unique=6)[:size])
    assert caught.value.unique == unique


def test_a_count_that_the_body_does_not_hold() -> None:
    with pytest.raises(ProtocolError):
        parse(message(Opcode.BATCH_FORGET, _fields((0xFFFFFFFF, U32), (0, U32), (1, U64), (1, U64))))


def _result(data: bytes) -> Request | ProtocolError:
    try:
        return parse(memoryview(data))
    except ProtocolError as error:
        return error


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_are_a_request_or_a_protocol_error(data: bytes) -> None:
    result = _result(data)
    assert isinstance(result, Request) or (result.unique is None) == (len(data) < 16)


@given(st.one_of(st.sampled_from(Opcode), st.integers(0, 0xFFFFFFFF)), st.binary(max_size=120), st.booleans())
def test_any_body_is_a_request_or_a_protocol_error(opcode: int, body: bytes, ended: bool) -> None:
    result = _result(message(opcode, body + b"\0" * ended, unique=6))
    assert result.unique == 6
    if isinstance(result, Request):
        assert (result.opcode, result.nodeid) == (opcode, 1)


# -- replies ----------------------------------------------------------------------------------------------------------

ATTR_BYTES = _fields(
    *((value, U64) for value in (5, 1025, 3, 0, 7, 0)),  # ino size blocks atime mtime ctime
    *((value, U32) for value in (0, 8, 0, 0o100444, 1, 3, 4, 0, 4096, 0)),
)


def test_sizes_are_those_of_the_structures() -> None:
    assert len(ATTR_BYTES) == 88
    assert len(replies.header(1, 0)) == 16
    assert len(replies.entry(2, ATTR, 1, 1)) == len(replies.negative_entry(1)) == replies.ENTRY_SIZE == 128
    assert len(replies.attributes(ATTR, 1)) == 104
    assert len(replies.statx(ATTR, 1)) == 288
    assert len(replies.opened(1)) == 16
    assert len(replies.statfs(1, 1)) == 80
    assert len(replies.xattr_size(1)) == len(replies.lseek(1)) == 8
    assert len(negotiate(InitRequest(7, 45, 0, 0)).reply) == 64


def test_headers() -> None:
    assert replies.header(6, 100) == _fields((116, U32), (0, U32), (6, U64))
    assert replies.error(6 | UNIQUE_RESEND, errno.ENOENT) == _fields(
        (16, U32), (-errno.ENOENT, U32), (6 | UNIQUE_RESEND, U64)
    )


@pytest.mark.parametrize("code", [None, 0, -2, 512, 4711])
def test_an_error_that_the_kernel_would_refuse_is_eio(code: int | None) -> None:
    assert replies.error(6, code) == replies.error(6, errno.EIO)


def test_an_entry() -> None:
    expected = _fields((9, U64), (1, U64), (2, U64), (0, U64), (500_000_000, U32), (250_000_000, U32))
    assert replies.entry(9, ATTR, 2.5, 0.25, generation=1) == expected + ATTR_BYTES
    assert replies.negative_entry(3) == _fields((0, U64), (0, U64), (3, U64)) + bytes(104)
    assert replies.attributes(ATTR, 60) == _fields((60, U64), (0, U32), (0, U32)) + ATTR_BYTES


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (math.inf, (1 << 31, 0)),
        (1e30, (1 << 31, 0)),
        (0.0, (0, 0)),
        (-5.0, (0, 0)),
        (-math.inf, (0, 0)),
        (math.nan, (0, 0)),
        (0.9999999999, (0, 999_999_999)),
        (1, (1, 0)),
    ],
)
def test_timeouts(seconds: float, expected: tuple[int, int]) -> None:
    assert struct.unpack_from("=QI", replies.attributes(ATTR, seconds)) == expected


def test_a_time_before_1970_is_told() -> None:
    packed = replies.attributes(ATTR._replace(mtime_ns=-1), 1)[16:]
    assert struct.unpack_from("=q", packed, 32) == (-1,)
    assert struct.unpack_from("=I", packed, 52) == (999_999_999,)


def test_statx() -> None:
    body = replies.statx(ATTR, 60)
    assert body[:32] == _fields((60, U64), (0, U32), (0, U32), (0, U64), (0, U64))
    assert body[32:48] == _fields((0x7FF, U32), (4096, U32), (0, U64))
    assert body[48:64] == _fields((1, U32), (3, U32), (4, U32), (0o100444, 2), (0, 2))
    assert body[64:96] == _fields((5, U64), (1025, U64), (3, U64), (0, U64))
    assert body[96:144] == bytes(48)  # atime btime ctime
    assert body[144:160] == _fields((7, U64), (8, U32), (0, U32))
    assert body[160:] == bytes(128)


def test_the_other_bodies() -> None:
    assert replies.opened(3, Open.PASSTHROUGH | Open.KEEP_CACHE, 5) == _fields(
        (3, U64), (0x82, U32), (5, U32)
    )
    assert replies.xattr_size(70) == _fields((70, U32), (0, U32))
    assert replies.lseek(70) == _number(70, U64)
    assert replies.statfs(8193, 4096, files=6) == (
        _fields((3, U64), (1, U64), (1, U64), (6, U64), (0, U64), (4096, U32), (1024, U32), (4096, U32))
        + bytes(28)
    )


def test_notifications() -> None:
    assert replies.notify_resend() == _fields((16, U32), (7, U32), (0, U64))
    assert replies.notify_inval_entry(9, b"ab", expire_only=True) == (
        _fields((35, U32), (3, U32), (0, U64), (9, U64), (2, U32), (1, U32)) + b"ab\0"
    )
    assert replies.notify_inval_inode(9, -1, 0) == _fields(
        (40, U32), (2, U32), (0, U64), (9, U64), (-1, U64), (0, U64)
    )


# -- listings ---------------------------------------------------------------------------------------------------------


def test_a_listing() -> None:
    listing = DirBuffer(72)
    assert listing.add(b"abcdefgh", 5, stat.S_IFREG | 0o444, 1)
    assert listing.body == _fields((5, U64), (1, U64), (8, U32), (8, U32)) + b"abcdefgh"
    assert listing.add(b"a", 6, stat.S_IFDIR | 0o555, 2)
    assert listing.body[32:] == _fields((6, U64), (2, U64), (1, U32), (4, U32)) + b"a" + bytes(7)
    assert not listing.fits(b"b")
    assert not listing.add(b"b", 7, stat.S_IFREG, 3)
    assert len(listing) == 64


def test_a_listing_with_entries() -> None:
    listing = DirBuffer(2 * 160, plus=True)
    assert listing.add(b".", 1, stat.S_IFDIR, 1)
    assert listing.body[:128] == replies.NO_ENTRY
    entry = replies.entry(9, ATTR, 1, 1)
    assert listing.add(b"a2345678", ATTR.ino, ATTR.mode, 2, entry)
    assert listing.body[160:-32] == entry
    assert listing.body[-32:] == _fields((5, U64), (2, U64), (8, U32), (8, U32)) + b"a2345678"
    assert not listing.fits(b"a")


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0", b"a" * 1025])
def test_a_name_that_would_spoil_the_listing_is_refused(name: bytes) -> None:
    assert not replies.valid_name(name)
    with pytest.raises(ValueError, match="cannot be listed"):
        DirBuffer(1 << 20).add(name, 1, stat.S_IFREG, 1)


@given(
    st.lists(st.binary(min_size=1, max_size=40).filter(replies.valid_name)),
    st.integers(0, 2000),
    st.booleans(),
)
def test_a_listing_never_exceeds_its_size_and_reads_back(names: list[bytes], size: int, plus: bool) -> None:
    listing = DirBuffer(size, plus=plus)
    taken = 0
    for number, name in enumerate(names):
        fits = listing.fits(name)
        assert listing.add(name, 100 + number, stat.S_IFREG, number + 1) == fits
        if not fits:
            break
        taken += 1
    body = bytes(listing.body)
    assert len(body) <= size
    position, found = 0, []
    while position < len(body):
        position += 128 if plus else 0
        ino, offset, length, kind = struct.unpack_from("=QQII", body, position)
        found.append((ino, offset, body[position + 24 : position + 24 + length]))
        assert kind == 8
        position += 24 + -(-length // 8) * 8
    assert found == [(100 + number, number + 1, name) for number, name in enumerate(names[:taken])]


# -- INIT -------------------------------------------------------------------------------------------------------------

EVERYTHING = 0xFFFF_FFFF_FFFF_FFFF


def _init_out(reply: bytes) -> dict[str, int]:
    names = (
        "major minor max_readahead flags max_background congestion max_write time_gran max_pages alignment flags2"
        " depth timeout"
    )
    return dict(zip(names.split(), struct.unpack("=IIIIHHIIHHIIH22x", reply), strict=True))


def test_everything_that_is_wanted_is_agreed() -> None:
    agreed = negotiate(InitRequest(7, 50, 131072, EVERYTHING), Wanted(max_readahead=4 << 20))
    out = _init_out(agreed.reply)
    assert (out["major"], out["minor"], agreed.minor) == (7, 45, 45)
    assert (out["max_readahead"], out["max_write"], out["time_gran"], out["depth"]) == (4 << 20, 4096, 1, 1)
    assert out["max_pages"] * mmap.PAGESIZE == agreed.max_read == 1 << 20
    assert agreed.flags == out["flags"] | out["flags2"] << 32
    assert agreed.passthrough
    assert agreed.resend
    assert agreed.flags & Init.INIT_EXT
    for unwanted in (Init.AUTO_INVAL_DATA, Init.CACHE_SYMLINKS, Init.WRITEBACK_CACHE):
        assert not agreed.flags & unwanted
    assert not agreed.flags & (1 << 17 | 1 << 19 | 1 << 24 | 1 << 28 | 1 << 31)


def test_passthrough_is_left_out_on_demand() -> None:
    agreed = negotiate(InitRequest(7, 45, 131072, EVERYTHING), Wanted(passthrough=False))
    assert not agreed.passthrough
    assert _init_out(agreed.reply)["depth"] == 0


@given(st.integers(31, 60), st.integers(0, EVERYTHING))
def test_nothing_is_agreed_that_was_not_offered(minor: int, flags: int) -> None:
    agreed = negotiate(InitRequest(7, minor, 131072, flags))
    out = _init_out(agreed.reply)
    assert agreed.flags & ~flags == 0
    assert agreed.flags == out["flags"] | out["flags2"] << 32
    assert out["minor"] == min(minor, 45)
    if not flags & Init.INIT_EXT:
        assert out["flags2"] == 0
    assert out["depth"] == (1 if agreed.passthrough else 0)


def test_an_old_kernel_has_small_reads() -> None:
    agreed = negotiate(InitRequest(7, 31, 131072, int(Init.ASYNC_READ)))
    assert agreed.max_read == 32 * mmap.PAGESIZE
    assert not agreed.resend


def test_a_kernel_of_the_next_major_version_is_told_ours() -> None:
    agreed = negotiate(InitRequest(8, 0, 0, 0))
    assert _init_out(agreed.reply)["major"] == 7
    assert agreed.minor == 0


@pytest.mark.parametrize(("major", "minor"), [(6, 45), (7, 30), (0, 0)])
def test_a_kernel_that_is_too_old_is_refused(major: int, minor: int) -> None:
    with pytest.raises(ProtocolError, match=r"Linux 5\.4") as caught:
        negotiate(InitRequest(major, minor, 0, EVERYTHING))
    assert caught.value.errno == errno.EPROTO
