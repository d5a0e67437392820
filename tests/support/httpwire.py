"""The small parts of the proxy: buffered sockets, message heads, a kernel pipe, a token bucket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping

HEAD_LIMIT = 64 << 10
PIPE_SIZE = 1 << 20
F_SETPIPE_SZ = 1031  # linux/fcntl.h


class RateLimit:
    """A token bucket over all connections: `rate` bytes per second (0 = none), at most `BURST_S` saved up."""

    BURST_S = 0.02

    def __init__(self, rate: float) -> None:
        self._lock = threading.Lock()
        self._next = 0.0
        self.rate = rate

    def take(self, amount: int, stopped: threading.Event) -> None:
        """Wait until `amount` bytes may pass. Debts are served in order of arrival."""
        rate = self.rate
        if rate <= 0:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._next, now - self.BURST_S)
            self._next = start + amount / rate
            # Until the end of one's own slot: bytes leave at the rate, not a chunk ahead of it.
            delay = self._next - now
        if delay > 0:
            stopped.wait(delay)


class PeerClosed(Exception):
    """The peer is gone; nothing to answer."""


class Stream:
    """A socket with what was read past the last head."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = b""

    def head(self) -> bytes:
        """The next message head with its empty line. Raises PeerClosed at a clean end of the connection."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise PeerClosed
            self.fill()
        head, self.buffer = self.buffer[: end + 4], self.buffer[end + 4 :]
        return head

    def fill(self) -> None:
        """Read once into the buffer."""
        data = self.sock.recv(HEAD_LIMIT)
        if not data:
            raise PeerClosed
        self.buffer += data

    def line(self) -> bytes:
        """The next line with its line end."""
        while (end := self.buffer.find(b"\r\n")) < 0:
            self.fill()
        line, self.buffer = self.buffer[: end + 2], self.buffer[end + 2 :]
        return line

    def take(self, limit: int) -> bytes:
        """At most `limit` bytes of what is buffered."""
        data, self.buffer = self.buffer[:limit], self.buffer[limit:]
        return data

    def idle(self) -> bool:
        """Whether a kept-alive connection is still good: nothing to read, not even its end."""
        if self.buffer:
            return False
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """End the connection in both directions."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def parse_head(head: bytes) -> tuple[list[str], dict[str, str]]:
    """The three words of the first line, and the fields by lower-case name."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return first.split(" ", 2), headers


@contextlib.contextmanager
def kernel_pipe() -> Iterator[tuple[int, int]]:
    """(reading end, writing end) of a large pipe, for `splice`."""
    out, into = os.pipe()
    try:
        with contextlib.suppress(OSError):  # over the user's pipe limit: the default size works, slower
            fcntl.fcntl(into, F_SETPIPE_SZ, PIPE_SIZE)
        yield out, into
    finally:
        os.close(out)
        os.close(into)


def reset_connection(client: Stream) -> None:
    """Close with an RST instead of a FIN."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


def rewrite_head(head: bytes, changes: Mapping[str, str]) -> bytes:
    """A message head with some fields set, or left out where the value is ""."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    names = {name.lower() for name in changes}
    kept = [line for line in lines if line.partition(":")[0].strip().lower() not in names]
    kept += [f"{name}: {value}" for name, value in changes.items() if value]
    return "\r\n".join([first, *kept, "", ""]).encode("latin-1")


_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    501: "NotImplemented",
    503: "SlowDown",
}


def error_answer(method: str, status: int, headers: Mapping[str, str]) -> bytes:
    """An answer with S3's error document, after which the connection is closed."""
    code = _CODES.get(status, "InternalError")
    body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    head += "Connection: close\r\n\r\n"
    return rewrite_head(head.encode(), headers) + (b"" if method == "HEAD" else body)
