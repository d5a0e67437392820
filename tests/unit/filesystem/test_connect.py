"""The filesystem with the real `raycache.connect`: a spec file and no cluster, in this process and in others."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

import raycache
from raycache.errors import ClusterUnavailableError, SpecError
from raycache.filesystem import RaycacheFileSystem
from tests.unit.filesystem.conftest import LINES

SPEC = """
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: ds}}
spec:
  mounts: [{{mountPoint: "file://{bucket}"}}]
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: ds}}
spec:
  tieredstore:
    levels: [{{mediumtype: SSD, path: {tier}, quota: 64Mi}}]
"""


@pytest.fixture
def address(tmp_path: Path, bucket_dir: Path) -> Iterator[str]:
    """Where an embedded cache of the dataset `ds` is described."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(bucket=bucket_dir, tier=tmp_path / "tier"))
    yield f"embedded:{spec}"
    raycache.disconnect()
    RaycacheFileSystem.clear_instance_cache()


def test_an_address_as_an_option(address: str) -> None:
    with fsspec.open("raycache://ds/lines.csv", address=address) as file:
        assert file.read() == LINES
    fs = RaycacheFileSystem(address)
    assert pickle.loads(pickle.dumps(fs)).cat_file("ds/deep/er/leaf") == b"leaf"
    assert raycache.arrow_filesystem(address).get_file_info("ds/deep/er/leaf").size == 4
    raycache.disconnect()
    assert fs.cat_file("ds/deep/er/leaf") == b"leaf"


def test_an_address_from_the_environment(
    address: str, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCACHE_ADDRESS", address)
    frame = pd.DataFrame({"a": range(1000), "b": [str(number) for number in range(1000)]})
    frame.to_csv(bucket_dir / "frame.csv", index=False)
    frame.to_parquet(bucket_dir / "frame.parquet")
    for _ in range(2):
        found = pd.read_csv("raycache://ds/frame.csv", dtype={"b": str})
        assert found.equals(frame)
        assert pd.read_parquet("raycache://ds/frame.parquet").equals(frame)
        assert pq.read_table("fsspec+raycache://ds/frame.parquet").num_rows == 1000


def test_in_a_process_that_only_knows_fsspec(address: str, tmp_path: Path) -> None:
    program = "import fsspec, sys; sys.stdout.buffer.write(fsspec.open(sys.argv[1]).open().read())"
    environ = os.environ | {"RAYCACHE_ADDRESS": address}
    command = [sys.executable, "-c", program, "raycache://ds/lines.csv"]
    assert subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout == LINES


def test_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYCACHE_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterUnavailableError, match=r"127\.0\.0\.1:1"):
        RaycacheFileSystem(skip_instance_cache=True).ls("")
    with pytest.raises((SpecError, FileNotFoundError)):
        RaycacheFileSystem(f"embedded:{tmp_path / 'nothing.yaml'}", skip_instance_cache=True).ls("")
