"""A dataset's tiers on one node: quotas in bytes, what is too large, what is kept and what is removed."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from raycache.actors import host, volumes
from raycache.actors.volumes import LocalVolume
from raycache.blocks import MiB
from raycache.engine import Engine, Peers
from raycache.errors import SpecError
from raycache.flight import PeerPool
from raycache.membership import Membership
from raycache.metrics import Metrics
from raycache.spec import ResolvedDataset, TierSpec
from raycache.store import Home
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import with_tiers


def tier(medium: str, path: Path, **changes: object) -> TierSpec:
    return TierSpec.model_validate({"medium": medium, "path": str(path), **changes})


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.data") if path.is_file()]


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "a").write_bytes(noise(3 * BLOCK))
    return dataset_of("ds", {"": f"file://{bucket}"})


def fill(volume: LocalVolume) -> None:
    """Have the object of the dataset in the volume's store."""
    with closing(PeerPool()) as pool:
        engine = Engine(Peers(pool, Membership()), Metrics())
        engine.attach(volume.dataset, volume.store)
        version = engine.info("ds", "a").value.version
        assert version is not None
        engine.ensure(version, range(version.block_count))
        engine.close()


@pytest.mark.parametrize("medium", ["MEM", "SSD"])
def test_a_quota_larger_than_the_node_is_refused_with_the_figures(medium: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        volumes.quota_of(tier(medium, tmp_path, quota=1 << 60))
    assert f"tier {medium} (1.00EiB)" in raised.value.what
    assert raised.value.where == str(tmp_path)
    assert "lower the quota" in raised.value.hint


def test_a_percentage_is_of_memory_or_of_the_disk(tmp_path: Path) -> None:
    disk = volumes.quota_of(tier("SSD", tmp_path / "not" / "made" / "yet", quota_ratio=0.25))
    assert disk == pytest.approx(host.disk_size(str(tmp_path)) / 4, abs=1)
    memory = volumes.quota_of(tier("MEM", Path("/dev/shm"), quota_ratio=0.01, huge_pages=True))
    assert 0 < memory <= host.memory_size() / 100


def test_shared_memory_of_a_container_bounds_the_quota(
    tmp_path: Path,
    dataset: ResolvedDataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A /dev/shm of 64 MiB, and a worker that may not mount: what is asked for in bytes is refused, a share is cut."""
    monkeypatch.setattr(Home, "mount_huge_pages", lambda self, size: False)
    monkeypatch.setattr(host, "disk_size", lambda path: 64 * MiB)
    asked = dataset.model_copy(update={"tiers": [tier("MEM", tmp_path, quota=65 * MiB, huge_pages=True)]})
    with pytest.raises(SpecError) as raised:
        LocalVolume(asked, Metrics())
    assert "(65.00MiB) is larger than the memory filesystem" in raised.value.what
    assert "64.00MiB" in raised.value.what
    assert "--shm-size" in raised.value.hint
    share = dataset.model_copy(
        update={"tiers": [tier("MEM", tmp_path, quota_ratio=0.5, auto=True, huge_pages=True)]}
    )
    volume = LocalVolume(share, Metrics())
    assert [usage.quota for usage in volume.store.usage()] == [64 * MiB]
    assert "uses 64.00MiB instead of" in caplog.text
    volume.close("everything")


def test_check_changes_nothing(tmp_path: Path, dataset: ResolvedDataset) -> None:
    quotas = volumes.check(with_tiers(dataset, tmp_path / "tiers", 4 * MiB, "MEM", "SSD"))
    assert quotas == {"MEM": 4 * MiB, "SSD": 4 * MiB}
    assert not (tmp_path / "tiers").exists()


def test_memory_goes_and_the_disk_stays(tmp_path: Path, dataset: ResolvedDataset) -> None:
    for medium, left in (("MEM", 0), ("SSD", 1)):
        volume = LocalVolume(with_tiers(dataset, tmp_path, 4 * MiB, medium), Metrics())
        fill(volume)
        assert len(files(tmp_path / medium)) == 1
        volume.close("memory")
        assert len(files(tmp_path / medium)) == left


def test_two_volumes_of_one_dataset_never_share_and_the_next_finds_what_was_left(
    tmp_path: Path, dataset: ResolvedDataset
) -> None:
    spec = with_tiers(dataset, tmp_path, 4 * MiB, "SSD")
    first, second = LocalVolume(spec, Metrics()), LocalVolume(spec, Metrics())
    assert set(first.paths).isdisjoint(second.paths)
    paths = first.paths
    fill(first)
    first.close()
    again = LocalVolume(spec, Metrics())
    assert again.paths == paths
    assert [status.version.path for status in again.store.objects()] == ["a"]
    again.close("everything")
    second.close("everything")
    assert not files(tmp_path / "SSD")


def test_quotas_change_in_place_and_directories_do_not(tmp_path: Path, dataset: ResolvedDataset) -> None:
    volume = LocalVolume(with_tiers(dataset, tmp_path, 4 * MiB, "SSD"), Metrics())
    assert volume.weight == 4 * MiB
    assert volume.resize(with_tiers(dataset, tmp_path, 8 * MiB, "SSD"))
    assert volume.weight == 8 * MiB
    assert [usage.quota for usage in volume.store.usage()] == [8 * MiB]
    assert not volume.resize(with_tiers(dataset, tmp_path / "elsewhere", 8 * MiB, "SSD"))
    volume.close("everything")


def test_a_sweep_removes_only_what_nobody_owns(tmp_path: Path, dataset: ResolvedDataset) -> None:
    spec = with_tiers(dataset, tmp_path, 4 * MiB, "MEM", "SSD")
    dead, alive = LocalVolume(spec, Metrics()), LocalVolume(spec, Metrics())
    fill(dead)
    fill(alive)
    dead.close()  # as after kill -9: nothing is removed
    swept = volumes.sweep_left(spec, "memory")
    assert swept == [str(Path(dead.paths[0]).parent)]
    assert len(files(tmp_path)) == 1
    alive.close("everything")
