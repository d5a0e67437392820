"""Everything that an object store, or what stands before it, can do to a ranged GET: it is tried again until the
deadline, or it is an error with a type. Never wrong bytes. On all ways of reading."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest

from raycache.errors import (
    AccessDeniedError,
    RaycacheError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.metrics import STORE_RETRIES, Metrics
from raycache.ufs import Backoff, ObjectInfo, direct, object_store, open_store, retry, s3
from raycache.ufs.direct import retry_after_s
from raycache.ufs.object_store import ObstoreStore
from raycache.ufs.retry import Failure, Retrier
from tests.conftest import s3_mount_options
from tests.support.s3proxy import FaultRules, S3Proxy
from tests.support.seaweed import SeaweedS3

BODY = bytes(range(256)) * 512
OFFSET, LENGTH = 4096, 100_000
END = OFFSET + LENGTH - 1
SILENCE_S = 0.5
EAGER = Backoff(deadline_s=20, base_s=0.001, cap_s=0.01)
IMPATIENT = Backoff(deadline_s=0.05, base_s=0.001, cap_s=0.01)


class Pieces:
    """A sink that takes both kinds of delivery."""

    def __init__(self) -> None:
        self.restart()
        self._room = memoryview(bytearray(1 << 16))

    def restart(self) -> None:
        self.data = b""

    def feed(self, piece: memoryview) -> None:
        self.data += piece

    def room(self) -> memoryview:
        return self._room[: LENGTH - len(self.data)]

    def filled(self, count: int) -> None:
        self.data += self._room[:count]


Get = Callable[[ObjectInfo], bytes]


@pytest.fixture(params=["read", "stream", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    """How the bytes are read: at once, or in pieces through the general client, or past it."""
    return str(request.param)


@pytest.fixture
def make(
    s3_server: SeaweedS3, s3_proxy: S3Proxy, bucket: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[ObstoreStore, Get, Metrics]]]:
    """Makes a store behind the proxy, and what reads LENGTH bytes at OFFSET from it."""
    s3_server.put(bucket, "key", BODY)
    real = object_store.client_options
    monkeypatch.setattr(direct, "SILENCE_TIMEOUT_S", SILENCE_S)
    monkeypatch.setattr(
        s3, "client_options", lambda **kw: real(**kw) | {"read_timeout": timedelta(seconds=SILENCE_S)}
    )
    stores = []

    def make(backoff: Backoff = EAGER) -> tuple[ObstoreStore, Get, Metrics]:
        metrics = Metrics()
        options = s3_mount_options(s3_server, endpoint=s3_proxy.endpoint)
        store = open_store(f"s3://{bucket}", options, metrics=metrics, backoff=backoff)
        assert isinstance(store, ObstoreStore)
        stores.append(store)
        assert store._direct is not None
        if way != "direct":
            store._direct.close()
            store._direct = None

        def get(info: ObjectInfo) -> bytes:
            if way == "read":
                return bytes(store.read("key", OFFSET, LENGTH, info))
            sink = Pieces()
            store.pour("key", OFFSET, LENGTH, info, sink)
            return sink.data

        return store, get, metrics

    yield make
    for store in stores:
        store.close()


Make = Callable[..., tuple[ObstoreStore, Get, Metrics]]

PASSING: dict[str, dict[str, Any]] = {
    "429": {"status": 429},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "503-retry-after": {"status": 503, "headers": {"Retry-After": "1"}, "times": 1},
    "503-retry-after-nonsense": {"status": 503, "headers": {"Retry-After": "soon"}},
    "200-error-document": {"status": 200},
    "reset": {"reset": True},
    "no-body": {"truncate": 0},
    "truncated": {"truncate": 70_000},
    "reset-in-the-body": {"truncate": 70_000, "reset": True},
    "stall": {"stall_after": 70_000, "stall_s": 60.0, "times": 1},
    "stall-before-the-body": {"stall_after": 0, "stall_s": 60.0, "times": 1},
    "another-range": {"headers": {"Content-Range": f"bytes 0-{LENGTH - 1}/{len(BODY)}"}},
    "a-shorter-range": {"headers": {"Content-Range": f"bytes {OFFSET}-{END - 1}/{len(BODY)}"}},
    "no-range": {"headers": {"Content-Range": ""}},
    "odd-range": {"headers": {"Content-Range": "lines 1-2/3"}},
    "too-long": {"headers": {"Content-Length": str(LENGTH + 1)}},
    "too-short": {"headers": {"Content-Length": str(LENGTH - 1)}},
    "empty": {"headers": {"Content-Length": "0"}},
}

LASTING: dict[str, tuple[dict[str, Any], type[RaycacheError]]] = {
    "403": ({"status": 403}, AccessDeniedError),
    "404": ({"status": 404}, StaleObjectError),
    "412": ({"status": 412}, StaleObjectError),
    "416": ({"status": 416}, StaleObjectError),
    "301": ({"status": 301}, UnderStoreError),
    "501": ({"status": 501}, UnderStoreError),
    "another-etag": ({"headers": {"ETag": '"other"'}}, StaleObjectError),
    "another-size": (
        {"headers": {"Content-Range": f"bytes {OFFSET}-{END}/{len(BODY) + 1}"}},
        StaleObjectError,
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(make: Make, s3_proxy: S3Proxy, name: str) -> None:
    store, get, metrics = make()
    info = store.head("key")
    assert get(info) == BODY[OFFSET : OFFSET + LENGTH]
    rule: dict[str, Any] = {"kind": "GET", "times": 2} | PASSING[name]
    s3_proxy.fault = FaultRules([rule])
    assert get(info) == BODY[OFFSET : OFFSET + LENGTH]
    # A kept connection that breaks before the answer is replaced without a word: that says nothing of the store.
    assert 1 <= metrics.snapshot()[STORE_RETRIES] + (name in ("reset", "empty")) <= rule["times"] + 1


@pytest.mark.parametrize("name", [name for name, rule in PASSING.items() if "stall_s" not in rule])
def test_what_does_not_pass_is_an_error_of_the_store_at_the_deadline(
    make: Make, s3_proxy: S3Proxy, name: str
) -> None:
    store, get, _ = make(IMPATIENT)
    info = store.head("key")
    s3_proxy.fault = FaultRules([{"kind": "GET"} | PASSING[name] | {"times": 1000}])
    with pytest.raises(RaycacheError) as caught:
        get(info)
    assert type(caught.value).__name__ in ("UnderStoreError", "IntegrityError")
    assert caught.value.where


@pytest.mark.parametrize("name", LASTING)
def test_what_is_no_use_trying_again_is_told_at_once(make: Make, s3_proxy: S3Proxy, name: str) -> None:
    rule, error = LASTING[name]
    store, get, metrics = make()
    info = store.head("key")
    s3_proxy.fault = FaultRules([{"kind": "GET", "key": "/key$"} | rule])
    with pytest.raises(error):
        get(info)
    assert STORE_RETRIES not in metrics.snapshot()


def test_a_server_that_never_sent_a_part_is_told_at_once(make: Make, s3_proxy: S3Proxy) -> None:
    store, get, metrics = make()
    info = store.head("key")
    s3_proxy.fault = FaultRules([{"kind": "GET", "status": 200}])
    with pytest.raises(UnderStoreError, match="does not send parts"):
        get(info)
    assert STORE_RETRIES not in metrics.snapshot()


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("120", 120),
            (" 7 ", 7),
            ("0", 0),
            ("Tue, 24 Nov 2026 23:00:30 GMT", 30),
            ("Tue, 24 Nov 2026 22:59:30 GMT", 0),
            ("-5", 0),
            ("1.5", 0),
            ("٣", 0),
            ("soon", 0),
            ("", 0),
            (None, 0),
        ],
    )
    def test_what_it_says(self, text: str | None, seconds: float) -> None:
        headers = Message()
        if text is not None:
            headers["Retry-After"] = text
        assert retry_after_s(headers, now=1_795_561_200.0) == seconds

    def waits(
        self, monkeypatch: pytest.MonkeyPatch, after_s: float, deadline_s: float, failures: int
    ) -> list[float]:
        """The pauses of a call that fails so often, with a clock that only they move."""
        now, pauses = [0.0], []
        monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now[0]))

        def wait(seconds: float) -> bool:
            pauses.append(seconds)
            now[0] += seconds
            return False

        outcomes = itertools.chain(itertools.repeat(True, failures), itertools.repeat(False))

        def attempt() -> None:
            if next(outcomes):
                raise OSError

        retrier = Retrier(
            lambda error, where: Failure(UnderStoreError("busy"), True, after_s),
            (OSError,),
            Backoff(deadline_s=deadline_s),
            Metrics(),
        )
        monkeypatch.setattr(retrier, "_closed", SimpleNamespace(wait=wait))
        retrier.call(attempt, "s3://bucket/key")
        return pauses

    def test_it_is_honoured_and_spread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses = self.waits(monkeypatch, 5.0, 60.0, 3)
        assert all(5.0 <= pause <= 5.4 for pause in pauses)
        assert len(set(pauses)) == 3

    def test_one_that_goes_beyond_the_deadline_is_cut_to_one_last_try(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.waits(monkeypatch, 3600.0, 60.0, 1) == [60.0]
        with pytest.raises(UnderStoreError, match="tried 2 times"):
            self.waits(monkeypatch, 3600.0, 60.0, 2)

    def test_the_pauses_without_it_are_drawn_from_zero_up(self) -> None:
        bounds: list[tuple[float, float]] = []
        for attempt in range(40):
            Backoff().pause_s(attempt, lambda low, high: bounds.append((low, high)) or 0.0)  # type: ignore[func-returns-value]
        assert {low for low, _ in bounds} == {0.0}
        assert [high for _, high in bounds][:4] == [0.1, 0.2, 0.4, 0.8]
        assert max(high for _, high in bounds) == 5.0
