"""Files read through a mount, against the file behind it, the bare S3 client, and other FUSE clients.

Run (root and /dev/fuse are needed): make bench-fuse

One run, one 1 GiB object in an S3 server on this machine (SeaweedFS), one kind of memory for every cache (a tmpfs with
huge pages). All that is compared is measured in turn, round by round. The reader opens the file, reads it from its
first byte to its last in pieces of 1 MiB into one buffer, and closes it; random reads are fio's. "Dropped" figures are
taken after the kernel's page cache was dropped, so that what answers is the client and its cache; the others leave the
page cache as the client keeps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from benchmarks import peers
from benchmarks.fusetable import show
from benchmarks.harness import GiB, MiB, progress, touch_pages
from benchmarks.manyfiles import put_empty
from benchmarks.ownmount import Raycache
from raycache.store import tmpfs
from tests.support.seaweed import SeaweedS3

SIZE = int(os.environ.get("BENCH_FUSE_MIB", "1024")) * MiB
FILES = int(os.environ.get("BENCH_FUSE_FILES", "100000"))
PIECE = MiB
RANGE = 8 * MiB
PARALLEL = 8
ROUNDS = 5
PEER_ROUNDS = 2
FIO_ROUNDS = 3
FIO_S = 2
BARS = {"sequential": 0.95, "random": 0.85, "cold": 0.8, "memory_mib": 150}

__all__ = ["run", "show"]

Rates = dict[str, list[float]]


def bare_client(s3: SeaweedS3, bucket: str) -> S3Store:
    """obstore, as fast as it gets."""
    return S3Store(
        bucket,
        endpoint=s3.endpoint,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
        region="us-east-1",
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )


class Bench:
    """The running pieces."""

    def __init__(self, scratch: Path, s3: SeaweedS3, memory: Path, cache: Path) -> None:
        self.s3 = s3
        self.memory = memory
        self.cache = cache
        self.bucket = s3.create_bucket("bench")
        self.pool = ThreadPoolExecutor(PARALLEL)
        self.store = bare_client(s3, self.bucket)
        self.raycache = Raycache(scratch / "raycache", s3, self.bucket, SIZE)
        self.peers: list[peers.Peer] = []
        self.skipped: dict[str, str] = {}
        self.prepare(scratch)

    def prepare(self, scratch: Path) -> None:
        """Put the file into the bucket, as it is and through each peer that needs that."""
        source = self.memory / "source"
        piece = os.urandom(64 * MiB)
        with source.open("wb") as file:
            for _ in range(max(1, SIZE // len(piece))):
                file.write(piece[: min(SIZE, len(piece))])
        try:
            with contextlib.closing(self.s3.client()) as client:
                client.upload_file(str(source), self.bucket, "big")
            for kind in peers.ALL:
                if why := kind.missing():
                    self.skipped[kind.name] = why
                    continue
                try:
                    peer = kind(scratch, self.cache, self.s3, self.bucket)
                    peer.prepare(source)
                    self.peers.append(peer)
                except RuntimeError as error:
                    self.skipped[kind.name] = str(error)
        finally:
            source.unlink()

    def alone(self) -> float:
        """GB/s of the bare client; the bytes are thrown away."""

        def fetch(offset: int) -> int:
            return len(obstore.get_range(self.store, "big", start=offset, length=min(RANGE, SIZE)))

        started = time.perf_counter()
        assert sum(self.pool.map(fetch, range(0, SIZE, RANGE))) == SIZE
        return SIZE / (time.perf_counter() - started) / 1e9

    def touch(self, *places: Path) -> None:
        """Have memory at hand for a run: of each tmpfs, and as much for the page cache."""
        for place in (*places, self.memory):
            touch_pages(place, SIZE + 64 * MiB)

    def fresh(self, one: Raycache | peers.Peer) -> None:
        """Mount anew, with an empty cache."""
        one.unmount()
        one.mount()
        self.touch(one.tier_directory() if isinstance(one, Raycache) else self.cache)


_buffer = memoryview(bytearray(PIECE))


def read(path: str) -> float:
    """GB/s of one sequential read, open and close included."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        position = 0
        while taken := os.preadv(descriptor, [_buffer], position):
            position += taken
    finally:
        os.close(descriptor)
    assert position == SIZE
    return SIZE / (time.perf_counter() - started) / 1e9


