"""Mount points and options to stores."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import obstore.store
import pytest

from raycache.errors import SpecError
from raycache.ufs import open_store
from raycache.ufs.retry import Backoff
from tests.support.webserver import WebServer

KEYS = {"access_key_id": "id", "secret_access_key": "secret"}


@pytest.fixture
def s3_config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last S3Store was made with."""
    seen: dict[str, Any] = {}
    real = obstore.store.S3Store

    def spy(bucket: str, **arguments: Any) -> Any:
        seen.clear()
        seen.update(arguments["config"], bucket=bucket, prefix=arguments["prefix"])
        seen["allow_http"] = arguments["client_options"]["allow_http"]
        return real(bucket, **arguments)

    monkeypatch.setattr(obstore.store, "S3Store", spy)
    return seen


@pytest.mark.parametrize(
    ("uri", "options", "identity", "config"),
    [
        ("s3://b", {}, "s3://b", {"prefix": None, "region": "us-east-1"}),
        ("s3a://b/x/y/", {"region": "eu-west-1"}, "s3://b/x/y", {"prefix": "x/y", "region": "eu-west-1"}),
        (
            "s3://b",
            {"endpoint": "http://h:9000/"},
            "s3://b?endpoint=http://h:9000",
            {"endpoint": "http://h:9000", "allow_http": True, "virtual_hosted_style_request": False},
        ),
        (
            "oss://b/p",
            {"endpoint": "oss-cn-x.aliyuncs.com"},
            "oss://b/p?endpoint=https://oss-cn-x.aliyuncs.com",
            {
                "endpoint": "https://b.oss-cn-x.aliyuncs.com",
                "virtual_hosted_style_request": True,
                "allow_http": False,
            },
        ),
        (
            "minio://b",
            {"endpoint": "h:9000", "allow_http": "true", "path_style": "false"},
            "minio://b?endpoint=http://h:9000",
            {"endpoint": "http://b.h:9000", "virtual_hosted_style_request": True},
        ),
    ],
)
def test_s3_options(
    s3_config: dict[str, Any], uri: str, options: dict[str, str], identity: str, config: dict[str, Any]
) -> None:
    store = open_store(uri, options | KEYS)
    assert store.uri == identity
    assert config.items() <= s3_config.items()
    store.close()


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("bucket/prefix", {}, "no URL"),
        ("s3://", KEYS, "no bucket"),
        ("oss://b", KEYS, "endpoint"),
        ("s3://b", {"access_key_id": "id"}, "secretAccessKey"),
        ("s3://b", KEYS | {"endpoint": "http://h:port"}, "endpoint"),
        ("s3://b", KEYS | {"no_such_option": "x"}, "no_such_option"),
        ("file://host/dir", {}, "absolute path"),
        ("/dir", {"region": "x"}, "region"),
        ("https://h/x", {"region": "x"}, "region"),
        ("nonsense://h/x", {}, "protocol"),
        ("gs://b", {"endpoint": "x"}, "endpoint"),
    ],
)
def test_what_cannot_be_accepted(uri: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        open_store(uri, options)
    assert caught.value.where


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("gs://b/p/", "gs://b/p"),
        ("gcs://b", "gs://b"),
        ("memory://p/q", "memory://p/q"),
        ("/some/dir/", "file:///some/dir"),
        ("local:///some/dir", "file:///some/dir"),
        ("file:///with%20space", "file:///with space"),
    ],
)
def test_identities(uri: str, identity: str) -> None:
    options = {"anonymous": "true"} if uri.startswith("g") else {}
    store = open_store(uri, options)
    assert store.uri == identity
    store.close()


def test_http_credentials_are_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    header = "Basic " + base64.b64encode(b"user:password").decode()
    with WebServer(tmp_path, authorization=header) as server:
        store = open_store(server.endpoint, {"username": "user", "password": "password"})
        info = store.head("file")
        assert bytes(store.read("file", 0, 4, info)) == b"data"
        store.close()
        without = open_store(server.endpoint)
        with pytest.raises(PermissionError):
            without.check()
        without.close()


def test_local_links_may_not_lead_out_of_the_mount(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"in")
    (tmp_path / "outside").write_bytes(b"out")
    (root / "link-in").symlink_to("dir/file")
    (root / "link-out").symlink_to(tmp_path / "outside")
    (root / "link-dir").symlink_to("dir")
    store = open_store(str(root))
    assert bytes(store.read("link-in", 0, 2, store.head("link-in"))) == b"in"
    with pytest.raises(PermissionError, match="leads out"):
        store.head("link-out")
    assert [info.key for info in store.list("").files] == ["link-in"]
    assert sorted(info.key for info in store.walk("")) == ["dir/file", "link-in"]


def test_backoff_has_full_jitter() -> None:
    policy = Backoff(base_s=0.1, cap_s=5)
    bounds = []
    for attempt in (0, 1, 2, 3, 10, 1000):
        policy.pause_s(attempt, lambda low, high: bounds.append((low, high)) or 0.0)
    assert [low for low, _ in bounds] == [0.0] * 6
    assert [high for _, high in bounds] == [0.1, 0.2, 0.4, 0.8, 5, 5]
