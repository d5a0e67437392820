"""Nodes: one path and one version each, counted, and the same after a restart."""

from __future__ import annotations

import errno
import gc
import shutil
import tempfile
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raycache.blocks import FileInfo
from raycache.fuse.handles import BadHandleError, IoModeError
from raycache.fuse.inodes import Inodes, Node, StaleNodeError
from raycache.fuse.records import ROOT_ID, Mode
from tests.support.fusetables import Tables, directory, file
from tests.support.stores import Doing


def test_the_root_is_always_there() -> None:
    inodes = Inodes()
    inodes.forget(ROOT_ID, 5)
    inodes.hold(ROOT_ID)
    inodes.unhold(ROOT_ID)
    assert inodes.path_of(ROOT_ID) == ""
    assert len(inodes) == 0


def test_a_path_and_version_is_one_node_and_each_lookup_counts() -> None:
    inodes = Inodes()
    node = inodes.lookup(ROOT_ID, file("a"))
    assert inodes.lookup(ROOT_ID, file("a")) is node
    assert node.references == 2
    inodes.forget(node.id)
    assert inodes.path_of(node.id) == "a"
    inodes.forget(node.id)
    with pytest.raises(StaleNodeError) as raised:
        inodes.path_of(node.id)
    assert raised.value.errno == errno.ESTALE


def test_another_version_is_another_node_and_the_old_one_goes_on() -> None:
    inodes = Inodes()
    old = inodes.lookup(ROOT_ID, file("a", '"1"'))
    new = inodes.lookup(ROOT_ID, file("a", '"2"'))
    assert new.id > old.id
    assert (inodes.is_current(old.id), inodes.is_current(new.id)) == (False, True)
    assert inodes.get(old.id).info == file("a", '"1"')
    # The name leads back to the first version while its node lives.
    assert inodes.lookup(ROOT_ID, file("a", '"1"')) is old
    assert (inodes.is_current(old.id), inodes.is_current(new.id)) == (True, False)
    inodes.forget_all([(new.id, 1), (old.id, 2)])
    assert len(inodes) == 0


def test_news_of_the_same_version_reach_its_node() -> None:
    """The ETag says that the bytes are the same; the time of modification is told as it is now."""
    inodes = Inodes()
    node = inodes.lookup(ROOT_ID, file("a", mtime_ns=1))
    assert inodes.lookup(ROOT_ID, file("a", mtime_ns=2)) is node
    assert node.info == file("a", mtime_ns=2)


def test_a_directory_is_one_node_whatever_was_there_in_between() -> None:
    inodes = Inodes()
    first = inodes.lookup(ROOT_ID, directory("d"))
    as_file = inodes.lookup(ROOT_ID, file("d"))
    assert as_file is not first
    assert inodes.lookup(ROOT_ID, directory("d")) is first
    inodes.forget(first.id, 2)
    again = inodes.lookup(ROOT_ID, directory("d"))
    assert again.id > as_file.id


def test_a_child_outlives_its_forgotten_directory() -> None:
    inodes = Inodes()
    parent = inodes.lookup(ROOT_ID, directory("d"))
    child = inodes.lookup(parent.id, file("d/x"))
    inodes.forget(parent.id)
    assert inodes.path_of(child.id) == "d/x"
    assert inodes.lookup(inodes.lookup(ROOT_ID, directory("d")).id, file("d/x")) is child


def test_an_open_handle_keeps_a_forgotten_node() -> None:
    inodes = Inodes()
    node = inodes.lookup(ROOT_ID, file("a"))
    inodes.hold(node.id)
    inodes.forget(node.id)
    assert inodes.get(node.id) is node
    inodes.unhold(node.id)
    assert len(inodes) == 0


def test_what_is_unknown_is_stale_but_may_be_forgotten() -> None:
    inodes = Inodes()
    for call in (inodes.get, inodes.path_of, inodes.hold, inodes.is_current):
        with pytest.raises(StaleNodeError):
            call(77)
    with pytest.raises(StaleNodeError):
        inodes.lookup(77, file("a"))
    inodes.forget(77)


def test_forgetting_more_than_was_counted_is_forgetting_all() -> None:
    inodes = Inodes()
    node = inodes.lookup(ROOT_ID, file("a"))
    inodes.forget(node.id, 99)
    assert len(inodes) == 0


@pytest.mark.parametrize("info", [file("d/x"), directory(""), file("x/y/z")])
def test_an_entry_of_another_directory_is_refused(info: FileInfo) -> None:
    inodes = Inodes()
    with pytest.raises(ValueError, match="not an entry"):
        inodes.lookup_all(ROOT_ID, [file("a"), info])
    assert len(inodes) == 0


def test_many_entries_are_looked_up_at_once() -> None:
    records: list[bytes] = []
    inodes = Inodes(record=records.append)
    infos = [file(f"{number}") for number in range(300)]
    first = inodes.lookup_all(ROOT_ID, infos)
    records.clear()
    assert inodes.lookup_all(ROOT_ID, infos) == first
    assert len(records) == 1
    assert {node.references for node in first} == {2}


