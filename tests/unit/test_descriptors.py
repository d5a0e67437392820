"""Running out of file descriptors: told as what it is; what needs none goes on; and once it is over it is over."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycache import descriptors
from raycache.errors import TooManyFilesError, from_wire, to_wire
from raycache.metrics import Metrics
from raycache.ufs import Backoff
from raycache.ufs.failures import judge
from raycache.ufs.fsspec_store import _judge as judge_fsspec
from raycache.ufs.retry import Failure, Retrier
from tests.support.seaweed import SeaweedS3

PRELUDE = """
import json, os, resource, sys
from pathlib import Path
uri, options, directory = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from raycache.errors import RaycacheError
from raycache.ufs import Backoff, open_store
from tests.support.embedded import Embedded, dataset_of

held = []

def exhaust():
    try:
        while True:
            held.append(os.open("/", os.O_PATH))
    except OSError:
        pass

def release():
    while held:
        os.close(held.pop())

def told(call):
    try:
        call()
    except RaycacheError as error:
        return [type(error).__name__, error.errno, str(error)]

def tell(**what):
    print(json.dumps(what), flush=True)

class Sink:
    def restart(self): self.data = b""
    def feed(self, piece): self.data += piece
    def room(self):
        self.buffer = memoryview(bytearray(4 - len(self.data)))
        return self.buffer
    def filled(self, count): self.data += self.buffer[:count]

def pour(store, info):
    sink = Sink()
    store.pour("key", 0, 4, info, sink)
    return sink.data.decode()
"""

ONCE = "backoff=Backoff(deadline_s=0)"


@pytest.fixture
def run(s3_server: SeaweedS3, bucket: str, s3_options: dict[str, str], tmp_path: Path) -> Any:
    """Runs a script in a process with a low limit; what it told."""
    s3_server.put(bucket, "key", b"data")

    def run(script: str) -> dict[str, Any]:
        given = json.dumps([f"s3://{bucket}", s3_options, str(tmp_path)])
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + script, given], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return run


def is_told(said: list[Any]) -> bool:
    return said[:2] == ["TooManyFilesError", errno.EMFILE] and "ulimit -n" in said[2] and "200" in said[2]


def test_a_store_that_is_opened_without_descriptors_says_so_and_opens_later(run: Any) -> None:
    """The first store of a process: obstore's runtime, if it cannot start then, never does."""
    told = run("""
exhaust()
said = [told(lambda: open_store(u, options)) for u in (uri, "http://127.0.0.1:9/", "memory://x")]
release()
tell(said=[s for s in said], size=open_store(uri, options).head("key").size)
""")
    assert is_told(told["said"][0])
    assert told["said"][1][0] == "TooManyFilesError"
    assert told["size"] == 4


def test_reads_without_descriptors_say_so_and_go_on_later(run: Any) -> None:
    told = run(f"""
store = open_store(uri, options, {ONCE})
info = store.head("key")
other = open_store(uri, options, {ONCE})  # no connection yet
exhaust()
said = [told(lambda: pour(other, info)), told(lambda: other.head("key")), told(lambda: other.list(""))]
release()
tell(said=said, data=pour(other, info))
""")
    assert all(is_told(said) for said in told["said"])
    assert told["data"] == "data"


def test_reads_go_on_over_connections_that_are_open(run: Any) -> None:
    told = run(f"""
store = open_store(uri, options, {ONCE})
info = store.head("key")
pour(store, info)
exhaust()
tell(data=pour(store, info), size=store.head("key").size)
""")
    assert told == {"data": "data", "size": 4}


def test_a_reader_goes_on_with_what_is_cached_and_is_told_of_the_rest(run: Any) -> None:
    told = run("""
from raycache.client import ObjectReader
source = Path(directory, "bucket"); source.mkdir()
(source / "a").write_bytes(b"data"); (source / "b").write_bytes(b"data")
with Embedded(Path(directory, "tier"), dataset_of("ds", {"": f"file://{source}"})) as cache:
    readers = [ObjectReader(cache.client, cache.engine.info("ds", name).value.version) for name in "ab"]
    readers[0].read_at(0, 4)
    exhaust()
    said = told(lambda: readers[1].read_at(0, 4))
    data = readers[0].read_at(0, 4).decode()
    release()
    tell(said=said, data=data, later=readers[1].read_at(0, 4).decode())
    for reader in readers:
        reader.close()
""")
    assert is_told(told["said"])
    assert told["data"] == told["later"] == "data"


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_every_client_is_understood(code: int) -> None:
    texts = [
        f'HTTP error ConnectError("tcp open error", Os {{ code: {code}, kind: Uncategorized, message: "?" }})',
        f"cannot open: Too many open files (os error {code})",
    ]
    failures = [judge(OSError(code, "?"), "x"), judge_fsspec(OSError(code, "?"), "x")]
    failures += [judge(ValueError(text), "x") for text in texts]
    for failure in failures:
        assert isinstance(failure.error, TooManyFilesError)
        assert failure.transient


def test_it_stays_what_it_is_after_several_tries_and_over_the_wire() -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "?")

    def judge_it(error: Exception, where: str) -> Failure:
        return judge(error, where)

    retrier = Retrier(judge_it, (OSError,), Backoff(deadline_s=0.05, base_s=0.001, cap_s=0.001), Metrics())
    with pytest.raises(TooManyFilesError, match=r"tried \d+ times") as caught:
        retrier.call(fail, "x")
    again = from_wire(to_wire(caught.value))
    assert (type(again), again.errno) == (TooManyFilesError, errno.EMFILE)
