"""The data plane, over real sockets: what arrives is what was sent, or one clear error."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from raycache import wire
from raycache.access import CLUSTER, Gate
from raycache.errors import (
    AccessDeniedError,
    CacheFullError,
    IntegrityError,
    RaycacheError,
    StaleObjectError,
    WorkerUnavailableError,
)
from raycache.flight import FlightPeer, FlightServer, PeerPool
from raycache.flight._sockets import cut_connections, format_address

TOKEN = "t0ken-of-the-data-plane"
PATIENCE_S = 30.0


def block(seed: int, size: int = 100_000) -> bytes:
    return np.random.default_rng(seed).bytes(size)


class Service:
    """Handlers whose behaviour the request chooses; events tell and steer what happens inside."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def stream(self, ticket: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        try:
            for index in range(ticket["count"]):
                if index == ticket.get("wait_at"):
                    self.entered.set()
                    assert self.gate.wait(PATIENCE_S)
                if index == ticket.get("full_at"):
                    raise CacheFullError("no tier can take it", where="/cache", hint="raise the quota")
                if index == ticket.get("bug_at"):
                    raise ValueError("internal detail")
                data = block(ticket.get("seed", 0) + index, ticket.get("size", 100_000))
                yield crc32c.crc32c(data) ^ (index == ticket.get("bad_at")), memoryview(data)
        finally:
            self.left.set()

    def wait(self, request: dict[str, Any]) -> dict[str, Any]:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return {}

    def stale(self, request: dict[str, Any]) -> dict[str, Any]:
        raise StaleObjectError("x" * 100_000, where="s3://bucket/é", hint="open it again")

    def bug(self, request: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("internal detail")

    @property
    def actions(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {"echo": lambda request: request, "wait": self.wait, "stale": self.stale, "bug": self.bug}


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.gate.set()


@pytest.fixture
def server(service: Service) -> Iterator[FlightServer]:
    with FlightServer("127.0.0.1", actions=service.actions, stream=service.stream, gate=Gate(TOKEN)) as made:
        yield made


@pytest.fixture
def peer(server: FlightServer) -> Iterator[FlightPeer]:
    with FlightPeer(server.address, TOKEN) as made:
        yield made


def test_an_action_goes_there_and_back(peer: FlightPeer) -> None:
    assert peer.call("echo", {"a": [1, "é", None]}) == {"a": [1, "é", None]}
    assert peer.call("echo") == {}


def test_blocks_arrive_as_sent_in_order_with_their_checksums(peer: FlightPeer) -> None:
    blocks = list(peer.stream({"count": 5}))
    assert [data.to_pybytes() for _, data in blocks] == [block(n) for n in range(5)]
    assert [crc for crc, _ in blocks] == [crc32c.crc32c(block(n)) for n in range(5)]


@pytest.mark.parametrize("size", [1, 7, 4096, 4 << 20, 64 << 20])
def test_blocks_of_every_size(peer: FlightPeer, size: int) -> None:
    [(_, data)] = peer.stream({"count": 1, "size": size})
    assert data.equals(pa.py_buffer(block(0, size)))


def test_a_stream_of_nothing_ends(peer: FlightPeer) -> None:
    assert list(peer.stream({"count": 0})) == []


def test_the_server_sends_a_block_from_where_it_is(service: Service) -> None:
    data = memoryview(block(1))
    with FlightServer("127.0.0.1", actions={}, stream=lambda _: iter([(0, data)])) as server:
        [(batch, _)] = server._blocks(CLUSTER, "", b"{}")
        assert batch.column(0).buffers()[1].address == pa.py_buffer(data).address


def test_the_first_block_arrives_before_the_last_exists(service: Service, peer: FlightPeer) -> None:
    stream = peer.stream({"count": 3, "wait_at": 1})
    _, first = next(stream)
    assert first.to_pybytes() == block(0)
    assert not service.gate.is_set()
    service.gate.set()
    assert len(list(stream)) == 2


def test_errors_arrive_as_the_class_they_were(peer: FlightPeer) -> None:
    with pytest.raises(StaleObjectError, match="s3://bucket/é") as caught:
        peer.call("stale")
    assert caught.value.hint == "open it again"
    assert 1000 < len(caught.value.what) < 2000


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_in_a_stream_arrives_after_the_blocks_before_it(peer: FlightPeer, at: int) -> None:
    stream = peer.stream({"count": 5, "full_at": at})
    for n in range(at):
        assert next(stream)[1].to_pybytes() == block(n)
    with pytest.raises(CacheFullError, match="/cache: no tier can take it"):
        next(stream)


def test_unexpected_errors_are_logged_and_travel_without_details(
    peer: FlightPeer, caplog: pytest.LogCaptureFixture
) -> None:
    for call in (lambda: peer.call("bug"), lambda: list(peer.stream({"count": 3, "bug_at": 1}))):
        with pytest.raises(RaycacheError, match="internal error") as caught:
            call()
        assert "internal detail" not in str(caught.value)
        assert type(caught.value) is RaycacheError
    assert caplog.text.count("ValueError: internal detail") == 2


@pytest.mark.parametrize("at", [0, 2])
def test_a_corrupt_block_is_an_integrity_error(peer: FlightPeer, at: int) -> None:
    stream = peer.stream({"count": 5, "bad_at": at})
    for _ in range(at):
        next(stream)
    with pytest.raises(IntegrityError, match="CRC32C"):
        next(stream)


def test_leaving_a_stream_early_ends_it_at_the_worker(service: Service, peer: FlightPeer) -> None:
    stream = peer.stream({"count": 1_000_000, "size": 1 << 20})
    next(stream)
    stream.close()
    assert service.left.wait(PATIENCE_S)
    assert peer.call("echo", {"still": "here"}) == {"still": "here"}


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_a_wrong_token_is_refused(server: FlightServer, token: str) -> None:
    with FlightPeer(server.address, token) as peer:
        for call in (lambda: peer.call("echo"), lambda: list(peer.stream({"count": 1}))):
            with pytest.raises(AccessDeniedError, match="refused the token"):
                call()


def test_the_token_is_in_no_text(server: FlightServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FlightPeer(server.address, TOKEN + "-wrong") as peer:
        with pytest.raises(AccessDeniedError) as caught:
            peer.call("echo")
        texts = [repr(peer), repr(server), str(caught.value), repr(caught.value.__cause__), caplog.text]
    assert not any(TOKEN in text for text in texts)


def test_an_unknown_action_is_named(peer: FlightPeer) -> None:
    with pytest.raises(RaycacheError, match="no action 'fly'"):
        peer.call("fly")


def test_requests_that_are_too_large_or_malformed_are_refused(server: FlightServer, peer: FlightPeer) -> None:
    with pytest.raises(RaycacheError, match="larger than"):
        peer.call("echo", {"a": "x" * wire.MAX_REQUEST})
    with pytest.raises(RaycacheError, match="larger than"):
        list(peer.stream({"a": "x" * wire.MAX_REQUEST}))
    options = fl.FlightCallOptions(headers=[(b"authorization", wire.bearer(TOKEN))])
    with fl.connect(f"grpc://{server.address}") as client:
        for body in (b"", b"[]", b"{", b"\xff"):
            with pytest.raises(fl.FlightServerError, match="RaycacheError"):
                list(client.do_action(fl.Action("echo", body), options))
            with pytest.raises(fl.FlightServerError, match="RaycacheError"):
                client.do_get(fl.Ticket(body), options).read_chunk()
    assert peer.call("echo") == {}


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    with FlightServer("127.0.0.1", actions={}, stream=lambda _: iter(())) as server:
        address = server.address
    with FlightPeer(address) as peer:
        for call in (lambda: peer.call("echo"), lambda: list(peer.stream({"count": 1}))):
            with pytest.raises(WorkerUnavailableError, match=address):
                call()


def test_a_call_that_takes_too_long(service: Service, peer: FlightPeer) -> None:
    with pytest.raises(WorkerUnavailableError, match=r"did not answer 'wait' within 0\.2 s"):
        peer.call("wait", timeout_s=0.2)
    service.gate.set()


def test_a_stream_that_stands_still(service: Service, peer: FlightPeer) -> None:
    stream = peer.stream({"count": 3, "wait_at": 1}, timeout_s=0.2)
    next(stream)
    with pytest.raises(WorkerUnavailableError, match=r"sent nothing for 0\.2 s"):
        next(stream)
    service.gate.set()


def test_what_the_reader_takes_between_blocks_does_not_count(service: Service, peer: FlightPeer) -> None:
    stream = peer.stream({"count": 3})
    next(stream)
    assert peer._watch._waiting == {}
    assert len(list(stream)) == 2


def test_a_server_does_not_answer_before_it_starts(service: Service) -> None:
    server = FlightServer("127.0.0.1", actions=service.actions, stream=service.stream)
    with FlightPeer(server.address) as peer:
        with pytest.raises(WorkerUnavailableError, match="starting or stopping"):
            peer.call("echo")
        with pytest.raises(WorkerUnavailableError, match="starting or stopping"):
            list(peer.stream({"count": 1}))
        server.start()
        assert peer.call("echo", {"a": 1}) == {"a": 1}
    server.close()


def test_a_server_closes_while_a_reader_stands_still(service: Service) -> None:
    server = FlightServer("127.0.0.1", actions=service.actions, stream=service.stream)
    server.start()
    with FlightPeer(server.address) as peer:
        stream = peer.stream({"count": 1_000, "size": 4 << 20})
        next(stream)  # and no further: the server is stuck sending
        server.close(grace_s=0.1)
        assert service.left.wait(PATIENCE_S)
        with pytest.raises(WorkerUnavailableError):
            list(stream)
        with pytest.raises(WorkerUnavailableError):
            peer.call("echo")
    server.close()


def test_a_server_closes_while_a_handler_is_stuck(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    server = FlightServer("127.0.0.1", actions=service.actions, stream=service.stream)
    server.start()
    with FlightPeer(server.address) as peer, ThreadPoolExecutor(1) as pool:
        call = pool.submit(peer.call, "wait")
        assert service.entered.wait(PATIENCE_S)
        server.close(grace_s=0.05)
        assert "is stuck" in caplog.text
        assert isinstance(call.exception(PATIENCE_S), WorkerUnavailableError)
        service.gate.set()


def test_a_restarted_server_is_found_again(service: Service) -> None:
    first = FlightServer("127.0.0.1", actions=service.actions, stream=service.stream)
    with FlightPeer(first.address) as peer:
        first.start()
        assert peer.call("echo") == {}
        first.close()
        with pytest.raises(WorkerUnavailableError):
            peer.call("echo")
        with FlightServer("127.0.0.1", first.port, actions=service.actions, stream=service.stream):
            for _ in range(100):
                try:
                    assert peer.call("echo", timeout_s=1.0) == {}
                    break
                except WorkerUnavailableError:
                    threading.Event().wait(0.05)
            else:
                pytest.fail("the peer never came back")


def test_a_taken_port_is_a_clear_error(server: FlightServer) -> None:
    with pytest.raises(RaycacheError, match=f"127.0.0.1:{server.port}: cannot listen"):
        FlightServer("127.0.0.1", server.port, actions={}, stream=lambda _: iter(()))


def test_a_closed_peer_ends_its_streams(service: Service, server: FlightServer) -> None:
    peer = FlightPeer(server.address, TOKEN)
    stream = peer.stream({"count": 3, "wait_at": 1})
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, stream)
        assert service.entered.wait(PATIENCE_S)
        peer.close()
        assert isinstance(waiting.exception(PATIENCE_S), WorkerUnavailableError)
    service.gate.set()


def test_32_streams_at_once(peer: FlightPeer) -> None:
    def read(seed: int) -> bool:
        blocks = [data.to_pybytes() for _, data in peer.stream({"count": 8, "seed": seed, "size": 200_000})]
        return blocks == [block(seed + n, 200_000) for n in range(8)]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(0, 3200, 100)))


SERVER_PROGRAM = """
import crc32c
from raycache.flight import FlightServer
data = bytes(1 << 20)
def stream(ticket):
    while True:
        yield crc32c.crc32c(data), data
server = FlightServer("127.0.0.1", actions={}, stream=stream)
server.start()
print(server.address, flush=True)
input()
"""


def test_a_worker_killed_in_the_middle_of_a_stream() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            with FlightPeer(process.stdout.readline().strip()) as peer:
                stream = peer.stream({})
                assert len(next(stream)[1]) == 1 << 20
                process.kill()
                whole = (len(data) == 1 << 20 for _, data in stream)  # what arrived before is
                with pytest.raises(WorkerUnavailableError):
                    assert all(whole)
        finally:
            process.kill()


def test_a_pool_keeps_one_peer_per_address(server: FlightServer) -> None:
    pool = PeerPool(TOKEN)
    peer = pool.get(server.address)
    assert pool.get(server.address) is peer
    assert peer.call("echo", {"a": 1}) == {"a": 1}
    pool.forget([server.address])
    assert pool.get(server.address) is not peer
    pool.close()
    with pytest.raises(WorkerUnavailableError):
        pool.get(server.address)


def test_a_worker_that_fails_again_and_again_is_left_alone_for_longer() -> None:
    now = 0.0
    pool = PeerPool(clock=lambda: now)
    pauses = []
    for _ in range(8):
        pool.mark_down("a:1")
        pool.mark_down("a:1")  # another call that was under way: counts once
        start = now
        while pool.is_down("a:1"):
            now += 0.25
        pauses.append(now - start)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert not pool.is_down("b:1")
    pool.mark_down("a:1")
    pool.mark_up("a:1")
    assert not pool.is_down("a:1")
    pool.mark_down("a:1")
    now += 0.5
    assert not pool.is_down("a:1")
    pool.close()


def test_cutting_connections_leaves_other_servers_alone(service: Service, peer: FlightPeer) -> None:
    with (
        FlightServer("127.0.0.1", actions=service.actions, stream=service.stream) as other,
        FlightPeer(other.address) as caller,
    ):
        assert caller.call("echo") == {}
        assert cut_connections("127.0.0.2", other.port) == 0
        assert cut_connections("127.0.0.1", other.port) == 1
    assert peer.call("echo") == {}


def test_addresses() -> None:
    assert format_address("10.0.0.1", 5) == "10.0.0.1:5"
    assert format_address("fd00::1", 5) == "[fd00::1]:5"
