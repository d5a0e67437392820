"""Ranged GETs over plain HTTP, received straight into the buffer that they are wanted in.

A general client collects an answer in buffers of its own, which costs an allocation, page faults and a copy per
byte; at the speed of a store in the same rack that is most of what a cold read costs. Here the kernel copies from the
socket into the cache's stage and nothing else touches the bytes (docs/design/2026-11-24-cold-reads.md has the figures).

Only what is simple is done here: the request is signed by the store's own client (a presigned URL, so that
credentials and their renewal stay its business), and whatever is not a plain partial answer of the version that was
asked for is an exception in the form that `failures.judge` reads. TLS, proxies, anonymous access and requests
that need headers of their own go through the client.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from raycache.descriptors import EXHAUSTED
from raycache.errors import IntegrityError, StaleObjectError
from raycache.ufs.base import ObjectInfo, Sink
from raycache.ufs.pace import Pace

CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a connection, as of the general client."""

SILENCE_TIMEOUT_S = 20.0
"""Longest wait for the next bytes, as of the general client."""

IDLE_S = 10.0
"""Seconds after which a connection that nobody used is not trusted any more: something between here and the store may
have forgotten it without a word, and who uses it then waits for `SILENCE_TIMEOUT_S`."""

ERROR_BODY = 4096
"""Most bytes read of an answer that refuses the request: S3's error documents are shorter."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)")


class HttpFailure(Exception):
    """An answer that is no part of the object; its text is what `failures.judge` reads.

    Args:
        text: status and error document.
        after_s: seconds that its Retry-After asks to wait; 0 if it does not.
    """

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


class Target(NamedTuple):
    """Where a signed URL leads."""

    host: str
    port: int
    path: str


def is_direct(url: str) -> bool:
    """Whether requests to this endpoint can be made without the general client: plain HTTP, and no proxy for it."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    proxies = urllib.request.getproxies()
    return not ({"http", "all"} & proxies.keys()) or bool(urllib.request.proxy_bypass(parts.hostname))


class DirectGetter:
    """Connections to one store. Thread-safe; as many are kept open as were used at once.

    Args:
        sign: a presigned URL for a GET of a key.
        clock: seconds, monotonic: for the age of connections and the least rate of answers.
    """

    def __init__(self, sign: Callable[[str], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._sign = sign
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[tuple[http.client.HTTPConnection, float]] = []
        self._closed = False

    def pour(self, key: str, offset: int, length: int, expected: ObjectInfo, sink: Sink, where: str) -> None:
        """One conditional ranged GET, into `sink`. Arguments as of `UnderStore.pour`.

        Raises:
            HttpFailure: the store answered something else; `failures.judge` knows what.
            StaleObjectError: it answered with another version.
            IntegrityError: the answer is not the range that was asked for, or ended early.
            TooSlowError: the answer comes too slowly (see `pace.py`).
            OSError: the connection failed.
        """
        url = urlsplit(self._sign(key))
        target = Target(url.hostname or "", url.port or 80, f"{url.path}?{url.query}")
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if expected.etag and not expected.etag.startswith("W/"):
            # A weak tag never matches (RFC 9110, section 13.1.1).
            headers["If-Match"] = expected.etag
        connection, answer = self._request(target, headers)
        try:
            if answer.status != 206:
                body = _refusal(answer, Pace(self._clock)).decode("utf-8", "replace")
                raise HttpFailure(f"status: {answer.status} {body}", retry_after_s(answer.headers))
            _check(answer, offset, length, expected, where)
            _receive(answer, length, sink, Pace(self._clock), where)
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionResetError(f"the answer broke off: {type(error).__name__}") from None
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, answer)

    def close(self) -> None:
        """Close what is idle; what is in use is closed when its answer has been read."""
        with self._lock:
            self._closed = True
        self._drop_idle()

    def _request(
        self, target: Target, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a GET; the connection and the beginning of the answer."""
        while True:
            connection = self._take(target)
            fresh = connection is None
            if connection is None:
                connection = _connect(target)
            try:
                connection.request("GET", target.path, headers=headers)
                return connection, connection.getresponse()
            except (http.client.HTTPException, ConnectionError) as error:
                # A kept connection may have been closed by the server in the meantime: that says nothing of the store.
                connection.close()
                if fresh:
                    raise ConnectionResetError(f"no answer: {type(error).__name__}") from None
            except BaseException:
                connection.close()
                if (
                    not fresh
                ):  # it did not answer: the others are as old, and nobody shall wait for each of them
                    self._drop_idle()
                raise

    def _take(self, target: Target) -> http.client.HTTPConnection | None:
        with self._lock:
            while self._idle:
                connection, since = self._idle.pop()
                young = self._clock() - since < IDLE_S
                if young and (connection.host, connection.port) == (target.host, target.port):
                    return connection
                connection.close()  # forgotten by now, perhaps; or the endpoint has moved
        return None

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _give_back(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        reusable = (
            answer.isclosed() and connection.sock is not None
        )  # read to its end, and the server keeps it open
        with self._lock:
            if reusable and not self._closed:
                self._idle.append((connection, self._clock()))
                return
        connection.close()


def _connect(target: Target) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.connect()
    except TimeoutError:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        if error.errno in EXHAUSTED:
            raise
        raise ConnectionRefusedError(f"kind: Connect, {error.strerror}") from None
    connection.sock.settimeout(SILENCE_TIMEOUT_S)
    return connection


def retry_after_s(headers: Message, now: float | None = None) -> float:
    """Seconds that an answer's Retry-After asks to wait: a number, or until a date (RFC 9110, section 10.2.3); 0 if it
    has none, or none that makes sense.

    Args:
        headers: of the answer.
        now: seconds since the epoch.
    """
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, then - (time.time() if now is None else now))


def _check(
    answer: http.client.HTTPResponse, offset: int, length: int, expected: ObjectInfo, where: str
) -> None:
    """Refuse an answer that is of another version, or another range than was asked for."""
    etag = answer.headers.get("ETag", "")
    span = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if span is None or (int(span[1]), int(span[2])) != (offset, offset + length - 1):
        raise IntegrityError("the store sent another range than was asked for", where=where)
    # Also where If-Match was sent: not every store that accepts the header acts on it.
    if etag != expected.etag or span[3] not in (str(expected.size), "*"):
        raise StaleObjectError("the object has changed since it was opened", where=where)
    if answer.length != length or answer.headers.get("Content-Encoding", "identity") != "identity":
        raise IntegrityError(f"the store announced {answer.length} of {length} bytes", where=where)


def _refusal(answer: http.client.HTTPResponse, pace: Pace) -> bytes:
    """The beginning of a refusal's body."""
    body = b""
    while len(body) < ERROR_BODY and (piece := answer.read1(ERROR_BODY - len(body))):
        pace.got(len(piece))
        body += piece
    return body


def _receive(answer: http.client.HTTPResponse, length: int, sink: Sink, pace: Pace, where: str) -> None:
    received = 0
    while received < length:
        room = sink.room()[: length - received]
        at = 0
        while at < len(room):
            # Not `answer.readinto`, which returns only when there is no room left: a drip would go unseen.
            taken = answer.fp.readinto1(room[at:])
            if not taken:
                raise IntegrityError(f"the store sent {received + at} of {length} bytes", where=where)
            pace.got(taken)
            at += taken
        sink.filled(at)
        received += at
    answer.length = 0  # what is left of the body
    answer.read()  # so that the answer knows that it is over
