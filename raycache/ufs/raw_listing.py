"""Listings of S3 through boto3, for what obstore cannot list: it refuses a page on which one key is no path to it.

Such keys have an empty component (`a//b`), `.` or `..` for one, or control characters; S3 allows them all. They cannot
be read either way, so they are left out. Only listings that failed come here: boto3 takes several times as long.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from raycache.ufs.base import ObjectInfo
from raycache.ufs.direct import HttpFailure


class RawListing:
    """Lists one bucket. Thread-safe.

    Args:
        bucket: its name.
        root: prefix of the mount in it, without slashes at its ends.
        connect: makes the boto3 client, when it is first needed.
    """

    def __init__(self, bucket: str, root: str, connect: Callable[[], Any]) -> None:
        self._bucket = bucket
        self._root = f"{root}/" if root else ""
        self._connect = connect
        self._lock = threading.Lock()
        self._client: Any = None

    def pages(
        self, prefix: str, *, delimiter: str = "", after: str | None = None
    ) -> Iterator[tuple[list[ObjectInfo], list[str]]]:
        """Objects and directories below a directory, page by page, with keys as they are.

        Args:
            prefix: the directory, below the mount's root; "" is the root.
            delimiter: "/" for one level.
            after: a key (below the mount's root) to begin after.

        Raises:
            HttpFailure, ConnectionError: as `failures.judge` reads them.
        """
        # Imported only where it is needed, as in `s3.py`.
        from botocore.exceptions import BotoCoreError, ClientError

        wanted: dict[str, Any] = {"Bucket": self._bucket, "Delimiter": delimiter}
        wanted["Prefix"] = self._root + (f"{prefix}/" if prefix else "")
        if after is not None:
            wanted["StartAfter"] = self._root + after
        try:
            for page in self._opened().get_paginator("list_objects_v2").paginate(**wanted):
                cut = len(self._root)
                objects = [
                    ObjectInfo(
                        entry["Key"][cut:],
                        entry["Size"],
                        entry.get("ETag", ""),
                        int(entry["LastModified"].timestamp()) * 1_000_000_000,
                    )
                    for entry in page.get("Contents", ())
                ]
                yield objects, [entry["Prefix"][cut:-1] for entry in page.get("CommonPrefixes", ())]
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            raise HttpFailure(f"status: {status} <Code>{code}</Code>") from None
        except BotoCoreError as error:
            raise ConnectionError(f"kind: Request, {type(error).__name__}") from None

    def close(self) -> None:
        """Close the client."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _opened(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client


def is_readable(key: str) -> bool:
    """Whether obstore takes a key for a path (object_store, `Path::parse`): no component that is empty, `.` or `..`, no
    control character of ASCII."""
    controls = any(ord(letter) < 32 or ord(letter) == 127 for letter in key)
    return not controls and not any(part in ("", ".", "..") for part in key.split("/"))


def named(keys: list[str], most: int = 5) -> str:
    """The first of some keys, for a message."""
    return ", ".join(map(repr, itertools.islice(keys, most))) + (", ..." if len(keys) > most else "")
