"""Operations: only the legal steps, and Complete only when every byte is there."""

from __future__ import annotations

import json

import pytest

from raycache import operations as ops
from raycache.errors import OperationFailedError, RaycacheError
from raycache.operations import MAX_MISSING, Missing, Operation

PENDING = Operation("load-1", "ds", {"paths": ["a"], "replicas": 2}, created=10.0)
RUNNING = ops.sized(ops.started(PENDING, 11.0), files=2, bytes_total=100)
COMPLETE = ops.completed(RUNNING, 15.0, 100)
FAILED = ops.completed(RUNNING, 15.0, 60, [Missing("b", 40, "the tier is full")])


def test_a_load_that_caches_every_byte_is_complete() -> None:
    half = ops.progressed(RUNNING, 50)
    assert (half.phase, half.progress, half.duration(13.0)) == ("Executing", 0.5, 2.0)
    done = ops.completed(half, 15.0, 100)
    assert (done.phase, done.progress, done.duration(99.0), done.ended) == ("Complete", 1.0, 4.0, True)
    done.check()


def test_a_load_that_misses_a_byte_has_failed_and_says_what_and_why() -> None:
    assert FAILED.phase == "Failed"
    assert FAILED.missing == (Missing("b", 40, "the tier is full"),)
    with pytest.raises(OperationFailedError, match=r"40 of 100 bytes.*'b': the tier is full"):
        FAILED.check()


def test_missing_files_fail_even_if_the_count_is_right() -> None:
    empty = ops.sized(ops.started(PENDING, 0), files=1, bytes_total=0)
    assert ops.completed(empty, 1.0, 0).phase == "Complete"
    assert ops.completed(empty, 1.0, 0, [Missing("a", 0, "gone")]).phase == "Failed"


def test_missing_bytes_fail_even_without_a_named_file() -> None:
    assert ops.completed(RUNNING, 15.0, 99).message == "1 of 100 bytes are not cached"


def test_the_list_of_what_is_missing_is_bounded_and_counts_all() -> None:
    lost = [Missing(f"f{n}", n, "no") for n in range(MAX_MISSING + 50)]
    done = ops.completed(RUNNING, 15.0, 0, lost)
    assert len(done.missing) == MAX_MISSING
    assert done.missing_count == MAX_MISSING + 50
    assert done.missing[0].bytes == MAX_MISSING + 49


def test_progress_is_unknown_until_the_listing_is_done() -> None:
    listing = ops.sized(ops.started(PENDING, 0), files=5, bytes_total=10, final=False)
    assert listing.progress is None
    assert ops.progressed(listing, 20).bytes_cached == 20
    assert ops.sized(listing, files=9, bytes_total=40).progress == 0.0


@pytest.mark.parametrize("operation", [RUNNING, COMPLETE, FAILED], ids=lambda o: o.phase)
def test_only_a_pending_operation_starts(operation: Operation) -> None:
    with pytest.raises(RaycacheError, match=f"cannot start an operation that is {operation.phase}"):
        ops.started(operation, 20.0)


@pytest.mark.parametrize("operation", [PENDING, COMPLETE, FAILED], ids=lambda o: o.phase)
def test_only_an_executing_operation_moves_on(operation: Operation) -> None:
    for step in (
        lambda: ops.sized(operation, 1, 1),
        lambda: ops.progressed(operation, 1),
        lambda: ops.completed(operation, 20.0, 1),
    ):
        with pytest.raises(RaycacheError, match="cannot"):
            step()


@pytest.mark.parametrize("operation", [COMPLETE, FAILED], ids=lambda o: o.phase)
def test_what_ended_does_not_fail_again(operation: Operation) -> None:
    with pytest.raises(RaycacheError, match="cannot fail"):
        ops.failed(operation, 20.0, "late")


def test_an_operation_may_fail_before_and_while_it_runs() -> None:
    for operation in (PENDING, RUNNING):
        done = ops.failed(operation, 20.0, "dataset deleted")
        assert (done.phase, done.finished, done.message) == ("Failed", 20.0, "dataset deleted")


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(RaycacheError):
        ops.progressed(RUNNING, 101)
    with pytest.raises(RaycacheError):
        ops.progressed(RUNNING, -1)
    with pytest.raises(RaycacheError, match="already final"):
        ops.sized(RUNNING, 3, 3)
    with pytest.raises(RaycacheError, match="before its size"):
        ops.completed(ops.started(PENDING, 0), 1.0, 0)


def test_only_a_failed_operation_is_retried() -> None:
    again = ops.retried(FAILED, 30.0)
    assert (again.phase, again.missing, again.message, again.started) == ("Pending", (), "", None)
    assert ops.started(again, 31.0).attempt == 2
    for operation in (PENDING, RUNNING, COMPLETE):
        with pytest.raises(RaycacheError):
            ops.retried(operation, 30.0)


def test_after_a_restart_an_interrupted_operation_runs_again() -> None:
    stored = json.loads(json.dumps(ops.progressed(RUNNING, 70).to_wire()))
    again = ops.recovered(Operation.from_wire(stored))
    assert (again.phase, again.sized, again.bytes_cached, again.spec) == ("Pending", False, 0, PENDING.spec)
    running = ops.started(again, 50.0)
    assert (running.attempt, running.started) == (2, 11.0)


@pytest.mark.parametrize("operation", [PENDING, COMPLETE, FAILED], ids=lambda o: o.phase)
def test_after_a_restart_the_others_are_as_they_were(operation: Operation) -> None:
    stored = json.loads(json.dumps(operation.to_wire()))
    assert ops.recovered(Operation.from_wire(stored)) == operation


@pytest.mark.parametrize(
    "data", [{}, {"name": "a", "dataset": "b", "colour": 1}, {"name": "a", "dataset": "b", "phase": "Odd"}]
)
def test_a_malformed_operation_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(RaycacheError):
        Operation.from_wire(data)
