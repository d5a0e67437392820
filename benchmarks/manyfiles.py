"""Many empty objects in an S3 server, quickly: presigned PUTs, many at a time on a few connections."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

AT_ONCE = 50
CONNECTIONS = 8


def put_empty(store: S3Store, keys: Sequence[str]) -> None:
    """Put an empty object under each key.

    Raises:
        RuntimeError: the server refuses one.
    """
    urls = obstore.sign(store, "PUT", keys, expires_in=timedelta(hours=1))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(_put, [urls[start::CONNECTIONS] for start in range(CONNECTIONS)]))


def _put(urls: Sequence[str]) -> None:
    if not urls:
        return
    server = urlsplit(urls[0])
    waiting = iter(urls)
    with socket.create_connection((server.hostname, server.port), timeout=60) as connection:
        while batch := list(islice(waiting, AT_ONCE)):
            connection.sendall(b"".join(_request(url) for url in batch))
            _await_answers(connection, len(batch))


def _request(url: str) -> bytes:
    parts = urlsplit(url)
    return f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 0\r\n\r\n".encode()


def _await_answers(connection: socket.socket, count: int) -> None:
    """Read `count` answers, which come in order and have no body."""
    received = b""
    while received.count(b"\r\n\r\n") < count:
        more = connection.recv(1 << 16)
        received += more
        if not more or received.count(b"HTTP/1.1 ") > received.count(b"HTTP/1.1 200"):
            raise RuntimeError(f"a PUT failed: {received[-1000:]!r}")
