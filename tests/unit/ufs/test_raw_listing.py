"""Keys that the object store's client cannot express are left out; those beside them are not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config

from raycache.errors import ObjectNotFoundError, UnderStoreError
from raycache.metrics import UNREADABLE_KEYS, Metrics
from raycache.ufs import Backoff, UnderStore, open_store
from raycache.ufs.object_store import ObstoreStore
from raycache.ufs.raw_listing import is_readable
from tests.support.motoserver import moto_server

BODY = b"data"
STRANGE = ["d//x", "d/./x", "d/..", "d/a\x01b", "d/a\tb", "d/del\x7f"]
GOOD = ["d/good", "d/sub/deep", "d/with space & more", "top"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=Config(request_checksum_calculation="when_required"),
        )
        client.create_bucket(Bucket="strange")
        for key in [*STRANGE, *GOOD, "d/", "d/sub/"]:
            for root in ("", "root/"):
                client.put_object(Bucket="strange", Key=root + key, Body=b"" if key.endswith("/") else BODY)
        client.close()
        yield url


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(params=["s3://strange", "s3://strange/root"])
def store(request: pytest.FixtureRequest, endpoint: str, metrics: Metrics) -> Iterator[UnderStore]:
    options = {"endpoint": endpoint, "access_key_id": "key", "secret_access_key": "secret"}
    store = open_store(request.param, options, metrics=metrics, backoff=Backoff(deadline_s=0))
    yield store
    store.close()


def test_a_directory_with_such_keys_is_listed_without_them(
    store: UnderStore, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raycache"):
        for _ in range(2):
            listing = store.list("d")
            assert [info.key for info in listing.files] == ["d/good", "d/with space & more"]
            assert listing.directories == ["d/sub"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "'d/..'" in told[0]
    assert metrics.snapshot()[UNREADABLE_KEYS] == 2 * len(STRANGE)


def test_what_is_listed_can_be_read_as_the_version_that_was_listed(store: UnderStore) -> None:
    for info in store.list("d").files:
        assert store.head(info.key) == info
        assert bytes(store.read(info.key, 0, len(BODY), info)) == BODY


def test_a_walk_goes_on_past_such_keys(store: UnderStore) -> None:
    found = [info.key for info in store.walk("") if not info.key.startswith("root/")]
    assert sorted(found) == GOOD
    assert [info.key for info in store.walk("d/sub")] == ["d/sub/deep"]


def test_directories_without_such_keys_do_not_come_here(
    store: UnderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, ObstoreStore)
    monkeypatch.setattr(store, "_raw", None)
    assert [info.key for info in store.list("d/sub").files] == ["d/sub/deep"]
    with pytest.raises(ObjectNotFoundError):
        store.list("nothing")


def test_a_failure_of_the_other_client_is_told_as_one_of_the_store(
    store: UnderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, ObstoreStore)
    raw = store._raw
    assert raw is not None
    client = raw._opened()
    client.meta.events.register("before-send", lambda **_: (_ for _ in ()).throw(ConnectionResetError()))
    with pytest.raises(UnderStoreError):
        store.list("d")


@pytest.mark.parametrize("key", [*STRANGE, "", "/x", "x//"])
def test_what_is_no_path(key: str) -> None:
    assert not is_readable(key)
