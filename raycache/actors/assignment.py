"""Which nodes hold which dataset, and the membership that follows from what their workers report. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from raycache.membership import Membership, Worker
from raycache.spec import ResolvedDataset


@dataclass(frozen=True)
class Node:
    """A node of the Ray cluster.

    Args:
        id: Ray node id.
        address: IP address.
        labels: its Ray labels.
        memory: bytes of Ray's logical resource `memory`.
        head: whether it is the head node.
    """

    id: str
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0
    head: bool = False


def eligible(dataset: ResolvedDataset, nodes: Iterable[Node]) -> list[Node]:
    """The nodes whose labels a dataset's selector accepts."""
    return [n for n in nodes if all(n.labels.get(k) == v for k, v in dataset.node_selector.items())]


def occupied(
    dataset: ResolvedDataset,
    datasets: Mapping[str, ResolvedDataset],
    planned: Collection[str],
    held: Collection[str],
) -> str | None:
    """The dataset because of which a node cannot hold another one, since one of the two wants to be alone there.

    Args:
        dataset: the one that would come, or stay.
        datasets: all, by name.
        planned: names of those that are to be on the node, decided before this one.
        held: names of those that its worker holds now. They stay, unless this one is there, too: then it goes by the
            order in which it is decided.

    Returns:
        Its name; None if there is no such dataset.
    """
    stay = [*planned, *(() if dataset.name in held else held)]
    for name in sorted(stay):
        other = datasets.get(name)
        if other is None or name == dataset.name:
            continue
        if "Exclusive" in (dataset.placement, other.placement):
            return name
    return None


def holders(
    dataset: ResolvedDataset,
    nodes: Iterable[Node],
    holding: Collection[str],
    leaving: Collection[str] = (),
    since: Mapping[str, float] | None = None,
    count: int | None = None,
) -> list[str]:
    """Ids of the nodes that should hold a dataset.

    Those that hold it already keep it, as far as the number allows: whoever is about to leave it goes first, then who
    came last, and has had least time to fill. The others follow in an order that is a hash of dataset and node, so that
    datasets with few replicas spread over the cluster.

    Args:
        dataset: which.
        nodes: those that could.
        holding: ids of those that do.
        leaving: ids of those among them that are about to leave it.
        since: when each of them took it on, seconds; who is not in it was the first.
        count: how many; None: as many as its spec says, at most.
    """
    most = dataset.replica_bounds[1] if count is None else count
    since = since or {}
    ids = [node.id for node in eligible(dataset, nodes)]
    ids.sort(
        key=lambda id: (
            id not in holding,
            id in leaving,
            since.get(id, 0.0) if id in holding else 0.0,
            _rank(dataset.name, id),
        )
    )
    return ids if most is None else ids[:most]


def may_leave(membership: Membership, dataset: str, worker_id: str, unsettled: bool) -> bool:
    """Whether a worker that is to leave a dataset may begin to move it: others own it by now, or nobody ever will.

    Args:
        membership: as published.
        dataset: its name.
        worker_id: who is to leave it.
        unsettled: some worker is about to take it on.
    """
    placement = membership.placement(dataset)
    if placement is None or worker_id not in placement.workers:
        return True
    return not unsettled and not membership.weights_for(dataset)


def _rank(dataset: str, node_id: str) -> bytes:
    return hashlib.blake2b(f"{dataset}\0{node_id}".encode(), digest_size=8).digest()


def next_membership(
    former: Membership,
    seats: Mapping[str, str],
    reporting: Mapping[str, Worker],
    returning: Collection[str],
    unsettled: Collection[str] = (),
    forgotten: Collection[str] = (),
) -> tuple[Membership, dict[str, str]]:
    """The membership after the latest reports.

    A worker that died is gone from the members at once. Its share stays with its node for as long as the node
    is in `returning`: readers go on to the next candidate meanwhile, and when Ray has restarted the worker it
    finds its files and its share again, and nothing has moved.

    Args:
        former: the membership so far.
        seats: worker id that each node had last.
        reporting: workers that answer, by node id.
        returning: nodes whose worker does not answer now and may yet come back.
        unsettled: datasets that some worker is about to take on (again). Their tables wait for it.
        forgotten: datasets that were deleted. The table of any other is kept, even while nobody holds it: after a
            stop and a start, workers find on their disks what they owned.

    Returns:
        The membership (`former` itself if nothing changed), and the seats that go with it.
    """
    membership = former
    next_seats = {node: id for node, id in seats.items() if node in reporting or node in returning}
    current = {worker.id for worker in reporting.values()}
    for worker in former.workers:
        if worker.id not in current:
            membership = membership.without_worker(worker.id)
    for node_id, worker in sorted(reporting.items()):
        last = seats.get(node_id)
        if last is not None and last != worker.id:
            membership = membership.restarted(last, worker)
        elif membership.worker(worker.id) != worker:
            membership = membership.with_worker(worker)
        next_seats[node_id] = worker.id
    away = any(node not in reporting for node in next_seats)
    tables = _tables(membership, away, unsettled, forgotten)
    if membership is not former or tables != dict(former.tables):
        membership = membership.with_tables(tables, returning=next_seats.values())
    if membership is former:
        return former, next_seats
    # Several changes are one step for those who hear of it.
    return replace(membership, epoch=former.epoch + 1), next_seats


def _tables(
    membership: Membership, away: bool, unsettled: Collection[str], forgotten: Collection[str]
) -> dict[str, str]:
    tables = {**membership.tables, **membership.rebalanced().tables}
    # The share of who is away, or not ready yet, waits; only what has no owners at all gets some.
    kept = {name: table for name, table in membership.tables.items() if away or name in unsettled}
    return {name: table for name, table in {**tables, **kept}.items() if name not in forgotten}
