"""The journal: whatever happens to it, a server restores a moment of its past; and it does not grow."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.blocks import FileInfo, ObjectVersion
from raycache.fuse import journal as journal_module
from raycache.fuse.handles import Handles
from raycache.fuse.inodes import Inodes
from raycache.fuse.journal import COMPACT_ABOVE, GENERATION_BITS, RETRY_S, Journal, replay
from raycache.fuse.records import ROOT_ID, State, decode, encode, node_made
from tests.support.fusetables import Tables, directory, file, living


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


def history(tables: Tables) -> list[Callable[[], object]]:
    """Steps that leave one record each, of every kind."""
    inodes, handles = tables.inodes, tables.handles
    return [
        lambda: inodes.lookup(ROOT_ID, file("a")),
        lambda: inodes.lookup(ROOT_ID, directory("dir")),
        lambda: inodes.lookup(3, file("dir/\udc80\udcff", "")),
        lambda: inodes.lookup(ROOT_ID, file("a")),
        lambda: handles.open(2, flags=3),
        lambda: handles.open(3, directory=True),
        lambda: inodes.forget(2, 2),
        lambda: inodes.lookup(ROOT_ID, file("a", '"2"')),
        lambda: handles.open(5, "passthrough", backing_id=6),
        lambda: inodes.forget_all([(4, 1), (5, 1)]),
        lambda: handles.release(1),
    ]


def recorded(path: str) -> tuple[bytes, list[tuple[int, State]]]:
    """A journal's bytes, and for every record where it ends and what was alive then."""
    tables = Tables(path)
    moments = [(tables.journal.size, tables.state())]
    for step in history(tables):
        step()
        tables.journal.flush()
        moments.append((tables.journal.size, tables.state()))
    tables.journal.close()
    return Path(path).read_bytes(), moments


def test_torn_at_any_byte_it_is_a_moment_of_the_past(path: str) -> None:
    data, moments = recorded(path)
    assert len(data) == moments[-1][0]
    for length in range(len(data) + 1):
        Path(path).write_bytes(data[:length])
        whole = [state for end, state in moments if end <= length]
        assert living(replay(path)) == (whole[-1] if whole else State())


def test_corrupt_at_any_byte_it_ends_before_that(path: str, caplog: pytest.LogCaptureFixture) -> None:
    data, moments = recorded(path)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        Path(path).write_bytes(damaged)
        caplog.clear()
        whole = [state for end, state in moments if end <= at]
        assert living(replay(path)) == (whole[-1] if whole else State())
        assert "torn or corrupt" in caplog.text


def test_what_follows_a_torn_record_is_not_lost(path: str) -> None:
    """A server that restores a torn journal goes on in a whole one."""
    data, _ = recorded(path)
    Path(path).write_bytes(data[:-3])
    first = Tables(path)
    node = first.inodes.lookup(ROOT_ID, file("later"))
    first.journal.flush()
    second = Tables(path)
    assert second.inodes.get(node.id).info == file("later")
    assert second.state() == first.state()
    first.journal.close()
    second.journal.close()


@given(st.binary(max_size=200))
def test_any_bytes_replay(data: bytes) -> None:
    assert decode(data) == (State(), 0)


@given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=80)), max_size=4))
def test_any_payload_replays(records: list[tuple[int, bytes]]) -> None:
    """A checksum says that a record is whole, not that this program wrote it."""
    data = encode(State())
    for kind, payload in records:
        body = bytes((kind,)) + payload
        data += struct.pack("<II", len(payload), crc32(body)) + body
    decode(data)


text = st.text(st.characters(exclude_characters="\0", exclude_categories=[]), max_size=20)
big = st.integers(0, 2**63 - 1)


@given(
    st.builds(
        FileInfo,
        path=text,
        kind=st.sampled_from(["file", "directory"]),
        version=st.none()
        | st.builds(
            ObjectVersion,
            dataset=text,
            path=text,
            store=text,
            size=big,
            etag=text,
            mtime_ns=st.integers(-(2**63), 2**63 - 1),
            block_size=st.integers(1, 2**40),
        ),
    )
)
def test_an_entry_comes_back_as_it_was(info: FileInfo) -> None:
    state, _ = decode(encode(State()) + node_made(5, info, 1))
    assert state.nodes[5].info == info


def test_records_know_every_field_of_a_version() -> None:
    """A field that is added and not recorded would be lost in a restart: another version, another `object_id`."""
    fields = ["dataset", "path", "store", "size", "etag", "mtime_ns", "block_size"]
    assert [field.name for field in dataclasses.fields(ObjectVersion)] == fields
    assert [field.name for field in dataclasses.fields(FileInfo)] == ["path", "kind", "version"]


