"""Object stores through obstore: S3 and everything that speaks its protocol, Google Cloud Storage, Azure Blob.

Reads are one conditional ranged GET each, with no copy on this side of the client; the calling thread waits
without the GIL, so parallel reads are as many threads. obstore's own retries are off: `Retrier` counts them
and keeps the deadline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import obstore

from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    PathError,
    RaycacheError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.metrics import STORE_BYTES, STORE_GETS, UNREADABLE_KEYS, Metrics
from raycache.ufs.base import Buffer, Listing, ObjectInfo, Sink, check_range, object_where
from raycache.ufs.direct import DirectGetter
from raycache.ufs.failures import CATCH, judge, judge_listing
from raycache.ufs.pace import Pace
from raycache.ufs.raw_listing import RawListing, is_readable, named
from raycache.ufs.retry import QUICK, Backoff, Failure, Retrier

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

log = logging.getLogger(__name__)
T = TypeVar("T")

NO_RETRIES: RetryConfig = {"max_retries": 0}

AS_IT_COMES = 1
"""Least bytes per piece of a body: one read of the client's each (up to 400 KiB, with TLS 16 KiB), so that a body that
drips is seen to. Larger pieces cost as much processor time (measured over HTTP and TLS, 16 KiB to 256 KiB)."""

WALK_CHUNK = 1000
"""Objects taken from the client at once while walking: one page of S3's ListObjectsV2."""


def client_options(*, allow_http: bool) -> ClientConfig:
    """Settings of the HTTP client that all stores share.

    No limit on a whole request, because a large range from a slow store is no failure; silence is.
    """
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=20),
        "timeout": timedelta(minutes=30),
        "pool_idle_timeout": timedelta(seconds=60),
    }