def fio(path: str, jobs: int) -> float:
    """4 KiB random reads a second."""
    command = ["fio", "--name=r", f"--filename={path}", "--rw=randread", "--bs=4k", "--ioengine=psync"]
    command += [f"--numjobs={jobs}", f"--size={SIZE}", f"--runtime={FIO_S}", "--time_based", "--readonly"]
    command += ["--invalidate=0", "--group_reporting", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def memory(ones: Sequence[Raycache | peers.Peer]) -> dict[str, float]:
    """Most memory that the processes of each have had resident, MiB, all of its mounts being unmounted."""
    return {one.name: round(one.peak_kib / 1024, 1) for one in ones}


def drop_page_cache() -> None:
    """Drop what the kernel keeps of files (a tmpfs keeps its own)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def rounds(
    jobs: Mapping[str, Callable[[], float]], count: int, before: Callable[[str], None], ahead: int = 1
) -> Rates:
    """What several jobs give, round by round; `ahead` rounds come first and are not counted."""
    rates: Rates = {name: [] for name in jobs}
    for number in range(-ahead, count):
        for name, job in jobs.items():
            before(name)
            rate = job()
            if number >= 0:
                rates[name].append(round(rate, 4))
    return rates


def ratio(rates: Rates, of: str, to: str) -> float:
    """Median of `of/to`, round by round."""
    return round(statistics.median(a / b for a, b in zip(rates[of], rates[to], strict=True)), 3)


def figures(rates: Rates, against: str = "") -> dict[str, Any]:
    """Medians, raycache's ratio to what it is measured against, and to the best of the peers."""
    medians = {name: round(statistics.median(values), 4) for name, values in rates.items()}
    others = {name: value for name, value in medians.items() if name not in ("raycache", against)}
    found: dict[str, Any] = {"median": medians, "rounds": rates}
    if against:
        found["against"] = {"name": against, "ratio": ratio(rates, "raycache", against)}
    if others:
        best = max(others, key=lambda name: others[name])
        found["best_peer"] = {"name": best, "factor": round(medians["raycache"] / others[best], 2)}
    return found


def cold(bench: Bench) -> dict[str, Any]:
    """First reads of a fresh mount, against the bare client and against the peers."""
    every: dict[str, Raycache | peers.Peer] = {one.name: one for one in [bench.raycache, *bench.peers]}

    def before(name: str) -> None:
        if name in every:
            bench.fresh(every[name])
        else:
            bench.touch(bench.raycache.tier_directory() if bench.raycache.pids()[1] else bench.cache)

    progress(f"cold: raycache and obstore alone, {ROUNDS} rounds")
    bench.raycache.mount()
    jobs: dict[str, Callable[[], float]] = {
        "obstore alone": bench.alone,
        "raycache": lambda: read(bench.raycache.file),
    }
    found = {"obstore": figures(rounds(jobs, ROUNDS, before), "obstore alone")}
    if bench.peers:
        progress(f"cold: {', '.join(every)}, {PEER_ROUNDS} rounds")
        readers = {name: (lambda one=one: read(one.file)) for name, one in every.items()}
        found["peers"] = figures(rounds(readers, PEER_ROUNDS, before, ahead=0))
    return found


def warm(bench: Bench) -> dict[str, Any]:
    """What has been read before, in all mounts of the last cold round."""
    paths = {"the file itself": bench.raycache.backing_file()}
    paths |= {one.name: one.file for one in (bench.raycache, *bench.peers)}
    readers = {name: (lambda path=path: read(path)) for name, path in paths.items()}
    few = {name: readers[name] for name in ("the file itself", "raycache")}
    found: dict[str, Any] = {}

    def dropped(_: str) -> None:
        drop_page_cache()
        bench.touch()

    progress("warm, sequential")
    found["sequential"] = figures(rounds(few, ROUNDS, lambda _: None), "the file itself")
    found["sequential_peers"] = figures(rounds(readers, FIO_ROUNDS, lambda _: None), "the file itself")
    found["sequential_dropped"] = figures(rounds(readers, FIO_ROUNDS, dropped, ahead=0), "the file itself")
    if shutil.which("fio") is None:
        progress("no fio: random reads are skipped")
        return found
    for jobs in (1, 4):
        progress(f"warm, 4 KiB random reads, {jobs} at a time")
        random = {name: (lambda path=path, jobs=jobs: fio(path, jobs)) for name, path in paths.items()}
        pair = {name: random[name] for name in few}
        found[f"random_{jobs}"] = figures(
            rounds(pair, FIO_ROUNDS, lambda _: None, ahead=0), "the file itself"
        )
        found[f"random_{jobs}_dropped"] = figures(rounds(random, 1, dropped, ahead=0), "the file itself")
    return found


def directory(bench: Bench) -> dict[str, Any]:
    """A directory of many files: names alone, and names with sizes."""
    progress(f"a directory of {FILES} files: writing it")
    many = bench.s3.create_bucket("many")
    store = bare_client(bench.s3, many)
    started = time.perf_counter()
    put_empty(store, [f"many/file-{number:06}" for number in range(FILES)])
    found: dict[str, Any] = {"files": FILES, "put_s": round(time.perf_counter() - started, 1)}
    mine = Raycache(bench.raycache.point.parent / "many", bench.s3, many, 0)
    contenders: list[Raycache | peers.Peer] = [mine]
    for peer in bench.peers:
        if isinstance(peer, peers.JuiceFS):
            peer.load_names("many", FILES)
            contenders.append(peer)
    for one in contenders:
        progress(f"a directory of {FILES} files: {one.name}")
        one.peak_kib = 0
        one.mount()
        try:
            found[one.name] = _walk(one)
        finally:
            one.unmount()
    found["peak_memory_mib"] = memory(contenders)
    return found


def _walk(one: Raycache | peers.Peer) -> dict[str, Any]:
    folder = str(one.point / "many")

    def timed(*command: str) -> float:
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - started
        names = done.stdout.count(b"\n")
        assert names >= FILES, f"{names} names in {folder}"
        return round(seconds, 3)

    def resident() -> int:
        return sum(map(peers.resident_kib, one.pids()))

    find = ("find", folder, "-printf", "%s %p\n")  # the size: each file is asked for its attributes
    before = resident()
    found: dict[str, Any] = {"ls_f_first_s": timed("ls", "-f", folder)}
    listed = resident()
    found |= {"find_first_s": timed(*find), "find_again_s": [timed(*find) for _ in range(3)]}
    found |= {"ls_f_again_s": timed("ls", "-f", folder)}
    walked = resident()
    found["bytes_per_entry"] = {
        "listed": round((listed - before) * 1024 / FILES),
        "and_looked_up": round((walked - before) * 1024 / FILES),
    }
    return found


@contextlib.contextmanager
def running() -> Iterator[Bench]:
    """An S3 server with the data, memory of the kind that is measured, and nothing mounted."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rcb-")))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rcb-", dir="/dev/shm")))
        cache = scratch / "cache"
        cache.mkdir()
        if not tmpfs.mount(str(cache), 8 * GiB):
            sys.exit("a tmpfs cannot be mounted here")
        stack.callback(subprocess.run, ["umount", "-l", str(cache)], check=False)
        s3 = stack.enter_context(SeaweedS3(scratch / "s3"))
        bench = Bench(scratch, s3, memory, cache)
        try:
            yield bench
        finally:
            for one in (bench.raycache, *bench.peers):
                one.unmount()
            bench.pool.shutdown()


def run() -> dict[str, Any]:
    """All figures of this module."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        sys.exit("this measurement needs root and /dev/fuse: it mounts, and drops the page cache")
    with running() as bench:
        for name, why in bench.skipped.items():
            progress(f"skipped: {name}: {why}")
        found: dict[str, Any] = {"size_bytes": SIZE, "bars": BARS, "skipped": bench.skipped}
        found["peers"] = {
            peer.name: {"version": peer.version(), "options": peer.options()} for peer in bench.peers
        }
        found["cold"] = cold(bench)
        found["warm"] = warm(bench)
        for one in (bench.raycache, *bench.peers):
            one.unmount()
        found["peak_memory_mib"] = memory([bench.raycache, *bench.peers])
        found["directory"] = directory(bench)
        mine = bench.raycache
        found["raycache"] = {"servers_started_per_mount": mine.starts, **mine.details}
    return found
