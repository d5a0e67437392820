"""Open files: numbers that stay theirs, one I/O mode an inode, one backing file an inode."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from raycache.fuse.handles import BadHandleError, Handles, IoModeError
from raycache.fuse.inodes import Inodes, StaleNodeError
from raycache.fuse.records import ROOT_ID
from tests.support.fusetables import Tables, directory, file


@pytest.fixture
def inodes() -> Inodes:
    return Inodes()


@pytest.fixture
def handles(inodes: Inodes) -> Handles:
    return Handles(inodes)


def test_a_handle_keeps_what_it_was_opened_with(inodes: Inodes, handles: Handles) -> None:
    node = inodes.lookup(ROOT_ID, file("a"))
    reader = object()
    handle = handles.open(node.id, flags=0o100000, state=reader)
    assert handles.get(handle.fh) is handle
    assert (handle.node_id, handle.mode, handle.flags) == (node.id, "cached", 0o100000)
    assert handle.state is reader
    assert not handle.restored
    assert handles.release(handle.fh).handle is handle
    assert handles.open(node.id).fh > handle.fh


def test_an_unknown_handle_is_a_bad_descriptor(handles: Handles) -> None:
    for call in (handles.get, handles.release):
        with pytest.raises(BadHandleError) as raised:
            call(5)
        assert raised.value.errno == errno.EBADF


def test_an_unknown_node_cannot_be_opened(handles: Handles) -> None:
    with pytest.raises(StaleNodeError):
        handles.open(44)
    assert len(handles) == 0


def test_passthrough_is_refused_while_the_page_cache_is_in_use(inodes: Inodes, handles: Handles) -> None:
    node = inodes.lookup(ROOT_ID, file("a"))
    cached = handles.open(node.id)
    assert not handles.may_passthrough(node.id)
    with pytest.raises(IoModeError):
        handles.open(node.id, "passthrough", backing_id=3)
    handles.release(cached.fh)
    assert handles.may_passthrough(node.id)
    handles.open(node.id, "passthrough", backing_id=3)
    with pytest.raises(IoModeError):
        handles.open(node.id)
    assert node.holds == 1


def test_handles_of_a_node_share_the_first_backing_file(inodes: Inodes, handles: Handles) -> None:
    node = inodes.lookup(ROOT_ID, file("a"))
    first = handles.open(node.id, "passthrough", backing_id=3)
    assert handles.backing_of(node.id) == 3
    second = handles.open(node.id, "passthrough", backing_id=8)
    third = handles.open(node.id, "passthrough")
    assert (second.backing_id, third.backing_id) == (3, 3)
    assert handles.release(first.fh).backing_id is None
    assert handles.release(second.fh).backing_id is None
    assert handles.release(third.fh).backing_id == 3
    assert handles.backing_of(node.id) is None


def test_a_backing_file_that_is_released_is_not_shared(inodes: Inodes, handles: Handles) -> None:
    node = inodes.lookup(ROOT_ID, file("a"))
    handles.release(handles.open(node.id, "passthrough", backing_id=3).fh)
    with pytest.raises(IoModeError):
        handles.open(node.id, "passthrough")
    assert node.holds == 0


def test_another_version_has_its_own_mode(inodes: Inodes, handles: Handles) -> None:
    old, new = (inodes.lookup(ROOT_ID, file("a", etag)) for etag in ('"1"', '"2"'))
    handles.open(old.id)
    assert handles.open(new.id, "passthrough", backing_id=3).backing_id == 3


def test_a_directory_has_no_mode(inodes: Inodes, handles: Handles) -> None:
    node = inodes.lookup(ROOT_ID, directory("d"))
    handle = handles.open(node.id, directory=True, state=["x", "y"])
    assert handles.may_passthrough(node.id)
    assert handles.release(handle.fh).backing_id is None
    with pytest.raises(ValueError, match="directory"):
        handles.open(node.id, "passthrough", backing_id=1, directory=True)
    with pytest.raises(ValueError, match="cached"):
        handles.open(node.id, "cached", backing_id=1)


def test_what_was_open_is_open_after_a_restart(tmp_path: Path) -> None:
    before = Tables(str(tmp_path / "journal"))
    node = before.inodes.lookup(ROOT_ID, file("a"))
    other = before.inodes.lookup(ROOT_ID, file("b"))
    shared = [before.handles.open(node.id, "passthrough", backing_id=3, flags=4).fh for _ in range(2)]
    cached = before.handles.open(other.id, state=object()).fh
    listing = before.handles.open(ROOT_ID, directory=True).fh
    before.inodes.forget_all([(node.id, 1), (other.id, 1)])
    before.journal.flush()

    after = Tables(str(tmp_path / "journal"))
    assert [handle.fh for handle in after.handles.all()] == [*shared, cached, listing]
    handle = after.handles.get(cached)
    assert handle.restored
    assert handle.state is None
    assert after.inodes.get(handle.node_id).info == file("b")
    assert after.handles.get(listing).directory
    assert not after.handles.may_passthrough(other.id)
    assert after.handles.open(node.id, "passthrough").backing_id == 3
    fh = after.handles.all()[-1].fh
    assert fh > listing
    assert [after.handles.release(number).backing_id for number in (*shared, fh)] == [None, None, 3]
    after.handles.release(cached)
    assert len(after.inodes) == 0
    before.journal.close()
    after.journal.close()


def test_a_handle_whose_number_never_came_to_the_kernel_is_found_by_its_request(tmp_path: Path) -> None:
    before = Tables(str(tmp_path / "journal"))
    node = before.inodes.lookup(ROOT_ID, file("a"))
    told = before.handles.open(node.id, unique=40)
    untold = before.handles.open(node.id, unique=42)
    gone = before.handles.open(node.id, unique=44)
    before.handles.release(gone.fh)
    before.journal.compact()
    later = before.handles.open(node.id, unique=46)
    before.journal.flush()
    assert before.handles.opened_for(42) is None, "its own server has answered, or will"

    after = Tables(str(tmp_path / "journal"))
    for unique, handle in ((40, told), (42, untold), (46, later)):
        found = after.handles.opened_for(unique)
        assert found is not None
        assert found.fh == handle.fh
    assert after.handles.opened_for(44) is None
    assert after.handles.opened_for(48) is None
    before.journal.close()
    after.journal.close()
