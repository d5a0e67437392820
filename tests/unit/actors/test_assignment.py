"""Who holds what, and that a worker's share waits for it when it restarts."""

from __future__ import annotations

from raycache.actors.assignment import Node, holders, may_leave, next_membership, occupied
from raycache.membership import Membership, Worker
from raycache.spec import ReplicaRange
from tests.support.embedded import dataset_of

NODES = [Node(f"n{number}", labels={"disk": "ssd" if number < 3 else "hdd"}) for number in range(5)]
DATASET = dataset_of("ds", {"": "s3://bucket"})


def worker(node: str, incarnation: int = 0, weight: int = 100) -> Worker:
    weights = {"ds": weight} if weight else {}
    return Worker(f"{node}-{incarnation}", f"{node}:1", node_id=node, weights=weights)


def after(
    former: tuple[Membership, dict[str, str]],
    *workers: Worker,
    returning: tuple[str, ...] = (),
    **kwargs: object,
) -> tuple[Membership, dict[str, str]]:
    reporting = {worker.node_id: worker for worker in workers}
    return next_membership(*former, reporting, returning, **kwargs)  # type: ignore[arg-type]


def shares(membership: Membership) -> dict[str, int]:
    placement = membership.placement("ds")
    assert placement is not None
    return placement.shares()


def test_all_is_every_node_with_the_labels() -> None:
    assert sorted(holders(DATASET, NODES, [])) == ["n0", "n1", "n2", "n3", "n4"]
    labelled = DATASET.model_copy(update={"node_selector": {"disk": "ssd"}})
    assert sorted(holders(labelled, NODES, [])) == ["n0", "n1", "n2"]
    assert holders(DATASET.model_copy(update={"node_selector": {"gpu": "1"}}), NODES, []) == []


def test_replicas_bound_the_number_and_who_holds_it_keeps_it() -> None:
    two = DATASET.model_copy(update={"replicas": 2})
    chosen = holders(two, NODES, [])
    assert len(chosen) == 2
    others = [node.id for node in NODES if node.id not in chosen]
    assert sorted(holders(two, NODES, others[:2])) == sorted(others[:2])
    ranged = DATASET.model_copy(update={"replicas": ReplicaRange(min=1, max=3)})
    assert len(holders(ranged, NODES, [])) == 3
    names = {holders(dataset_of(f"d{n}", {"": "s3://b"}, replicas=1), NODES, [])[0] for n in range(40)}
    assert len(names) == 5, "datasets of one replica spread over the nodes"


def test_who_leaves_goes_first_then_who_came_last() -> None:
    two = DATASET.model_copy(update={"replicas": 2})
    holding = ["n0", "n1", "n2"]
    since = {"n0": 3.0, "n1": 1.0, "n2": 2.0}
    assert sorted(holders(two, NODES, holding, since=since)) == ["n1", "n2"]
    assert sorted(holders(two, NODES, holding, leaving=["n1"], since=since)) == ["n0", "n2"]
    four = DATASET.model_copy(update={"replicas": 4})
    assert set(holding) < set(holders(four, NODES, holding, leaving=["n1"], since=since))


def test_a_change_is_one_epoch_and_none_is_none() -> None:
    first = after((Membership(), {}), worker("a"), worker("b"))
    assert first[0].epoch == 1
    assert after(first, worker("a"), worker("b"))[0] is first[0]
    assert sorted(shares(first[0])) == ["a-0", "b-0"]


def test_a_worker_that_restarts_gets_its_own_share_back() -> None:
    first = after((Membership(), {}), worker("a"), worker("b"), worker("c"))
    table = first[0].placement("ds")
    assert table is not None
    away = after(first, worker("a"), worker("c"), returning=("b",))
    assert away[0].epoch == first[0].epoch + 1
    assert [member.id for member in away[0].workers] == ["a-0", "c-0"]
    assert shares(away[0]) == shares(first[0]), "nothing moves while it may come back"
    # It answers before its datasets are attached again, and then with them.
    empty = after(away, worker("a"), worker("b", 1, weight=0), worker("c"), unsettled={"ds"})
    back = after(empty, worker("a"), worker("b", 1), worker("c"))
    again = back[0].placement("ds")
    assert again is not None
    assert [again.workers[i] for i in again.table[:500]] == [
        {"b-0": "b-1"}.get(table.workers[i], table.workers[i]) for i in table.table[:500]
    ]


def test_a_worker_that_stays_away_loses_its_share() -> None:
    first = after((Membership(), {}), worker("a"), worker("b"))
    away = after(first, worker("a"), returning=("b",))
    gone = after(away, worker("a"))
    assert sorted(shares(gone[0])) == ["a-0"]
    assert gone[1] == {"a": "a-0"}


def test_a_new_dataset_is_placed_even_while_a_worker_is_away() -> None:
    first = after((Membership(), {}), worker("a", weight=0), worker("b", weight=0))
    away = after(first, worker("a"), returning=("b",))
    assert sorted(shares(away[0])) == ["a-0"]


def test_tables_outlive_a_stop_but_not_a_delete() -> None:
    first = after((Membership(), {}), worker("a"), worker("b"))
    stopped = after(first, worker("a", 1, weight=0), worker("b", 1, weight=0))
    assert sorted(shares(stopped[0])) == ["a-1", "b-1"]
    started = after(stopped, worker("a", 1), worker("b", 1))
    before, now = first[0].placement("ds"), started[0].placement("ds")
    assert before is not None
    assert now is not None
    assert (before.table == now.table).all()
    deleted = after(started, worker("a", 1, weight=0), worker("b", 1, weight=0), forgotten={"ds"})
    assert deleted[0].tables == {}


def test_nobody_begins_to_leave_while_somebody_is_about_to_take_on() -> None:
    """Else what a drained node holds is left behind, because for a moment nobody else holds the dataset."""
    alone = after((Membership(), {}), worker("a"))
    leaving, seats = after(alone, worker("a", weight=0))
    assert not may_leave(leaving, "ds", "a-0", unsettled=True)
    assert may_leave(leaving, "ds", "a-0", unsettled=False), "nobody ever will"
    followed, _ = after((leaving, seats), worker("a", weight=0), worker("b"))
    assert may_leave(followed, "ds", "a-0", unsettled=False)


def test_an_exclusive_dataset_is_alone_on_its_nodes() -> None:
    shared, other = dataset_of("s", {"": "s3://b"}), dataset_of("t", {"": "s3://b"})
    alone = dataset_of("x", {"": "s3://b"}).model_copy(update={"placement": "Exclusive"})
    all_of_them = {dataset.name: dataset for dataset in (shared, other, alone)}

    assert occupied(shared, all_of_them, planned=["t"], held=["t"]) is None
    assert occupied(shared, all_of_them, planned=["x"], held=[]) == "x"
    assert occupied(alone, all_of_them, planned=["s"], held=[]) == "s"
    assert occupied(alone, all_of_them, planned=[], held=["s"]) == "s", "who is there stays"
    assert occupied(shared, all_of_them, planned=[], held=["x"]) == "x"
    assert occupied(alone, all_of_them, planned=[], held=["x"]) is None
    # Both are there, because one has only now become exclusive: who is decided on first stays, and the other goes.
    assert occupied(alone, all_of_them, planned=[], held=["s", "x"]) is None
    assert occupied(shared, all_of_them, planned=["x"], held=["s", "x"]) == "x"
    assert occupied(alone, all_of_them, planned=[], held=["deleted"]) is None, "what is not wanted goes"
