"""What `get` and `describe` answer: rows and details, of what is applied and what the workers report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycache.actors import loads, mount_reports, rows
from raycache.actors.catalog import Catalog
from raycache.actors.events import Events
from raycache.actors.loads import Loads
from raycache.actors.reconciler import Reconciler
from raycache.actors.scan import Scans
from raycache.errors import NotFoundError, RaycacheError
from raycache.spec import ResolvedDataset

RETIRED = "the node holds nothing; a worker is started when it is to"

DOCUMENT_KINDS = {"datasets": "Dataset", "runtimes": "CacheRuntime", "secrets": "Secret"}


class Views:
    """Thread-safe; changes nothing.

    Args:
        reconciler: knows the workers.
        loads, scans, events: what else there is to tell.
    """

    def __init__(self, reconciler: Reconciler, loads: Loads, scans: Scans, events: Events) -> None:
        self._reconciler = reconciler
        self._loads = loads
        self._scans = scans
        self._events = events

    def get(
        self, catalog: Catalog, datasets: Mapping[str, ResolvedDataset], kind: str, name: str | None
    ) -> list[dict[str, Any]]:
        """Rows of a kind, or of one object.

        Args:
            catalog, datasets: what is applied.
            kind: `datasets`, `runtimes`, `secrets`, `loads` or `workers`.
            name: of the object; None for all.

        Raises:
            NotFoundError: there is no such object.
        """
        if kind == "loads":
            return [loads.row(load) for load in ([self._loads.get(name)] if name else self._loads.all())]
        if kind == "workers":
            found = self._worker_rows()
            if name:
                found = [row for row in found if name in (row["id"], row["node_id"])]
                if not found:
                    raise NotFoundError("no such worker", where=name, hint="see `raycache get workers`")
            return found
        document_kind = DOCUMENT_KINDS[kind]
        if name is not None:
            catalog.entry(document_kind, name)
        entries = {n: e for n, e in catalog.of_kind(document_kind).items() if name in (None, n)}
        if kind == "runtimes":
            return [rows.runtime_row(n, entry) for n, entry in entries.items()]
        if kind == "secrets":
            return [rows.secret_row(n, entry) for n, entry in entries.items()]
        self._scans.want(datasets)
        usages = self._usages()
        return [
            self._dataset_row(datasets[n], e.created, usages) for n, e in entries.items() if n in datasets
        ]

    def describe(
        self, catalog: Catalog, datasets: Mapping[str, ResolvedDataset], kind: str, name: str
    ) -> dict[str, Any]:
        """Everything about one object, without secrets. Arguments and errors as of `get`."""
        if kind == "loads":
            load = self._loads.get(name)
            spec = {"dataset": load.dataset, **load.spec}
            return self._described("DataLoad", name, spec, loads.row(load))
        if kind == "workers":
            found = [row for row in self._worker_rows() if name in (row["id"], row["node_id"])]
            if not found:
                raise NotFoundError("no such worker", where=name, hint="see `raycache get workers`")
            return self._described("Worker", name, {}, found[0])
        document_kind = DOCUMENT_KINDS[kind]
        entry = catalog.entry(document_kind, name)
        spec = entry.model.public().get("spec") or {}
        if kind == "runtimes":
            return self._described(document_kind, name, spec, rows.runtime_row(name, entry))
        if kind == "secrets":
            return self._described(document_kind, name, spec, rows.secret_row(name, entry))
        dataset = datasets[name]
        usages = self._usages()
        described = self._described(
            document_kind, name, spec, self._dataset_row(dataset, entry.created, usages)
        )
        described["resolved"] = dataset.public()
        described["warnings"] = list(entry.warnings)
        described["problems"] = self._reconciler.problems(name)
        scaling = self._reconciler.scaling.described(name)
        if scaling is not None:
            described["autoscaling"] = scaling
        if dataset.mount_path:
            described["mount"] = mount_reports.summary(dataset, self._reconciler.seats())
        described["workers"] = [
            {
                "node_id": seat.node.id,
                "id": seat.report["worker"]["id"] if seat.report else "",
                **usages.get(seat.node.id, {"datasets": {}})["datasets"].get(name, {}),
            }
            for seat in self._reconciler.holders(name)
        ]
        return described

    def _usages(self) -> dict[str, Any]:
        answers = self._reconciler.ask_workers("usage")
        return {node: usage for node, usage in answers.items() if not isinstance(usage, RaycacheError)}

    def _dataset_row(
        self, dataset: ResolvedDataset, created: float, usages: Mapping[str, Any]
    ) -> dict[str, Any]:
        phase = rows.phase_of(
            dataset,
            [seat.node for seat in self._reconciler.seats()],
            len(self._reconciler.holders(dataset.name)),
            self._reconciler.settled({dataset.name: dataset}),
            self._reconciler.problems(dataset.name),
        )
        return rows.dataset_row(dataset, created, self._scans.row(dataset.name), usages, phase)

    def _worker_rows(self) -> list[dict[str, Any]]:
        usages = self._usages()
        return [
            rows.worker_row(seat.node, seat.report, seat.trouble, usages.get(seat.node.id))
            | {"mounts": mount_reports.of_worker(seat)}
            | ({"state": "retired", "reason": RETIRED} if seat.node.id in self._reconciler.retiring else {})
            | rows.leaving(seat.node.id, seat.report, self._reconciler.departures)
            for seat in self._reconciler.seats()
        ]

    def _described(
        self, kind: str, name: str, spec: Mapping[str, Any], status: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "kind": kind,
            "name": name,
            "spec": dict(spec),
            "status": dict(status),
            "events": self._events.of(kind, name),
        }
