"""The index file beside each data file: which version it holds, which blocks are present, their checksums.

    header (88 bytes) | JSON of the ObjectVersion | padding to 64 | state: 1 byte per block | padding to 8 |
    CRC32C: 4 bytes per block, little endian

States lie together so that "are these blocks here" is one comparison of a slice. The writer alone changes the
file, with `pwrite` and never through a mapping: a full filesystem is then an error and not a SIGBUS. Readers map
it read-only. For a block, the bytes come first, then the checksum, then the state.

The header names the boot of the kernel under which the states were true. After a crash of the *machine* the
states may have reached the disk and the bytes not, so readers trust no block of another boot; the worker that
adopts the files checks each one against its CRC32C on first use.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from functools import lru_cache

from crc32c import crc32c

from raycache.blocks import ObjectVersion
from raycache.errors import IntegrityError
from raycache.store import files

MAGIC = b"RAYCACHE"
LAYOUT = 1

ABSENT = 0
UNVERIFIED = 1
"""Present, but written before the last restart and not checked since. Readers take it for absent."""
VERIFIED = 2

SECONDARY = 1
"""Flag: a copy kept near its readers; the segment's owner holds another."""
COMPLETE = 2
"""Flag: all blocks are verified."""
SEALED = 4
"""Flag: the file has been complete. Somebody may have mapped it: never punch a hole into it again."""
QUARANTINED = 8
"""Flag: a block of a sealed file was found damaged, and is absent until it has been fetched again and put in its place.
It tells readers who knew the file as complete to look at the states again."""

# magic, layout, flags, block size, object size, blocks, where the states begin, length of the JSON, boot id,
# object id, CRC32C of header and JSON (with flags, boot id and this field zero), reserved
_HEADER = struct.Struct("<8sIIQQQII16s16sII")
_FLAGS_AT = 12
_BOOT_AT = 48
_STATES_ALIGN = 64
_JSON_LIMIT = 1 << 20


@dataclass(frozen=True)
class Header:
    """What an index says about its object.

    Args:
        object_id: 16 bytes.
        flags: SECONDARY, COMPLETE, SEALED, QUARANTINED.
        block_size: bytes per block.
        size: bytes of the object.
        blocks: number of blocks.
        states_at: offset of the states in the file.
        boot: boot id of the kernel under which the states were written.
        json_length: bytes of JSON after the header.
    """

    object_id: bytes
    flags: int
    block_size: int
    size: int
    blocks: int
    states_at: int
    boot: bytes
    json_length: int

    @property
    def crcs_at(self) -> int:
        """Offset of the checksums in the file."""
        return files.round_up(self.states_at + self.blocks, 8)

    @property
    def length(self) -> int:
        """Bytes of the whole file."""
        return self.crcs_at + 4 * self.blocks


def _pack(header: Header, crc: int, *, bare: bool = False) -> bytes:
    return _HEADER.pack(
        MAGIC,
        LAYOUT,
        0 if bare else header.flags,
        header.block_size,
        header.size,
        header.blocks,
        header.states_at,
        header.json_length,
        bytes(16) if bare else header.boot,
        header.object_id,
        crc,
        0,
    )


def _checksum(header: Header, document: bytes) -> int:
    return int(crc32c(document, crc32c(_pack(header, 0, bare=True))))


@lru_cache(maxsize=64)
def _document(version: ObjectVersion) -> bytes:
    return json.dumps(version.to_wire(), sort_keys=True).encode("ascii")


def header_of(version: ObjectVersion, flags: int) -> Header:
    """The header of a new index."""
    json_length = len(_document(version))
    return Header(
        object_id=bytes.fromhex(version.object_id),
        flags=flags,
        block_size=version.block_size,
        size=version.size,
        blocks=version.block_count,
        states_at=files.round_up(_HEADER.size + json_length, _STATES_ALIGN),
        boot=files.boot_id(),
        json_length=json_length,
    )


def length_of(version: ObjectVersion) -> int:
    """Bytes of the index of a version."""
    return header_of(version, 0).length


