"""Membership: every change is a new value with a higher epoch, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raycache.errors import RaycacheError
from raycache.membership import Membership, Worker
from raycache.placement import PARTITIONS


def worker(name: str, weight: int = 1, **changes: object) -> Worker:
    made = Worker(
        id=name,
        address=f"{name}:1",
        node_id=f"node-{name}",
        host_id="host-1",
        weights={"ds": weight},
        stores={"ds": (f"/cache/{name}",)},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_joining_and_leaving_raise_the_epoch() -> None:
    empty = Membership()
    one = empty.with_worker(worker("b"))
    two = one.with_worker(worker("a"))
    assert (empty.epoch, one.epoch, two.epoch) == (0, 1, 2)
    assert [member.id for member in two.workers] == ["a", "b"]
    assert two.without_worker("b").workers == (worker("a"),)
    assert empty.workers == ()


def test_what_changes_nothing_keeps_the_epoch() -> None:
    members = Membership().with_worker(worker("a")).rebalanced()
    assert members.with_worker(worker("a")) is members
    assert members.without_worker("x") is members
    assert members.draining("x") is members
    assert members.rebalanced() is members


def test_a_draining_worker_answers_but_owns_nothing_after_the_next_rebalance() -> None:
    members = Membership().with_worker(worker("a")).with_worker(worker("b")).rebalanced()
    draining = members.draining("a")
    assert [member.id for member in draining.workers_for("ds")] == ["a", "b"]
    assert draining.weights_for("ds") == {"b": 1}
    assert draining.tables == members.tables
    placement = draining.rebalanced().placement("ds")
    assert placement is not None
    assert placement.shares() == {"b": PARTITIONS}


def test_each_dataset_is_placed_on_the_workers_that_hold_it() -> None:
    members = (
        Membership()
        .with_worker(worker("a"))
        .with_worker(worker("b", weights={"ds": 3, "other": 1}))
        .with_worker(worker("c", weights={}))
        .rebalanced()
    )
    ds, other = members.placement("ds"), members.placement("other")
    assert ds is not None
    assert other is not None
    assert ds.shares() == {"a": PARTITIONS // 4, "b": PARTITIONS * 3 // 4}
    assert other.shares() == {"b": PARTITIONS}
    assert members.placement("unknown") is None


def test_a_dataset_that_lost_its_last_worker_has_no_placement() -> None:
    members = Membership().with_worker(worker("a")).rebalanced().without_worker("a").rebalanced()
    assert members.placement("ds") is None


def test_a_restart_on_the_same_disks_moves_nothing() -> None:
    members = Membership().with_worker(worker("a")).with_worker(worker("b")).rebalanced()
    again = members.restarted("a", worker("a2"))
    assert [member.id for member in again.workers] == ["a2", "b"]
    assert again.epoch > members.epoch
    before, after = members.placement("ds"), again.placement("ds")
    assert before is not None
    assert after is not None
    assert before.renamed("a", "a2") == after


def test_members_are_found_by_id_and_host() -> None:
    members = Membership().with_worker(worker("a")).with_worker(worker("b", host_id=""))
    assert members.worker("a") == worker("a")
    assert members.worker("x") is None
    assert members.on_host("host-1") == [worker("a")]
    assert members.on_host("") == []


def test_a_membership_survives_the_wire() -> None:
    members = Membership().with_worker(worker("a")).with_worker(worker("b")).draining("b").rebalanced()
    assert Membership.from_wire(json.loads(json.dumps(members.to_wire()))) == members


def test_an_unknown_state_counts_as_draining() -> None:
    data = worker("a").to_wire() | {"state": "hibernating"}
    assert Worker.from_wire(data).state == "draining"


@pytest.mark.parametrize(
    "data",
    [{}, {"epoch": "x", "workers": []}, {"epoch": 1, "workers": [{}]}, {"epoch": 1, "workers": 3},
     {"epoch": 1, "workers": [], "tables": 3}, {"epoch": 1, "workers": [{"id": "a", "address": "b", "weights": 1}]}],
)  # fmt: skip
def test_a_malformed_membership_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(RaycacheError):
        Membership.from_wire(data)
