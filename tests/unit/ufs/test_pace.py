"""A store that drips is cut and asked again, on every way of reading; one that is slow but alive is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import obstore.store
import pytest

from raycache.errors import UnderStoreError
from raycache.metrics import STORE_RETRIES, Metrics
from raycache.ufs import Backoff, ObjectInfo
from raycache.ufs.direct import DirectGetter, HttpFailure
from raycache.ufs.failures import judge
from raycache.ufs.http import HttpStore
from raycache.ufs.object_store import NO_RETRIES, ObstoreStore
from raycache.ufs.pace import LEAST_RATE, WINDOW_S, Pace, TooSlowError
from tests.support.stores import PATIENCE_S

BODY = bytes(range(256)) * 16
INFO = ObjectInfo("key", len(BODY), '"tag"', 1_445_412_480 * 10**9)
EAGER = Backoff(deadline_s=PATIENCE_S, base_s=0.001, cap_s=0.01)
ONCE = Backoff(deadline_s=0.0)


def pace_of(*times: float) -> Pace:
    """A pace whose clock shows 0, then these."""
    clock = iter((0.0, *times))
    return Pace(lambda: next(clock))


class TestRate:
    def test_a_byte_now_and_then_is_too_slow_when_the_window_is_over(self) -> None:
        pace = pace_of(3, 9, 15, WINDOW_S + 1)
        for _ in range(3):
            pace.got(1)
        with pytest.raises(TooSlowError):
            pace.got(1)

    def test_the_least_rate_is_enough(self) -> None:
        pace = pace_of(*range(2, 1000, 2))
        for _ in range(2, 1000, 2):
            pace.got(2 * LEAST_RATE)

    def test_streams_that_share_a_link_may_be_served_one_after_the_other(self) -> None:
        """8 streams on 64 KiB/s, each in turn: nothing for 17 s, then a window's worth."""
        pace = pace_of(*(17.5 * turn for turn in range(1, 100)))
        for _ in range(1, 100):
            pace.got(int(2.5 * 64 * 1024))

    def test_what_came_fast_does_not_excuse_what_drips_later(self) -> None:
        pace = pace_of(0.1, WINDOW_S, 2 * WINDOW_S)
        pace.got(64 * LEAST_RATE)
        pace.got(1)
        with pytest.raises(TooSlowError):
            pace.got(1)

    def test_the_end_of_a_body_may_be_short(self) -> None:
        pace = pace_of(WINDOW_S, WINDOW_S + 1)
        pace.got(20 * LEAST_RATE)
        pace.got(1)


class Drip:
    """A server whose answers drip, a byte for each time that the client looks at its clock, 3 s later each.

    Attributes:
        drips: how many answers drip; those after them come at once.
        connections: how many clients have connected.
        status: of the answers.
    """

    def __init__(self) -> None:
        self.drips, self.connections, self.status = 0, 0, "206 Partial Content"
        self._now = 0.0
        self._ticks = threading.Semaphore(0)
        self._ended = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def clock(self) -> float:
        self._now += 3.0
        self._ticks.release()
        return self._now

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(65536):
                    self._answer(connection)
            except OSError:
                pass  # cut

    def _answer(self, connection: socket.socket) -> None:
        ticks = self._ticks = threading.Semaphore(0)  # what was cut before must not take this one's
        head = (
            f'HTTP/1.1 {self.status}\r\nContent-Length: {len(BODY)}\r\nETag: "tag"\r\n'
            f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}\r\n"
            "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n"
        )
        connection.sendall(head.encode())
        if self.drips <= 0:
            connection.sendall(BODY)
            return
        self.drips -= 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in BODY:
            while not ticks.acquire(timeout=0.05):
                if self._ended.is_set():
                    return
            connection.sendall(bytes([byte]))

    def close(self) -> None:
        self._ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


class Collected:
    """A sink."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.data = b""
        self._room = memoryview(bytearray(len(BODY)))

    def feed(self, piece: memoryview) -> None:
        self.data += piece

    def room(self) -> memoryview:
        return self._room[: len(BODY) - len(self.data)]

    def filled(self, count: int) -> None:
        self.data += self._room[:count]


Get = Callable[[Backoff], bytes]


@pytest.fixture
def drip() -> Iterator[Drip]:
    made = Drip()
    yield made
    made.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(params=["read", "pour", "direct", "http"])
def get(request: pytest.FixtureRequest, drip: Drip, metrics: Metrics) -> Iterator[Get]:
    """Reads BODY on one of the ways."""
    stores = []

    def get(backoff: Backoff) -> bytes:
        client = obstore.store.HTTPStore.from_url(
            drip.url, client_options={"allow_http": True}, retry_config=NO_RETRIES
        )
        direct = (
            DirectGetter(lambda key: drip.url + "/key?", drip.clock) if request.param == "direct" else None
        )
        kind = HttpStore if request.param == "http" else ObstoreStore
        store = kind(drip.url, client, metrics=metrics, backoff=backoff, direct=direct, clock=drip.clock)
        stores.append(store)
        if request.param in ("read", "http"):
            return bytes(store.read("key", 0, len(BODY), INFO))
        sink = Collected()
        store.pour("key", 0, len(BODY), INFO, sink)
        return sink.data

    yield get
    for store in stores:
        store.close()


def test_a_body_that_drips_is_asked_for_again_over_a_fresh_connection(
    drip: Drip, get: Get, metrics: Metrics
) -> None:
    drip.drips = 2
    assert get(EAGER) == BODY
    assert drip.connections == 3
    assert metrics.snapshot()[STORE_RETRIES] == 2


def test_a_store_that_drips_on_is_a_retryable_error(drip: Drip, get: Get) -> None:
    drip.drips = 1000
    with pytest.raises(UnderStoreError, match="less than 1024 bytes/s") as caught:
        get(ONCE)
    assert caught.value.retryable


def test_a_refusal_that_drips_is_cut_too(drip: Drip) -> None:
    drip.drips, drip.status = 1, "503 Slow Down"
    getter = DirectGetter(lambda key: drip.url + "/key?", drip.clock)
    with pytest.raises(TooSlowError):
        getter.pour("key", 0, len(BODY), INFO, Collected(), "where")
    with pytest.raises(HttpFailure):
        getter.pour("key", 0, len(BODY), INFO, Collected(), "where")
    getter.close()


def test_it_is_told_as_what_it_is() -> None:
    failure = judge(TooSlowError("3 bytes in 21 s"), "s3://bucket/key")
    assert failure.transient
    assert str(failure.error).startswith("s3://bucket/key: the store sends less than 1024 bytes/s (look at")
