"""Any sequence of what programs, third parties, and misfortune do; each answer is held against the reference."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)

from tests.model.fronts import Front, Handle, MountFront
from tests.model.reference import Beliefs, Entry, History, OneVersion, Version, entry_of, is_below, listing_of
from tests.model.system import NODES, Clock, System, ruled_by
from tests.model.understores import FAULTS, ThirdParty
from tests.support.embedded import BLOCK, noise
from tests.support.fusemount import FuseMount

PATHS = ("a", "b", "d/c", "d/e", "d/deep/f")
DIRECTORIES = ("", "d", "d/deep")
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK // 2, 7 * BLOCK + 5)
QUOTAS = (6, 12, 200)
"""Blocks of each tier: less than one object, than all of them, and room for everything."""

MODES = (("strict", 0.0), ("ttl", 10.0), ("ttl", 1e6), ("immutable", 10.0))
OPEN = 6
"""Most files that are open at once."""

paths = st.sampled_from(PATHS)
sizes = st.sampled_from(SIZES)
nodes = st.sampled_from(NODES)
offsets = st.builds(lambda block, odd: max(0, block * BLOCK + odd), st.integers(0, 8), st.integers(-2, 2))
lengths = st.builds(
    lambda block, odd: max(0, block * BLOCK + odd), st.sampled_from((0, 0, 1, 2, 9)), st.integers(-2, 99)
)
fronts = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.system.fronts)))
"""Names of the fronts that this machine has."""


class Opened(NamedTuple):
    """An open file, and what it may give."""

    front: str
    path: str
    handle: Handle
    expected: OneVersion

    def __repr__(self) -> str:
        return f"<{self.path} by {self.front}>"


class CacheMachine(RuleBasedStateMachine):
    """One history of one dataset.

    Args:
        new_store: makes an empty under-store; its argument is a directory for it.
        mounts: whether to mount the dataset as well.
    """

    def __init__(self, new_store: Callable[[Path], ThirdParty], *, mounts: bool = False) -> None:
        super().__init__()
        self._root = Path(tempfile.mkdtemp(prefix="raycache-model-"))
        self._ends = contextlib.ExitStack()
        self._ends.callback(shutil.rmtree, self._root)
        self._store = new_store(self._root / "bucket")
        self._mounts = mounts
        self._history = History()
        self._clock = Clock()
        self._writes = 0
        self._open: list[Opened] = []
        self._down = False
        self._lost = False

    @initialize(mode=st.sampled_from(MODES), blocks=st.sampled_from(QUOTAS), held=st.sets(paths, min_size=3))
    def begin(self, mode: tuple[str, float], blocks: int, held: set[str]) -> None:
        name, ttl = mode
        for path in sorted(held):
            self._put(path, self._new_bytes(3 * BLOCK + 7))
        self._ends.enter_context(ruled_by(self._clock))
        self.system = System(self._root / "tiers", self._store, name, ttl, blocks)
        self._ends.callback(self.system.close)
        believed = {"strict": 0.0, "ttl": ttl, "immutable": float("inf")}[name]
        self._beliefs = {cache: Beliefs(self._history, believed) for cache in ("near", "far", "own")}
        if self._mounts:
            self._mount(name, ttl, blocks)
            # It has a clock of its own, which hardly moves: it may believe for as long as the test lasts.
            self._beliefs["mount"] = Beliefs(self._history, float("inf") if ttl else 0.0)

    def _mount(self, mode: str, ttl: float, blocks: int) -> None:
        (self._root / "mount").mkdir()
        mount = FuseMount(self._root / "mount", self._store.uri, self._store.options)
        mount.start(quota=blocks * BLOCK, consistency_mode=mode, metadata_ttl=ttl)
        self._ends.callback(lambda: mount.unmount(force=True))
        self.system.mounted(MountFront("mount", mount.point))

    def teardown(self) -> None:
        with self._ends:
            for opened in self._open:
                opened.handle.close()
            if hasattr(self, "system"):
                self.system.assert_counted()

    # -- a third party ------------------------------------------------------------------------------------

    @rule(path=paths, size=sizes)
    def write(self, path: str, size: int) -> None:
        self._put(path, self._new_bytes(size))

    @rule(path=paths)
    def overwrite_with_equal_size(self, path: str) -> None:
        if path in self._history.now:
            self._put(path, self._new_bytes(self._history.now[path].size))

    @rule(path=paths, size=sizes)
    def truncate(self, path: str, size: int) -> None:
        if path in self._history.now and size < self._history.now[path].size:
            data = self._history.now[path].data[:size]
            self._history.put(self._clock.now, path, self._store.truncate(path, data))

    @rule(path=paths)
    def delete(self, path: str) -> None:
        if path in self._history.now:
            self._store.delete(path)
            self._history.delete(self._clock.now, path)

    @rule(path=paths, which=st.integers(0, 9))
    def create_again(self, path: str, which: int) -> None:
        """With the bytes of some earlier time, the last most of all."""
        past = self._history.past(path)
        if past:
            self._put(path, past[-1 - min(which, len(past) - 1)].data)

    # -- programs: open files -----------------------------------------------------------------------------

    handles = Bundle("handles")

    @rule(target=handles, front=fronts, path=paths, offset=offsets, length=lengths)
    def open(self, front: str, path: str, offset: int, length: int) -> Opened | MultipleResults[Opened]:
        """Open a file, and read somewhere: some of it is cached then, and some is not."""
        if len(self._open) >= OPEN:
            return multiple()
        with self._asking(front, path):
            opened = self._opened(front, path)
            self._open.append(opened)
            self._read(opened, 0, offset, length)
            return opened
        return multiple()

    @rule(
        opened=handles,
        reads=st.lists(st.tuples(st.integers(0, 2), offsets, lengths), min_size=1, max_size=4),
    )
    def read(self, opened: Opened, reads: list[tuple[int, int, int]]) -> None:
        for way, offset, length in reads:
            self._read(opened, way, offset, length)

    @rule(opened=handles, size=st.sampled_from((BLOCK // 3, BLOCK, 3 * BLOCK)))
    def read_on(self, opened: Opened, size: int) -> None:
        """From front to end, and beyond it, as most programs do."""
        for offset in range(0, opened.handle.size + size, size):
            if not self._read(opened, 0, offset, size):
                return

    @rule(opened=consumes(handles))
    def close(self, opened: Opened) -> None:
        self._open.remove(opened)
        opened.handle.close()

    # -- programs: names ----------------------------------------------------------------------------------

    @rule(front=fronts, path=paths, way=st.integers(0, 2))
    def read_whole(self, front: str, path: str, way: int) -> None:
        expected = OneVersion(v for v in self._versions(front, path) if v is not None)
        wholes = self._front(front).wholes
        with self._asking(front, path, expected):
            data = wholes[way % len(wholes)](path)
            expected.gave(0, max(len(data), max(SIZES)), data)

    @rule(front=fronts, path=st.sampled_from(PATHS + DIRECTORIES))
    def stat(self, front: str, path: str) -> None:
        with self._asking(front, path):
            found = self._front(front).exists(path)
            assert found in {entry is not None for entry in self._entries(front, path)}
            entry = self._front(front).stat(path)
            assert entry in self._entries(front, path)

    @rule(front=fronts, directory=st.sampled_from(DIRECTORIES))
    def list(self, front: str, directory: str) -> None:
        with self._asking(front, directory):
            self._judge_listing(front, directory, self._front(front).list(directory))

    @rule(front=fronts)
    def find(self, front: str) -> None:
        with self._asking(front, "", children=True):
            found = self._front(front).find()
            assert set(found) <= set(PATHS)
            for path in PATHS:
                entry = Entry("file", found[path]) if path in found else None
                allowed = self._entries(front, path)
                # Not found, if a directory on the way to it was not there when that was asked for.
                assert entry in allowed, f"{path}: {entry}, not one of {allowed}"

    @rule(front=fronts, directory=st.sampled_from(DIRECTORIES))
    def list_stat_and_open_agree(self, front: str, directory: str) -> None:
        with self._asking(front, directory, children=True):
            listed = self._front(front).list(directory)
            listed = {f"{directory}/{name}".lstrip("/"): entry for name, entry in listed.items()}
            assert {path: self._front(front).stat(path) for path in listed} == listed
            for path in [path for path, entry in listed.items() if entry.kind == "file"]:
                opened = self._opened(front, path)
                try:
                    assert opened.handle.size == listed[path].size
                    if not self._read(opened, 0, 0, opened.handle.size + 1):
                        break  # what is known of the directory has been forgotten
                finally:
                    opened.handle.close()

    @rule(cache=st.sampled_from(("near", "far", "own")), path=st.sampled_from(PATHS + DIRECTORIES))
    def invalidate(self, cache: str, path: str) -> None:
        self.system.invalidate(cache, path)
        self._beliefs[cache].forget(path)

    # -- misfortune ---------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.4, 1.5, 9.0, 11.0, 100.0)))
    def wait(self, seconds: float) -> None:
        self._clock.now += seconds

    @rule(path=paths)
    def evict(self, path: str) -> None:
        self.system.evict(path)

    @rule(blocks=st.sampled_from(QUOTAS))
    def change_quotas(self, blocks: int) -> None:
        self.system.resize(blocks)

    @rule(
        node=nodes,
        fate=st.sampled_from(("restart", "end", "start")),
        memory_goes=st.booleans(),
        told=st.booleans(),
    )
    def change_workers(self, node: str, fate: str, memory_goes: bool, told: bool) -> None:
        """`told`: the membership that follows is made known; else readers have to find out."""
        if fate != "start" and node in self.system.running:
            self.system.drop(node, memory_goes=memory_goes)
        if fate != "end" and node not in self.system.running:
            self.system.start(node)
        if told:
            self.system.publish(returning=memory_goes)

    @rule()
    def lose_or_find_membership(self) -> None:
        self._lost = not self._lost
        self.system.lose_membership(self._lost)

    @precondition(lambda self: self._store.breakable and not self._down)
    @rule(
        fault=st.sampled_from(sorted(FAULTS)),
        kind=st.sampled_from(("GET", "HEAD", "LIST")),
        times=st.integers(1, 3),
    )
    def store_stumbles(self, fault: str, kind: str, times: int) -> None:
        self._store.fail(fault, kind, times)

    @precondition(lambda self: self._store.breakable)
    @rule()
    def store_shuts_or_opens(self) -> None:
        self._down = not self._down
        self._store.shut(self._down)

    # -- judgement ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(
        self, front: str, path: str, expected: OneVersion | None = None, *, children: bool = False
    ) -> Iterator[None]:
        """Take the errors that may come of asking a front for a path; and the assertions of who asks are told apart
        from an answer that does not come at all.

        Args:
            front: name of the front.
            path: what is asked for.
            expected: what bytes may come, where bytes do.
            children: what lies below the path is asked for as well, by names that may be old.
        """
        try:
            yield
        except FileNotFoundError:
            gone = {path} | ({p for p in PATHS + DIRECTORIES if is_below(p, path)} if children else set())
            if not any(None in self._entries(front, one) for one in gone):
                raise
        except OSError as error:
            if error.errno == errno.ESTALE and expected is not None:
                expected.is_stale(self._history.now.get(path))
                self._beliefs[self._front(front).cache].forget(path)
            elif not (self._down and error.errno == errno.EIO):
                raise

    def _opened(self, front: str, path: str) -> Opened:
        versions = self._versions(front, path)
        handle = self._front(front).open(path)
        expected = OneVersion(version for version in versions if version is not None)
        opened = Opened(front, path, handle, expected)
        expected.sized(handle.size)
        return opened

    def _read(self, opened: Opened, way: int, offset: int, length: int) -> bool:
        """Whether a read gave bytes: the right ones. Else it gave an error that is right."""
        ways = opened.handle.ways
        with self._asking(opened.front, opened.path, opened.expected):
            data = ways[way % len(ways)](offset, length)
            opened.expected.gave(offset, length, data)
            return True
        return False

    def _judge_listing(self, front: str, directory: str, found: dict[str, Entry]) -> None:
        beliefs = self._beliefs[self._front(front).cache]
        since = beliefs.of_listing(directory, self._clock.now)
        allowed = [listing_of(state, directory) for state in self._history.states(since)]
        if front == "mount":  # asks for the names first, and then what each of them is
            allowed = [listed and dict.fromkeys(listed) for listed in allowed]
            assert dict.fromkeys(found) in allowed
            for name, entry in found.items():
                assert entry in self._entries(front, f"{directory}/{name}".lstrip("/"))
        else:
            assert found in allowed

    def _versions(self, front: str, path: str) -> set[Version | None]:
        since = self._beliefs[self._front(front).cache].of(path, self._clock.now)
        return self._history.versions(path, since)

    def _entries(self, front: str, path: str) -> list[Entry | None]:
        since = self._beliefs[self._front(front).cache].of(path, self._clock.now)
        return [entry_of(state, path) for state in self._history.states(since)]

    def _front(self, name: str) -> Front:
        return self.system.fronts[name]

    # -- bytes --------------------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes) -> None:
        self._history.put(self._clock.now, path, self._store.put(path, data))

    def _new_bytes(self, size: int) -> bytes:
        """Bytes in which no place looks like any other of any version."""
        self._writes += 1
        return noise(size, self._writes)
