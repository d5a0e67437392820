"""Names, attributes and errors on the real mount."""

# The system calls themselves are what is tested.
# ruff: noqa: PTH104, PTH115, PTH116, PTH211

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raycache.spec import Owner
from tests.fuse.server.conftest import shared_mount
from tests.support.fusemount import NAME, FuseMount

MANY = 5000
UNICODE = (
    "Grüße",
    unicodedata.normalize("NFD", "Grüße"),
    "данные",
    "数据",
    "🜁",
    "a b",
    "new\nline",
    "'\"\\*?",
)
OWNER = (1234, 2345)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuseMount]:
    """A mount of many names, owned by somebody else."""
    with shared_mount(tmp_path_factory.mktemp("names")) as mount:
        for number in range(MANY):
            path = mount.source / f"many/{number:05}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"%d" % number)
        for name in UNICODE:
            mount.put(f"unicode/{name}", name.encode())
        (mount.source / "unicode" / os.fsdecode(b"\xff\xfe latin: \xe9")).write_bytes(b"bytes")
        mount.put("dir/sub/file", b"deep")
        mount.put("long/" + "x" * 255, b"long")
        (mount.source / "empty").mkdir()
        mount.start(owner=Owner(uid=OWNER[0], gid=OWNER[1], mode="0640"), metadata_ttl=300.0)
        yield mount


