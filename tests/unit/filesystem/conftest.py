"""An embedded cache behind the filesystem, without Ray: every instance gets the same client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.filesystem import RaycacheFileSystem
from tests.support.embedded import BLOCK, Embedded, dataset_of, noise

SIZE = 9 * BLOCK + 4567
DATA = noise(SIZE)
LINES = (
    b"".join(b"%d,%s\n" % (number, b"x" * (number % 300)) for number in range(3000))
    + b"no newline at the end"
)


@pytest.fixture
def bucket_dir(tmp_path: Path) -> Path:
    """The under-store of the datasets `ds` and `other`."""
    directory = tmp_path / "bucket"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "a").write_bytes(DATA)
    (directory / "empty").write_bytes(b"")
    (directory / "lines.csv").write_bytes(LINES)
    for number in range(3):
        (directory / "deep" / f"part-{number}").write_bytes(noise(1000 + number, number))
    (directory / "deep" / "er" / "leaf").write_bytes(b"leaf")
    return directory


@pytest.fixture
def cache(tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    datasets = [
        dataset_of("ds", {"": f"file://{bucket_dir}"}),
        dataset_of("other", {"": f"file://{bucket_dir}/deep"}),
    ]
    with Embedded(tmp_path / "tier", *datasets) as embedded:
        monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: embedded.client)
        RaycacheFileSystem.clear_instance_cache()
        yield embedded
        RaycacheFileSystem.clear_instance_cache()


@pytest.fixture
def fs(cache: Embedded) -> RaycacheFileSystem:
    return RaycacheFileSystem()
