"""Extended attributes of a mount's files."""

from __future__ import annotations

from typing import cast

import pytest

from raycache.blocks import FileInfo, ObjectVersion
from raycache.client import Client
from raycache.fuse.attributes import Xattrs
from raycache.fuse.inodes import Node


@pytest.mark.parametrize(
    ("store", "address"),
    [
        ("s3://b/dir/key", "s3://b/dir/key"),
        ("s3://b?endpoint=http://host:9000/dir/key", "s3://b/dir/key?endpoint=http://host:9000"),
        ("s3://b?endpoint=https://host/what?/a/ key", "s3://b/what?/a/ key?endpoint=https://host"),
        ("s3://b/what?endpoint=odd", "s3://b/what?endpoint=odd"),
        ("file:///d/key", "file:///d/key"),
    ],
)
def test_the_source_is_an_address_with_the_key_before_the_endpoint(store: str, address: str) -> None:
    version = ObjectVersion("ds", "key", store, "e", 1, 1 << 20)
    node = Node(2, FileInfo("key", "file", version))
    xattrs = Xattrs(cast("Client", None), "ds")
    assert xattrs.get(node, b"user.raycache.source", 1 << 10) == address.encode()
    assert version.store == store
