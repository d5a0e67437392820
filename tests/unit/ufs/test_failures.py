"""What goes wrong with an object store, what it is told as, and that no secret is told with it."""

from __future__ import annotations

import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import obstore.store
import pytest

from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ObjectNotFoundError,
    RaycacheError,
    SpecError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.metrics import STORE_GETS, STORE_RETRIES, STORE_THROTTLED, Metrics
from raycache.ufs import Backoff, ObjectInfo, UnderStore, open_store
from tests.conftest import s3_mount_options
from tests.support.s3proxy import Fault, FaultRules, S3Proxy
from tests.support.seaweed import SeaweedS3
from tests.support.webserver import WebServer

BODY = bytes(range(256)) * 512
SECRET = "hunter2-hunter2"  # not one: it is what the tests look for
EAGER = Backoff(deadline_s=20, base_s=0.001, cap_s=0.01)
IMPATIENT = Backoff(deadline_s=0.05, base_s=0.001, cap_s=0.01)

Opener = Callable[..., UnderStore]


@pytest.fixture
def opener() -> Iterator[Opener]:
    """`open_store`, with what it opens closed at the end."""
    stores = []

    def open_and_remember(*args: Any, **kwargs: Any) -> UnderStore:
        stores.append(open_store(*args, **kwargs))
        return stores[-1]

    yield open_and_remember
    for store in stores:
        store.close()


@pytest.fixture
def held(s3_server: SeaweedS3, bucket: str) -> str:
    """A bucket with one object, "big"."""
    s3_server.put(bucket, "big", BODY)
    return bucket


class Collected:
    """A sink that keeps what is poured into it.

    Args:
        begin: called with the number of each attempt, before its request.
    """

    def __init__(self, begin: Callable[[int], object] = lambda attempt: None) -> None:
        self.data = b""
        self.attempts = 0
        self._begin = begin
        self._room = memoryview(bytearray(1 << 16))

    def restart(self) -> None:
        self.data = b""
        self.attempts += 1
        self._begin(self.attempts)

    def feed(self, piece: memoryview) -> None:
        self.data += piece

    def room(self) -> memoryview:
        return self._room

    def filled(self, count: int) -> None:
        self.data += self._room[:count]


def refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestMissingAndRefused:
    def test_a_missing_bucket(self, s3_options: dict[str, str], opener: Opener, s3_server: SeaweedS3) -> None:
        store = opener("s3://no-such-bucket", s3_options)
        calls: list[Callable[[], object]] = [
            store.check,
            lambda: store.head("a"),
            lambda: store.list(""),
            lambda: store.list("a"),
            lambda: list(store.walk("")),
            lambda: store.read("a", 0, 1, ObjectInfo("a", 1, '"x"')),
        ]
        for call in calls:
            with pytest.raises(BucketNotFoundError, match="no-such-bucket"):
                call()

    def test_a_missing_key_is_no_missing_bucket(
        self, s3_options: dict[str, str], opener: Opener, held: str
    ) -> None:
        store = opener(f"s3://{held}", s3_options)
        for call in (lambda: store.head("nothing"), lambda: store.list("nothing")):
            with pytest.raises(ObjectNotFoundError):
                call()
        store.check()

    @pytest.mark.parametrize(
        ("changes", "hint"),
        [
            ({"access_key_id": "wrong"}, "access key ID"),
            ({"secret_access_key": SECRET}, "secret access key"),
        ],
    )
    def test_wrong_credentials(
        self, s3_options: dict[str, str], opener: Opener, held: str, changes: dict[str, str], hint: str
    ) -> None:
        store = opener(f"s3://{held}", s3_options | changes)
        info = ObjectInfo("big", len(BODY), '"x"')
        calls: list[Callable[[], object]] = [
            store.check,
            lambda: store.head("big"),
            lambda: store.list(""),
            lambda: store.read("big", 0, 1, info),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError, match=hint) as caught:
                call()
            assert isinstance(caught.value, PermissionError)

    def test_anonymous_access_to_a_private_bucket(
        self, s3_options: dict[str, str], opener: Opener, held: str
    ) -> None:
        options = {"endpoint": s3_options["endpoint"], "anonymous": "true"}
        with pytest.raises(AccessDeniedError, match="AccessDenied"):
            opener(f"s3://{held}", options).check()

    def test_no_credentials_anywhere(self, s3_options: dict[str, str], held: str) -> None:
        with pytest.raises(
            AccessDeniedError, match=r"none found.*AWS_ACCESS_KEY_ID.*profile.*encryptOptions.*anonymous=true"
        ):
            open_store(f"s3://{held}", {"endpoint": s3_options["endpoint"]})

    def test_credentials_from_the_chain(
        self, s3_options: dict[str, str], opener: Opener, held: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["access_key_id"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_options["secret_access_key"])
        store = opener(f"s3://{held}", {"endpoint": s3_options["endpoint"]})
        assert store.head("big").size == len(BODY)

    def test_no_server(self, s3_options: dict[str, str], opener: Opener) -> None:
        options = s3_options | {"endpoint": f"http://127.0.0.1:{refused_port()}"}
        store = opener("s3://bucket", options, backoff=IMPATIENT)
        with pytest.raises(UnderStoreError, match=r"cannot connect.*endpoint") as caught:
            store.head("a")
        assert caught.value.retryable

    def test_a_closed_store(self, s3_options: dict[str, str], opener: Opener, held: str) -> None:
        store = opener(f"s3://{held}", s3_options)
        store.close()
        with pytest.raises(UnderStoreError, match="closed"):
            store.head("big")


class TestRetries:
    @pytest.fixture
    def metrics(self) -> Metrics:
        return Metrics()

    @pytest.fixture
    def store(
        self, s3_server: SeaweedS3, s3_proxy: S3Proxy, held: str, metrics: Metrics, opener: Opener
    ) -> UnderStore:
        options = s3_mount_options(s3_server, endpoint=s3_proxy.endpoint)
        return opener(f"s3://{held}", options, metrics=metrics, backoff=EAGER)

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 503},
            {"status": 500},
            {"status": 429},
            {"reset": True},
            {"truncate": 0},
            {"truncate": 70_000},
            {"truncate": 70_000, "reset": True},
        ],
        ids=str,
    )
    def test_a_passing_fault_is_retried(
        self, store: UnderStore, s3_proxy: S3Proxy, metrics: Metrics, fault: dict[str, Any]
    ) -> None:
        info = store.head("big")
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 2, **fault}])
        assert bytes(store.read("big", 0, len(BODY), info)) == BODY
        assert metrics.snapshot()[STORE_RETRIES] == 2
        assert metrics.snapshot()[STORE_GETS] == 3
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 2, **fault}])
        sink = Collected()
        store.pour("big", 5, len(BODY) - 5, info, sink)
        assert sink.data == BODY[5:]
        assert metrics.snapshot()[STORE_RETRIES] == 4

    def test_every_fetch_is_conditional(self, store: UnderStore, s3_proxy: S3Proxy) -> None:
        info, seen = store.head("big"), []
        s3_proxy.fault = lambda request: seen.append(request)
        store.read("big", 0, 10, info)
        store.pour("big", 10, 10, info, Collected())
        asked = [{name.lower(): value for name, value in request.headers.items()} for request in seen]
        assert [headers["if-match"] for headers in asked] == [info.etag] * 2

    def test_an_object_replaced_between_two_attempts_is_never_mixed(
        self, store: UnderStore, s3_proxy: S3Proxy, s3_server: SeaweedS3, held: str
    ) -> None:
        info = store.head("big")
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 1, "truncate": 70_000}])
        replace = Collected(lambda attempt: attempt == 2 and s3_server.put(held, "big", BODY[::-1]))
        with pytest.raises(StaleObjectError):
            store.pour("big", 0, len(BODY), info, replace)
        assert replace.attempts == 2
        assert replace.data == b""

    @pytest.mark.parametrize("kind", ["HEAD", "LIST"])
    def test_metadata_is_retried(self, store: UnderStore, s3_proxy: S3Proxy, kind: str) -> None:
        s3_proxy.fault = FaultRules([{"kind": kind, "times": 2, "status": 503}])
        assert store.head("big").size == len(BODY)
        assert [info.key for info in store.walk("")] == ["big"]

    def test_refusals_of_too_many_requests_are_counted(
        self, store: UnderStore, s3_proxy: S3Proxy, metrics: Metrics
    ) -> None:
        info = store.head("big")
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 2, "status": 503}])
        store.read("big", 0, 10, info)
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 1, "status": 429}])
        store.read("big", 0, 10, info)
        s3_proxy.fault = FaultRules([{"kind": "GET", "times": 1, "status": 500}])
        store.read("big", 0, 10, info)
        counts = metrics.snapshot()
        assert (counts[STORE_THROTTLED], counts[STORE_RETRIES], counts[STORE_GETS]) == (3, 4, 7)

    @pytest.mark.parametrize(
        ("status", "error"), [(403, AccessDeniedError), (404, StaleObjectError), (412, StaleObjectError)]
    )
    def test_a_plain_answer_is_not_retried(
        self, store: UnderStore, s3_proxy: S3Proxy, metrics: Metrics, status: int, error: type[RaycacheError]
    ) -> None:
        info = store.head("big")
        s3_proxy.fault = FaultRules([{"kind": "GET", "status": status}])
        with pytest.raises(error):
            store.read("big", 0, 10, info)
        assert metrics.snapshot()[STORE_GETS] == 1

    def test_the_deadline_ends_it(
        self, s3_server: SeaweedS3, s3_proxy: S3Proxy, held: str, opener: Opener
    ) -> None:
        options = s3_mount_options(s3_server, endpoint=s3_proxy.endpoint)
        store = opener(f"s3://{held}", options, backoff=IMPATIENT)
        s3_proxy.fault = lambda _: Fault(status=503)
        with pytest.raises(UnderStoreError, match="503"):
            store.head("big")

    def test_walk_goes_on_from_where_it_failed(
        self, store: UnderStore, s3_server: SeaweedS3, s3_proxy: S3Proxy, held: str
    ) -> None:
        writer = obstore.store.S3Store(
            held,
            endpoint=s3_server.endpoint,
            access_key_id=s3_server.access_key,
            secret_access_key=s3_server.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        names = [f"many/{number:04}" for number in range(1050)]  # S3 lists 1000 at a time
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: obstore.put(writer, name, b"x"), names))
        s3_proxy.fault = FaultRules([{"kind": "LIST", "skip": 1, "times": 1, "status": 500}])
        assert sorted(info.key for info in store.walk("many")) == names


