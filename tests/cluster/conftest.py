"""A Ray cluster of three nodes for all tests here, and a raycache on it for each test that asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache import api
from tests.support import raycluster
from tests.support.cache import Cache
from tests.support.raycluster import RayCluster, left_behind
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import SeaweedS3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray keeps connections of its own in the driver; our threads are checked by the fixture `cache`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.leaks_allowed("Ray keeps connections of its own"))


# Not for the whole session: Ray's own connections would look like leaks of the tests after these.
@pytest.fixture(scope="package", name="ray_cluster")
def _ray_cluster() -> Iterator[RayCluster]:
    """Three nodes on this machine; this process is a driver on the head node."""
    with raycluster.ray_cluster(3) as cluster:
        yield cluster


@pytest.fixture
def cache(
    ray_cluster: RayCluster, s3_server: SeaweedS3, s3_proxy: S3Proxy, bucket: str, tmp_path: Path
) -> Iterator[Cache]:
    """A raycache on the cluster. After the test it is stopped, and nothing of it may be left."""
    api.start(ray_cluster.address)
    try:
        admin = api.Admin(ray_cluster.address)
        yield Cache(ray_cluster, admin, tmp_path, s3_server, s3_proxy, bucket)
    finally:
        api.stop(ray_cluster.address)
    left = left_behind(tmp_path)
    left += [f"thread {thread.name}" for thread in threading.enumerate() if "raycache" in thread.name]
    assert not left, "raycache left behind:\n  " + "\n  ".join(left)
