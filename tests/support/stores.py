"""Small local stores for tests, gates to stop one thread at a chosen point, and a reader in another process."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from raycache.blocks import KiB, ObjectVersion, runs
from raycache.metrics import Metrics
from raycache.store import LocalStore, TierConfig

BLOCK = 64 * KiB
PATIENCE_S = 60.0
"""Longest wait for another thread; reached only when a test fails."""


def version(name: str, blocks: float = 4, *, etag: str = '"1"') -> ObjectVersion:
    """A version of `blocks` blocks of 64 KiB (1.5: the second one half)."""
    return ObjectVersion("ds", name, f"s3://bucket/{name}", int(blocks * BLOCK), etag, block_size=BLOCK)


@lru_cache(maxsize=16)
def content(of: ObjectVersion) -> bytes:
    """The bytes of a version: the same at every call, of no other version."""
    return random.Random(of.object_id).randbytes(of.size)


def part(of: ObjectVersion, blocks: range) -> bytes:
    """The bytes of a run of blocks."""
    offset, length = of.extent_of(blocks)
    return content(of)[offset : offset + length]


def put(
    store: LocalStore, of: ObjectVersion, blocks: range | None = None, *, secondary: bool = False
) -> None:
    """Fill blocks of a version (all of them), as a worker does."""
    with store.fill(of, secondary=secondary) as filling:
        asked = range(of.block_count) if blocks is None else blocks
        for run in runs(filling.missing(asked), 4):
            filling.write(run, part(of, run))


def tier(path: Path, blocks: float, medium: str = "MEM", **changes: Any) -> TierConfig:
    """A tier that holds that many blocks of data (and some index files besides)."""
    return TierConfig(medium, str(path), int(blocks * BLOCK), **changes)


@contextmanager
def opened(*tiers: TierConfig, **options: Any) -> Iterator[LocalStore]:
    """A store that evicts in the writing thread, closed at the end."""
    store = LocalStore(
        tiers, metrics=options.pop("metrics", None) or Metrics(), **{"background": False} | options
    )
    try:
        yield store
    finally:
        store.close()


def allocated(path: str | Path) -> int:
    """Bytes that the filesystem has really given to the files below a directory."""
    return sum(entry.stat().st_blocks * 512 for entry in Path(path).rglob("*") if entry.is_file())


class Gate:
    """Stops threads at a function until it is opened.

    Args:
        monkeypatch: undoes it after the test.
        owner: module or class that holds the function.
        name: the function.
        when: only calls for which this is true stop; default all. Only the first such call stops.
        after: stop after the call and not before it.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        *,
        when: Callable[..., bool] = lambda *a, **k: True,
        after: bool = False,
    ) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()
        self._used = threading.Lock()
        original = getattr(owner, name)

        def gated(*args: Any, **kwargs: Any) -> Any:
            stop = when(*args, **kwargs) and self._used.acquire(blocking=False)
            if stop and not after:
                self._stop()
            result = original(*args, **kwargs)
            if stop and after:
                self._stop()
            return result

        monkeypatch.setattr(owner, name, gated)

    def _stop(self) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE_S), "nobody opened the gate"

    def wait(self) -> None:
        """Wait until a thread stands at the gate."""
        assert self._reached.wait(PATIENCE_S), "nobody came to the gate"

    def open(self) -> None:
        """Let it go on."""
        self._open.set()


class Doing(threading.Thread):
    """A function in a thread of its own; `result()` joins it and gives its value or raises its exception."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for it
            self._error = error

    def result(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._value


_READER = """
import json, sys
from raycache.blocks import ObjectVersion
from raycache.store import StoreView
view, held = StoreView(json.loads(sys.argv[1])), None
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "open":
        held = view.open(ObjectVersion.from_wire(order["version"]))
        answer = held is not None and [held.complete, held.has(range(*order["blocks"]))]
    elif order["do"] == "read":
        answer = held.pread(order["offset"], order["length"]).hex()
    else:
        held = held.close()
        answer = True
    print(json.dumps(answer), flush=True)
"""


class OtherReader:
    """A reader in a process of its own. Use as a context manager."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        import json

        self._json = json
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> OtherReader:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def _do(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(self._json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._json.loads(self.process.stdout.readline())

    def open(self, of: ObjectVersion, blocks: range | None = None) -> Any:
        """False, or [complete, has(blocks)]."""
        asked = range(of.block_count) if blocks is None else blocks
        return self._do(do="open", version=of.to_wire(), blocks=[asked.start, asked.stop])

    def read(self, offset: int, length: int) -> bytes:
        return bytes.fromhex(self._do(do="read", offset=offset, length=length))

    def close(self) -> None:
        self._do(do="close")
