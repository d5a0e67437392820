"""Who is in the cache: workers, what each holds, and the epoch that orders what one hears about them.

Plain values without clock or network. The coordinator makes the next membership out of the last; everyone
else takes whichever has the higher epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from raycache.errors import RaycacheError
from raycache.former import former_owners
from raycache.placement import Placement, rebalance

State = Literal["up", "draining"]
"""`up`: owns its share. `draining`: is about to leave; still answers reads, owns nothing any more."""


@dataclass(frozen=True)
class Worker:
    """A process that caches.

    Args:
        id: unique per incarnation: a restarted worker is another worker.
        address: `host:port` of its Flight server.
        node_id: Ray node id; "" outside Ray.
        host_id: identity of the machine: processes with the same one can open each other's files.
        weights: bytes of quota it gives to each dataset it holds, by dataset.
        stores: directories of each dataset's local store, by dataset; readers on the host open them.
        zone: failure or network zone, "" if unknown.
        state: see `State`.
    """

    id: str
    address: str
    node_id: str = ""
    host_id: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)
    stores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zone: str = ""
    state: State = "up"

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "id": self.id,
            "address": self.address,
            "node_id": self.node_id,
            "host_id": self.host_id,
            "weights": dict(self.weights),
            "stores": {dataset: list(paths) for dataset, paths in self.stores.items()},
            "zone": self.zone,
            "state": self.state,
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Worker:
        """The worker that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            return cls(
                id=str(data["id"]),
                address=str(data["address"]),
                node_id=str(data.get("node_id", "")),
                host_id=str(data.get("host_id", "")),
                weights={str(name): int(weight) for name, weight in data.get("weights", {}).items()},
                stores={str(name): tuple(paths) for name, paths in data.get("stores", {}).items()},
                zone=str(data.get("zone", "")),
                # A state this version does not know is one in which the worker should not get new work.
                state="up" if data.get("state", "up") == "up" else "draining",
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RaycacheError("a membership holds something that is not a worker") from None


@dataclass(frozen=True)
class Membership:
    """The workers at one epoch.

    Args:
        epoch: grows with every change.
        workers: sorted by id.
        tables: partition table of each dataset, as `Placement.pack` makes it; kept packed, because most who
            pass a membership on never look anything up in it.
        former: for each dataset, who owned its partitions before (`raycache.former`), packed, the latest first.
    """

    epoch: int = 0
    workers: tuple[Worker, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def worker(self, worker_id: str) -> Worker | None:
        """The worker of that id, or None if it is not a member."""
        return self._by_id.get(worker_id)

    @cached_property
    def _by_id(self) -> dict[str, Worker]:
        return {worker.id: worker for worker in self.workers}

    def placement(self, dataset: str) -> Placement | None:
        """Who owns what of a dataset; None if no worker does."""
        table = self.tables.get(dataset)
        return None if table is None else _unpacked(table)

    def former_placements(self, dataset: str) -> list[Placement]:
        """Who owned what of a dataset before, the latest first; `former.NOBODY` where nobody is known."""
        return [_unpacked(table) for table in self.former.get(dataset, ())]

    def workers_for(self, dataset: str) -> list[Worker]:
        """Workers that hold a dataset, draining ones included: they still answer."""
        return [worker for worker in self.workers if dataset in worker.weights]

    def weights_for(self, dataset: str) -> dict[str, int]:
        """Weight (bytes of quota) of each worker that may own parts of a dataset: the input of placement."""
        return {
            worker.id: worker.weights[dataset]
            for worker in self.workers
            if worker.state == "up" and worker.weights.get(dataset, 0) > 0
        }

    def on_host(self, host_id: str) -> list[Worker]:
        """Workers on a machine; none if its identity is unknown ("")."""
        return [worker for worker in self.workers if host_id and worker.host_id == host_id]

    def with_worker(self, worker: Worker) -> Membership:
        """The next membership: `worker` joined, or replaced the entry of its id."""
        if self.worker(worker.id) == worker:
            return self
        return self._with([*(other for other in self.workers if other.id != worker.id), worker])

    def without_worker(self, worker_id: str) -> Membership:
        """The next membership: a worker left."""
        if self.worker(worker_id) is None:
            return self
        return self._with(worker for worker in self.workers if worker.id != worker_id)

    def draining(self, worker_id: str) -> Membership:
        """The next membership: a worker announced that it will leave."""
        worker = self.worker(worker_id)
        return self if worker is None else self.with_worker(replace(worker, state="draining"))

    def rebalanced(self) -> Membership:
        """The next membership: every dataset placed on the workers that hold it now, as little moved as can be.

        Adding and removing workers does not do this by itself, so that several changes cost one move, and a
        worker that is only away for a moment costs none: readers go on to the next candidate meanwhile.
        """
        tables = {}
        for dataset in sorted({dataset for worker in self.workers for dataset in worker.weights}):
            weights = self.weights_for(dataset)
            if weights:
                tables[dataset] = rebalance(self.placement(dataset), weights).pack()
        return self.with_tables(tables)

    def with_tables(self, tables: Mapping[str, str], returning: Collection[str] = ()) -> Membership:
        """The next membership: these are the tables, and who owned what before is remembered.

        Args:
            tables: packed, by dataset.
            returning: ids of workers that are away and may come back.
        """
        members = {worker.id for worker in self.workers} | set(returning)
        former = {}
        for dataset, table in tables.items():
            if dataset not in self.former and self.tables.get(dataset, table) == table:
                continue
            known = self.former_placements(dataset)
            owners = former_owners(known, self.placement(dataset), _unpacked(table), members)
            if owners:
                former[dataset] = tuple(one.pack() for one in owners)
        if tables == dict(self.tables) and former == dict(self.former):
            return self
        return replace(self, epoch=self.epoch + 1, tables=dict(tables), former=former)

    def restarted(self, old_id: str, worker: Worker) -> Membership:
        """The next membership: `worker` took the place of `old_id` and its disks, so nothing moves."""
        tables = {
            dataset: _unpacked(table).renamed(old_id, worker.id).pack()
            for dataset, table in self.tables.items()
        }
        former = {
            dataset: tuple(_unpacked(table).renamed(old_id, worker.id).pack() for table in owners)
            for dataset, owners in self.former.items()
        }
        workers = [other for other in self.workers if other.id not in (old_id, worker.id)]
        return replace(self, tables=tables, former=former)._with([*workers, worker])

    def _with(self, workers: Iterable[Worker]) -> Membership:
        ordered = tuple(sorted(workers, key=lambda worker: worker.id))
        return replace(self, epoch=self.epoch + 1, workers=ordered)

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "epoch": self.epoch,
            "workers": [worker.to_wire() for worker in self.workers],
            "tables": dict(self.tables),
            "former": {dataset: list(tables) for dataset, tables in self.former.items()},
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Membership:
        """The membership that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            workers = tuple(Worker.from_wire(worker) for worker in data["workers"])
            tables = {str(dataset): str(table) for dataset, table in data.get("tables", {}).items()}
            former = {
                str(dataset): tuple(str(table) for table in tables)
                for dataset, tables in data.get("former", {}).items()
            }
            ordered = tuple(sorted(workers, key=lambda worker: worker.id))
            return cls(int(data["epoch"]), ordered, tables, former)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RaycacheError("an answer is not a valid membership") from None


@functools.lru_cache(maxsize=64)
def _unpacked(table: str) -> Placement:
    return Placement.unpack(table)
