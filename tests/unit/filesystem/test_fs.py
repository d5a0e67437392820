"""Names, reads and refused writes of the fsspec filesystem."""

from __future__ import annotations

import datetime
import errno
import os
import pickle
import threading
from pathlib import Path

import fsspec
import pytest

from raycache.errors import (
    DatasetNotFoundError,
    NotAFileError,
    ObjectNotFoundError,
    PathError,
    ReadOnlyError,
    UnderStoreError,
)
from raycache.filesystem import RaycacheFileSystem
from tests.support.embedded import BLOCK, Embedded, Read, at_once, dataset_of, noise
from tests.unit.filesystem.conftest import DATA, LINES, SIZE

# -- identity -----------------------------------------------------------------------------------------------


def test_found_by_url_through_the_entry_point(cache: Embedded) -> None:
    fs, path = fsspec.url_to_fs("raycache://ds/deep/er")
    assert isinstance(fs, RaycacheFileSystem)
    assert path == "ds/deep/er"
    assert fs.unstrip_protocol(path) == "raycache://ds/deep/er"
    with fsspec.open("raycache://ds/lines.csv", "r", newline="") as file:
        assert file.read() == LINES.decode()
    with fsspec.open_files("raycache://ds/deep/part-*")[1] as file:
        assert file.read() == noise(1001, 1)


def test_nothing_is_connected_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(RaycacheFileSystem, "_connect", refuse)
    fs = RaycacheFileSystem(skip_instance_cache=True)
    assert pickle.loads(pickle.dumps(fs)) == fs
    assert repr(fs)
    with pytest.raises(AssertionError, match="connected"):
        fs.ls("")


def test_pickles_to_its_options(fs: RaycacheFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCACHE_TOKEN", "t0ken-of-the-data-plane")
    assert fs.cat_file("ds/a") == DATA  # in use
    for one in (fs, RaycacheFileSystem(address="host:1234", skip_instance_cache=True)):
        pickled = pickle.dumps(one)
        assert len(pickled) < 200
        assert b"t0ken" not in pickled
        assert "t0ken" not in one.to_json()
        again = pickle.loads(pickled)
        assert again == one
        assert again.address == one.address
        assert hash(again) == hash(one)
    assert RaycacheFileSystem(address="host:1234", skip_instance_cache=True) != fs


def test_equal_in_all_threads(fs: RaycacheFileSystem) -> None:
    assert len(set(at_once(3, lambda _: RaycacheFileSystem()))) == 1
    assert RaycacheFileSystem() is fs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("raycache://ds/a", "ds/a"),
        ("raycache://ds", "ds"),
        ("raycache://", ""),
        ("fsspec+raycache://ds/a", "ds/a"),
        ("/ds//deep/./er/", "ds/deep/er"),
        ("", ""),
    ],
)
def test_paths(url: str, path: str) -> None:
    assert RaycacheFileSystem._strip_protocol(url) == path
    assert RaycacheFileSystem._strip_protocol([url]) == [path]


@pytest.mark.parametrize("path", ["ds/../other", "..", "raycache://ds/deep/../../x", "ds/a\0"])
def test_no_path_leaves_its_dataset(fs: RaycacheFileSystem, path: str) -> None:
    for call in (
        fs.info,
        fs.ls,
        fs.open,
        fs.exists,
        fs.isfile,
        fs.isdir,
        fs.cat_file,
        fs.find,
        fs.glob,
        fs.get_file,
    ):
        with pytest.raises(PathError):
            call(path)


