"""An HTTP proxy in front of an object store: limits bandwidth, counts requests and bytes, injects faults.

Bodies go from socket to socket through a kernel pipe (`splice`), so the proxy costs little and never holds
the GIL while it moves bytes; only heads are parsed. One thread per client connection, one upstream connection
for each. The `Host` header is passed on as it came, which keeps S3 signatures valid.

Run it as a process of its own when anything is timed (`ProxyProcess`, or
`python -m tests.support.s3proxy --upstream HOST:PORT --bandwidth N`), in this process (`S3Proxy`) when a test
wants to give it a `fault` function.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.httpwire import (
    PIPE_SIZE,
    PeerClosed,
    RateLimit,
    Stream,
    error_answer,
    kernel_pipe,
    parse_head,
    reset_connection,
    rewrite_head,
)

TICK_S = 0.002
"""While a limit holds, this many seconds' worth of bytes pass at once: a smooth stream, few wake-ups."""


@dataclass(frozen=True)
class Request:
    """A request as a `fault` function sees it: `key` is "bucket/path", `number` counts from 1."""

    method: str
    kind: str  # GET, HEAD, LIST (a GET on a bucket), or the method itself
    key: str
    headers: dict[str, str]
    number: int


@dataclass(frozen=True)
class Fault:
    """What to do to one request.

    Args:
        latency_s: seconds to wait before it is passed on.
        status: answer with this status and an S3-like error body instead of asking the store.
        truncate: close the connection after this many body bytes.
        stall_after: stop after this many body bytes until `stall_s` seconds are over or the proxy stops.
        stall_s: see `stall_after`.
        reset: reset the connection (RST); with `truncate`, after that many bytes, else before any answer.
        corrupt: index of a body byte to flip.
        headers: fields of the answer to set, or with "" to leave out: `Content-Range`, `ETag`, with `status` also
            `Retry-After`. A `Content-Length` that is not the body's ends the connection after the body.
    """

    latency_s: float = 0.0
    status: int = 0
    truncate: int | None = None
    stall_after: int | None = None
    stall_s: float = 0.0
    reset: bool = False
    corrupt: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class KeyStats:
    """Counts of one object. `bytes` are body bytes of GET answers as passed on to clients."""

    GET: int = 0
    HEAD: int = 0
    bytes: int = 0


@dataclass
class Stats:
    """What went through. `bytes`: bodies of object GETs (2xx); listings and error bodies are not in it."""

    GET: int = 0
    HEAD: int = 0
    LIST: int = 0
    other: int = 0
    errors: int = 0
    bytes: int = 0
    list_bytes: int = 0
    max_concurrent_gets: int = 0
    keys: dict[str, KeyStats] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stats:
        """The stats that `asdict` made plain."""
        keys = {key: KeyStats(**value) for key, value in data["keys"].items()}
        return cls(**(data | {"keys": keys}))


