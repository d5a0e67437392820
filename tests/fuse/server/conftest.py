"""Mounts with the real server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.fuse import device
from tests.conftest import FAILED, s3_mount_options
from tests.fuse.conftest import mounted_under, processes_of
from tests.support.fusemount import FuseMount
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import SeaweedS3
from tests.support.waiting import until


def _ended(mount: FuseMount, request: pytest.FixtureRequest) -> None:
    left = mount.end()
    if left and not request.node.stash.get(FAILED, False):
        pytest.fail(f"the test left mounted: {left}", pytrace=False)


@contextlib.contextmanager
def shared_mount(directory: Path) -> Iterator[FuseMount]:
    """A mount for the tests of a module, unmounted at the end; it fails the last of them if anything is left."""
    mount = FuseMount(directory)
    try:
        yield mount
        mount.unmount()
    finally:
        left = mount.end()
    until(lambda: not processes_of(directory), "its processes have ended")
    assert (left, mounted_under(directory)) == ("", [])


@pytest.fixture
def fuse(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FuseMount]:
    """A mount of a directory, not started yet. A test that leaves it mounted fails."""
    mount = FuseMount(tmp_path)
    yield mount
    _ended(mount, request)


@pytest.fixture
def s3_fuse(
    tmp_path: Path, request: pytest.FixtureRequest, s3_server: SeaweedS3, bucket: str, s3_proxy: S3Proxy
) -> Iterator[FuseMount]:
    """A mount of a bucket, behind the counting proxy, not started yet."""
    options = s3_mount_options(s3_server, endpoint=s3_proxy.endpoint)
    mount = FuseMount(tmp_path, f"s3://{bucket}", options)
    yield mount
    _ended(mount, request)


@pytest.fixture
def passthrough() -> None:
    """Skips a test where the kernel cannot read files by itself."""
    support = device.passthrough_support()
    if not support.possible:
        pytest.skip(f"no passthrough: {support.reason}")