def test_references_may_be_recorded_after_they_are_forgotten(path: str) -> None:
    """Sums do not depend on the order, and nothing is dropped before the end."""
    records: list[bytes] = []
    inodes = Inodes(record=records.append)
    node = inodes.lookup(ROOT_ID, file("a"))
    inodes.lookup(ROOT_ID, file("a"))
    inodes.forget(node.id)
    made, counted, forgotten = records
    state, _ = decode(encode(State()) + made + forgotten + counted)
    assert state.nodes[node.id].references == 1


def test_many_nodes_are_one_write(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(path)
    writes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
    tables.inodes.lookup_all(ROOT_ID, [file(f"{number}") for number in range(500)])
    tables.journal.flush()
    tables.journal.flush()
    assert len(writes) == 1
    assert living(replay(path)) == tables.state()
    tables.journal.close()


def test_ids_are_never_given_out_twice(path: str) -> None:
    """Not after a restart, not if the journal lost its end, not if it is gone."""
    given_out: list[int] = []
    for generation in range(4):
        tables = Tables(path, generation)
        nodes = [tables.inodes.lookup(ROOT_ID, file(f"{generation}.{number}")).id for number in range(3)]
        if generation == 0:
            assert nodes == [2, 3, 4]
            assert tables.handles.open(2).fh == 1
        given_out += nodes
        tables.inodes.forget_all([(node, 1) for node in nodes])
        tables.journal.close()
        if generation == 1:
            Path(path).write_bytes(Path(path).read_bytes()[:40])
        if generation == 2:
            Path(path).unlink()
    assert sorted(set(given_out)) == given_out


def test_the_journal_counts_servers_itself(path: str) -> None:
    for generation in range(3):
        journal, state = Journal.open(path)
        journal.close()
        assert state.generation == generation
        assert state.next_handle >= generation << GENERATION_BITS


def test_compaction_keeps_state_and_ids(path: str) -> None:
    tables = Tables(path)
    for step in history(tables):
        step()
    tables.journal.flush()
    before, size = replay(path), tables.journal.size
    assert tables.journal.compact()
    assert replay(path) == before
    assert tables.journal.size == os.path.getsize(path) < size
    assert before.next_node == 6
    node = tables.inodes.lookup(ROOT_ID, file("more"))
    tables.journal.flush()
    assert node.id == 6
    assert living(replay(path)) == tables.state()
    tables.journal.close()


def test_history_does_not_grow(path: str) -> None:
    tables = Tables(path)
    infos = [file(f"{number}") for number in range(100)]
    largest = 0
    for turn in range(100_000):
        node = tables.inodes.lookup(ROOT_ID, infos[turn % 100])
        tables.inodes.forget(node.id)
        if turn % 10 == 0:
            tables.journal.flush()
            largest = max(largest, tables.journal.size)
            if tables.journal.due:
                tables.journal.compact()
    assert len(tables.inodes) == 0
    assert largest < COMPACT_ABOVE + 10_000
    tables.journal.compact()
    assert os.path.getsize(path) < 100
    tables.journal.close()


def test_what_is_alive_is_not_compacted_in_vain(path: str) -> None:
    tables = Tables(path)
    for start in range(0, 20_000, 500):
        tables.inodes.lookup_all(ROOT_ID, [file(f"{number:060}") for number in range(start, start + 500)])
        tables.journal.flush()
        assert not tables.journal.due
    assert tables.journal.size > 2 * COMPACT_ABOVE
    tables.journal.close()


class Killed(BaseException):
    """The server ends here."""


STEPS = ["_create", "_append", "_drain", "replace"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_a_compaction(
    path: str, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(path)
    for action in history(tables)[:-1]:
        action()
    tables.journal.flush()
    seen: list[State] = []
    owner: object = {"_drain": Journal, "replace": os}.get(step, journal_module)
    real = getattr(owner, step)

    def stopped(*args: object) -> object:
        if after:
            done = real(*args)
            if step == "_create":
                os.close(done)
        seen.append(living(replay(path)))
        raise Killed

    expected = tables.state()
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stopped)
        with pytest.raises(Killed):
            tables.journal.compact()
    assert set(map(repr, seen)) == {repr(expected)}
    following = Tables(path)
    assert following.state() == expected
    following.journal.close()
    tables.journal.close()


def test_what_happens_during_a_compaction_is_in_both_files(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(path)
    for action in history(tables)[:-3]:
        action()
    tables.journal.flush()
    create, replace = journal_module._create, os.replace
    old: list[State] = []

    def meanwhile(temporary: str) -> int:
        tables.inodes.lookup(ROOT_ID, file("meanwhile"))
        tables.journal.flush()
        tables.handles.release(1)
        return create(temporary)

    def renaming(source: str, target: str) -> None:
        old.append(living(replay(target)))
        replace(source, target)

    monkeypatch.setattr(journal_module, "_create", meanwhile)
    monkeypatch.setattr(os, "replace", renaming)
    assert tables.journal.compact()
    assert old == [tables.state()]
    assert living(replay(path)) == tables.state()
    tables.journal.close()


def failing(*args: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("short", [False, True])
def test_a_full_disk_fails_nobody_and_is_made_good_later(
    path: str, short: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    journal, state = Journal.open(path, clock=lambda: now)
    inodes = Inodes(state, journal.add)
    handles = Handles(inodes, state, journal.add)
    journal.attach(handles)
    inodes.lookup(ROOT_ID, file("before"))
    journal.flush()
    at_failure = replay(path)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", (lambda fd, data: write(fd, data[: len(data) // 2])) if short else failing)
        for number in range(5):
            handles.open(inodes.lookup(ROOT_ID, file(f"{number}")).id)
            journal.flush()
        assert journal.degraded
        assert journal.lost == 10
        assert journal.failures == 1
        assert not journal.due
        now = RETRY_S
        assert journal.due
        assert not journal.compact()
        assert not journal.due
    assert journal.failures == 2
    assert [record.levelno for record in caplog.records if "cannot be written" in record.message] == [
        logging.WARNING
    ]
    assert living(replay(path)) == living(at_failure)
    assert os.listdir(os.path.dirname(path)) == ["journal"]

    now = 2 * RETRY_S
    assert journal.due
    assert journal.compact()
    assert not journal.degraded
    assert living(replay(path)) == living(handles.snapshot(lambda: None))
    inodes.lookup(ROOT_ID, file("after"))
    journal.flush()
    assert living(replay(path)) == living(handles.snapshot(lambda: None))
    journal.close()


def test_a_compaction_that_fails_leaves_the_journal_as_it_was(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(path)
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_create", failing)
        assert not tables.journal.compact()
    assert not tables.journal.degraded
    tables.inodes.lookup(ROOT_ID, file("a"))
    tables.journal.flush()
    assert living(replay(path)) == tables.state()
    assert tables.journal.failures == 1
    tables.journal.close()


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "nowhere" / "journal")
    tables = Tables(path)
    assert tables.journal.degraded
    assert "cannot be written" in caplog.text
    node = tables.inodes.lookup(ROOT_ID, file("a"))
    tables.journal.flush()
    os.mkdir(tmp_path / "nowhere")
    assert tables.journal.compact()
    assert replay(path).nodes.keys() == {node.id}
    tables.journal.close()


def test_what_cannot_be_read_restores_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert replay(str(tmp_path / "none")) == State()
    assert caplog.text == ""
    os.mkdir(tmp_path / "folder")
    assert replay(str(tmp_path / "folder")) == State()
    assert "cannot be read" in caplog.text


def test_the_file_is_its_owners(path: str) -> None:
    tables = Tables(path)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    tables.journal.close()


def test_threads_leave_a_journal_of_what_they_did(path: str) -> None:
    tables = Tables(path)
    start = threading.Barrier(5)
    infos = [file("a"), file("a", '"2"'), file("b"), file("c")]
    kept: list[int] = []

    def work(number: int) -> None:
        start.wait()
        for turn in range(500):
            node = tables.inodes.lookup(ROOT_ID, infos[(turn + number) % 4])
            handle = tables.handles.open(node.id)
            tables.journal.flush()
            tables.inodes.forget(node.id)
            if turn % 50:
                tables.handles.release(handle.fh)
            else:
                kept.append(handle.fh)

    def compact() -> None:
        start.wait()
        for _ in range(100):
            tables.journal.compact()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=compact))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tables.journal.flush()
    assert sorted(handle.fh for handle in tables.handles.all()) == sorted(kept)
    assert living(replay(path)) == tables.state()
    tables.journal.close()


_CHILD = """
import sys
from tests.support.fusetables import Tables, file
tables = Tables(sys.argv[1])
number = 0
while True:
    node = tables.inodes.lookup(1, file(f"{number % 50}", str(number)))
    handle = tables.handles.open(node.id)
    tables.journal.flush()
    sys.stdout.write(f"{handle.fh} {node.id}\\n")
    sys.stdout.flush()
    number += 1
    if number % 40 == 0:
        tables.journal.compact()
"""


def test_what_a_killed_server_answered_is_there(path: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _CHILD, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        answered = [child.stdout.readline() for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        answered += child.stdout.read().splitlines(keepends=True)
    state = replay(path)
    pairs = [tuple(map(int, line.split())) for line in answered if line.endswith("\n")]
    assert len(pairs) >= 200
    assert all(state.handles[fh].node_id == node for fh, node in pairs)
    assert state.nodes.keys() >= {node for _, node in pairs}


def test_the_tables_need_nothing_but_the_vocabulary() -> None:
    code = (
        "import sys, raycache.fuse.handles, raycache.fuse.journal\n"
        "print(sorted(set(sys.modules) & {'ray', 'pyarrow', 'numpy', 'obstore', 'raycache.client'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
