"""What is left on a disk after a crash, found by recording what the store changes there.

A killed process leaves its files as its last system call made them, or half made: the kernel has what was written. A
machine that loses power leaves, of each page, each length and each name, what some earlier moment had made of it, each
of them for itself: nothing is on the disk before fsync(2) has returned, and nothing orders it. So there is one record,
and two questions: how does the directory look after change k, and how may it look when the power fails then.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import raycache.store
from raycache.store import files

PAGE = 4096
SECTOR = 512
"""Bytes that a disk writes whole or not at all (older ones; newer ones 4096)."""

DIRECTORY = -1
"""What a name stands for that is no file's."""

Place = tuple[Any, ...]
"""("name", path), ("size", file), or ("page", file, number): what a crash of the machine keeps or loses as one."""
State = dict[Place, Any]
"""A name's file, a file's length, a page's bytes; what is not in it is not there (a page: a hole)."""

_STORE = os.path.dirname(raycache.store.__file__) + os.sep


@dataclass
class Change:
    """One system call that changed something.

    Args:
        call: its name.
        new: the places that it changed, and what is in them since.
        callers: functions of the store that were on the stack, as ("moving", "publish").
        synced: the file that is on the disk since, for fsync.
    """

    call: str
    new: State
    callers: set[tuple[str, str]]
    synced: int | None = None