def test_an_answer_of_another_version_is_refused_though_if_match_was_ignored(
    tmp_path: Path, opener: Opener
) -> None:
    (tmp_path / "file").write_bytes(BODY)
    with WebServer(tmp_path, conditions=False) as server:
        store = opener(server.endpoint)
        info = store.head("file")
        (tmp_path / "new").write_bytes(BODY[::-1])
        (tmp_path / "new").replace(tmp_path / "file")
        with pytest.raises(StaleObjectError):
            store.read("file", 0, 10, info)


def test_directory_markers_are_no_files(
    s3_options: dict[str, str], opener: Opener, s3_server: SeaweedS3, bucket: str
) -> None:
    for key in ("dir/", "dir/file", "lonely/", "empty-file"):
        s3_server.put(bucket, key, b"" if key != "dir/file" else b"x")
    store = opener(f"s3://{bucket}", s3_options)
    assert sorted(info.key for info in store.walk("")) == ["dir/file", "empty-file"]
    assert [info.key for info in store.list("dir").files] == ["dir/file"]
    assert store.list("lonely").files == []
    assert sorted(store.list("").directories) == ["dir", "lonely"]
    with pytest.raises(ObjectNotFoundError):
        store.head("lonely")


class TestSecrets:
    def everything_said(self, error: BaseException) -> str:
        told = "".join(traceback.format_exception(error))
        return told + repr(error) + str(error) + repr(pickle.dumps(error))

    def test_not_in_uri_or_repr(self, s3_options: dict[str, str], opener: Opener) -> None:
        store = opener("s3://bucket/p", s3_options | {"secret_access_key": SECRET, "session_token": SECRET})
        assert SECRET not in store.uri + repr(store) + str(store)

    @pytest.mark.parametrize(
        ("uri", "options"),
        [
            (f"https://user:{SECRET}@127.0.0.1:9/dir", {}),
            (f"https://127.0.0.1:9/dir?token={SECRET}", {}),
            (f"s3://key:{SECRET}@bucket/dir", {}),
            ("s3://bucket", {"endpoint": f"https://key:{SECRET}@127.0.0.1:9"}),
            ("s3://bucket", {"secret_access_key": SECRET}),
            ("s3://bucket", {"access_key_id": "a", "secret_access_key": SECRET, "nonsense": SECRET}),
            ("az://container", {"account_name": "a", "account_key": SECRET + "!"}),
            ("gs://bucket", {"service_account_key": SECRET}),
            ("https://127.0.0.1:9", {"token": SECRET}),
            ("memory://x", {"nonsense": SECRET, "skip_instance_cache": SECRET}),
            ("no-such-protocol://x", {"password": SECRET}),
            (f"no-such-protocol://user:{SECRET}@host/x", {}),
            (f"{SECRET}", {}),
        ],
    )
    def test_not_in_what_is_refused(self, uri: str, options: dict[str, str]) -> None:
        with pytest.raises(RaycacheError) as caught:
            open_store(uri, options)
        if uri != SECRET:
            assert SECRET not in self.everything_said(caught.value)
        assert isinstance(caught.value, SpecError)

    def test_not_in_what_fails(
        self, s3_server: SeaweedS3, s3_options: dict[str, str], opener: Opener, held: str
    ) -> None:
        wrong = opener(f"s3://{held}", s3_options | {"secret_access_key": SECRET})
        basic = {"username": "user", "password": SECRET}
        nobody = f"http://127.0.0.1:{refused_port()}"
        http = opener(nobody, basic, backoff=IMPATIENT)
        for call in (wrong.check, lambda: wrong.head("big"), lambda: http.head("x")):
            with pytest.raises(RaycacheError) as caught:
                call()
            assert SECRET not in self.everything_said(caught.value)


def test_a_key_that_the_client_cannot_parse_does_not_take_the_mount_with_it(
    s3_options: dict[str, str], opener: Opener, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_such_a_key(*_: object, **__: object) -> None:
        raise obstore.exceptions.InvalidPathError('Path "a//b" contained empty path segment')

    store = opener(f"s3://{held}", s3_options)
    monkeypatch.setattr(obstore, "list", with_such_a_key)
    assert store.check()
    assert bytes(store.read("big", 0, 10, store.head("big"))) == BODY[:10]