def test_threads_count_every_reference() -> None:
    inodes = Inodes()
    infos = [file("a"), file("a", '"2"'), file("b")]
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for turn in range(2000):
            node = inodes.lookup(ROOT_ID, infos[turn % 3])
            inodes.hold(node.id)
            inodes.forget(node.id)
            inodes.unhold(node.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 0


def test_an_entry_takes_little_memory() -> None:
    """The figures of the module's docstring, with a tenth to spare."""
    count = 100_000
    gc.collect()
    tracemalloc.start()
    try:
        infos = [
            file(f"part-{number // 1000:04}-{number:08}.parquet", f'"{number:032x}"')
            for number in range(count)
        ]
        with_infos = tracemalloc.get_traced_memory()[0]
        inodes = Inodes()
        for info in infos:
            inodes.lookup(ROOT_ID, info)
        total = tracemalloc.get_traced_memory()[0]
        del infos
        everything = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{(total - with_infos) / count:.0f} bytes a node, {everything / count:.0f} with its entry")
    assert len(inodes) == count
    assert (total - with_infos) / count < 206
    assert everything / count < 740


PATHS = {"a": "", "d": "", "d/x": "d", "d/y": "d"}
INFOS = [
    info
    for path in PATHS
    for info in (
        file(path, '"1"', mtime_ns=1),
        file(path, '"1"', mtime_ns=2),
        file(path, '"2"'),
        file(path, "", mtime_ns=1),
        file(path, "", mtime_ns=2),
        directory(path),
    )
]


def identity(info: FileInfo) -> tuple[str, str | None]:
    return info.path, info.version.object_id if info.version else None


class Mount(RuleBasedStateMachine):
    """Nodes and handles against dictionaries, through any number of restarts, killed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.tables = Tables(f"{self.root}/journal")
        self.nodes: dict[int, list[int]] = {}  # references, holds
        self.infos: dict[int, FileInfo] = {}
        self.names: dict[str, int] = {}
        self.handles: dict[int, tuple[int, Mode]] = {}
        self.backings: dict[int, int] = {}
        self.registered = 0
        self.highest = ROOT_ID
        self.highest_handle = 0

    def teardown(self) -> None:
        self.tables.journal.close()
        shutil.rmtree(self.root)

    def node(self, pick: int) -> int:
        return sorted(self.nodes)[pick % len(self.nodes)]

    def drop(self, node_id: int) -> None:
        if self.nodes[node_id] == [0, 0]:
            del self.nodes[node_id]
            info = self.infos.pop(node_id)
            if self.names.get(info.path) == node_id:
                del self.names[info.path]

    @rule(info=st.sampled_from(INFOS))
    def lookup(self, info: FileInfo) -> None:
        parents = [ROOT_ID]
        if PATHS[info.path]:
            parents = [found for found, of in self.infos.items() if identity(of) == (PATHS[info.path], None)]
        if not parents:
            return
        node = self.tables.inodes.lookup(parents[0], info)
        same = [found for found, of in self.infos.items() if identity(of) == identity(info)]
        if same:
            assert [node.id] == same
        else:
            assert node.id > self.highest
            self.highest = node.id
            self.nodes[node.id] = [0, 0]
        self.nodes[node.id][0] += 1
        self.infos[node.id] = info
        self.names[info.path] = node.id
        self.tables.journal.flush()

    @precondition(lambda self: self.nodes)
    @rule(pick=st.integers(0, 99), count=st.integers(1, 3))
    def forget(self, pick: int, count: int) -> None:
        node_id = self.node(pick)
        self.tables.inodes.forget(node_id, count)
        self.nodes[node_id][0] = max(self.nodes[node_id][0] - count, 0)
        self.drop(node_id)

    @precondition(lambda self: self.nodes)
    @rule(pick=st.integers(0, 99), passthrough=st.booleans())
    def open(self, pick: int, passthrough: bool) -> None:
        node_id = self.node(pick)
        is_directory = self.infos[node_id].kind == "directory"
        mode: Mode = "passthrough" if passthrough and not is_directory else "cached"
        others = {of for node, of in self.handles.values() if node == node_id}
        if mode == "passthrough":
            self.registered += 1
        backing = self.registered if mode == "passthrough" else 0
        if others - {mode}:
            with pytest.raises(IoModeError):
                self.tables.handles.open(node_id, mode, backing_id=backing)
            return
        handle = self.tables.handles.open(node_id, mode, backing_id=backing, directory=is_directory)
        self.tables.journal.flush()
        assert handle.fh > self.highest_handle
        self.highest_handle = handle.fh
        self.handles[handle.fh] = (node_id, mode)
        self.nodes[node_id][1] += 1
        if mode == "passthrough":
            assert handle.backing_id == self.backings.setdefault(node_id, backing)

    @precondition(lambda self: self.handles)
    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        fh = sorted(self.handles)[pick % len(self.handles)]
        node_id, mode = self.handles.pop(fh)
        released = self.tables.handles.release(fh)
        self.tables.journal.flush()
        last = node_id not in {node for node, _ in self.handles.values()}
        expected = self.backings.pop(node_id) if last and mode == "passthrough" else None
        assert released.backing_id == expected
        with pytest.raises(BadHandleError):
            self.tables.handles.get(fh)
        self.nodes[node_id][1] -= 1
        self.drop(node_id)

    @rule()
    def compact(self) -> None:
        assert self.tables.journal.compact()

    @rule(generation=st.sampled_from([0, 0, 9]))
    def restart(self, generation: int) -> None:
        self.tables.journal.flush()
        before = self.tables.state()
        following = Tables(self.tables.path, generation)
        assert following.state() == before
        assert all(handle.restored for handle in following.handles.all())
        self.tables.journal.close()
        self.tables = following

    @invariant()
    def agrees(self) -> None:
        inodes, handles = self.tables.inodes, self.tables.handles
        assert len(inodes) == len(self.nodes)
        for node_id, counts in self.nodes.items():
            node = inodes.get(node_id)
            assert [node.references, node.holds] == counts
            assert node.info == self.infos[node_id]
            assert inodes.path_of(node_id) == node.info.path
            assert inodes.is_current(node_id) == (self.names.get(node.info.path) == node_id)
            modes = {mode for of, mode in self.handles.values() if of == node_id}
            if node.info.kind == "file":
                assert handles.may_passthrough(node_id) == ("cached" not in modes)
                assert handles.backing_of(node_id) == self.backings.get(node_id)
        opened = {handle.fh: (handle.node_id, handle.mode) for handle in handles.all()}
        assert opened == self.handles


Mount.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMount = Mount.TestCase


def test_a_version_that_is_gone_is_not_current_until_it_is_looked_up_again() -> None:
    inodes = Inodes()
    node = inodes.lookup(ROOT_ID, file("a"))
    inodes.distrust(node.id)
    assert not inodes.is_current(node.id)
    assert inodes.lookup(ROOT_ID, file("a")) is node  # it is there after all
    assert inodes.is_current(node.id)
    inodes.distrust(node.id)
    assert inodes.lookup(ROOT_ID, file("a", '"2"')) is not node
    assert not inodes.is_current(node.id)
    inodes.distrust(4711)  # forgotten meanwhile


def around(inodes: Inodes, *paths: str) -> list[str]:
    found = [f"{inodes.path_of(parent)}/{name.decode()}" for parent, name in inodes.names_around(set(paths))]
    return sorted(path.lstrip("/") for path in found)


@pytest.fixture
def tree() -> Inodes:
    """What the kernel knows after it has looked at some files in directories."""
    inodes = Inodes()
    top = {name: inodes.lookup(ROOT_ID, directory(name)).id for name in ("a", "ab", "c")}
    for name, node in top.items():
        deeper = inodes.lookup(node, directory(f"{name}/d")).id
        inodes.lookup(node, file(f"{name}/f"))
        inodes.lookup(deeper, file(f"{name}/d/f"))
    inodes.lookup(ROOT_ID, file("f"))
    return inodes


def test_names_around_paths_are_those_at_below_and_above_them(tree: Inodes) -> None:
    assert around(tree) == []
    assert around(tree, "a") == ["a", "a/d", "a/d/f", "a/f"]
    assert around(tree, "a/d/f") == ["a", "a/d", "a/d/f"]
    assert around(tree, "a/d") == ["a", "a/d", "a/d/f"]
    assert around(tree, "a/d/unknown/f") == ["a", "a/d"]
    assert around(tree, "unknown", "c/f", "f") == ["c", "c/f", "f"]
    assert around(tree, "a/d", "a/f", "c/d/f") == ["a", "a/d", "a/d/f", "a/f", "c", "c/d", "c/d/f"]
    everything = [f"{top}{rest}" for top in ("a", "ab", "c") for rest in ("", "/d", "/d/f", "/f")]
    assert around(tree, "") == around(tree, "", "a/d") == [*everything, "f"]


def test_names_around_paths_are_found_in_one_pass_that_nobody_waits_for(tree: Inodes) -> None:
    passes = []

    class Watched(dict[int, Node]):
        def values(self) -> Any:
            passes.append(1)
            return super().values()

    class Looked(set[str]):
        """Paths; as often as they are looked at, another thread looks a name up."""

        def __contains__(self, path: object) -> bool:
            Doing(lambda: tree.lookup(ROOT_ID, file("f"))).result()
            return super().__contains__(path)

    tree._nodes = Watched(tree._nodes)
    assert len(tree.names_around(Looked({"a/d/f", "c/f", *map(str, range(128))}))) == 5
    assert len(passes) == 1


def test_a_name_is_told_for_each_node_of_its_directory() -> None:
    inodes = Inodes()
    inodes.lookup(ROOT_ID, file("a"))
    first = inodes.lookup(ROOT_ID, directory("a"))
    inodes.lookup(first.id, file("a/\udcff"))
    assert sorted(inodes.names_around({"a/\udcff"})) == [(ROOT_ID, b"a"), (first.id, b"\xff")]
