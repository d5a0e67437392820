"""fsspec's own suite for filesystems, as far as one that is read-only can be put through it.

Run here: `AbstractGetTests`, copying files, directories, lists and patterns out. Its sources are made in the
under-store, because they cannot be made through the filesystem. Not run: the suites for `put`, `pipe`, `copy`
and `mv`, which begin by writing, and `AbstractOpenTests`, whose one test opens for writing; that every way to
write is refused is tested in tests/unit/filesystem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

from raycache.errors import ReadOnlyError
from raycache.filesystem import RaycacheFileSystem
from tests.conftest import s3_mount_options
from tests.support.embedded import Embedded, dataset_of
from tests.support.seaweed import SeaweedS3


class RaycacheFixtures(AbstractFixtures):  # type: ignore[misc]  # fsspec has no types
    """A dataset `ds` over a directory or a bucket, read through an embedded cache."""

    # Writes the files of one of fsspec's scenarios into the under-store.
    Make = Callable[[Callable[..., Any]], str]

    @pytest.fixture(params=["directory", "s3"])
    def under_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any]]:
        """URI of the mount point, and where its files come from: a directory, or the server to copy that to."""
        (tmp_path / "under").mkdir()
        server: SeaweedS3 | None = request.getfixturevalue("s3_server") if request.param == "s3" else None
        bucket = server.create_bucket() if server is not None else ""
        return (f"s3://{bucket}" if server is not None else f"file://{tmp_path / 'under'}"), server

    @pytest.fixture
    def fs(
        self, under_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[RaycacheFileSystem]:
        uri, server = under_store
        options = s3_mount_options(server) if server is not None else {}
        # Listings are believed for no time: the tests make files while they run.
        dataset = dataset_of("ds", {"": uri}, options, consistency_mode="strict")
        with Embedded(tmp_path / "tier", dataset) as cache:
            monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: cache.client)
            yield RaycacheFileSystem(skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return "ds"

    @pytest.fixture
    def supports_empty_directories(self, under_store: Any) -> bool:
        return under_store[1] is None

    @pytest.fixture
    def make(self, under_store: Any, tmp_path: Path, fs_join: Any) -> Make:
        uri, server = under_store

        def made(scenario: Callable[..., Any]) -> str:
            root = tmp_path / "under"
            scenario(LocalFileSystem(auto_mkdir=True), fs_join, str(root))
            if server is not None:
                for file in root.rglob("*"):
                    if file.is_file():
                        server.put(uri.removeprefix("s3://"), str(file.relative_to(root)), file.read_bytes())
            return "ds/source"

        return made

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, make: Make) -> str:
        return make(self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, make: Make) -> str:
        return make(self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, make: Make) -> str:
        return make(self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, make: Make) -> str:
        return make(self._10_files_with_hashed_names)


class TestGet(RaycacheFixtures, AbstractGetTests):  # type: ignore[misc]
    """fsspec's tests of copying out."""

    def test_get_directory_recursive(
        self,
        fs: RaycacheFileSystem,
        make: Any,
        fs_path: str,
        local_fs: Any,
        local_join: Any,
        local_target: Any,
    ) -> None:
        """As fsspec's, whose original makes its source through the filesystem."""

        def scenario(some_fs: Any, join: Any, root: str) -> None:
            some_fs.mkdir(join(root, "src"))
            some_fs.touch(join(root, "src", "file"))

        make(scenario)
        source = f"{fs_path}/src"
        for target_exists in (False, True):
            fs.get(source, str(local_target), recursive=True)
            inner = ("src", "file") if target_exists else ("file",)
            assert local_fs.isfile(local_join(local_target, *inner))
        fs.get(source + "/", str(local_target), recursive=True)
        assert local_fs.isfile(local_join(local_target, "file"))


class TestOpen(RaycacheFixtures):
    """What stands for `AbstractOpenTests`."""

    def test_open_exclusive(self, fs: RaycacheFileSystem) -> None:
        with pytest.raises(ReadOnlyError):
            fs.open("ds/new", "xb")

    def test_read_back(self, fs: RaycacheFileSystem, make: Any) -> None:
        def scenario(some_fs: Any, join: Any, root: str) -> None:
            some_fs.pipe_file(join(root, "file"), b"data")

        make(scenario)
        with fs.open("ds/file", "rb") as file:
            assert file.read() == b"data"
        with fs.open("ds/file", "r") as text:
            assert text.read() == "data"
