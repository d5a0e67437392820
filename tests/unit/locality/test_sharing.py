"""Dealing files and bundles out: every file once, where most of it is, evenly, and in order when asked."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.locality.sharing import Group, apportion, by_node, in_order, place_bundles

NODES = "abcde"
share = st.dictionaries(st.sampled_from(NODES), st.integers(0, 1000), max_size=5)
shares_strategy = st.lists(share, max_size=40)


def sizes_of(shares: list[dict[str, int]]) -> list[int]:
    return [max(share.values(), default=0) for share in shares]


def local(groups: list[Group], shares: list[dict[str, int]]) -> int:
    return sum(shares[i].get(group.node, 0) for group in groups if group.node for i in group.files)


@settings(max_examples=200, deadline=None)
@given(shares_strategy, st.integers(1, 8))
def test_every_file_is_in_one_group(shares: list[dict[str, int]], limit: int) -> None:
    for groups in (by_node(shares, sizes_of(shares), limit), in_order(shares, sizes_of(shares), limit)):
        assert sorted(index for group in groups for index in group.files) == list(range(len(shares)))
        assert len(groups) <= limit
        assert all(list(group.files) == sorted(group.files) for group in groups)


@settings(max_examples=200, deadline=None)
@given(shares_strategy)
def test_every_file_is_where_most_of_it_is(shares: list[dict[str, int]]) -> None:
    groups = by_node(shares, sizes_of(shares), 100)
    assert len({group.node for group in groups}) == len(groups)
    for group in groups:
        for index in group.files:
            most = max(shares[index].values(), default=0)
            assert (shares[index][group.node] == most > 0) if group.node else most == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 5))
def test_copies_on_all_nodes_are_read_evenly(sizes: list[int], nodes: int) -> None:
    shares = [dict.fromkeys(NODES[:nodes], size) for size in sizes]
    load = dict.fromkeys(NODES[:nodes], 0)
    for group in by_node(shares, sizes, 100):
        load[str(group.node)] += sum(sizes[index] for index in group.files)
    assert max(load.values()) - min(load.values()) <= max(sizes)
    ordered = in_order(shares, sizes, 100)
    assert len({group.node for group in ordered}) == len(ordered), "one run for each node"
    assert max(sum(sizes[i] for i in group.files) for group in ordered) <= sum(sizes) / nodes + max(sizes)


@settings(max_examples=200, deadline=None)
@given(shares_strategy, st.integers(1, 8))
def test_in_order(shares: list[dict[str, int]], limit: int) -> None:
    groups = in_order(shares, sizes_of(shares), limit)
    assert [index for group in groups for index in group.files] == list(range(len(shares)))
    for group in groups:
        held: dict[str, int] = {}
        for index in group.files:
            for node, count in shares[index].items():
                held[node] = held.get(node, 0) + count
        assert held.get(group.node or "", 0) == max(held.values(), default=0)
    assert local(groups, shares) <= sum(sizes_of(shares))
    assert local(groups, shares) <= local(in_order(shares, sizes_of(shares), 100), shares)


def test_in_order_joins_where_least_is_lost() -> None:
    shares = [{"a": 100}, {"a": 100}, {"b": 1}, {"a": 100}, {"c": 100}, {"c": 100}]
    groups = in_order(shares, sizes_of(shares), 2)
    assert groups == [Group("a", (0, 1, 2, 3)), Group("c", (4, 5))]
    assert [group.node for group in in_order(shares, sizes_of(shares), 4)] == ["a", "b", "a", "c"]


def test_a_file_of_several_segments_goes_to_the_majority() -> None:
    shares = [{"a": 256, "b": 512}, {"a": 256, "b": 10}]
    assert by_node(shares, [768, 266], 10) == [Group("b", (0,)), Group("a", (1,))]


def test_what_nobody_has_is_read_anywhere() -> None:
    assert by_node([{}, {"a": 1}, {"a": 0}], [5, 1, 2], 10) == [Group(None, (0, 2)), Group("a", (1,))]
    assert by_node([], [], 10) == []
    assert in_order([], [], 10) == []
    assert in_order([{}, {}], [1, 1], 10) == [Group(None, (0, 1))]


def test_of_too_many_nodes_those_with_least_are_read_anywhere() -> None:
    shares = [{node: 10 + number} for number, node in enumerate(NODES)]
    groups = by_node(shares, sizes_of(shares), 3)
    assert groups == [Group(None, (0, 1, 2)), Group("d", (3,)), Group("e", (4,))]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(NODES), st.integers(0, 1000)), st.integers(0, 20))
def test_apportion(weights: dict[str, int], count: int) -> None:
    names = apportion(weights, count)
    total = sum(weights.values())
    assert len(names) == (count if total else 0)
    for name, weight in weights.items():  # D'Hondt gives everybody at least his quota rounded down
        assert names.count(name) >= int(count * weight / total) if total else not names
        assert weight or name not in names


CAPACITY: Mapping[str, Mapping[str, float]] = {node: {"CPU": 4.0} for node in NODES}


def test_bundles_follow_the_bytes() -> None:
    weights = {"a": 300, "b": 100}
    assert sorted(place_bundles([{"CPU": 1}] * 4, weights, CAPACITY, "PACK"), key=str) == ["a", "a", "a", "b"]
    assert place_bundles([{"CPU": 1}] * 3, weights, CAPACITY, "STRICT_SPREAD") == ["a", "b", None]
    assert place_bundles([{"CPU": 2}] * 2, weights, CAPACITY, "STRICT_PACK") == ["a", "a"]


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_no_bundle_is_tied_to_a_node_without_room_for_it(strategy: str) -> None:
    bundles = [{"CPU": 3}, {"CPU": 3}, {"GPU": 1.0}]
    placed = place_bundles(bundles, {"a": 10, "gone": 99}, CAPACITY, strategy)
    assert placed == ([None, None, None] if strategy == "STRICT_PACK" else ["a", None, None])
