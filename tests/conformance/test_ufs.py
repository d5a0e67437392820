"""One suite that every under-store passes: S3 (SeaweedFS and moto), local files, HTTP, memory, and whatever else
fsspec brings: `memory` is fsspec's own filesystem, with times; `fsspec` is a third party's, with tags."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import boto3
import fsspec
import pytest

from raycache.errors import (
    BucketNotFoundError,
    ObjectNotFoundError,
    PathError,
    RaycacheError,
    StaleObjectError,
)
from raycache.metrics import STORE_BYTES, STORE_GETS, Metrics
from raycache.ufs import Backoff, UnderStore, open_store
from tests.support.motoserver import moto_server
from tests.support.seaweed import SeaweedS3
from tests.support.shelf import SHELVES
from tests.support.webserver import WebServer

BODY = os.urandom(3 << 20)
TREE = {
    "top.bin": BODY,
    "empty": b"",
    "dir/one.bin": b"one",
    "dir/deep/two.bin": b"two",
    "dir2/three.bin": b"three",
    "odd/sp ace ü#%25+.bin": b"odd",
}


class Writer(Protocol):
    """The other side of a backend: somebody who writes to the store."""

    def __call__(self, key: str, data: bytes | None) -> None: ...


class NoSink:
    """A sink that must get nothing."""

    def restart(self) -> None:
        pass

    def feed(self, piece: memoryview) -> None:
        raise AssertionError("bytes of another version")

    def room(self) -> memoryview:
        return memoryview(bytearray(1000))

    def filled(self, count: int) -> None:
        raise AssertionError("bytes of another version")


@dataclass
class Backend:
    """A store under test, and how to change what is in it. `put(key, None)` deletes."""

    store: UnderStore
    put: Writer
    missing_root: str
    options: dict[str, str]
    metrics: Metrics


def write_file(root: Path, key: str, data: bytes | None) -> None:
    path = root / key
    if data is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced, not written in place, and with an mtime of its own even if the clock is coarse.
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    os.utime(fresh, ns=(next(_MTIMES),) * 2)
    fresh.replace(path)


_MTIMES = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 1_000_000_000))


@contextlib.contextmanager
def opened(uri: str, options: dict[str, str], put: Writer, missing_root: str) -> Iterator[Backend]:
    metrics = Metrics()
    store = open_store(uri, options, metrics=metrics, backoff=Backoff(deadline_s=5))
    for key, data in TREE.items():
        put(key, data)
    try:
        yield Backend(store, put, missing_root, options, metrics)
    finally:
        store.close()


KINDS = ["s3", "s3-moto", "local", "memory", "fsspec", "http", "http-weak-etags", "http-without-etags"]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of a moto server."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each kind of store, holding TREE below its root and something else beside it."""
    with contextlib.ExitStack() as stack:
        root = tmp_path / "root" / "prefix"
        if request.param == "s3":
            yield stack.enter_context(s3(request))
        elif request.param == "s3-moto":
            yield stack.enter_context(s3_of_moto(request.getfixturevalue("moto")))
        elif request.param == "memory":
            yield stack.enter_context(memory())
        elif request.param == "fsspec":
            yield stack.enter_context(shelf())
        elif request.param == "local":
            root.mkdir(parents=True)

            def put(key: str, data: bytes | None) -> None:
                write_file(root, key, data)

            yield stack.enter_context(opened(f"file://{root}", {}, put, f"file://{root}-missing"))
        else:
            root.mkdir(parents=True)
            server = stack.enter_context(
                WebServer(
                    tmp_path / "root",
                    etags=request.param != "http-without-etags",
                    weak=request.param == "http-weak-etags",
                )
            )

            def put(key: str, data: bytes | None) -> None:
                write_file(root, key, data)

            missing = f"{server.endpoint}/missing"
            yield stack.enter_context(opened(f"{server.endpoint}/prefix", {}, put, missing))


@contextlib.contextmanager
def s3(request: pytest.FixtureRequest) -> Iterator[Backend]:
    server: SeaweedS3 = request.getfixturevalue("s3_server")
    bucket: str = request.getfixturevalue("bucket")
    client: Any = request.getfixturevalue("s3_client")
    options: dict[str, str] = request.getfixturevalue("s3_options")
    server.put(bucket, "prefix-of-others/other.bin", b"not below the root")
    put = s3_writer(client, bucket)
    with opened(f"s3://{bucket}/prefix", options, put, f"s3://no-{bucket}/prefix") as backend:
        yield backend


def s3_writer(client: Any, bucket: str) -> Writer:
    def put(key: str, data: bytes | None) -> None:
        if data is None:
            client.delete_object(Bucket=bucket, Key=f"prefix/{key}")
        else:
            client.put_object(Bucket=bucket, Key=f"prefix/{key}", Body=data)

    return put


