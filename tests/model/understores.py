"""Under-stores that a third party writes to, and that can be made to fail."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.conftest import s3_mount_options
from tests.model.reference import Version, parent_of
from tests.support.s3proxy import Fault, FaultRules, S3Proxy
from tests.support.seaweed import SeaweedS3

FAULTS: Mapping[str, Mapping[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "reset": {"reset": True},
    "truncated": {"truncate": 1000},
    "reset in the body": {"truncate": 1000, "reset": True},
    "no body": {"truncate": 0},
    "stall": {"stall_after": 1000, "stall_s": 0.01},
    "another range": {"kind": "GET", "headers": {"Content-Range": "bytes 7-8/9"}},
    "no range": {"kind": "GET", "headers": {"Content-Range": ""}},
}
"""What may happen to a request and is over when it is sent again, as rules of `FaultRules`."""


class ThirdParty(Protocol):
    """Writes to a store behind the cache's back.

    Attributes:
        uri: what to mount.
        options: of that mount.
        breakable: whether `fail` and `shut` do anything.
    """

    uri: str
    options: Mapping[str, str]
    breakable: bool

    def put(self, path: str, data: bytes) -> Version:
        """Write an object."""

    def truncate(self, path: str, data: bytes) -> Version:
        """Cut an object; `data` is what is left of it."""

    def delete(self, path: str) -> None:
        """Delete an object."""

    def fail(self, fault: str, kind: str, times: int) -> None:
        """Do one of FAULTS to the next requests of a kind (GET, HEAD or LIST), and to no others."""

    def shut(self, down: bool) -> None:
        """Have the store refuse everything, or not."""


class Directory:
    """A directory. Each write has a modification time of its own: how else would its versions be told apart?

    Args:
        root: the directory, made here.
    """

    breakable = False

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.uri = f"file://{root}"
        self.options: Mapping[str, str] = {}
        self._root = root
        self._fresh = root.with_name(f"{root.name}-fresh")
        self._times = itertools.count(1_700_000_000_000_000_000, 1_000_000)

    def put(self, path: str, data: bytes) -> Version:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fresh.write_bytes(data)
        tag = self._stamp(self._fresh)
        os.replace(self._fresh, target)
        return Version(tag, data)

    def truncate(self, path: str, data: bytes) -> Version:
        os.truncate(self._root / path, len(data))
        return Version(self._stamp(self._root / path), data)

    def delete(self, path: str) -> None:
        """Directories go with the last file in them, as in an object store."""
        (self._root / path).unlink()
        for directory in (self._root / path).parents:
            if directory == self._root or any(directory.iterdir()):
                return
            directory.rmdir()

    def _stamp(self, path: Path) -> str:
        time = next(self._times)
        os.utime(path, ns=(time, time))
        return f"written at {time}"

    def fail(self, fault: str, kind: str, times: int) -> None:
        raise NotImplementedError

    def shut(self, down: bool) -> None:
        raise NotImplementedError


class Bucket:
    """A prefix of a bucket, which raycache reaches through a proxy only.

    Args:
        server: the S3 server.
        proxy: the proxy before it.
        bucket: name of the bucket.
        prefix: for this history alone.
    """

    breakable = True

    def __init__(self, server: SeaweedS3, proxy: S3Proxy, bucket: str, prefix: str) -> None:
        self.uri = f"s3://{bucket}/{prefix}"
        self.options: Mapping[str, str] = s3_mount_options(server, endpoint=proxy.endpoint)
        self._proxy = proxy
        self._client = server.client()
        self._bucket = bucket
        self._prefix = prefix
        proxy.fault = None

    def put(self, path: str, data: bytes) -> Version:
        answer = self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{path}", Body=data)
        assert answer["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
        return Version(answer["ETag"], data)  # the same bytes are the same version

    def truncate(self, path: str, data: bytes) -> Version:
        return self.put(path, data)

    def delete(self, path: str) -> None:
        """SeaweedFS keeps a directory, as an object with a name that ends in a slash: it goes with the last in it."""
        key = f"{self._prefix}/{path}"
        self._client.delete_object(Bucket=self._bucket, Key=key)
        while (key := f"{parent_of(key.rstrip('/'))}/") != f"{self._prefix}/":
            left = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=2)
            if any(found["Key"] != key for found in left.get("Contents", ())):
                return
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def fail(self, fault: str, kind: str, times: int) -> None:
        self._proxy.fault = FaultRules([{"kind": kind, "times": times} | dict(FAULTS[fault])])

    def shut(self, down: bool) -> None:
        # Not worth trying again, so that nobody has to wait for a deadline.
        self._proxy.fault = (lambda request: Fault(status=501)) if down else None

    def close(self) -> None:
        """Give the third party's own connection up."""
        self._client.close()
