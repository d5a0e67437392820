"""Messages of the data plane: what arrives is refused unless it is well-formed, small enough and possible."""

from __future__ import annotations

import pytest

from raycache import wire
from raycache.blocks import MiB, ObjectVersion
from raycache.errors import RaycacheError
from raycache.wire import StreamTicket

VERSION = ObjectVersion("ds", "a/b.bin", "s3://bucket/a/b.bin", 10 * MiB, etag='"x"', mtime_ns=5)


def test_a_ticket_survives_the_wire() -> None:
    ticket = StreamTicket(VERSION, range(1, 3), hops=1)
    assert StreamTicket.from_wire(wire.decode(wire.encode(ticket.to_wire()), what="t")) == ticket


def test_odd_names_survive_the_wire() -> None:
    payload = {"path": 'é\u2028\udcff"\\'}
    assert wire.decode(wire.encode(payload), what="t") == payload


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000], ids=lambda d: repr(d[:6])
)  # fmt: skip
def test_what_is_no_json_object_is_refused_without_repeating_it(data: bytes) -> None:
    with pytest.raises(RaycacheError, match="action 'x'"):
        wire.decode(data, what="action 'x'")


def test_a_message_over_the_limit_is_refused() -> None:
    assert wire.decode(b'{"a":1}', what="x", limit=7) == {"a": 1}
    with pytest.raises(RaycacheError, match="larger than the 6 allowed"):
        wire.decode(b'{"a":1}', what="x", limit=6)


@pytest.mark.parametrize(
    "blocks", [None, [], [0], [0, 0], [2, 1], [-1, 1], [0, 4], [0, 1.0], [True, 2], ["0", "1"], [0, 1, 2]]
)
def test_a_ticket_for_impossible_blocks_is_refused(blocks: object) -> None:
    with pytest.raises(RaycacheError):
        StreamTicket.from_wire({"version": VERSION.to_wire(), "blocks": blocks})


@pytest.mark.parametrize(
    "change",
    [{"size": -1}, {"size": "1"}, {"size": True}, {"block_size": 0}, {"block_size": 3 * MiB}, {"block_size": 1},
     {"path": None}, {"extra": 1}, {"block_size": 1 << 40}],
    ids=str,
)  # fmt: skip
def test_a_ticket_for_an_impossible_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RaycacheError):
        StreamTicket.from_wire({"version": VERSION.to_wire() | change, "blocks": [0, 1]})


def test_a_version_may_not_lack_a_field() -> None:
    data = VERSION.to_wire()
    del data["etag"]
    for version in (data, None, [], "x"):
        with pytest.raises(RaycacheError):
            wire.version_from_wire(version)


@pytest.mark.parametrize("hops", [-1, wire.MAX_HOPS + 1, "1", None])
def test_a_ticket_that_went_in_a_circle_is_refused(hops: object) -> None:
    with pytest.raises(RaycacheError, match="too many workers"):
        StreamTicket.from_wire({"version": VERSION.to_wire(), "blocks": [0, 1], "hops": hops})


def test_checksums_are_four_bytes() -> None:
    assert wire.unpack_crc(wire.pack_crc(0xFFFFFFFF)) == 0xFFFFFFFF
    with pytest.raises(RaycacheError):
        wire.unpack_crc(b"abc")


@pytest.mark.parametrize("token", ["has space", "zürich", "new\nline"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(RaycacheError) as caught:
        wire.bearer(token)
    assert token not in str(caught.value)


def test_a_ticket_carries_who_asks_and_who_could_not_give() -> None:
    ticket = StreamTicket(
        VERSION, range(1, 3), arriving=True, held=True, asker="w", shares=True, missed=("x",)
    )
    assert StreamTicket.from_wire(ticket.to_wire()) == ticket
    for change in ({"asker": 1}, {"missed": "x"}, {"missed": [None]}):
        with pytest.raises(RaycacheError, match="no id"):
            StreamTicket.from_wire(ticket.to_wire() | change)