class ObstoreStore:
    """An `UnderStore` over an obstore store whose root is the mount's root.

    Args:
        uri: identity of the mount, without secrets.
        store: the obstore store.
        metrics: where GETs, bytes and retries are counted.
        backoff: how long failures are retried.
        direct: a shorter way for large reads (see `direct.py`); closed with the store.
        raw: lists what the client cannot (see `raw_listing.py`); None: such listings fail. Closed with the store.
        clock: seconds, monotonic; for the least rate of bodies (see `pace.py`).

    Keys with an empty component (`a//b`), with `.` or `..` for one, or with control characters cannot be addressed.
    """

    def __init__(
        self,
        uri: str,
        store: ObjectStore,
        *,
        metrics: Metrics | None = None,
        backoff: Backoff | None = None,
        direct: DirectGetter | None = None,
        raw: RawListing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.uri = uri
        self._raw = raw
        self._warned: set[str] = set()
        self._clock = clock
        self._direct = direct
        self._client: ObjectStore | None = store
        self._metrics = metrics or Metrics()
        self._proven = False  # whether any request has succeeded: then the bucket exists
        self._parts = False  # whether it has sent part of an object
        self._objects = Retrier(self._judge, CATCH, backoff or Backoff(), self._metrics)
        self._lists = Retrier(judge_listing, CATCH, backoff or Backoff(), self._metrics)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"

    def head(self, key: str) -> ObjectInfo:
        """See `UnderStore.head`."""
        if not key:
            raise ObjectNotFoundError("the mount's root is a directory", where=self.uri)
        try:
            meta = self._object_call(lambda: obstore.head(self._store, key), key)
        except (ObjectNotFoundError, AccessDeniedError):
            # The answer to HEAD has no body, so it does not say whether the bucket is missing, or why not.
            if not self._proven:
                self.check()
            raise
        return self._info(meta)

    def list(self, prefix: str) -> Listing:
        """See `UnderStore.list`."""
        try:
            answer = self._list_call(lambda: obstore.list_with_delimiter(self._store, prefix or None), prefix)
        except PathError:
            raw = self._raw
            if raw is None or (prefix and not is_readable(prefix)):
                raise
            pages = self._list_call(lambda: list(raw.pages(prefix, delimiter="/")), prefix)
            below = [info for objects, _ in pages for info in objects if info.key != f"{prefix}/"]
            names = [name for _, directories in pages for name in directories]
            files = [info for info in below if is_readable(info.key)]
            directories = [name for name in names if is_readable(name)]
            self._left_out(prefix, [*(info.key for info in below), *(f"{name}/" for name in names)])
            return Listing(files, directories)
        # A "directory marker" (key "a/") comes back as an object with the path of the prefix itself.
        files = [self._info(meta) for meta in answer["objects"] if meta["path"] != prefix]
        directories = [path for path in answer["common_prefixes"] if path != prefix]
        if prefix and not answer["objects"] and not answer["common_prefixes"]:
            raise ObjectNotFoundError("there is no such directory", where=object_where(self.uri, prefix))
        return Listing(files, directories)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `UnderStore.walk`."""
        after: str | None = None
        stream: Iterator[Sequence[ObjectMeta]] | None = None

        def page() -> Sequence[ObjectMeta]:
            # After a failure the listing goes on from the last key that arrived, not from the start.
            nonlocal stream
            if stream is None:
                stream = iter(obstore.list(self._store, prefix or None, offset=after, chunk_size=WALK_CHUNK))
            try:
                return next(stream, ())
            except CATCH:
                stream = None
                raise

        while True:
            try:
                chunk = self._list_call(page, prefix)
            except PathError:
                if self._raw is None or (prefix and not is_readable(prefix)):
                    raise
                yield from self._walk_raw(self._raw, prefix, after)
                return
            if not chunk:
                return
            after = max(meta["path"] for meta in chunk)
            for meta in chunk:
                if meta["path"] != prefix and not self._is_marker(meta):
                    yield self._info(meta)

    def _walk_raw(self, raw: RawListing, prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        """The rest of a walk, from the key `after` on."""
        while True:
            # One page at a time: a failure must not begin it all anew.
            objects, _ = self._list_call(partial(_first, raw, prefix, after), prefix)
            if not objects:
                return
            after = objects[-1].key
            # What ends with a slash is a directory's marker.
            found = [info for info in objects if not info.key.endswith("/")]
            self._left_out(prefix, [info.key for info in found])
            yield from (info for info in found if is_readable(info.key))

    def _left_out(self, prefix: str, keys: Sequence[str]) -> None:
        """Count, and tell once of each directory, what of `keys` cannot be read."""
        unreadable = [key for key in keys if not is_readable(key.removesuffix("/"))]
        self._metrics.add(UNREADABLE_KEYS, len(unreadable))
        if unreadable and prefix not in self._warned:
            self._warned.add(prefix)
            log.warning(
                "%s: left out, for the store's client cannot express these keys: %s",
                object_where(self.uri, prefix),
                named(unreadable),
            )

    def read(self, key: str, offset: int, length: int, expected: ObjectInfo) -> Buffer:
        """See `UnderStore.read`."""

        def attempt(where: str) -> bytes:
            body = b"".join(self._pieces(self._get(key, offset, length, expected, where)))
            self._arrived(len(body), length, where)
            return body

        return self._read(attempt, key, offset, length, expected) if length else b""

    def pour(self, key: str, offset: int, length: int, expected: ObjectInfo, sink: Sink) -> None:
        """See `UnderStore.pour`."""

        def attempt(where: str) -> None:
            sink.restart()
            direct = self._direct
            if direct is not None and expected.etag:
                self._metrics.add(STORE_GETS)
                direct.pour(key, offset, length, expected, sink, where)
                self._metrics.add(STORE_BYTES, length)
                return
            received = 0
            for piece in self._pieces(self._get(key, offset, length, expected, where)):
                received += len(piece)
                sink.feed(piece)
            self._arrived(received, length, where)

        if length:
            self._read(attempt, key, offset, length, expected)

    def check(self) -> bool:
        """See `UnderStore.check`."""
        try:
            first = self._list_call(
                lambda: next(iter(obstore.list(self._store, chunk_size=1)), None), "", QUICK
            )
        except (
            PathError
        ) as error:  # a key that the client cannot parse is among the first: something is there
            log.warning("%s holds keys that cannot be read: %s", self.uri, error.what)
            return True
        return bool(first)

    def close(self) -> None:
        """See `UnderStore.close`. Connections close with the last answer that still uses them."""
        self._client = None
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()
        if self._raw is not None:
            self._raw.close()
        self._objects.close()
        self._lists.close()

    @property
    def _store(self) -> ObjectStore:
        client = self._client
        if client is None:
            raise UnderStoreError("the mount has been closed", where=self.uri)
        return client

    def _read(
        self, attempt: Callable[[str], T], key: str, offset: int, length: int, expected: ObjectInfo
    ) -> T:
        where = object_where(self.uri, key)
        check_range(expected, offset, length, where)
        try:
            result = self._objects.call(lambda: attempt(where), where)
            self._parts = True
            return result
        except ObjectNotFoundError:
            self._bucket_must_exist()
            raise StaleObjectError("the object has been deleted since it was opened", where=where) from None

    def _get(self, key: str, offset: int, length: int, expected: ObjectInfo, where: str) -> GetResult:
        options: GetOptions = {"range": (offset, offset + length)}
        if expected.etag and not expected.etag.startswith("W/"):
            # A weak tag never matches (RFC 9110, section 13.1.1).
            options["if_match"] = expected.etag
        self._metrics.add(STORE_GETS)
        answer = obstore.get(self._store, key, options=options)
        found = self._info(answer.meta)
        # Also where If-Match was sent: not every store that accepts the header acts on it.
        if (found.etag and found.etag != expected.etag) or found.size != expected.size:
            raise StaleObjectError("the object has changed since it was opened", where=where)
        if not (found.etag and expected.etag) and found.mtime_ns != expected.mtime_ns:
            raise StaleObjectError("the object has changed since it was opened", where=where)
        return answer

    def _pieces(self, answer: GetResult) -> Iterator[memoryview]:
        """An answer's body as it comes. Raises TooSlowError (what is left of it is given up with the connection)."""
        pace = Pace(self._clock)
        for chunk in answer.stream(AS_IT_COMES):
            piece = memoryview(chunk)
            pace.got(len(piece))
            yield piece

    def _arrived(self, received: int, length: int, where: str) -> None:
        if received != length:
            raise IntegrityError(f"the store sent {received} of {length} bytes", where=where)
        self._metrics.add(STORE_BYTES, length)

    def _info(self, meta: ObjectMeta) -> ObjectInfo:
        # Whole seconds: HEAD tells no more (HTTP dates), so a listing must not either.
        return ObjectInfo(meta["path"], meta["size"], meta["e_tag"] or "", seconds_ns(meta["last_modified"]))

    def _bucket_must_exist(self) -> None:
        """Raise BucketNotFoundError if it was the bucket that was not found; not every answer says so."""
        try:
            self.check()
        except BucketNotFoundError:
            raise
        except RaycacheError as error:
            log.info("cannot tell whether the bucket exists: %s", error)

    def _is_marker(self, meta: ObjectMeta) -> bool:
        """Whether an object of a recursive listing is a directory marker.

        The client drops the slash at the end of "a/", so an empty object is asked for: as "a" it is not there.
        """
        if meta["size"]:
            return False
        try:
            self.head(meta["path"])
        except ObjectNotFoundError:
            return True
        return False

    def _judge(self, error: Exception, where: str) -> Failure:
        failure = judge(error, where)
        if failure.unpartial and self._parts:
            # A store that sends parts has not forgotten how: something on the way answered in its place.
            what = "an answer came that is not of the store"
            hint = "look at what stands between raycache and the store: a proxy, a load balancer"
            return Failure(UnderStoreError(what, where=where, hint=hint), transient=True)
        return failure

    def _object_call(self, attempt: Callable[[], T], key: str) -> T:
        result = self._objects.call(attempt, object_where(self.uri, key))
        self._proven = True
        return result

    def _list_call(self, attempt: Callable[[], T], prefix: str, backoff: Backoff | None = None) -> T:
        result = self._lists.call(attempt, object_where(self.uri, prefix), backoff)
        self._proven = True
        return result


def _first(raw: RawListing, prefix: str, after: str | None) -> tuple[list[ObjectInfo], list[str]]:
    return next(raw.pages(prefix, after=after), ([], []))


def seconds_ns(when: datetime | None) -> int:
    """A time of last modification in nanoseconds, cut to whole seconds; 0 if unknown."""
    return int(when.timestamp()) * 1_000_000_000 if when else 0