@dataclass
class Record:
    """The changes of the files below `root`, while `recording`.

    Attributes:
        before: called before each of them.
        changes: in their order.
    """

    root: Path
    before: Callable[[], None] = lambda: None
    changes: list[Change] = field(default_factory=list)
    _first: State = field(default_factory=dict)
    _now: State = field(default_factory=dict)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self.root = Path(os.path.realpath(self.root))
        self._first, self._known = scan(self.root)
        self._count = len(self._known)
        self._now = dict(self._first)

    # -- recording ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Note every call that changes something, until the end of the block."""
        with contextlib.ExitStack() as stack:
            for owner, name in (
                *(
                    (os, name)
                    for name in ("open", "pwrite", "ftruncate", "fsync", "unlink", "replace", "mkdir")
                ),
                (files, "punch_hole"),
            ):
                call = partial(getattr(self, f"_{name}"), getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, call))
            yield

    def _name(self, path: Any) -> Place | None:
        path = os.path.realpath(os.path.dirname(os.fspath(path))) + os.sep + os.path.basename(os.fspath(path))
        return ("name", os.path.relpath(path, self.root)) if path.startswith(f"{self.root}{os.sep}") else None

    def _file(self, fd: int) -> int | None:
        status = os.fstat(fd)
        return self._known.get((status.st_dev, status.st_ino))

    def _note(self, call: str, new: State, synced: int | None = None) -> None:
        callers, frame = set(), sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(_STORE):
                callers.add((Path(code.co_filename).stem, code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        self.changes.append(Change(call, new, callers, synced))
        self._now.update(new)

    def _cut(self, file: int, length: int) -> State:
        beyond = (at for at in self._now if at[0] == "page" and at[1] == file and at[2] * PAGE >= length)
        return {("size", file): length} | dict.fromkeys(beyond)

    def _open(self, real: Any, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        name = self._name(path)
        if name is None or not flags & (os.O_CREAT | os.O_TRUNC):
            return real(path, flags, *args, **kwargs)  # type: ignore[no-any-return]
        self.before()
        there = os.path.lexists(path)
        fd: int = real(path, flags, *args, **kwargs)
        if there:
            if flags & os.O_TRUNC:
                file = self._file(fd)
                assert file is not None
                self._note("truncate", self._cut(file, 0))
            return fd
        self._count += 1
        status = os.fstat(fd)
        self._known[status.st_dev, status.st_ino] = self._count
        self._note("create", {name: self._count, ("size", self._count): 0})
        return fd

    def _pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        file = self._file(fd)
        if file is None:
            return real(fd, data, offset)  # type: ignore[no-any-return]
        self.before()
        written: int = real(fd, data, offset)
        end, new = offset + written, {}
        for number in range(offset // PAGE, -(-end // PAGE)):
            page = bytearray(self._now.get(("page", file, number)) or bytes(PAGE))
            start = number * PAGE
            first, last = max(offset, start), min(end, start + PAGE)
            page[first - start : last - start] = bytes(data[first - offset : last - offset])
            new["page", file, number] = bytes(page)
        size = max(end, self._now["size", file])
        self._note("write", new if size == self._now["size", file] else {("size", file): size} | new)
        return written

    def _punch_hole(self, real: Any, fd: int, offset: int, length: int) -> bool:
        file = self._file(fd)
        self.before()
        done: bool = real(fd, offset, length)
        if done and file is not None:
            assert offset % PAGE == 0, "a hole in the middle of a page"
            pages = range(offset // PAGE, -(-(offset + length) // PAGE))
            self._note("punch", {("page", file, number): None for number in pages})
        return done

    def _ftruncate(self, real: Any, fd: int, length: int) -> None:
        file = self._file(fd)
        if file is not None:
            self.before()
        real(fd, length)
        if file is not None:
            self._note("ftruncate", self._cut(file, length))

    def _fsync(self, real: Any, fd: int) -> None:
        real(fd)
        file = self._file(fd)
        if file is not None:
            self._note("fsync", {}, file)

    def _unlink(self, real: Any, path: Any, **kwargs: Any) -> None:
        name = self._name(path)
        if name is not None:
            self.before()
        real(path, **kwargs)
        if name is not None:
            self._note("unlink", {name: None})

    def _replace(self, real: Any, old: Any, new: Any, **kwargs: Any) -> None:
        source, target = self._name(old), self._name(new)
        if source is None or target is None:
            real(old, new, **kwargs)
            return
        self.before()
        real(old, new, **kwargs)
        self._note("rename", {target: self._now[source], source: None})

    def _mkdir(self, real: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        name = self._name(path)
        real(path, *args, **kwargs)
        if name is not None:
            self._note("mkdir", {name: DIRECTORY})

    # -- crashes -----------------------------------------------------------------------------------------------

    def killed(self) -> Iterator[tuple[str, Change, State]]:
        """What a process leaves that is killed in the middle of a change that can be half done, or after it; each with
        a word that says where."""
        state = dict(self._first)
        for number, change in enumerate(self.changes):
            where = f"{change.call} ({number}) in {sorted(change.callers)}"
            pages = [(at, new) for at, new in change.new.items() if at[0] == "page"]
            if change.call == "write" and len(pages) > 1:  # page by page: mm/filemap.c, generic_perform_write
                yield f"in the middle of {where}", change, state | dict(pages[: len(pages) // 2])
            state.update(change.new)
            yield f"after {where}", change, dict(state)

    def before_change(self, at: int) -> State:
        """What a process leaves that is killed after `at` changes."""
        state = dict(self._first)
        for change in self.changes[:at]:
            state.update(change.new)
        return state

    def without_power(self, at: int, loss: Loss) -> State:
        """What a machine may leave that loses power after `at` changes."""
        history: dict[Place, list[Any]] = {place: [value] for place, value in self._first.items()}
        named: dict[Place, list[tuple[int, Any]]] = {}
        fates: dict[int, str] = {}
        for number, change in enumerate(self.changes[:at]):
            for place, value in change.new.items():
                history.setdefault(place, [_NOTHING[place[0]]]).append(value)
                if place[0] == "name":
                    named.setdefault(place, []).append((number, value))
            for place in history if change.synced is not None else ():
                if place[1] == change.synced:
                    del history[place][:-1]
        for place, values in history.items():
            if place[0] == "name":
                for file in values:
                    fates[file] = loss.fate(".data" in place[1])
        state: State = {}
        # A journal keeps the order of what happens to names.
        upto = at if loss.names == "kept" else loss.chooser.randint(0, at)
        for place, values in history.items():
            if place[0] != "name":
                state[place] = loss.of(fates.get(place[1], "kept"), values)
            elif loss.names != "some":
                happened = [value for number, value in named.get(place, ()) if number < upto]
                state[place] = happened[-1] if happened else values[0]
            else:
                state[place] = loss.chooser.choice(values)
        return state


_NOTHING: dict[str, Any] = {"name": None, "size": 0, "page": None}

FATES = ("kept", "lost", "some", "torn", "any")
NAMES = ("kept", "journal", "some")


@dataclass
class Loss:
    """What a machine that loses power had not brought to its disk.

    Args:
        chooser: decides what the other arguments leave open.
        data: of data files: `kept` all, `lost` all, `some` moment of each page, pages `torn` between two moments, or
            `any` of these for each file. What is not kept has in one case of four another length.
        index: of all other files.
        names: `kept` all, `journal`: as they all were at one moment, or `some` moment of each.
    """

    chooser: random.Random
    data: str
    index: str
    names: str

    def fate(self, data: bool) -> str:
        """What becomes of one file."""
        fate = self.data if data else self.index
        return self.chooser.choice(FATES[:-1]) if fate == "any" else fate

    def of(self, fate: str, values: list[Any]) -> Any:
        """What is left in a place of a file in which there were these values, one after the other."""
        if fate == "kept" or (isinstance(values[-1], int) and self.chooser.random() < 0.75):
            return values[-1]
        if fate == "lost":
            return values[0]
        value = self.chooser.choice(values)
        if fate == "some" or not isinstance(values[-1], bytes):
            return value
        other = self.chooser.choice(values) or bytes(PAGE)
        halves = ((value or bytes(PAGE))[at : at + SECTOR] for at in range(0, PAGE, SECTOR))
        others = (other[at : at + SECTOR] for at in range(0, PAGE, SECTOR))
        return b"".join(self.chooser.choice(pair) for pair in zip(halves, others, strict=True))


def scan(root: Path) -> tuple[State, dict[tuple[int, int], int]]:
    """What is below a directory, and the number of each file by its device and inode."""
    state: State = {}
    known: dict[tuple[int, int], int] = {}
    for path in sorted(root.rglob("*")):
        name = ("name", str(path.relative_to(root)))
        if path.is_dir():
            state[name] = DIRECTORY
            continue
        status, data = path.stat(), path.read_bytes()
        file = known.setdefault((status.st_dev, status.st_ino), len(known) + 1)
        state |= {name: file, ("size", file): len(data)}
        with path.open("rb") as opened:
            at = 0
            while at < len(data):
                try:
                    first = os.lseek(opened.fileno(), at, os.SEEK_DATA)
                except OSError:  # ENXIO: nothing but a hole follows
                    break
                at = os.lseek(opened.fileno(), first, os.SEEK_HOLE)
                for number in range(first // PAGE, -(-at // PAGE)):
                    state["page", file, number] = data[number * PAGE : (number + 1) * PAGE].ljust(PAGE, b"\0")
    return state, known


def make(state: State, root: Path) -> None:
    """Make the files that a crash has left, in a new directory. With a directory, what is in it is lost."""
    names = {place[1]: value for place, value in state.items() if place[0] == "name" and value is not None}
    pages: dict[int, list[tuple[int, bytes]]] = {}
    for place, value in state.items():
        if place[0] == "page" and value is not None:
            pages.setdefault(place[1], []).append((place[2], value))
    root.mkdir()
    for name, file in sorted(names.items()):
        path = root / name
        if not path.parent.is_dir():
            continue
        if file == DIRECTORY:
            path.mkdir(0o700)
            continue
        size = state.get(("size", file), 0)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, size)
            for number, page in pages.get(file, ()):
                os.pwrite(fd, page[: max(size - number * PAGE, 0)], number * PAGE)
        finally:
            os.close(fd)


def same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same names, bytes and holes."""

    def shape(root: Path) -> dict[str, Any]:
        state, _ = scan(root)
        return {
            place[1]: value
            if value == DIRECTORY
            else [
                state["size", value],
                {at[2]: page for at, page in state.items() if at[:2] == ("page", value)},
            ]
            for place, value in state.items()
            if place[0] == "name"
        }

    return shape(one) == shape(other)
