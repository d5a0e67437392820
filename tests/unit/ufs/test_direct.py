"""The direct way of a large read: what it takes for an answer, and what it says of everything else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    RaycacheError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.ufs import ObjectInfo, direct
from raycache.ufs.direct import IDLE_S, DirectGetter, is_direct
from raycache.ufs.failures import CATCH, judge

BODY = bytes(range(256)) * 1024
INFO = ObjectInfo("key", len(BODY), '"tag"')


class Script:
    """A server that gives each request the next of its answers.

    Args:
        answers: raw bytes; None closes the connection without one.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/bucket/key?signature=secret"
        self._thread = threading.Thread(target=self._run, name="script")
        self._thread.start()

    def _run(self) -> None:
        while self._answers:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                while self._answers and self._serve(connection):
                    pass

    def _serve(self, connection: socket.socket) -> bool:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            piece = connection.recv(4096)
            if not piece:
                return False
            request += piece
        answer = self._answers.pop(0)
        if answer is None:
            return False
        self.requests.append(request)
        connection.sendall(answer)
        # What announces more than it sends can only be ended by closing.
        return b"Connection: close" not in answer

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def part(offset: int, length: int, *, body: bytes | None = None, **headers: str) -> bytes:
    """A partial answer; `headers` replace or add (underscores for dashes), "" leaves one out."""
    fields = {
        "Content_Range": f"bytes {offset}-{offset + length - 1}/{len(BODY)}",
        "Content_Length": str(length),
        "ETag": '"tag"',
    } | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    content = BODY[offset : offset + length] if body is None else body
    return "\r\n".join(["HTTP/1.1 206 Partial Content", *lines, "", ""]).encode() + content


def refusal(status: int, code: str = "") -> bytes:
    """An S3 error document."""
    body = f"<Error><Code>{code}</Code></Error>" if code else ""
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class Bytes:
    """A sink that offers little room at a time."""

    def __init__(self) -> None:
        self.data = b""
        self._room = memoryview(bytearray(1000))

    def restart(self) -> None:
        self.data = b""

    def feed(self, piece: memoryview) -> None:
        raise AssertionError("received in place, not copied")

    def room(self) -> memoryview:
        return self._room

    def filled(self, count: int) -> None:
        self.data += self._room[:count]


class Asker:
    """A getter of one script's answers."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.getter = DirectGetter(lambda key: script.url)

    def pour(self, offset: int, length: int) -> bytes:
        sink = Bytes()
        self.getter.pour("key", offset, length, INFO, sink, "s3://bucket/key")
        return sink.data

    def failure(self, offset: int = 0, length: int = 4096) -> RaycacheError:
        """The error that a read ends with."""
        with pytest.raises((*CATCH, RaycacheError)) as caught:
            self.pour(offset, length)
        assert "secret" not in str(judge(caught.value, "s3://bucket/key").error)
        return judge(caught.value, "s3://bucket/key").error


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Iterator[Asker]:
    """A getter, and the server with the answers that the test's parameter names."""
    script = Script(*request.param)
    asker = Asker(script)
    yield asker
    asker.getter.close()
    script.close()


def answers(*raw: bytes | None) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ask", [raw], indirect=True, ids=["script"])


@answers(part(0, 4096), part(100_000, 70_000))
def test_ranges_arrive_over_one_connection(ask: Asker) -> None:
    assert ask.pour(0, 4096) == BODY[:4096]
    assert ask.pour(100_000, 70_000) == BODY[100_000:170_000]
    assert ask.script.connections == 1
    assert b"Range: bytes=100000-169999\r\n" in ask.script.requests[1]


@answers(part(0, 4096))
def test_every_request_is_conditional(ask: Asker) -> None:
    ask.pour(0, 4096)
    assert b'If-Match: "tag"\r\n' in ask.script.requests[0]


@answers(part(0, 4096), None, part(0, 4096))
def test_a_connection_that_the_server_has_closed_meanwhile_is_no_failure(ask: Asker) -> None:
    ask.pour(0, 4096)
    assert ask.pour(0, 4096) == BODY[:4096]
    assert ask.script.connections == 2


@answers(part(0, 4096), part(0, 4096))
def test_a_connection_that_was_idle_for_long_is_not_used_again(ask: Asker) -> None:
    now = [0.0]
    getter = DirectGetter(lambda key: ask.script.url, clock=lambda: now[0])
    try:
        for _ in range(2):
            getter.pour("key", 0, 4096, INFO, Bytes(), "s3://bucket/key")
            now[0] += IDLE_S
        assert ask.script.connections == 2
    finally:
        getter.close()


