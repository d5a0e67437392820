"""What is believed of names, and for how long."""

from __future__ import annotations

from dataclasses import replace

from raycache.blocks import FileInfo, ObjectVersion
from raycache.engine import MetadataCache

VERSION = ObjectVersion("ds", "dir/a", "s3://bucket/dir/a", 10, etag='"1"', mtime_ns=1)
FILE = FileInfo("dir/a", "file", VERSION)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_keeps_its_age_when_it_is_handed_on() -> None:
    clock = Clock()
    owner, worker, client = (MetadataCache(30.0, clock) for _ in range(3))
    owner.put_info(FILE)
    owner.put_listing("dir", [FILE])
    clock.now += 20
    for giver, taker in ((owner, worker), (worker, client)):
        info, listing = giver.info("dir/a"), giver.listing("dir")
        assert info is not None
        assert listing is not None
        assert info.ttl == listing.ttl == 30.0 - (clock.now - 1000.0)
        taker.put_listing("dir", *listing)
        taker.put_info(*info)
        clock.now += 5
    assert client.info("dir/a") is None  # 30 s after the owner heard it, 5 s after the client did
    assert client.listing("dir") is None


def test_no_answer_is_believed_longer_than_the_dataset_allows() -> None:
    clock = Clock()
    cache, never = MetadataCache(30.0, clock), MetadataCache(0.0, clock)
    cache.put_info(FILE, 1e9)
    never.put_info(FILE, 1e9)
    assert never.info("dir/a") is None
    clock.now += 30
    assert cache.info("dir/a") is None


def test_versions_differ_in_identity() -> None:
    same = replace(VERSION, mtime_ns=2)
    assert same.object_id == VERSION.object_id  # the ETag alone tells, where there is one
    untagged = replace(VERSION, etag="")
    others = [
        replace(VERSION, etag='"2"'),
        replace(VERSION, size=11),
        replace(VERSION, store="s3://elsewhere/dir/a"),
        untagged,
        replace(untagged, mtime_ns=2),
        replace(untagged, size=11),
    ]
    assert len({version.object_id for version in [VERSION, *others]}) == 7