def write_new(fd: int, version: ObjectVersion, flags: int, states: bytes, crcs: bytes) -> Header:
    """Write a whole index into an empty file, so that all its pages are allocated. Raises OSError."""
    header = header_of(version, flags)
    document = _document(version)
    content = bytearray(header.length)
    content[: _HEADER.size] = _pack(header, _checksum(header, document))
    content[_HEADER.size : _HEADER.size + len(document)] = document
    content[header.states_at : header.states_at + len(states)] = states
    content[header.crcs_at : header.crcs_at + len(crcs)] = crcs
    files.pwrite_all(fd, memoryview(content), 0)
    return header


def read_header(head: bytes, length: int) -> Header:
    """The header at the start of an index file.

    Args:
        head: at least the first 88 bytes of the file.
        length: bytes of the whole file.

    Raises:
        IntegrityError: this is no index of this layout, or it is cut short.
    """
    if len(head) < _HEADER.size:
        raise IntegrityError("the index file is cut short")
    magic, layout, flags, block_size, size, blocks, states_at, json_length, boot, object_id, _, _ = (
        _HEADER.unpack_from(head)
    )
    if magic != MAGIC or layout != LAYOUT:
        raise IntegrityError("not an index file of this layout")
    header = Header(object_id, flags, block_size, size, blocks, states_at, boot, json_length)
    if block_size <= 0 or blocks != -(-size // block_size) or json_length > _JSON_LIMIT:
        raise IntegrityError("the index file's header makes no sense")
    if header.states_at < _HEADER.size + json_length or header.length != length:
        raise IntegrityError("the index file is cut short")
    return header


@dataclass(frozen=True)
class Loaded:
    """An index file as a whole."""

    version: ObjectVersion
    header: Header
    states: bytearray
    crcs: bytes


def load(fd: int) -> Loaded:
    """Read and check an index file.

    Raises:
        IntegrityError: it is not valid: header, checksum of the header, length, or the version's identity.
        OSError: it cannot be read.
    """
    length = os.fstat(fd).st_size
    content = bytearray(length)
    files.pread_into(fd, memoryview(content), 0)
    header = read_header(bytes(content[: _HEADER.size]), length)
    document = bytes(content[_HEADER.size : _HEADER.size + header.json_length])
    stored: int = _HEADER.unpack_from(content)[-2]
    if _checksum(header, document) != stored:
        raise IntegrityError("the index file's header does not match its checksum")
    try:
        version = ObjectVersion.from_wire(json.loads(document))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"the index file names no object version: {error}") from error
    if version.object_id != header.object_id.hex() or version.block_count != header.blocks:
        raise IntegrityError("the index file's header belongs to another object version")
    states = content[header.states_at : header.states_at + header.blocks]
    crcs = bytes(content[header.crcs_at :])
    return Loaded(version, header, states, crcs)


def write_states(fd: int, header: Header, first: int, states: bytes | bytearray) -> None:
    """Set the states of adjacent blocks, beginning with block `first`."""
    files.pwrite_all(fd, memoryview(states), header.states_at + first)


def write_crcs(fd: int, header: Header, first: int, crcs: memoryview) -> None:
    """Set the checksums (bytes, 4 per block) of adjacent blocks, beginning with block `first`."""
    files.pwrite_all(fd, crcs, header.crcs_at + 4 * first)


def write_flags(fd: int, flags: int) -> None:
    """Set the flags."""
    files.pwrite_all(fd, memoryview(flags.to_bytes(4, "little")), _FLAGS_AT)


def write_boot(fd: int, boot: bytes) -> None:
    """Say that the states hold under this boot of the kernel."""
    files.pwrite_all(fd, memoryview(boot), _BOOT_AT)


FLAGS_BYTE = _FLAGS_AT
"""Offset of the byte that holds all flags in use."""
BOOT_SLICE = slice(_BOOT_AT, _BOOT_AT + 16)
"""Where the boot id lies in the file."""
HEADER_SIZE = _HEADER.size


def data_path(tier_path: str, object_id: str) -> str:
    """Path of an object's data file in a tier."""
    return f"{tier_path}/{object_id[:2]}/{object_id}.data"


def index_path(tier_path: str, object_id: str) -> str:
    """Path of an object's index file in a tier."""
    return f"{tier_path}/{object_id[:2]}/{object_id}.index"