def test_nobody_waits_for_each_of_several_connections_that_have_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SILENCE_TIMEOUT_S", 0.05)
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []
    getter = DirectGetter(lambda key: f"http://127.0.0.1:{listener.getsockname()[1]}/bucket/key?x=y")
    together = threading.Barrier(3)

    class Waiting(Bytes):
        def filled(self, count: int) -> None:
            super().filled(count)
            if len(self.data) == 1000:
                together.wait(30)  # so that each of the reads has a connection of its own

    def read() -> None:
        getter.pour("key", 0, 4096, INFO, Waiting(), "s3://bucket/key")

    def serve() -> None:
        connection, _ = listener.accept()
        accepted.append(connection)
        connection.recv(4096)
        connection.sendall(part(0, 4096))

    servers = [threading.Thread(target=serve) for _ in range(3)]
    readers = [threading.Thread(target=read) for _ in range(3)]
    try:
        for thread in (*servers, *readers):
            thread.start()
        for thread in (*servers, *readers):
            thread.join()
        with pytest.raises(TimeoutError):  # all three are kept, and none of them answers any more
            getter.pour("key", 0, 4096, INFO, Bytes(), "s3://bucket/key")
        again = threading.Thread(target=serve)
        again.start()
        getter.pour("key", 0, 4096, INFO, Bytes(), "s3://bucket/key")
        again.join()
        assert len(accepted) == 4
    finally:
        getter.close()
        listener.close()
        for connection in accepted:
            connection.close()


@answers(None)
def test_no_answer_at_all_is_worth_another_try(ask: Asker) -> None:
    error = ask.failure()
    assert isinstance(error, UnderStoreError)


@answers(part(0, 4096, ETag='"other"'))
def test_another_version_is_stale_though_if_match_was_ignored(ask: Asker) -> None:
    assert isinstance(ask.failure(), StaleObjectError)


@answers(part(0, 4096, Content_Range=f"bytes 0-4095/{len(BODY) + 1}"))
def test_another_size_is_stale(ask: Asker) -> None:
    assert isinstance(ask.failure(), StaleObjectError)


@pytest.mark.parametrize(
    "ask",
    [
        [part(4096, 4096)],
        [part(0, 4096, Content_Range="")],
        [part(0, 4096, Content_Range="bytes 0-4095")],
        [part(0, 4096, Content_Length="4095", body=BODY[:4095])],
        [part(0, 4096, Content_Length="", Transfer_Encoding="chunked", body=b"0\r\n\r\n")],
        [part(0, 4096, Content_Encoding="gzip")],
        [part(0, 4096, body=BODY[:1000], Connection="close")],
    ],
    indirect=True,
    ids=["other-range", "no-range", "odd-range", "too-short", "chunked", "encoded", "cut-off"],
)
def test_an_answer_that_is_not_the_range_is_not_taken(ask: Asker) -> None:
    assert isinstance(ask.failure(), IntegrityError)


@pytest.mark.parametrize(
    ("ask", "kind", "transient"),
    [
        ([refusal(404, "NoSuchBucket")], BucketNotFoundError, False),
        ([refusal(404, "NoSuchKey")], ObjectNotFoundError, False),
        ([refusal(403, "AccessDenied")], AccessDeniedError, False),
        ([refusal(412, "PreconditionFailed")], StaleObjectError, False),
        ([refusal(416, "InvalidRange")], StaleObjectError, False),
        ([refusal(503, "SlowDown")], UnderStoreError, True),
        ([refusal(500)], UnderStoreError, True),
        ([refusal(429)], UnderStoreError, True),
        ([refusal(200, "InternalError")], UnderStoreError, False),
        ([refusal(301, "PermanentRedirect")], UnderStoreError, False),
    ],
    indirect=["ask"],
    ids=lambda value: value[0].split(b" ")[1].decode() if isinstance(value, list) else None,
)
def test_refusals_are_told_as_the_general_client_tells_them(
    ask: Asker, kind: type[RaycacheError], transient: bool
) -> None:
    with pytest.raises(CATCH) as caught:
        ask.pour(0, 4096)
    failure = judge(caught.value, "s3://bucket/key")
    assert (type(failure.error), failure.transient) == (kind, transient)


@answers(b"this is no HTTP\r\n\r\n")
def test_what_is_no_http_is_a_failure_of_the_store(ask: Asker) -> None:
    assert isinstance(ask.failure(), UnderStoreError)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    getter = DirectGetter(lambda key: f"http://127.0.0.1:{port}/bucket/key?x=y")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - what it means is judged below
        getter.pour("key", 0, 1, INFO, Bytes(), "s3://bucket/key")
    assert "cannot connect" in str(judge(caught.value, "s3://bucket/key").error)


@pytest.mark.parametrize(
    ("url", "environment", "direct"),
    [
        ("http://minio:9000", {}, True),
        ("https://s3.amazonaws.com", {}, False),
        ("", {}, False),
        ("http://minio:9000", {"http_proxy": "http://proxy:3128"}, False),
        ("http://minio:9000", {"all_proxy": "http://proxy:3128"}, False),
        ("http://minio:9000", {"http_proxy": "http://proxy:3128", "no_proxy": "minio"}, True),
    ],
)
def test_tls_and_proxies_are_left_to_the_general_client(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], direct: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_direct(url) is direct
