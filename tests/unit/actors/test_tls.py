"""Workers, their clients, and one outside, over TLS: the environment says so, and nothing else has to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache import api
from raycache.blocks import MiB
from raycache.errors import ClusterUnavailableError
from tests.support.certificates import Authority
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers

DATA = noise(5 * BLOCK + 3)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Whose certificates this process uses, as a node whose Ray has TLS."""
    authority = Authority(tmp_path / "pki")
    files = authority.issue("node")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_CA_CERT", files.ca)
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", files.cert)
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", files.key)
    return authority


@pytest.fixture(params=["", "1"], ids=["tls", "mutual"])
def cluster(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[RaylessCluster]:
    monkeypatch.setenv("RAYCACHE_TLS_MUTUAL", request.param)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "file").write_bytes(DATA)
    dataset = with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 8 * MiB, "SSD")
    with RaylessCluster(2) as cluster:
        cluster.hold(dataset)
        yield cluster


def fetched(cluster: RaylessCluster, name: str) -> int:
    return sum(node.metrics.snapshot().get(name, 0) for node in cluster.nodes.values())


def test_workers_read_from_one_another(cluster: RaylessCluster) -> None:
    for node in cluster.nodes:
        with closing(cluster.client(node)) as client, closing(client.open("ds", "file")) as reader:
            assert reader.read_at(0, reader.size) == DATA
    assert fetched(cluster, "fetched_store_bytes") == len(DATA)
    assert fetched(cluster, "fetched_peer_bytes") == len(DATA)


def test_a_client_outside_needs_the_authority(
    cluster: RaylessCluster, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = next(iter(cluster.membership.workers)).address
    for name in ("RAY_USE_TLS", "RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ClusterUnavailableError):
        api.connect(address, TOKEN)
    monkeypatch.setenv("RAYCACHE_TLS_CA", str(Authority(tmp_path / "other").path))
    with pytest.raises(ClusterUnavailableError):
        api.connect(address, TOKEN)
    files = authority.issue("tenant")
    monkeypatch.setenv("RAYCACHE_TLS_CA", files.ca)
    monkeypatch.setenv("RAYCACHE_TLS_CERT", files.cert)
    monkeypatch.setenv("RAYCACHE_TLS_KEY", files.key)
    try:
        with closing(api.connect(address, TOKEN).open("ds", "file")) as reader:
            assert reader.read_at(0, reader.size) == DATA
    finally:
        api.disconnect()
