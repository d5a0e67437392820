"""A mount whose server is killed again and again while programs read from it: does any read fail, or give wrong bytes?

Run (root, /dev/fuse and fio are needed): python -m benchmarks kills

fio writes files in which each block carries its CRC32C; they are put into an S3 server on this machine (SeaweedFS) and
mounted with a cache of half their size. Then four fio jobs read and verify them, sequentially and at random, and a loop
runs `find` and `md5sum` over all of them, while the server is killed (SIGKILL) at moments of chance: while it serves,
and while it starts. What was opened and mapped before the first kill is read again after the last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import MiB, progress
from tests.support.fusemount import FuseMount
from tests.support.seaweed import REGION, SeaweedS3
from tests.support.waiting import until

KILLS = int(os.environ.get("BENCH_KILLS", "100"))
WAYS = [
    ["--rw=read"],
    ["--rw=randread"],
    ["--rw=read", "--ioengine=mmap"],
    ["--rw=randread", "--ioengine=mmap"],
]
"""How each file is read."""
FILES = len(WAYS)
SIZE = int(os.environ.get("BENCH_KILLS_MIB", "16")) * MiB
FIO_BLOCK = 64 << 10
PATIENCE_S = 900.0
PIECE = MiB
CHECKSUMS = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 md5sum"
VERIFY = [
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    f"--bs={FIO_BLOCK}",
    f"--size={SIZE}",
]


def fio(*arguments: str) -> dict[str, Any]:
    """Run a job; what fio says of it.

    Raises:
        RuntimeError: it failed, or a block was not what had been written.
    """
    done = subprocess.run(
        ["fio", "--output-format=json", "--name=job", *VERIFY, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"fio: {done.returncode}: {done.stderr[-2000:]} {done.stdout[-2000:]}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}: {done.stderr[-2000:]}")
    return dict(job)


class Readers:
    """Programs that read all the time, and the handles that were opened before them.

    Args:
        point: the mount.
        sums: MD5 of each file, by name.

    Attributes:
        passes: how often each has read what it reads.
        verified: bytes that fio has verified.
        failures: what went wrong.
    """

    def __init__(self, point: Path, sums: dict[str, str]) -> None:
        self.passes: dict[str, int] = {}
        self.verified = 0
        self.failures: list[str] = []
        self._point = point
        self._sums = sums
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._handles = {name: os.open(point / name, os.O_RDONLY) for name in sums}
        self._maps = {name: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for name, fd in self._handles.items()}
        works = {f"fio {number}": self._fio(number) for number in range(FILES)} | {
            "find and md5sum": self._md5sum
        }
        self._threads = [threading.Thread(target=self._run, args=work) for work in works.items()]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for view in self._maps.values():
            view.close()
        for fd in self._handles.values():
            os.close(fd)

    def get_on(self) -> None:
        """Wait until each has read everything twice more: one pass at least began after this call."""
        target = {name: count + 2 for name, count in self.passes.items()}
        until(
            lambda: self.failures or all(self.passes[name] >= count for name, count in target.items()),
            "all readers get on",
            PATIENCE_S,
        )

    def check_handles(self) -> None:
        """Read what was opened, and mapped, at the beginning."""
        for name, expected in self._sums.items():
            parts = [os.pread(self._handles[name], PIECE, at) for at in range(0, SIZE, PIECE)]
            for what, data in (("opened", b"".join(parts)), ("mapped", self._maps[name][:])):
                if hashlib.md5(data).hexdigest() != expected:
                    self.failures.append(f"{name}, {what} before the first kill, differs")

    def _run(self, name: str, work: Callable[[], None]) -> None:
        self.passes[name] = 0
        while not self._stop.is_set() and not self.failures:
            try:
                work()
            except (RuntimeError, OSError) as error:
                self.failures.append(f"{name}: {error}")
                return
            self.passes[name] += 1

    def _fio(self, number: int) -> Callable[[], None]:
        way = WAYS[number]

        def work() -> None:
            seed = f"--randseed={random.randrange(1 << 30)}"
            job = fio(f"--filename={self._point / f'file{number}'}", "--readonly", seed, *way)
            with self._lock:
                self.verified += job["read"]["io_bytes"]

        return work

    def _md5sum(self) -> None:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", CHECKSUMS],
            cwd=self._point,
            capture_output=True,
            text=True,
            check=False,
        )
        wanted = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._sums.items()))
        if done.returncode or done.stdout != wanted:
            raise RuntimeError(f"{done.returncode}: {done.stderr} {done.stdout}")


def run() -> dict[str, Any]:
    """Kill, and tell what the readers saw.

    Raises:
        RuntimeError: a read failed or gave other bytes.
    """
    if shutil.which("fio") is None:
        sys.exit("fio is needed: install the package `fio`")
    with tempfile.TemporaryDirectory(prefix="raycache-kills-") as scratch, _server(Path(scratch)) as s3:
        bucket = s3.create_bucket("kills")
        sums = _files(Path(scratch), s3, bucket)
        options = {
            "endpoint": s3.endpoint,
            "region": REGION,
            "access_key_id": s3.access_key,
            "secret_access_key": s3.secret_key,
        }
        (Path(scratch) / "mount").mkdir()
        mount = FuseMount(Path(scratch) / "mount", f"s3://{bucket}", options)
        quota = FILES * SIZE // 2
        mount.start(quota=quota, metadata_ttl=1.0, block_size=MiB)
        try:
            return _kill(mount, sums) | {"data_bytes": FILES * SIZE, "cache_bytes": quota}
        finally:
            mount.end()


@contextlib.contextmanager
def _server(scratch: Path) -> Iterator[SeaweedS3]:
    s3 = SeaweedS3(scratch / "s3")
    s3.start()
    try:
        yield s3
    finally:
        s3.stop()


def _files(scratch: Path, s3: SeaweedS3, bucket: str) -> dict[str, str]:
    """Put what fio writes into the bucket; the MD5 of each file."""
    sums = {}
    source = scratch / "source"
    with contextlib.closing(s3.client()) as client:
        for number in range(FILES):
            fio(
                f"--filename={source}",
                "--rw=write",
                "--do_verify=0",
                "--end_fsync=0",
                f"--randseed={number + 1}",
            )
            name = f"file{number}"
            sums[name] = hashlib.md5(source.read_bytes()).hexdigest()
            client.upload_file(str(source), bucket, name)
            source.unlink()
    return sums


def _kill(mount: FuseMount, sums: dict[str, str]) -> dict[str, Any]:
    seed = random.randrange(1 << 30)
    progress(f"seed {seed}")
    chance = random.Random(seed)
    started = time.monotonic()
    pid = serving = 0
    killed: set[int] = set()  # a process that ends is still named for a moment: each counts once
    with Readers(mount.point, sums) as readers:
        until(lambda: len(readers.passes) == FILES + 1, "the readers have begun")
        readers.check_handles()
        while len(killed) < KILLS and not readers.failures:
            if len(killed) % 3 == 0:  # one that answers; else at any moment, also of its start
                pid = mount.server(other_than=pid)
                serving += 1
            time.sleep(chance.uniform(0.0, 1.0))
            victim = mount.status().server_pid
            if victim and victim not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)
                    if len(killed) % 10 == 0:
                        progress(
                            f"{len(killed)} killed, {readers.verified // MiB} MiB verified, {readers.passes}"
                        )
        readers.get_on()
        readers.check_handles()
        starts = mount.status().starts
    if readers.failures:
        raise RuntimeError("; ".join(readers.failures) + f"\n{mount.log()[-3000:]}")
    if "Traceback" in mount.log():
        raise RuntimeError(mount.log()[-3000:])
    state = mount.unmount().state
    return {
        "seed": seed,
        "kills": len(killed),
        "kills_of_a_server_known_to_serve": serving,
        "server_starts": starts,
        "seconds": round(time.monotonic() - started),
        "verified_by_fio_bytes": readers.verified,
        "passes": readers.passes,
        "failed_reads": 0,
        "wrong_bytes": 0,
        "handles_and_mappings_of_before": "read whole after the last kill",
        "after_unmount": state,
    }