@contextlib.contextmanager
def s3_of_moto(endpoint: str) -> Iterator[Backend]:
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="somebody",
        aws_secret_access_key="secret",
    )
    bucket = uuid.uuid4().hex
    options = {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "somebody",
        "secret_access_key": "secret",
    }
    try:
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="prefix-of-others/other.bin", Body=b"not below the root")
        put = s3_writer(client, bucket)
        with opened(f"s3://{bucket}/prefix", options, put, f"s3://no-{bucket}/prefix") as backend:
            yield backend
    finally:
        client.close()


@contextlib.contextmanager
def shelf() -> Iterator[Backend]:
    name = uuid.uuid4().hex
    objects = SHELVES[name] = {"root-of-others/other.bin": b"not below the root"}

    def put(key: str, data: bytes | None) -> None:
        if data is None:
            del objects[f"root/{key}"]
        else:
            objects[f"root/{key}"] = data

    try:
        with opened(
            f"shelf://{name}/root", {"reader": "somebody"}, put, f"shelf://no-{name}/root"
        ) as backend:
            yield backend
    finally:
        del SHELVES[name]


@contextlib.contextmanager
def memory() -> Iterator[Backend]:
    fs = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"

    def put(key: str, data: bytes | None) -> None:
        if data is None:
            fs.rm_file(f"{root}/{key}")
        else:
            fs.pipe_file(f"{root}/{key}", data)

    try:
        with opened(f"memory:/{root}", {}, put, f"memory:/{root}-missing") as backend:
            yield backend
    finally:
        fs.rm(root, recursive=True)


def test_head_tells_size_and_version(backend: Backend) -> None:
    info = backend.store.head("top.bin")
    assert (info.key, info.size) == ("top.bin", len(BODY))
    assert info.etag or info.mtime_ns
    assert backend.store.head("empty").size == 0
    assert backend.store.head("odd/sp ace ü#%25+.bin").size == 3


@pytest.mark.parametrize("key", ["nothing", "dir/nothing", "top.bin/below", "dir", ""])
def test_head_of_what_is_no_object(backend: Backend, key: str) -> None:
    with pytest.raises(ObjectNotFoundError) as caught:
        backend.store.head(key)
    assert isinstance(caught.value, FileNotFoundError)
    assert backend.store.uri in caught.value.where


def test_list_gives_one_level(backend: Backend) -> None:
    level = backend.store.list("")
    assert sorted(info.key for info in level.files) == ["empty", "top.bin"]
    assert sorted(level.directories) == ["dir", "dir2", "odd"]
    level = backend.store.list("dir")
    assert [info.key for info in level.files] == ["dir/one.bin"]
    assert level.directories == ["dir/deep"]
    assert [info.key for info in backend.store.list("odd").files] == ["odd/sp ace ü#%25+.bin"]


@pytest.mark.parametrize("prefix", ["nothing", "di", "top.bin"])
def test_list_of_what_is_no_directory(backend: Backend, prefix: str) -> None:
    with pytest.raises(ObjectNotFoundError):
        backend.store.list(prefix)


def test_listings_and_head_tell_the_same_version(backend: Backend) -> None:
    for info in [*backend.store.list("").files, *backend.store.walk("dir")]:
        assert backend.store.head(info.key) == info


def test_walk_gives_every_object_below(backend: Backend) -> None:
    assert sorted(info.key for info in backend.store.walk("")) == sorted(TREE)
    assert sorted(info.key for info in backend.store.walk("dir")) == ["dir/deep/two.bin", "dir/one.bin"]
    assert list(backend.store.walk("nothing")) == []


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, len(BODY)), (0, 1), (len(BODY) - 1, 1), (1 << 20, 1 << 20), (12345, 678901), (7, 0), (len(BODY), 0)],
)
def test_read_gives_exactly_the_range(backend: Backend, offset: int, length: int) -> None:
    info = backend.store.head("top.bin")
    data = backend.store.read("top.bin", offset, length, info)
    assert bytes(data) == BODY[offset : offset + length]
    assert memoryview(data).nbytes == length


def test_read_of_odd_names_and_empty_objects(backend: Backend) -> None:
    for key, expected in TREE.items():
        info = backend.store.head(key)
        assert bytes(backend.store.read(key, 0, info.size, info)) == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, len(BODY) + 1), (len(BODY), 1)])
def test_read_outside_the_object_is_refused(backend: Backend, offset: int, length: int) -> None:
    with pytest.raises(PathError):
        backend.store.read("top.bin", offset, length, backend.store.head("top.bin"))


def test_read_is_counted(backend: Backend) -> None:
    info = backend.store.head("top.bin")
    before = backend.metrics.snapshot()
    backend.store.read("top.bin", 0, 1000, info)
    counts = backend.metrics.snapshot()
    assert counts[STORE_GETS] - before.get(STORE_GETS, 0) == 1
    assert counts[STORE_BYTES] - before.get(STORE_BYTES, 0) == 1000


