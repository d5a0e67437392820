"""A reader of the soak: reads through one front until it is told to end, and judges all that it sees.

Runs as a Ray task (`read`), or as a process of its own: `python -m tests.soak.reader PLAN` prints its report.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.fronts import FRONTS, File, Front
from tests.soak.truth import ABSENT, Truth, content, version_of
from tests.support.leaks import holdings, leaked_since

MOST_READ = 2 << 20
"""Bytes of the largest single read."""

HELD = 3
"""Files that a reader keeps open from one round to the next."""

RAYS_OWN = "('::ffff:127.0.0.1'"
"""Connections of Ray to itself, which come and go; raycache's workers listen at the node's address."""

SAMPLE_S = 2.0
LEAK_PATIENCE_S = 20.0


@dataclass
class Plan:
    """What a reader does.

    Args:
        name: of the reader.
        front: name of the front.
        arguments: of it.
        truth: path of the history, its number of `keys`, and `believed_s`.
        stop: path of a file whose appearance ends it.
        seed: of its choices.
    """

    name: str
    front: str
    arguments: dict[str, Any]
    truth: str
    keys: int
    believed_s: float
    stop: str
    seed: int


@dataclass
class Report:
    """What a reader saw.

    Args:
        violations: everything that no promise allows, in words.
        fetched: bytes that its process itself has had from the object store.
        memory: (seconds since the start, anonymous memory in bytes).
    """

    name: str
    opens: int = 0
    reads: int = 0
    bytes: int = 0
    looks: int = 0
    stale: int = 0
    absent: int = 0
    fetched: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    violations: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


@dataclass
class _Held:
    file: File
    key: int
    credible: list[int]
    version: int | None = None

    @property
    def reading(self) -> str:
        return f"object {self.key} version {self.credible if self.version is None else self.version}"


class Reader:
    """One reader; see `Plan`."""

    def __init__(self, plan: Plan, front: Front, truth: Truth) -> None:
        self._plan = plan
        self._front = front
        self._truth = truth
        self._random = random.Random(plan.seed)
        self._held: list[_Held] = []
        self.report = Report(plan.name)

    def run(self) -> None:
        """Read until the end."""
        started = sampled = time.monotonic()
        while not os.path.exists(self._plan.stop):
            self._round()
            if time.monotonic() - sampled > SAMPLE_S:
                sampled = time.monotonic()
                self.report.memory.append((sampled - started, anonymous_memory(os.getpid())))
        while self._held:
            self._held.pop().file.close()

    def _round(self) -> None:
        dice = self._random.random()
        key = min(int(self._random.expovariate(3 / self._truth.keys)), self._truth.keys - 1)
        if dice < 0.05:
            self._list()
        elif dice < 0.15:
            self._look(key)
        else:
            held = self._open(key)
            if held is not None:
                self._use(held)
        if self._held and self._random.random() < 0.5:
            self._use(self._held.pop(self._random.randrange(len(self._held))))

    # -- names ---------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        start = time.monotonic()
        seen = self._timed("list", self._front.sizes)
        if seen is None:
            return
        end = time.monotonic()
        self.report.looks += 1
        for key in range(self._truth.keys):
            self._judge_size("listing", key, seen.get(name_of(key), ABSENT), start, end)

    def _look(self, key: int) -> None:
        start = time.monotonic()
        try:
            size = self._timed("look", lambda: self._front.size(name_of(key)))
        except FileNotFoundError:
            size = ABSENT
        if size is not None:
            self.report.looks += 1
            self._judge_size("look", key, size, start, time.monotonic())

    def _judge_size(self, what: str, key: int, size: int, start: float, end: float) -> None:
        credible = self._truth.credible(key, start, end)
        if size not in {self._truth.size(key, version) for version in credible}:
            self._violation(f"{what}: object {key} has {size} bytes; credible versions {credible}")

    # -- files ---------------------------------------------------------------------------------------------------

    def _open(self, key: int) -> _Held | None:
        start = time.monotonic()
        try:
            file = self._timed("open", lambda: self._front.open(name_of(key)), key)
        except FileNotFoundError:
            self.report.absent += 1
            self._judge_size("open", key, ABSENT, start, time.monotonic())
            return None
        if file is None:
            return None
        self.report.opens += 1
        credible = self._truth.credible(key, start, time.monotonic())
        fitting = [version for version in credible if self._truth.size(key, version) == file.size]
        if not fitting:
            self._violation(f"open: object {key} has {file.size} bytes; credible versions {credible}")
            file.close()
            return None
        return _Held(file, key, fitting, fitting[0] if len(fitting) == 1 else None)

    def _use(self, held: _Held) -> None:
        whole = self._random.random() < 0.4
        good = self._read_whole(held) if whole else self._read_here_and_there(held)
        if good and len(self._held) < HELD and self._random.random() < 0.3:
            self._held.append(held)
        else:
            held.file.close()

    def _read_whole(self, held: _Held) -> bool:
        step = self._random.choice([64 << 10, 1 << 20, MOST_READ])
        return all(self._read(held, offset, step) for offset in range(0, held.file.size, step))

    def _read_here_and_there(self, held: _Held) -> bool:
        for _ in range(self._random.randrange(1, 12)):
            length = min(MOST_READ, 16 + int(self._random.expovariate(1 / (128 << 10))))
            if not self._read(held, self._random.randrange(held.file.size), length):
                return False
        return True

    def _read(self, held: _Held, offset: int, length: int) -> bool:
        data = self._timed("read", lambda: held.file.read(offset, length), held.key, held)
        if data is None:
            return False
        self.report.reads += 1
        self.report.bytes += len(data)
        expected = min(length, held.file.size - offset)
        if len(data) != expected:
            self._violation(f"read: {len(data)} of {expected} bytes at {offset} of {held.reading}")
            return False
        if held.version is None and len(data) >= 16:
            found = version_of(held.key, offset, data)
            if found not in held.credible:
                self._violation(
                    f"read: version {found} at {offset} of {held.reading}: {bytes(data[:16]).hex()}"
                )
                return False
            held.version = found
        versions = held.credible if held.version is None else [held.version]
        if not any(data == content(held.key, version, offset, len(data)) for version in versions):
            self._violation(
                f"read: wrong bytes in {offset}+{len(data)} of {held.reading}: {self._wrong(held, offset, data)}"
            )
            return False
        return True

    def _wrong(self, held: _Held, offset: int, data: bytes | memoryview) -> str:
        right = content(held.key, held.version or 0, offset, len(data))
        at = next(i for i in range(len(data)) if data[i] != right[i])
        return f"first at {offset + at}, {bytes(data[at : at + 16]).hex()} for {right[at : at + 16].hex()}"

    # -- what may happen -----------------------------------------------------------------------------------------

    def _timed(self, what: str, action: Callable[[], Any], key: int = -1, held: _Held | None = None) -> Any:
        """The action's result; None if the version is gone, as it may be, or if it failed, which is noted."""
        start = time.monotonic()
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and what != "read":
                raise  # there may be no such object
            now = time.monotonic()
            if error.errno == errno.ESTALE and key >= 0:
                self.report.stale += 1
                candidates = [held.version] if held is not None and held.version is not None else None
                if candidates is None:
                    candidates = held.credible if held is not None else self._truth.credible(key, start, now)
                if not any(self._truth.superseded(key, version, now) for version in candidates):
                    self._violation(
                        f"{what}: stale without reason: object {key} versions {candidates}: {error}"
                    )
            else:
                self._violation(f"{what} of object {key}: {type(error).__name__}: {error}")
            return None
        except Exception as error:  # noqa: BLE001  # whatever it is, a user would have got it
            self._violation(
                f"{what} of object {key}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            )
            return None
        finally:
            took = time.monotonic() - start
            if took > self.report.slowest_s:
                self.report.slowest_s, self.report.slowest = took, f"{what} of object {key}"

    def _violation(self, text: str) -> None:
        self.report.violations.append(f"{self._plan.name} at {time.monotonic():.2f}: {text}")


def name_of(key: int) -> str:
    """Name of an object in the dataset."""
    return f"object-{key:03}.bin"


def anonymous_memory(pid: int) -> int:
    """Bytes of memory of a process that are no file's; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def read(plan: dict[str, Any]) -> dict[str, Any]:
    """Do what a plan says; its report. Both are plain data."""
    todo = Plan(**plan)
    truth = Truth(Path(todo.truth), todo.keys, todo.believed_s)
    # Connections and threads that live as long as the process are made by the first front; a second must leave none.
    warm = FRONTS[todo.front](**todo.arguments)
    warm.sizes()
    warm.close()
    before = holdings()
    front = FRONTS[todo.front](**todo.arguments)
    reader = Reader(todo, front, truth)
    try:
        reader.run()
        reader.report.fetched = front.fetched()
    finally:
        front.close()
        truth.close()
    report = reader.report
    report.leaks = [leak for leak in leaked_since(before, LEAK_PATIENCE_S) if RAYS_OWN not in leak]
    return asdict(report)


if __name__ == "__main__":
    print(json.dumps(read(json.loads(sys.argv[1]))))
