"""Plain HTTP(S) servers: files by URL, directories by the index pages that servers make of them.

A file must come with an `ETag` or `Last-Modified`, else its versions could not be told apart. (With
`Last-Modified` alone, two versions of one size within one second look the same.) Index pages have neither,
which is also how a directory is told from a file.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

import obstore
import obstore.store

from raycache.errors import ObjectNotFoundError, SpecError, UnderStoreError
from raycache.metrics import Metrics
from raycache.ufs.base import Listing, ObjectInfo, object_where
from raycache.ufs.object_store import NO_RETRIES, ObstoreStore, client_options
from raycache.ufs.retry import QUICK, Backoff

log = logging.getLogger(__name__)

INDEX_LIMIT = 64 << 20
"""Bytes of the largest index page that is read: about half a million entries."""
_PARALLEL_HEADS = 8
_KNOWN = frozenset({"username", "password", "bearer_token", "allow_http"})


class HttpStore(ObstoreStore):
    """An `UnderStore` over a web server. Listings cost one HEAD for each file of the level."""

    def head(self, key: str) -> ObjectInfo:
        """See `UnderStore.head`."""
        if not key:
            raise ObjectNotFoundError("the mount's root is a directory", where=self.uri)
        info = self._info(self._object_call(lambda: obstore.head(self._store, key), key))
        if not info.etag and not info.mtime_ns:
            hint = "a directory, or a file that the server sends without ETag and Last-Modified"
            raise ObjectNotFoundError("there is no file with a version", where=self._where(key), hint=hint)
        return info

    def list(self, prefix: str) -> Listing:
        """See `UnderStore.list`."""
        names, directories = self._index(prefix)
        with ThreadPoolExecutor(_PARALLEL_HEADS, thread_name_prefix="raycache-head") as pool:
            files = [info for info in pool.map(self._head_or_none, names) if info]
        return Listing(files, list(directories))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `UnderStore.walk`."""
        pending = [prefix]
        while pending:
            try:
                level = self.list(pending.pop())
            except ObjectNotFoundError:
                continue  # nothing is there (any more): then nothing is below it
            yield from level.files
            pending += level.directories

    def check(self) -> bool:
        """See `UnderStore.check`. That the index page is there is all that it shows."""
        self._list_call(lambda: obstore.get(self._store, ""), "", QUICK)
        return True

    def _head_or_none(self, key: str) -> ObjectInfo | None:
        try:
            return self.head(key)
        except ObjectNotFoundError as error:
            log.warning("left out of the listing: %s", error)
            return None

    def _index(self, prefix: str) -> tuple[Sequence[str], Sequence[str]]:
        """Keys of the files and directories that the index page of a directory links to."""
        call = self._object_call if prefix else self._list_call
        answer = call(lambda: obstore.get(self._store, prefix), prefix)
        where = self._where(prefix)
        if answer.meta["e_tag"] or answer.meta["last_modified"].timestamp() > 0:
            raise ObjectNotFoundError("this is a file, not a directory", where=where)
        if answer.meta["size"] > INDEX_LIMIT:
            raise UnderStoreError(f"the index page is larger than {INDEX_LIMIT} bytes", where=where)
        page = call(lambda: b"".join(self._pieces(obstore.get(self._store, prefix))), prefix)
        links = _Links()
        links.feed(page.decode("utf-8", "replace"))
        base = self.uri + "/" + (quote(prefix) + "/" if prefix else "")
        names: set[str] = set()
        directories: set[str] = set()
        for link in links.found:
            target = urlsplit(urljoin(base, link))
            path = target._replace(query="", fragment="").geturl()
            if target.query or not path.startswith(base):
                continue  # sorting links, and links to elsewhere
            name = unquote(path[len(base) :])
            if not name or "/" in name.rstrip("/") or name.rstrip("/") in (".", ".."):
                continue
            key = f"{prefix}/{name}" if prefix else name
            (directories.add(key.rstrip("/")) if name.endswith("/") else names.add(key))
        return sorted(names), sorted(directories)

    def _where(self, key: str) -> str:
        return object_where(self.uri, key)


class _Links(HTMLParser):
    """The targets of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def open_http(
    uri: str, options: Mapping[str, str], *, metrics: Metrics | None = None, backoff: Backoff | None = None
) -> HttpStore:
    """The store of an `http(s)://` mount point.

    Args:
        uri: URL of the directory, without user, password and query.
        options: `username` and `password`, or `bearer_token`; nothing else.
        metrics: where GETs, bytes and retries are counted.
        backoff: how long failures are retried.

    Raises:
        SpecError: an option that has no meaning here, or a URL without a host.
    """
    identity = uri.rstrip("/")
    if not urlsplit(uri).hostname:
        raise SpecError("the mount point names no host", where=uri, hint="write https://host/path")
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise SpecError(
            f"HTTP mounts have no option {', '.join(unknown)}",
            where=identity,
            hint="username, password and bearer_token are understood",
        )
    settings = client_options(allow_http=identity.startswith("http://"))
    if options.get("bearer_token"):
        settings["default_headers"] = {"Authorization": f"Bearer {options['bearer_token']}"}
    elif options.get("username") or options.get("password"):
        pair = f"{options.get('username', '')}:{options.get('password', '')}".encode()
        settings["default_headers"] = {"Authorization": "Basic " + base64.b64encode(pair).decode()}
    try:
        store = obstore.store.HTTPStore.from_url(identity, client_options=settings, retry_config=NO_RETRIES)
    except (obstore.exceptions.BaseError, ValueError, TypeError):
        # The client's message would quote the headers.
        raise SpecError("the HTTP client does not accept the mount point", where=identity) from None
    return HttpStore(identity, store, metrics=metrics, backoff=backoff)
