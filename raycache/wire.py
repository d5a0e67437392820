"""What crosses the data plane: JSON requests and answers, stream tickets, checksums.

Everything that arrives is untrusted until it went through `decode`: bounded in size, one JSON object, and
(for a ticket) a range of blocks that really exists in its version.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycache.blocks import KiB, MiB, ObjectVersion
from raycache.errors import RaycacheError

MAX_REQUEST = 4 * MiB
"""Bytes of the largest request. The largest that is sent is a membership with one partition table
(about 50 KiB) per dataset."""

MAX_ANSWER = 256 * MiB
"""Bytes of the largest answer. A listing takes about 250 bytes per file."""

MAX_HOPS = 2
"""Workers a stream may pass through: the reader's own, then the owner. More means that two workers hold
different memberships and send the request in a circle."""

_SMALLEST_BLOCK = 64 * KiB
_LARGEST_BLOCK = 64 * MiB
_CRC = struct.Struct("<I")
_VERSION_FIELDS: dict[str, type] = {
    "dataset": str,
    "path": str,
    "store": str,
    "size": int,
    "etag": str,
    "mtime_ns": int,
    "block_size": int,
}


def encode(payload: Mapping[str, Any]) -> bytes:
    """A payload as compact JSON bytes. Raises TypeError for what JSON cannot hold: a bug of the caller."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(data: bytes | memoryview, *, what: str, limit: int = MAX_REQUEST) -> dict[str, Any]:
    """The payload that `encode` made.

    Args:
        data: the bytes as they arrived.
        what: name of the message, for the error (`action 'list'`).
        limit: largest size accepted, bytes.

    Raises:
        RaycacheError: larger than `limit`, not JSON, or not an object.
    """
    if len(data) > limit:
        raise RaycacheError(f"a message of {len(data)} bytes is larger than the {limit} allowed", where=what)
    try:
        payload = json.loads(bytes(data))
    except (ValueError, RecursionError):  # the text itself is not repeated: it may hold anything
        raise RaycacheError("a message is not valid JSON", where=what) from None
    if not isinstance(payload, dict):
        raise RaycacheError("a message is not a JSON object", where=what)
    return payload


def pack_crc(crc: int) -> bytes:
    """A CRC32C as the 4 little-endian bytes that travel with a block."""
    return _CRC.pack(crc)


def unpack_crc(data: bytes) -> int:
    """The CRC32C that `pack_crc` packed. Raises RaycacheError if it is not 4 bytes long."""
    if len(data) != _CRC.size:
        raise RaycacheError("a block came without its checksum")
    return int(_CRC.unpack(data)[0])


def bearer(token: str) -> bytes:
    """Value of the `authorization` header for a token (RFC 6750, section 2.1).

    Raises:
        RaycacheError: the token cannot stand in a header; it is not shown.
    """
    if not token.isascii() or not token.isprintable() or " " in token:
        raise RaycacheError(
            "the token of the data plane holds characters that a header may not",
            where="RAYCACHE_TOKEN",
            hint="use printable ASCII without spaces",
        )
    return b"Bearer " + token.encode("ascii")


@dataclass(frozen=True)
class StreamTicket:
    """A request for adjacent blocks of one object version.

    Args:
        version: the version; the answer holds bytes of this one or is an error.
        blocks: the blocks, ascending, step 1, not empty.
        hops: workers the request has passed already; one with `hops >= MAX_HOPS` must not be forwarded.
        epoch: the membership that the asker knows: who is asked hears of it before he decides where to look.
        held: only what the worker has: it asks nobody, and ends with an error where something is missing.
        arriving: with `held`, also what is on its way to it; meanwhile it may send empty blocks, as a sign of life.
        asker: id of the worker that asks, and keeps what it gets; "" for a client.
        shares: other workers may be named to the asker instead (ElsewhereError).
        missed: ids of those that were, and could not give the blocks.
    """

    version: ObjectVersion
    blocks: range
    hops: int = 0
    epoch: int = 0
    held: bool = False
    arriving: bool = False
    asker: str = ""
    shares: bool = False
    missed: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "version": self.version.to_wire(),
            "blocks": [self.blocks.start, self.blocks.stop],
            "hops": self.hops,
            "epoch": self.epoch,
            "held": self.held,
            "arriving": self.arriving,
            "asker": self.asker,
            "shares": self.shares,
            "missed": list(self.missed),
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> StreamTicket:
        """The ticket that `to_wire` described.

        Raises:
            RaycacheError: a field is missing, of the wrong type, or names blocks that the version has not.
        """
        version = version_from_wire(data.get("version"))
        blocks = data.get("blocks")
        if not (
            isinstance(blocks, list) and len(blocks) == 2 and all(type(block) is int for block in blocks)
        ):
            raise RaycacheError("a stream ticket needs blocks: [first, end]", where=version.path)
        start, stop = blocks
        if not 0 <= start < stop <= version.block_count:
            raise RaycacheError(
                f"no blocks {start}..{stop} in an object of {version.block_count} blocks", where=version.path
            )
        hops = data.get("hops", 0)
        if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
            raise RaycacheError("a stream ticket passed through too many workers", where=version.path)
        epoch = data.get("epoch", 0)
        if type(epoch) is not int:
            raise RaycacheError("a stream ticket has an epoch that is no number", where=version.path)
        missed, asker = data.get("missed", []), data.get("asker", "")
        if not isinstance(missed, list) or not all(isinstance(id, str) for id in (*missed, asker)):
            raise RaycacheError("a stream ticket names workers by what is no id", where=version.path)
        held, arriving, shares = (bool(data.get(name, False)) for name in ("held", "arriving", "shares"))
        return cls(version, range(start, stop), hops, epoch, held, arriving, asker, shares, tuple(missed))


def version_from_wire(data: object) -> ObjectVersion:
    """An object version out of an untrusted message. Raises RaycacheError if it cannot be one."""
    if not isinstance(data, dict) or data.keys() != _VERSION_FIELDS.keys():
        raise RaycacheError("a message names no valid object version")
    for name, kind in _VERSION_FIELDS.items():
        if type(data[name]) is not kind:
            raise RaycacheError(f"field {name!r} of an object version is not a {kind.__name__}")
    block_size = data["block_size"]
    if not _SMALLEST_BLOCK <= block_size <= _LARGEST_BLOCK or block_size & (block_size - 1):
        raise RaycacheError(f"{block_size} bytes is not a valid block size", where=data["path"])
    if data["size"] < 0:
        raise RaycacheError("an object version has a negative size", where=data["path"])
    return ObjectVersion.from_wire(data)