class S3Proxy:
    """The proxy, in threads of this process; a context manager.

    Args:
        upstream: "host:port" of the store.
        bandwidth: bytes per second of answer bodies over all connections together; 0 is no limit. Uploads
            are not limited.
        port: port to listen on at 127.0.0.1; 0 takes a free one.
        fault: called for every request; what it returns is done to that request. It may be
            set at any time.
    """

    def __init__(
        self,
        upstream: str,
        bandwidth: float = 0,
        port: int = 0,
        fault: Callable[[Request], Fault | None] | None = None,
    ) -> None:
        host, _, upstream_port = upstream.removeprefix("http://").rstrip("/").rpartition(":")
        self._upstream = (host, int(upstream_port))
        self._limit = RateLimit(bandwidth)
        self.fault = fault
        self._lock = threading.Lock()
        self._stats = Stats()
        self._requests = 0
        self._gets_now = 0
        self._stopped = threading.Event()
        self._open: set[Stream] = set()
        self._threads: set[threading.Thread] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"s3proxy-{self.port}", daemon=True)

    @property
    def endpoint(self) -> str:
        """URL to give to S3 clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> S3Proxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> S3Proxy:
        """Begin to accept connections."""
        self._acceptor.start()
        return self

    def stop(self) -> None:
        """Close every connection and wait for the threads."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone would not
        self._listener.close()
        if self._acceptor.ident is not None:
            self._acceptor.join()
        with self._lock:
            streams, threads = list(self._open), list(self._threads)
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        with self._lock:
            return copy.deepcopy(self._stats)

    def reset(self) -> None:
        """Set all counters to zero."""
        with self._lock:
            self._stats = Stats()

    def set_bandwidth(self, bandwidth: float) -> None:
        """Change the limit, bytes per second; 0 is none. Holds for what is not yet on its way."""
        self._limit.rate = bandwidth

    # -- connections ---------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            thread.name = f"s3proxy-{self.port}-connection"
            with self._lock:
                self._threads.add(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        client = Stream(sock)
        upstream: Stream | None = None
        with self._lock:
            self._open.add(client)
        try:
            with kernel_pipe() as pipe:
                while not self._stopped.is_set():
                    head = client.head()
                    if upstream is not None and not upstream.idle():
                        with self._lock:
                            self._open.discard(upstream)
                        upstream.close()
                        upstream = None
                    if upstream is None:
                        upstream = Stream(socket.create_connection(self._upstream))
                        with self._lock:
                            self._open.add(upstream)
                    if not self._exchange(client, upstream, head, pipe):
                        return
        except (PeerClosed, OSError):
            pass  # either side went away: the other is closed too, and sees it as its own broken connection
        finally:
            for stream in (client, upstream):
                if stream is not None:
                    stream.close()
            with self._lock:
                self._open -= {client, upstream}
                self._threads.discard(threading.current_thread())

    def _exchange(self, client: Stream, upstream: Stream, head: bytes, pipe: tuple[int, int]) -> bool:
        """One request and its answer. False ends the connection."""
        (method, target, *_), headers = parse_head(head)
        request = self._note_request(method, target, headers)
        fault = (self.fault(request) if self.fault else None) or Fault()
        if fault.latency_s:
            self._stopped.wait(fault.latency_s)
        if fault.reset and fault.truncate is None:
            reset_connection(client)
            return False
        if fault.status:
            self._note_error()
            client.sock.sendall(error_answer(method, fault.status, fault.headers))
            return False
        upstream.sock.sendall(head)
        if "100-continue" not in headers.get("expect", "").lower():
            self._relay_message_body(client, upstream, headers, pipe, None)
        keep = headers.get("connection", "").lower() != "close"
        is_get = request.kind == "GET"
        with self._counted_get(is_get):
            while True:
                answer = upstream.head()
                (version, status_text, *_), answer_headers = parse_head(answer)
                status = int(status_text)
                if 100 <= status < 200:
                    client.sock.sendall(answer)
                    if status == 100 and "expect" in headers:
                        self._relay_message_body(client, upstream, headers, pipe, None)
                    continue
                break
            if status >= 400:
                self._note_error()
                if "expect" in headers:
                    keep = False  # the body that was announced never comes, or is already on its way
            if fault.headers:
                answer = rewrite_head(answer, fault.headers)
                keep = keep and "content-length" not in map(str.lower, fault.headers)
            keep = keep and answer_headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
            if method == "HEAD" or status in (204, 304):
                client.sock.sendall(answer)
                return keep
            # A small body leaves together with its head.
            client.sock.sendall(answer)
            sink = _Sink(self, request, status)
            if "content-length" in answer_headers or "transfer-encoding" in answer_headers:
                return self._relay_answer(upstream, client, answer_headers, pipe, sink, fault) and keep
            with contextlib.suppress(PeerClosed):
                while True:
                    data = upstream.take(PIPE_SIZE)
                    if not data:
                        upstream.fill()
                        continue
                    client.sock.sendall(data)
                    sink.count(len(data))
            return False

    def _relay_message_body(
        self,
        source: Stream,
        sink: Stream,
        headers: dict[str, str],
        pipe: tuple[int, int],
        count: _Sink | None,
    ) -> None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size_line = source.line()
                sink.sock.sendall(size_line)
                size = int(size_line.split(b";")[0], 16)
                self._relay(source, sink, size, pipe, count)
                if size == 0:
                    while (line := source.line()) != b"\r\n":
                        sink.sock.sendall(line)
                    sink.sock.sendall(b"\r\n")
                    return
                sink.sock.sendall(source.line())
        else:
            self._relay(source, sink, int(headers.get("content-length") or 0), pipe, count)

    def _relay_answer(
        self,
        upstream: Stream,
        client: Stream,
        headers: dict[str, str],
        pipe: tuple[int, int],
        sink: _Sink,
        fault: Fault,
    ) -> bool:
        """The answer's body, with what `fault` does to it. False if the connection is spoilt."""
        marks = {fault.truncate, fault.stall_after, fault.corrupt} - {None}
        if not marks or "content-length" not in headers:
            self._relay_message_body(upstream, client, headers, pipe, sink)
            return True
        length, done = int(headers["content-length"]), 0
        for mark in sorted(mark for mark in marks if mark is not None and mark < length):
            self._relay(upstream, client, mark - done, pipe, sink)
            done = mark
            if mark == fault.truncate:
                if fault.reset:
                    reset_connection(client)
                return False
            if mark == fault.stall_after:
                self._stopped.wait(fault.stall_s)
            if mark == fault.corrupt:
                while not upstream.buffer:
                    upstream.fill()
                client.sock.sendall(bytes([upstream.take(1)[0] ^ 0xFF]))
                sink.count(1)
                done += 1
        self._relay(upstream, client, length - done, pipe, sink)
        return True

    def _relay(
        self, source: Stream, sink: Stream, length: int, pipe: tuple[int, int], count: _Sink | None
    ) -> None:
        """Move exactly `length` bytes; `count` is given for answers, which are also what the limit is for."""
        into, out = pipe[1], pipe[0]
        limited = count is not None and self._limit.rate > 0
        while length:
            want = min(length, PIPE_SIZE)
            if limited:
                want = min(want, max(32 << 10, int(self._limit.rate * TICK_S)))
            if source.buffer:
                data = source.take(want)
                moved = len(data)
                if limited:
                    self._limit.take(moved, self._stopped)
                sink.sock.sendall(data)
            else:
                moved = os.splice(source.sock.fileno(), into, want)
                if moved == 0:
                    raise PeerClosed
                if limited:
                    self._limit.take(moved, self._stopped)
                left = moved
                while left:
                    left -= os.splice(out, sink.sock.fileno(), left)
            length -= moved
            if count is not None:
                count.count(moved)

    # -- counting ------------------------------------------------------------------------------------

    def _note_request(self, method: str, target: str, headers: dict[str, str]) -> Request:
        parts = urlsplit(target)
        key = unquote(parts.path).strip("/") if parts.path.count("/") > 1 else unquote(parts.path)[1:]
        query = parse_qs(parts.query, keep_blank_values=True)
        kind = method
        if method == "GET" and ("/" not in key or "list-type" in query):
            kind = "LIST"
        with self._lock:
            self._requests += 1
            if kind in ("GET", "HEAD", "LIST"):
                setattr(self._stats, kind, getattr(self._stats, kind) + 1)
            else:
                self._stats.other += 1
            if kind in ("GET", "HEAD"):
                entry = self._stats.keys.setdefault(key, KeyStats())
                setattr(entry, kind, getattr(entry, kind) + 1)
            return Request(method, kind, key, headers, self._requests)

    def _note_error(self) -> None:
        with self._lock:
            self._stats.errors += 1

    def note_bytes(self, request: Request, amount: int) -> None:
        """Count body bytes of a good answer."""
        with self._lock:
            if request.kind == "GET":
                self._stats.bytes += amount
                self._stats.keys.setdefault(request.key, KeyStats()).bytes += amount
            elif request.kind == "LIST":
                self._stats.list_bytes += amount

    @contextlib.contextmanager
    def _counted_get(self, is_get: bool) -> Iterator[None]:
        with self._lock:
            self._gets_now += is_get
            self._stats.max_concurrent_gets = max(self._stats.max_concurrent_gets, self._gets_now)
        try:
            yield
        finally:
            with self._lock:
                self._gets_now -= is_get


class _Sink:
    """Counts the body of one answer."""

    def __init__(self, proxy: S3Proxy, request: Request, status: int) -> None:
        self._proxy, self._request, self._good = proxy, request, status < 300

    def count(self, amount: int) -> None:
        if self._good:
            self._proxy.note_bytes(self._request, amount)
