"""The test tools themselves: a tool that lies makes every test that uses it lie."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.conftest import s3_mount_options
from tests.support.leaks import holdings, leaked
from tests.support.s3proxy import Fault, FaultRules, ProxyProcess, Request, S3Proxy
from tests.support.seaweed import SeaweedS3

BODY = bytes(range(256)) * 4096


def get(proxy: S3Proxy | ProxyProcess, path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        connection.request(method, path, body=body, encode_chunked=False)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def upstream() -> Iterator[str]:
    """A small HTTP/1.1 server: /bucket/chunked is chunked, /bucket/close ends by closing, PUT echoes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(404 if self.path.endswith("missing") else 200)
            if self.path.endswith("chunked"):
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for start in range(0, len(BODY), 100_000):
                    piece = BODY[start : start + 100_000]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
                return
            if self.path.endswith("close"):
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(BODY)

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_bodies_pass_unchanged_and_are_counted_by_key(upstream: str) -> None:
    with S3Proxy(upstream) as proxy:
        for name in ("plain", "chunked", "close"):
            assert get(proxy, f"/bucket/{name}") == (200, BODY)
        assert get(proxy, "/bucket/a%20b/c") == (200, BODY)
        assert get(proxy, "/bucket/plain", "HEAD") == (200, b"")
        assert get(proxy, "/bucket?list-type=2&prefix=x")[0] == 200
        assert get(proxy, "/bucket/missing")[0] == 404
        stats = proxy.stats()
    assert (stats.GET, stats.HEAD, stats.LIST, stats.errors) == (5, 1, 1, 1)
    assert stats.bytes == 4 * len(BODY)
    assert stats.list_bytes == len(BODY)
    assert (stats.keys["bucket/plain"].GET, stats.keys["bucket/plain"].HEAD) == (1, 1)
    assert stats.keys["bucket/a b/c"].bytes == len(BODY)


def test_uploads_pass_plain_chunked_and_on_one_connection(upstream: str) -> None:
    with S3Proxy(upstream) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        for headers in ({}, {"Transfer-Encoding": "chunked"}, {}):
            chunks = iter([BODY[:1000], BODY[1000:]]) if headers else BODY
            connection.request(
                "PUT", "/bucket/key", body=chunks, headers=headers, encode_chunked=bool(headers)
            )
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, BODY)
        connection.close()
        assert proxy.stats().other == 3


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (Fault(status=503), lambda do: do()[0] == 503),
        (Fault(corrupt=5), lambda do: do()[1] == BODY[:5] + bytes([BODY[5] ^ 0xFF]) + BODY[6:]),
        (Fault(latency_s=0.01), lambda do: do() == (200, BODY)),
        (Fault(stall_after=10, stall_s=0.01), lambda do: do() == (200, BODY)),
    ],
)
def test_faults_that_still_answer(
    upstream: str, fault: Fault, check: Callable[[Callable[[], tuple[int, bytes]]], bool]
) -> None:
    with S3Proxy(upstream, fault=lambda request: fault if request.number == 1 else None) as proxy:
        assert check(lambda: get(proxy, "/bucket/plain"))
        assert get(proxy, "/bucket/plain") == (200, BODY)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(truncate=1000), http.client.IncompleteRead),
        (Fault(truncate=0), http.client.IncompleteRead),
        (Fault(reset=True), ConnectionResetError),
        (Fault(truncate=1000, reset=True), (ConnectionResetError, http.client.IncompleteRead)),
    ],
)
def test_faults_that_break_the_connection(
    upstream: str, fault: Fault, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with S3Proxy(upstream, fault=lambda request: fault if request.number == 1 else None) as proxy:
        with pytest.raises(error):
            get(proxy, "/bucket/plain")
        assert get(proxy, "/bucket/plain") == (200, BODY)


def test_fault_rules_count_their_matches() -> None:
    rules = FaultRules([{"kind": "GET", "key": "model$", "skip": 1, "times": 2, "every": 2, "status": 500}])

    def ask(key: str, kind: str = "GET") -> int:
        fault = rules(Request(kind, kind, key, {}, 0))
        return fault.status if fault else 0

    assert ask("b/other") == 0
    assert ask("b/model", "HEAD") == 0
    assert [ask("b/model") for _ in range(6)] == [0, 500, 0, 500, 0, 0]


def test_the_process_has_the_same_api(upstream: str) -> None:
    with ProxyProcess(upstream, bandwidth=1e9) as proxy:
        assert get(proxy, "/bucket/plain") == (200, BODY)
        assert proxy.stats().keys["bucket/plain"].bytes == len(BODY)
        proxy.reset()
        assert proxy.stats().GET == 0
        proxy.set_bandwidth(0)
        proxy.set_faults([{"status": 500, "times": 1}])
        assert get(proxy, "/bucket/plain")[0] == 500
        assert get(proxy, "/bucket/plain") == (200, BODY)


def test_s3_through_the_proxy_keeps_its_signature(
    s3_server: SeaweedS3, bucket: str, s3_proxy: S3Proxy
) -> None:
    client = s3_server.client(endpoint_url=s3_proxy.endpoint)
    try:
        etag = client.put_object(Bucket=bucket, Key="a/b.bin", Body=BODY)["ETag"]
        assert client.get_object(Bucket=bucket, Key="a/b.bin", IfMatch=etag)["Body"].read() == BODY
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.get_object(Bucket=bucket, Key="a/b.bin", IfMatch='"other"')
        assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b.bin"]
    finally:
        client.close()
    stats = s3_proxy.stats()
    assert (stats.GET, stats.LIST, stats.bytes) == (2, 1, len(BODY))


def test_the_server_ends_with_its_context(tmp_path: Path) -> None:
    with SeaweedS3(tmp_path) as server:
        pid = server.pid
        assert s3_mount_options(server)["endpoint"] == server.endpoint
    assert not Path(f"/proc/{pid}").exists()


def test_leaks_are_seen_and_named(tmp_path: Path) -> None:
    before = holdings()
    with open(tmp_path / "left-open", "wb"):
        assert any("left-open" in name for name in leaked(before, holdings()))
    assert leaked(before, holdings()) == []
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="straggler")
    thread.start()
    try:
        assert leaked(before, holdings()) == ["thread straggler"]
    finally:
        release.set()
        thread.join()