@pytest.mark.parametrize("replacement", [BODY[::-1], BODY + b"longer", b"short"])
def test_a_replaced_object_is_stale(backend: Backend, replacement: bytes) -> None:
    """A read returns bytes of the version that was opened, or StaleObjectError: never of another."""
    opened = backend.store.head("top.bin")
    backend.put("top.bin", replacement)
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 1 << 20, 1000, opened)
    fresh = backend.store.head("top.bin")
    assert (fresh.etag, fresh.mtime_ns) != (opened.etag, opened.mtime_ns)
    assert bytes(backend.store.read("top.bin", 0, fresh.size, fresh)) == replacement


def test_replaced_by_one_of_equal_size_in_the_same_second(
    backend: Backend, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Stale, but for the one kind of store that cannot tell: whole seconds, and no tags."""
    kind = request.node.callspec.params["backend"]
    path = tmp_path / "root" / "prefix" / "top.bin"
    opened = backend.store.head("top.bin")
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    backend.put("top.bin", BODY[::-1])
    if path.exists():
        os.utime(path, ns=(stamp + 1000,) * 2)
    if kind == "http-without-etags":
        assert backend.store.head("top.bin") == opened, "nobody can tell"
        assert bytes(backend.store.read("top.bin", 0, 1000, opened)) == BODY[::-1][:1000]
        return
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 0, 1000, opened)
    with pytest.raises(StaleObjectError):
        backend.store.pour("top.bin", 0, 1000, opened, NoSink())
    assert backend.store.head("top.bin") != opened


def test_deleted_and_created_again_with_the_same_bytes(backend: Backend) -> None:
    """It may count as the same version (S3: the tag is made of the bytes) or as another, but it is whole."""
    opened = backend.store.head("top.bin")
    backend.put("top.bin", None)
    backend.put("top.bin", BODY)
    try:
        data = bytes(backend.store.read("top.bin", 5, 1000, opened))
    except StaleObjectError:
        fresh = backend.store.head("top.bin")
        assert fresh != opened
        data = bytes(backend.store.read("top.bin", 5, 1000, fresh))
    assert data == BODY[5:1005]


def test_cut_short_where_the_range_still_is(backend: Backend) -> None:
    opened = backend.store.head("top.bin")
    backend.put("top.bin", BODY[: 2 << 20])
    for offset in (0, 2 << 20, len(BODY) - 10):
        with pytest.raises(StaleObjectError):
            backend.store.read("top.bin", offset, 10, opened)


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_a_file_changed_in_place_with_its_time_set_back_cannot_be_told(
    backend: Backend, tmp_path: Path
) -> None:
    path = tmp_path / "root" / "prefix" / "top.bin"
    opened = backend.store.head("top.bin")
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 0, 10, opened)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bytes(backend.store.read("top.bin", 0, 7, opened)) == b"changed"
    os.truncate(path, 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 0, 7, opened)


def test_a_deleted_object_is_stale(backend: Backend) -> None:
    opened = backend.store.head("top.bin")
    backend.put("top.bin", None)
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 0, 1000, opened)


def test_a_made_up_version_is_stale(backend: Backend) -> None:
    info = backend.store.head("top.bin")
    with pytest.raises(StaleObjectError):
        backend.store.read("top.bin", 0, 10, replace(info, etag=info.etag and '"0"', mtime_ns=1))


def test_parallel_reads(backend: Backend) -> None:
    info = backend.store.head("top.bin")
    step = 256 << 10
    with ThreadPoolExecutor(8) as pool:
        parts = list(
            pool.map(
                lambda start: bytes(backend.store.read("top.bin", start, step, info)),
                range(0, len(BODY), step),
            )
        )
    assert b"".join(parts) == BODY


def test_check_passes_where_the_root_can_be_read(backend: Backend) -> None:
    assert backend.store.check()


def test_a_missing_root_is_told_from_a_missing_object(backend: Backend) -> None:
    store = open_store(backend.missing_root, backend.options, backoff=Backoff(deadline_s=5))
    try:
        with pytest.raises(BucketNotFoundError) as caught:
            store.check()
        assert store.uri.split("?")[0] in str(caught.value)
    finally:
        store.close()


def test_uri_and_repr_name_the_store(backend: Backend) -> None:
    assert "://" in backend.store.uri
    assert not backend.store.uri.endswith("/")
    assert backend.store.uri in repr(backend.store)


def test_only_raycache_errors_come_out(backend: Backend) -> None:
    for key in ("a\nb", "a\x00b", "x" * 5000, "a//b"):
        with pytest.raises(RaycacheError):
            backend.store.head(key)
