"""A dataset's tree over its mounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycache.errors import BucketNotFoundError, ObjectNotFoundError, PathError, StaleObjectError
from raycache.spec.resolve import MountSource, ResolvedDataset
from raycache.ufs import DatasetSource

Make = Callable[..., DatasetSource]


def write(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return f"file://{root}"


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes a source from {mount path: uri}."""
    made: list[DatasetSource] = []

    def source(**changes: str) -> DatasetSource:
        mounts = [MountSource(path=path, uri=uri) for path, uri in changes.items()]
        made.append(DatasetSource(ResolvedDataset(name="ds", mounts=mounts, tiers=[], block_size=1 << 16)))
        return made[-1]

    yield source
    for one in made:
        one.close()


def paths(entries: object) -> list[tuple[str, str]]:
    return sorted((entry.path, entry.kind) for entry in entries)  # type: ignore[attr-defined]


def test_one_mount_at_the_root(make: Make, tmp_path: Path) -> None:
    uri = write(tmp_path, "a/b/c.bin", "top.bin")
    source = make(**{"": uri})
    assert source.info("").kind == "directory"
    assert source.info("a/b/").kind == "directory"
    file = source.info("/a//b/c.bin")
    assert file.version is not None
    assert (file.path, file.size) == ("a/b/c.bin", len("a/b/c.bin"))
    assert (file.version.dataset, file.version.store) == ("ds", f"{uri}/a/b/c.bin")
    assert file.version.block_size == 1 << 16
    assert bytes(source.read(file.version, 2, 3)) == b"b/c"
    assert paths(source.list("")) == [("a", "directory"), ("top.bin", "file")]
    assert paths(source.list("a/b/c.bin")) == [("a/b/c.bin", "file")]
    assert paths(source.walk("")) == [("a/b/c.bin", "file"), ("top.bin", "file")]
    assert paths(source.walk("top.bin")) == [("top.bin", "file")]
    assert source.check() == []


def test_mounts_that_hold_nothing_are_told(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    empty = f"file://{tmp_path / 'nothing'}"
    assert make(full=write(tmp_path / "full", "a"), empty=empty).check() == [empty]


def test_info_and_listings_give_the_same_version(make: Make, tmp_path: Path) -> None:
    source = make(**{"": write(tmp_path, "a", "b/c")})
    for entry in [*source.list(""), *source.walk("")]:
        assert source.info(entry.path) == entry


def test_several_mounts_and_the_directories_that_lead_to_them(make: Make, tmp_path: Path) -> None:
    one, two = write(tmp_path / "1", "x"), write(tmp_path / "2", "y/z")
    source = make(**{"data/train": one, "models": two})
    assert paths(source.list("")) == [("data", "directory"), ("models", "directory")]
    assert paths(source.list("data")) == [("data/train", "directory")]
    assert source.info("data").kind == "directory"
    assert paths(source.list("data/train")) == [("data/train/x", "file")]
    assert paths(source.walk("")) == [("data/train/x", "file"), ("models/y/z", "file")]
    assert paths(source.walk("data")) == [("data/train/x", "file")]
    for missing in ("other", "data/other", "data/train/other", "models/y/other"):
        for call in (source.info, source.list, lambda path: list(source.walk(path))):
            with pytest.raises(ObjectNotFoundError, match=f"raycache://ds/{missing}"):
                call(missing)


def test_a_mount_covers_what_another_has_at_its_path(make: Make, tmp_path: Path) -> None:
    outer, inner = write(tmp_path / "o", "in/hidden", "seen"), write(tmp_path / "i", "shown")
    source = make(**{"": outer, "in": inner})
    assert paths(source.list("")) == [("in", "directory"), ("seen", "file")]
    assert paths(source.list("in")) == [("in/shown", "file")]
    assert paths(source.walk("")) == [("in/shown", "file"), ("seen", "file")]
    with pytest.raises(ObjectNotFoundError):
        source.info("in/hidden")


def test_a_path_that_climbs_is_refused(make: Make, tmp_path: Path) -> None:
    write(tmp_path, "secret")
    source = make(**{"": write(tmp_path / "root", "x")})
    for call in (source.info, source.list, lambda path: list(source.walk(path))):
        with pytest.raises(PathError):
            call("../secret")


def test_a_version_of_another_binding_is_stale(make: Make, tmp_path: Path) -> None:
    old = make(**{"": write(tmp_path / "1", "x")}).info("x").version
    new = make(**{"": write(tmp_path / "2", "x")})
    assert old is not None
    with pytest.raises(StaleObjectError):
        new.read(old, 0, 1)


def test_a_missing_mount_is_named(make: Make, tmp_path: Path) -> None:
    source = make(**{"": f"file://{tmp_path}/nowhere"})
    for call in (source.check, lambda: source.info("x"), lambda: source.list("")):
        with pytest.raises(BucketNotFoundError, match="nowhere"):
            call()


def test_repr_shows_no_option() -> None:
    mount = MountSource(path="", uri="s3://b", secret_options={"secret_access_key": "hunter2"})
    source = DatasetSource(ResolvedDataset(name="ds", mounts=[mount], tiers=[]))
    assert "hunter2" not in repr(source)
