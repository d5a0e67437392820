"""Memory in use as Ray counts it: from cgroups of both versions, and from the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.store.memory import MemoryReader
from raycache.store.pressure import Sample

GROUPS = {
    "v2": ("memory.max", "memory.current", "memory.stat", ""),
    "v1": ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:        1024000 kB\nMemFree:  1 kB\nMemAvailable:     512000 kB\nHugePages_Total:   0\n"
    )
    return tmp_path / "proc"


def group(root: Path, version: str, limit: object, used: int) -> Path:
    for name, text in zip(
        GROUPS[version][:3],
        (
            limit,
            used,
            f"{GROUPS[version][3]}inactive_file 1000\n{GROUPS[version][3]}active_file 500\nshmem 9\n",
        ),
        strict=True,
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


MACHINE = Sample(1024000 * 1024, 512000 * 1024, int(1024000 * 1024 * 0.95))


def test_without_a_cgroup_it_is_the_machine(proc: Path, tmp_path: Path) -> None:
    assert MemoryReader(cgroups=tmp_path / "none", proc=proc).read() == MACHINE


@pytest.mark.parametrize("version", GROUPS)
def test_a_cgroup_with_a_limit_counts_without_its_file_pages(
    version: str, proc: Path, tmp_path: Path
) -> None:
    cgroups = group(tmp_path / "cgroup", version, 100 * MiB, 90 * MiB)
    found = MemoryReader(cgroups=cgroups, proc=proc).read()
    assert found == Sample(100 * MiB, 90 * MiB - 1500, 95 * MiB)


@pytest.mark.parametrize(("version", "limit"), [("v2", "max"), ("v1", 9223372036854771712)])
def test_a_cgroup_without_a_limit_is_the_machine(
    version: str, limit: object, proc: Path, tmp_path: Path
) -> None:
    cgroups = group(tmp_path / "cgroup", version, limit, 90 * MiB)
    assert MemoryReader(cgroups=cgroups, proc=proc).read() == MACHINE


def test_a_full_machine_counts_before_a_container_that_has_room(proc: Path, tmp_path: Path) -> None:
    cgroups = group(tmp_path / "cgroup", "v2", 900 * MiB, 10 * MiB)
    assert MemoryReader(cgroups=cgroups, proc=proc).read() == MACHINE


def test_rays_thresholds_are_taken(proc: Path, tmp_path: Path) -> None:
    def threshold(share: float, min_free: int) -> int:
        return MemoryReader(share, min_free, tmp_path / "none", proc).read().threshold

    assert threshold(0.5, -1) == MACHINE.total // 2
    assert threshold(0.5, 100) == MACHINE.total - 100
    assert threshold(1.0, MACHINE.total // 2) == MACHINE.total
