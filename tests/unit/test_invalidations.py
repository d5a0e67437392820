"""What everybody who hears of a new epoch has to forget."""

from __future__ import annotations

import json

import pytest

from raycache.errors import RaycacheError
from raycache.invalidations import KEPT, NONE, Invalidations


def test_who_knows_an_epoch_forgets_what_came_after_it() -> None:
    found = NONE.added(3, [("ds", "a"), ("other", "b")]).added(5, [("ds", "dir")])
    assert found.after(2, "ds") == ["a", "dir"]
    assert found.after(3, "ds") == ["dir"]
    assert found.after(5, "ds") == []
    assert found.after(2, "other") == ["b"]
    assert found.after(2, "third") == []


def test_who_has_missed_too_much_forgets_everything() -> None:
    found = NONE
    for epoch in range(1, KEPT + 11):
        found = found.added(epoch, [("ds", str(epoch))])
    assert len(found.entries) == KEPT
    assert found.after(9, "ds") == found.after(0, "third") == [""]
    assert found.after(10, "ds") == [str(epoch) for epoch in range(11, KEPT + 11)]


def test_what_one_epoch_declares_is_lost_whole_or_not_at_all() -> None:
    found = NONE.added(7, [("ds", str(number)) for number in range(KEPT + 1)])
    assert found.after(6, "ds") == [""]
    assert found.after(7, "ds") == []


def test_a_cluster_that_begins_anew_remembers_nothing_of_before() -> None:
    assert Invalidations(since=4).after(3, "ds") == [""]
    assert Invalidations(since=4).after(4, "ds") == []


def test_there_and_back_over_the_wire() -> None:
    found = NONE.added(3, [("ds", 'a/\u00e4 "b"')])
    assert Invalidations.from_wire(json.loads(json.dumps(found.to_wire()))) == found
    for wrong in ({}, {"since": 0}, {"since": "x", "entries": []}, {"since": 0, "entries": [[1, "ds"]]}):
        with pytest.raises(RaycacheError):
            Invalidations.from_wire(wrong)
