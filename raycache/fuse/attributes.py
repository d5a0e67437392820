"""Extended attributes: `user.raycache.*` tell what a file of the mount is, and how much of it is cached here."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable

from raycache.blocks import ObjectVersion
from raycache.client import Client
from raycache.fuse.inodes import Node
from raycache.fuse.protocol import replies

PREFIX = "user.raycache."

_ENDPOINT = re.compile(r"(?P<store>[^?]*)(?P<endpoint>\?endpoint=https?://[^/]*)/(?P<key>.*)", re.DOTALL)
"""What identifies an object of a store with an endpoint: the bucket, the endpoint, the object's key."""


class Xattrs:
    """Answers GETXATTR and LISTXATTR.

    Args:
        client: reads the cache.
        dataset: name of the dataset.
    """

    def __init__(self, client: Client, dataset: str) -> None:
        self._client = client
        self._dataset = dataset
        self._of_files: dict[str, Callable[[ObjectVersion], str]] = {
            "version": lambda version: version.tag,
            "source": lambda version: _address(version.store),
            "cached_bytes": lambda version: str(self._cached_bytes(version)),
        }

    def get(self, node: Node, name: bytes, size: int) -> bytes:
        """Answer GETXATTR. Raises OSError: ENODATA for any other attribute, ERANGE if `size` has no room."""
        key = name.decode(errors="replace").removeprefix(PREFIX)
        version = node.info.version
        if key == "dataset" and name.startswith(PREFIX.encode()):
            value = self._dataset
        elif version is not None and key in self._of_files and name.startswith(PREFIX.encode()):
            value = self._of_files[key](version)
        else:
            raise _error(errno.ENODATA)
        return _fitted(value.encode(errors="surrogateescape"), size)

    def list(self, node: Node, size: int) -> bytes:
        """Answer LISTXATTR. Raises OSError: ERANGE if `size` has no room."""
        names = ["dataset", *(self._of_files if node.info.version is not None else ())]
        return _fitted(b"".join(f"{PREFIX}{name}".encode() + b"\0" for name in names), size)

    def _cached_bytes(self, version: ObjectVersion) -> int:
        """Bytes of it in this node's local store."""
        local = self._client.open_local(version, hit=False)
        if local is None:
            return 0
        with local:
            return local.cached_bytes()


def _address(store: str) -> str:
    """An object's identity as a URL, the key before the endpoint.

    (An endpoint with a path in it cannot be told from the key, and takes that path along.)
    """
    parts = _ENDPOINT.fullmatch(store)
    return f"{parts['store']}/{parts['key']}{parts['endpoint']}" if parts is not None else store


def _fitted(value: bytes, size: int) -> bytes:
    if size == 0:
        return replies.xattr_size(len(value))
    if len(value) > size:
        raise _error(errno.ERANGE)
    return value


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
