"""Former owners: who had what before a change of the workers is remembered, within bounds, and nobody else is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.former import DEPTH, NOBODY
from raycache.membership import Membership, Worker
from raycache.placement import PARTITIONS, Placement


def worker(name: str, weight: int = 1) -> Worker:
    return Worker(id=name, address=f"{name}:1", weights={"ds": weight})


def of(*names: str) -> Membership:
    membership = Membership()
    for name in names:
        membership = membership.with_worker(worker(name))
    return membership.rebalanced()


def owners(placement: Placement | None) -> list[str]:
    assert placement is not None
    return [placement.workers[index] for index in placement.table.tolist()]


def test_there_are_none_before_anything_has_moved() -> None:
    assert of("a", "b").former == {}


def test_who_joins_finds_out_who_had_what_it_gets() -> None:
    grown = of("a").with_worker(worker("b")).rebalanced()
    (former,) = grown.former_placements("ds")
    now = owners(grown.placement("ds"))
    assert owners(former) == ["a" if owner == "b" else NOBODY for owner in now]


def test_what_a_worker_had_before_many_joined_one_by_one_is_still_found_there() -> None:
    membership = of("a")
    for number in range(4):
        membership = membership.with_worker(worker(f"w{number}")).rebalanced()
    tables = membership.former_placements("ds")
    assert len(tables) <= DEPTH
    found = np.zeros(PARTITIONS, dtype=bool)
    for table in (membership.placement("ds"), *tables):
        found |= np.array(owners(table)) == "a"
    assert found.all()


def test_a_worker_that_is_gone_is_nobody_to_ask_and_one_that_may_come_back_is() -> None:
    grown = of("a").with_worker(worker("b")).rebalanced()
    without = grown.without_worker("a")
    assert without.with_tables(grown.tables).former == {}
    assert without.with_tables(grown.tables, returning=["a"]).former == grown.former


def test_a_restarted_worker_is_a_former_owner_under_its_new_name() -> None:
    grown = of("a").with_worker(worker("b")).rebalanced()
    back = grown.restarted("a", worker("a2"))
    assert {name for table in back.former_placements("ds") for name in table.workers} == {"a2", NOBODY}


def test_they_travel_with_the_membership_and_an_older_one_has_none() -> None:
    grown = of("a").with_worker(worker("b")).rebalanced()
    wire = json.loads(json.dumps(grown.to_wire()))
    assert Membership.from_wire(wire) == grown
    del wire["former"]
    assert Membership.from_wire(wire) == replace(grown, former={})


def test_who_leaves_is_asked_by_those_that_take_over() -> None:
    both = of("a", "b")
    leaving = both.with_worker(worker("b", weight=0)).rebalanced()
    assert set(owners(leaving.placement("ds"))) == {"a"}
    (former,) = leaving.former_placements("ds")
    assert owners(former) == ["b" if owner == "b" else NOBODY for owner in owners(both.placement("ds"))]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=2, max_size=4))
def test_former_owners_are_members_that_do_not_own_the_partition_now_and_differ(
    steps: list[set[str]],
) -> None:
    membership = Membership()
    last: list[str] = []
    for names in steps:
        former = last
        for gone in {one.id for one in membership.workers} - names:
            membership = membership.with_worker(worker(gone, weight=0))  # leaving: it can still be asked
        for name in names:
            membership = membership.with_worker(worker(name))
        membership = membership.rebalanced()
        last = owners(membership.placement("ds"))
        rows = [owners(table) for table in membership.former_placements("ds")]
        assert len(rows) <= DEPTH
        for partition in range(0, PARTITIONS, 997):
            known = [row[partition] for row in rows if row[partition] != NOBODY]
            assert last[partition] not in known
            assert len(set(known)) == len(known)
            if former and former[partition] != last[partition]:
                assert known[0] == former[partition]
