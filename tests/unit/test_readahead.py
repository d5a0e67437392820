"""Readahead: what is sent for, and when."""

from __future__ import annotations

from raycache.blocks import MiB, ObjectVersion
from raycache.client.readahead import MAX, MIN, NEIGHBOURHOOD, Readahead

VERSION = ObjectVersion("ds", "a", "s3://bucket/a", 2048 * MiB)
PER_BLOCK = VERSION.block_size


def blocks(offset: int, length: int) -> range:
    return VERSION.blocks_of(offset, length)


def read(ahead: Readahead, offset: int, length: int, *, waits: bool = True) -> range:
    """One read, and what it sends for."""
    end = offset + length
    if waits:
        ahead.miss(offset, end)
    elif ahead.follows(offset):
        ahead.hit(end)
    due = ahead.due(blocks(offset, length), end)
    if due:
        ahead.sent = due.stop
    return due


def test_it_grows_while_a_reader_is_sequential_up_to_its_bound() -> None:
    ahead = Readahead(VERSION)
    reached = [
        ahead_of.stop * PER_BLOCK - (number + 1) * MiB
        for number in range(8)
        if (ahead_of := read(ahead, number * MiB, MiB))
    ]
    assert reached[0] >= MIN
    assert max(reached) <= MAX + PER_BLOCK
    assert reached == sorted(reached)


def test_a_jump_begins_anew() -> None:
    ahead = Readahead(VERSION)
    read(ahead, 0, MiB)
    assert ahead.active
    read(ahead, 512 * MiB, MiB)
    assert not ahead.active
    assert not ahead.due(blocks(512 * MiB, MiB), 513 * MiB)


def test_random_reads_send_for_nothing() -> None:
    ahead = Readahead(VERSION)
    for number in (700, 100, 900, 300):
        assert not read(ahead, number * MiB, 4096)


def test_reads_a_little_out_of_turn_go_on() -> None:
    ahead = Readahead(VERSION)
    read(ahead, 0, MiB)
    for offset in (2 * MiB, MiB, 4 * MiB, 3 * MiB):
        assert ahead.follows(offset)
        ahead.miss(offset, offset + MiB)
    assert ahead.active
    assert not ahead.follows(5 * MiB + NEIGHBOURHOOD + 1)


def test_a_first_read_in_the_middle_is_not_sequential() -> None:
    ahead = Readahead(VERSION)
    read(ahead, MiB, MiB)
    assert not ahead.active


def test_more_is_sent_for_before_what_was_sent_for_is_used_up() -> None:
    ahead = Readahead(VERSION)
    for number in range(8):
        read(ahead, number * MiB, MiB)
    sent = ahead.sent
    offset = 8 * MiB
    while not (due := read(ahead, offset, MiB, waits=False)):
        offset += MiB
    assert due.start == sent
    assert offset < sent * PER_BLOCK - MAX // 2


def test_nothing_beyond_the_end() -> None:
    small = ObjectVersion("ds", "a", "s3://bucket/a", 10 * MiB)
    ahead = Readahead(small)
    ahead.miss(0, MiB)
    assert ahead.due(small.blocks_of(0, MiB), MiB).stop == small.block_count