def fails(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as failed:  # noqa: PT011 - the number is what is compared
        call()
    assert failed.value.errno == code, failed.value


# -- attributes -------------------------------------------------------------------------------------------------------


def test_stat(tree: FuseMount) -> None:
    source = (tree.source / "dir/sub/file").stat()
    found = (tree.point / "dir/sub/file").stat()
    assert stat.filemode(found.st_mode) == "-rw-r-----".replace("w", "-")
    assert (found.st_uid, found.st_gid) == OWNER
    assert (found.st_size, found.st_nlink) == (4, 1)
    assert found.st_mtime_ns == source.st_mtime_ns
    assert found.st_blocks == 1
    for directory in ("", "dir", "dir/sub", "empty"):
        found = (tree.point / directory).stat()
        assert stat.filemode(found.st_mode) == "dr-xr-x---"
        assert (found.st_uid, found.st_gid) == OWNER
    one, again = (os.stat(tree.point / "dir/sub/file") for _ in range(2))
    assert one.st_ino == again.st_ino
    with open(tree.point / "dir/sub/file", "rb") as file:
        assert os.fstat(file.fileno()).st_ino == one.st_ino
    assert os.path.ismount(tree.point)


def test_permissions_are_those_shown(tree: FuseMount) -> None:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    for user, group, allowed in ((OWNER[0], 1, True), (1, OWNER[1], True), (1, 1, False)):
        tried = subprocess.run(
            ["cat", "dir/sub/file"],
            cwd=tree.point,  # what is above the mount point is none of theirs
            user=user,
            group=group,
            extra_groups=[],
            capture_output=True,
        )
        assert (tried.returncode == 0) is allowed, tried


def test_access(tree: FuseMount) -> None:
    for path in (tree.point, tree.point / "dir", tree.point / "dir/sub/file"):
        assert os.access(path, os.F_OK)
        assert os.access(path, os.R_OK)
        assert not os.access(path, os.W_OK)
    assert os.access(tree.point / "dir", os.X_OK)
    assert not os.access(tree.point / "dir/sub/file", os.X_OK)
    assert not os.access(tree.point / "nothing", os.F_OK)


def test_statfs(tree: FuseMount) -> None:
    found = os.statvfs(tree.point)
    assert found.f_namemax == 1024  # a component of a key may be as long as the key
    assert found.f_blocks * found.f_frsize >= 1 << 50
    assert found.f_bavail == 0 or found.f_bavail * found.f_frsize >= 0
    assert found.f_flag & os.ST_RDONLY
    subprocess.run(["df", str(tree.point)], check=True, capture_output=True)


def test_extended_attributes(tree: FuseMount) -> None:
    path = tree.point / "dir/sub/file"
    names = {f"user.raycache.{name}" for name in ("version", "cached_bytes", "source", "dataset")}
    assert set(os.listxattr(path)) == names
    assert os.listxattr(tree.point / "dir") == ["user.raycache.dataset"]
    assert path.read_bytes() == b"deep"
    told = {name: os.getxattr(path, name).decode() for name in names}
    assert told["user.raycache.dataset"] == NAME
    assert told["user.raycache.source"] == f"file://{tree.source}/dir/sub/file"
    assert told["user.raycache.cached_bytes"] == "4"
    assert told["user.raycache.version"]
    fails(errno.ENODATA, lambda: os.getxattr(path, "user.raycache.other"))
    fails(errno.ENODATA, lambda: os.getxattr(path, "user.mine"))
    fails(errno.ENODATA, lambda: os.getxattr(tree.point / "dir", "user.raycache.version"))
    # ERANGE for a buffer that is too small; its size is asked for with none.
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(4)
    name = b"user.raycache.source"
    assert libc.getxattr(os.fsencode(path), name, buffer, 4) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(os.fsencode(path), name, None, 0) == len(told["user.raycache.source"])


# -- directories ------------------------------------------------------------------------------------------------------


def test_a_large_directory(tree: FuseMount) -> None:
    expected = [f"{number:05}" for number in range(MANY)]
    assert sorted(os.listdir(tree.point / "many")) == expected
    with os.scandir(tree.point / "many") as entries:
        sizes = {entry.name: (entry.is_file(), entry.stat().st_size) for entry in entries}
    assert sizes == {name: (True, len(str(int(name)))) for name in expected}
    found = subprocess.run(
        ["find", str(tree.point / "many"), "-type", "f", "-size", "-2c"], capture_output=True
    )
    assert len(found.stdout.splitlines()) == 10  # 0 to 9, rounded up to one byte each
    assert (tree.point / "many/04711").read_bytes() == b"4711"


class Directory:
    """opendir(3) and what the standard library has no words for."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        for name, result in (
            ("opendir", ctypes.c_void_p),
            ("telldir", ctypes.c_long),
            ("readdir", ctypes.c_void_p),
        ):
            getattr(self._libc, name).restype = result
        self._dir = ctypes.c_void_p(self._libc.opendir(os.fsencode(path)))
        assert self._dir

    def next(self) -> str:
        """The next name; "" at the end."""
        entry = self._libc.readdir(self._dir)
        if not entry:
            return ""
        # struct dirent: d_ino, d_off (8 bytes each), d_reclen (2), d_type (1), d_name
        return os.fsdecode(ctypes.string_at(entry + 19))

    def tell(self) -> int:
        return int(self._libc.telldir(self._dir))

    def seek(self, place: int) -> None:
        self._libc.seekdir(self._dir, ctypes.c_long(place))

    def rewind(self) -> None:
        self._libc.rewinddir(self._dir)

    def close(self) -> None:
        self._libc.closedir(self._dir)


def test_a_directory_in_pieces(tree: FuseMount) -> None:
    directory = Directory(tree.point / "many")
    try:
        names, places = [], []
        while True:
            places.append(directory.tell())
            name = directory.next()
            if not name:
                break
            names.append(name)
        assert set(names) == {".", ".."} | {f"{number:05}" for number in range(MANY)}
        assert len(names) == MANY + 2
        for index in (0, 1, 2, 3, 777, MANY // 2, MANY + 1):
            directory.seek(places[index])
            assert directory.next() == names[index]
        directory.rewind()
        assert directory.next() == names[0]
        directory.seek(places[-1])
        assert directory.next() == ""
    finally:
        directory.close()


def test_an_empty_directory(tree: FuseMount) -> None:
    assert os.listdir(tree.point / "empty") == []
    assert os.listdir(tree.point / "empty/..") == os.listdir(tree.point)


@pytest.mark.parametrize("ttl", [0.0, 300.0])
def test_a_directory_that_changes_while_it_is_read(fuse: FuseMount, ttl: float) -> None:
    for number in range(3000):
        path = fuse.source / f"d/{number:05}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    fuse.start(metadata_ttl=ttl)
    directory = Directory(fuse.point / "d")
    seen = [directory.next() for _ in range(50)]
    for number in range(3000):  # not one of them stays
        (fuse.source / f"d/{number:05}").unlink()
    fuse.put("d/new", b"new")
    while name := directory.next():
        seen.append(name)
    directory.close()
    # What was there when it was opened: each once, and nothing else.
    assert sorted(seen) == [".", "..", *(f"{number:05}" for number in range(3000))]
    if ttl == 0:
        assert os.listdir(fuse.point / "d") == ["new"]
    fuse.unmount()


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_of_all_scripts(tree: FuseMount) -> None:
    for name in UNICODE:
        assert (tree.point / "unicode" / name).read_bytes() == name.encode()
    assert set(UNICODE) <= set(os.listdir(tree.point / "unicode"))


def test_a_name_that_is_not_utf8(tree: FuseMount) -> None:
    name = os.fsdecode(b"\xff\xfe latin: \xe9")
    listed = name in os.listdir(tree.point / "unicode")
    assert (tree.point / "unicode" / name).exists() is listed  # whichever it is, both say the same
    fails(errno.ENOENT, lambda: os.stat(os.fsencode(tree.point) + b"/unicode/\xc3\x28"))
    fails(errno.ENOENT, lambda: os.stat(os.fsencode(tree.point) + b"/\xff"))


def test_long_names(tree: FuseMount) -> None:
    assert (tree.point / "long" / ("x" * 255)).read_bytes() == b"long"
    for length in (255, 256, 1024):
        fails(errno.ENOENT, lambda length=length: os.stat(tree.point / ("x" * length)))
    fails(errno.ENAMETOOLONG, lambda: os.stat(tree.point / ("x" * 1025)))
    fails(errno.ENAMETOOLONG, lambda: os.stat(str(tree.point) + "/dir" * 1024))


# -- errors -----------------------------------------------------------------------------------------------------------


def test_what_is_not_there(tree: FuseMount) -> None:
    for path in ("nothing", "dir/nothing", "nothing/at/all", "many/99999"):
        fails(errno.ENOENT, lambda path=path: os.stat(tree.point / path))
        fails(errno.ENOENT, lambda path=path: os.open(tree.point / path, os.O_RDONLY))
        fails(errno.ENOENT, lambda path=path: os.listdir(tree.point / path))


def test_files_and_directories_are_told_apart(tree: FuseMount) -> None:
    file, directory = tree.point / "dir/sub/file", tree.point / "dir"
    fails(errno.ENOTDIR, lambda: os.stat(str(file) + "/below"))
    fails(errno.ENOTDIR, lambda: os.stat(str(file) + "/"))
    fails(errno.ENOTDIR, lambda: os.listdir(file))
    fails(errno.ENOTDIR, lambda: os.open(file, os.O_RDONLY | os.O_DIRECTORY))
    fd = os.open(directory, os.O_RDONLY)
    try:
        fails(errno.EISDIR, lambda: os.read(fd, 1))
        fails(errno.EISDIR, lambda: os.pread(fd, 1, 0))
    finally:
        os.close(fd)
    fails(errno.EINVAL, lambda: os.readlink(file))


def test_nothing_can_be_written(tree: FuseMount) -> None:
    file, directory, new = tree.point / "dir/sub/file", tree.point / "dir/sub", tree.point / "dir/sub/new"
    calls: list[Callable[[], object]] = [
        *(lambda how=how: os.open(file, how) for how in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)),
        lambda: os.open(new, os.O_RDWR | os.O_CREAT),
        lambda: os.open(directory, os.O_TMPFILE | os.O_WRONLY),
        lambda: os.truncate(file, 0),
        lambda: os.mkdir(new),
        lambda: os.mkfifo(new),
        lambda: os.mknod(new, 0o600 | stat.S_IFREG),
        lambda: os.symlink("x", new),
        lambda: os.link(file, new),
        lambda: os.unlink(file),
        lambda: os.rmdir(directory),
        lambda: os.rename(file, new),
        lambda: os.rename(directory, tree.point / "other"),
        lambda: os.chmod(file, 0o777),
        lambda: os.chown(file, 0, 0),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b"x"),
        lambda: os.setxattr(file, "user.raycache.version", b"x"),
        lambda: os.removexattr(file, "user.raycache.version"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(OSError) as failed:  # noqa: PT011
            call()
        assert failed.value.errno == errno.EROFS, (number, failed.value)
    with open(file, "rb") as opened:
        fails(errno.EBADF, lambda: os.write(opened.fileno(), b"x"))
        fails(errno.EROFS, lambda: os.fchmod(opened.fileno(), 0o777))
        fails(errno.EINVAL, lambda: os.ftruncate(opened.fileno(), 0))
        fails(errno.EBADF, lambda: os.posix_fallocate(opened.fileno(), 0, 10))
        os.fsync(opened.fileno())  # there is nothing to write: no error
    assert file.read_bytes() == b"deep"