def test_a_forked_child_connects_for_itself(
    fs: RaycacheFileSystem, tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fs.open("ds/a")
    assert file.read(10) == DATA[:10]
    cold = fs.open("ds/lines.csv")
    pid = os.fork()
    if pid == 0:  # no assertion may leave the child: it would go on as a second pytest
        code = 1
        try:
            child = Embedded(tmp_path / "child", dataset_of("ds", {"": f"file://{bucket_dir}"}))
            RaycacheFileSystem._connect = lambda self: child.client  # type: ignore[method-assign]
            same = file.read() == DATA[10:] and cold.read() == LINES
            file.close()
            again = fs.cat_file("ds/a", 5, 15) == DATA[5:15] and fs.exists("ds/deep")
            reads = len(child.spies["ds"].reads) > 0
            code = 0 if same and again and reads else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert file.read() == DATA[10:]  # the child's close took nothing from the parent
    file.close()
    cold.close()


def only_the_first_block(read: Read) -> None:
    """Keep a store from getting an object complete."""
    if read.offset:
        raise UnderStoreError("down")


def test_a_forked_child_never_reads_from_a_descriptor_that_was_reused(
    fs: RaycacheFileSystem, tmp_path: Path, bucket_dir: Path
) -> None:
    file = fs.open("ds/lines.csv")
    assert file.read() == LINES
    file.seek(10)  # complete in the local store: read from its descriptor from now on
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child = Embedded(tmp_path / "child", dataset_of("ds", {"": f"file://{bucket_dir}"}))
            child.spies["ds"].before = only_the_first_block
            RaycacheFileSystem._connect = lambda self: child.client  # type: ignore[method-assign]
            line = file.readline()  # through a reader of the child's own
            file.seek(3 * BLOCK)  # not in the child's file, which is sparse and may have the old one's number
            same = line == LINES[10 : 10 + len(line)] and file.read(100) == LINES[3 * BLOCK :][:100]
            code = 0 if same else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    file.close()


def test_connects_again_after_a_disconnect(
    fs: RaycacheFileSystem, cache: Embedded, tmp_path: Path, bucket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fs.cat_file("ds/a") == DATA
    cache.close()
    with Embedded(tmp_path / "second", dataset_of("ds", {"": f"file://{bucket_dir}"})) as second:
        monkeypatch.setattr(RaycacheFileSystem, "_connect", lambda self: second.client)
        assert fs.cat_file("ds/a") == DATA
        assert second.spies["ds"].bytes == SIZE


# -- names --------------------------------------------------------------------------------------------------


def test_the_root_lists_the_datasets(fs: RaycacheFileSystem) -> None:
    assert fs.ls("raycache://", detail=False) == ["ds", "other"]
    assert fs.ls("") == [{"name": name, "size": 0, "type": "directory"} for name in ("ds", "other")]
    assert fs.info("")["type"] == "directory"
    assert fs.isdir("")
    assert fs.isdir("ds")


def test_info(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    info = fs.info("raycache://ds/a")
    assert info["name"] == "ds/a"
    assert (info["size"], info["type"]) == (SIZE, "file")
    assert info["ETag"].startswith('"')
    assert info["mtime"] == pytest.approx((bucket_dir / "a").stat().st_mtime)
    assert fs.info("ds/deep") == {"name": "ds/deep", "size": 0, "type": "directory"}
    assert fs.size("ds/a") == SIZE
    assert fs.sizes(["ds/a", "ds/empty"]) == [SIZE, 0]
    assert fs.du("ds/deep") == 3003 + 4


def test_ls(fs: RaycacheFileSystem) -> None:
    assert fs.ls("ds", detail=False) == ["ds/a", "ds/deep", "ds/empty", "ds/lines.csv"]
    assert fs.ls("ds/a") == [fs.info("ds/a")]
    assert fs.ls("ds/deep/er/")[0] == fs.info("ds/deep/er/leaf")
    assert fs.listdir("other", detail=False) == ["other/er", "other/part-0", "other/part-1", "other/part-2"]


def test_what_is_not_there(fs: RaycacheFileSystem) -> None:
    for call in (fs.info, fs.ls, fs.open, fs.cat_file, fs.ukey, fs.modified):
        with pytest.raises(ObjectNotFoundError):
            call("ds/nothing")
        with pytest.raises(DatasetNotFoundError):
            call("nothing/at/all")
    assert not fs.exists("ds/nothing")
    assert not fs.exists("nothing")
    assert not fs.isfile("ds/nothing")
    assert not fs.isdir("nothing")
    assert fs.find("ds/nothing") == []
    assert fs.glob("ds/nothing*") == []
    assert list(fs.walk("ds/nothing")) == []
    with pytest.raises(FileNotFoundError):
        list(fs.walk("ds/nothing", on_error="raise"))
    with pytest.raises(NotAFileError):
        fs.open("ds/deep")
    with pytest.raises(IsADirectoryError):
        fs.open("ds")


def test_find_walk_glob(fs: RaycacheFileSystem) -> None:
    parts = [f"ds/deep/part-{number}" for number in range(3)]
    assert fs.find("ds/deep") == ["ds/deep/er/leaf", *parts]
    assert fs.find("ds/deep", maxdepth=1) == parts
    assert fs.find("ds/deep", withdirs=True) == ["ds/deep", "ds/deep/er", "ds/deep/er/leaf", *parts]
    assert fs.find("ds/deep", maxdepth=1, withdirs=True) == ["ds/deep", "ds/deep/er", *parts]
    assert fs.find("ds/a", detail=True) == {"ds/a": fs.info("ds/a")}
    assert len(fs.find("")) == 7 + 4
    assert fs.find("ds", detail=True)["ds/a"] == fs.info("ds/a")
    with pytest.raises(ValueError, match="maxdepth"):
        fs.find("ds", maxdepth=0)
    assert [(root, dirs, sorted(files)) for root, dirs, files in fs.walk("ds/deep")] == [
        ("ds/deep", ["er"], ["part-0", "part-1", "part-2"]),
        ("ds/deep/er", [], ["leaf"]),
    ]
    assert fs.glob("raycache://ds/deep/part-[12]") == parts[1:]
    assert fs.glob("ds/**/leaf") == ["ds/deep/er/leaf"]
    assert fs.glob("*/part-0") == ["other/part-0"]
    assert fs.glob("o*") == ["other"]


def test_a_store_that_fails_is_no_empty_directory(
    fs: RaycacheFileSystem, cache: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.ls("ds")

    def fail(*_: object, **__: object) -> None:
        raise UnderStoreError("the store is down", where="s3://bucket")

    for source in (cache.engine.volume("ds").source, cache.client._source("ds")):
        monkeypatch.setattr(source, "list", fail)
        monkeypatch.setattr(source, "info", fail)
    for call in (fs.ls, fs.find, lambda path: list(fs.walk(path)), fs.exists, fs.isfile, fs.isdir, fs.glob):
        with pytest.raises(UnderStoreError, match="down"):
            call("ds/deep/er")
    with pytest.raises(UnderStoreError, match="down"):
        fs.find("ds")


def test_versions_and_times(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    before = (fs.ukey("ds/a"), fs.checksum("ds/a"), fs.modified("ds/a"))
    assert before[2] == fs.created("ds/a")
    assert before[2].tzinfo is datetime.UTC
    (bucket_dir / "a").write_bytes(noise(SIZE, 3))
    assert fs.ukey("ds/a") == before[0]  # believed for the dataset's metadataTTL
    fs.invalidate_cache("ds/a")
    assert fs.ukey("ds/a") != before[0]
    assert fs.checksum("ds/a") != before[1]
    with pytest.raises(IsADirectoryError):
        fs.ukey("ds/deep")


def test_invalidation_and_refresh(fs: RaycacheFileSystem, bucket_dir: Path) -> None:
    assert len(fs.ls("ds")) == 4
    (bucket_dir / "b").write_bytes(b"b")
    assert len(fs.ls("ds")) == 4
    assert len(fs.ls("ds", refresh=True)) == 5
    (bucket_dir / "c").write_bytes(b"c")
    fs.invalidate_cache()
    assert len(fs.ls("ds")) == 6


# -- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (0, 10),
        (5, None),
        (None, 7),
        (-10, None),
        (-10, -3),
        (5, 5),
        (9, 3),
        (SIZE, None),
        (0, SIZE + 9),
    ],
)
def test_cat_file_slices_like_bytes(
    fs: RaycacheFileSystem, cold: bool, start: int | None, end: int | None
) -> None:
    if not cold:
        fs.cat_file("ds/a")
    assert fs.cat_file("raycache://ds/a", start, end) == DATA[start:end]


def test_cat(fs: RaycacheFileSystem) -> None:
    parts = {f"ds/deep/part-{number}": noise(1000 + number, number) for number in range(3)}
    assert fs.cat("ds/a") == DATA
    assert fs.cat(["ds/a"]) == {"ds/a": DATA}
    assert fs.cat("ds/deep/part-*") == parts
    assert fs.cat("ds/deep", recursive=True) == parts | {"ds/deep/er/leaf": b"leaf"}
    assert fs.cat("ds/a", start=1, end=3) == DATA[1:3]
    assert fs.cat(["ds/a", "ds/nothing"], on_error="omit") == {"ds/a": DATA}
    found = fs.cat(["ds/a", "ds/nothing"], on_error="return")
    assert isinstance(found["ds/nothing"], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat(["ds/a", "ds/nothing"])
    assert fs.head("ds/a", 5) == DATA[:5]
    assert fs.tail("ds/a", 5) == DATA[-5:]
    assert fs.read_text("ds/deep/er/leaf") == "leaf"
    assert fs.read_block("ds/lines.csv", 10, 1000, b"\n").endswith(b"\n")


@pytest.mark.parametrize("cold", [True, False])
def test_cat_ranges(fs: RaycacheFileSystem, cold: bool) -> None:
    if not cold:
        fs.cat(["ds/a", "ds/lines.csv"])
    paths = ["ds/a", "raycache://ds/a", "ds/lines.csv", "ds/a"]
    starts, ends = [0, 3 * BLOCK, 10, -5], [10, 3 * BLOCK + 9, 20, None]
    expected = [DATA[:10], DATA[3 * BLOCK : 3 * BLOCK + 9], LINES[10:20], DATA[-5:]]
    assert fs.cat_ranges(paths, starts, ends) == expected
    assert fs.cat_ranges(["ds/a", "ds/lines.csv"], 0, 4) == [DATA[:4], LINES[:4]]
    result = fs.cat_ranges(["ds/a", "ds/nothing"], [0, 0], [4, 4])
    assert result[0] == DATA[:4]
    assert isinstance(result[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["ds/nothing", "ds/a"], 0, 4, on_error="raise")
    with pytest.raises(ValueError, match="equally"):
        fs.cat_ranges(["ds/a"], [1, 2], [3, 4])
    with pytest.raises(TypeError):
        fs.cat_ranges("ds/a", 0, 1)  # type: ignore[arg-type]
    assert fs.cat_ranges([], [], []) == []


def test_cold_ranges_are_read_side_by_side(fs: RaycacheFileSystem, cache: Embedded) -> None:
    together = threading.Barrier(3)
    cache.spies["ds"].before = lambda _: together.wait(60) and None
    paths = [f"ds/deep/part-{number}" for number in range(3)]
    assert fs.cat_ranges(paths, 0, 10) == [noise(1000 + number, number)[:10] for number in range(3)]
    cache.spies["ds"].before = lambda _: None


# -- copies -------------------------------------------------------------------------------------------------


class Progress(fsspec.Callback):  # type: ignore[misc]  # fsspec has no types
    """Remembers what it was told."""


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("device", ["same", "other"])
def test_get_file(fs: RaycacheFileSystem, tmp_path: Path, cold: bool, device: str) -> None:
    if device == "other":  # the kernel's copy between two filesystems
        target_dir = Path("/dev/shm") / f"raycache-test-{os.getpid()}"
        if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second filesystem to copy to")
    else:
        target_dir = tmp_path / "new" / "directory"
    target = target_dir / "copy"
    if not cold:
        fs.cat_file("ds/a")
    try:
        progress = Progress()
        fs.get_file("raycache://ds/a", str(target), callback=progress)
        assert target.read_bytes() == DATA
        assert (progress.size, progress.value) == (SIZE, SIZE)
        fs.get_file("ds/empty", target)  # overwrites, and takes a Path
        assert target.read_bytes() == b""
    finally:
        target.unlink(missing_ok=True)
        target_dir.rmdir()


def test_get_file_to_an_open_file_and_of_a_directory(fs: RaycacheFileSystem, tmp_path: Path) -> None:
    with open(tmp_path / "copy", "wb") as file:
        fs.get_file("ds/a", file)
        fs.get_file("ds/a", outfile=file)
    assert (tmp_path / "copy").read_bytes() == DATA * 2
    fs.get_file("ds/deep", str(tmp_path / "made"))
    assert (tmp_path / "made").is_dir()


def test_get_file_leaves_nothing_half_done(fs: RaycacheFileSystem, cache: Embedded, tmp_path: Path) -> None:
    fs.info("ds/a")
    target = tmp_path / "copy"

    class Interrupting(Progress):
        def relative_update(self, inc: int = 1) -> None:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fs.get_file("ds/a", str(target), callback=Interrupting())
        assert not target.exists()
        fs.cat_file("ds/a")  # once cold, once warm


def test_get(fs: RaycacheFileSystem, tmp_path: Path) -> None:
    fs.get("raycache://ds/deep", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "er" / "leaf").read_bytes() == b"leaf"
    assert (tmp_path / "out" / "part-2").read_bytes() == noise(1002, 2)


def test_mapper(fs: RaycacheFileSystem) -> None:
    mapper = fs.get_mapper("ds/deep")
    assert mapper["er/leaf"] == b"leaf"
    assert sorted(mapper) == ["er/leaf", "part-0", "part-1", "part-2"]
    with pytest.raises(KeyError):
        mapper["nothing"]
    with pytest.raises(ReadOnlyError):
        mapper["new"] = b"new"


# -- writes -------------------------------------------------------------------------------------------------


def test_every_write_is_refused(fs: RaycacheFileSystem, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"local")
    calls = {
        "open": [lambda mode=mode: fs.open("ds/a", mode) for mode in ("wb", "w", "ab", "xb", "r+b")],
        "others": [
            lambda: fs.touch("ds/new"),
            lambda: fs.pipe_file("ds/new", b"x"),
            lambda: fs.pipe("ds/new", b"x"),
            lambda: fs.write_text("ds/new", "x"),
            lambda: fs.put(str(local), "ds/new"),
            lambda: fs.put_file(str(local), "ds/new"),
            lambda: fs.upload(str(local), "ds/new"),
            lambda: fs.cp_file("ds/a", "ds/b"),
            lambda: fs.copy("ds/a", "ds/b"),
            lambda: fs.cp("ds/a", "ds/b"),
            lambda: fs.mv("ds/a", "ds/b"),
            lambda: fs.rename("ds/a", "ds/b"),
            lambda: fs.rm("ds/a"),
            lambda: fs.rm("ds", recursive=True),
            lambda: fs.rm_file("ds/a"),
            lambda: fs.delete("ds/a"),
            lambda: fs.mkdir("ds/new"),
            lambda: fs.mkdirs("ds/new", exist_ok=True),
            lambda: fs.makedirs("ds/new", exist_ok=True),
            lambda: fs.makedir("ds/new"),
            lambda: fs.rmdir("ds/deep"),
        ],
    }
    for call in [*calls["open"], *calls["others"]]:
        with pytest.raises(ReadOnlyError) as raised:
            call()
        assert raised.value.errno == errno.EROFS
        assert isinstance(raised.value, OSError)
    assert fs.ls("ds", detail=False) == ["ds/a", "ds/deep", "ds/empty", "ds/lines.csv"]
