"""The coordinator: one named, detached actor that takes orders and has them carried out. Never on the data path.

It can be killed at any time: everything it must know is in the GCS, reads go on without it, and Ray restarts
it. Its parts do the work: `catalog` (what is applied), `reconciler` (workers), `loads`, `scan`, `views` (what
`get` and `describe` show).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import ray

import raycache
from raycache.access import EVERY, TokenClaims, Verb
from raycache.actors import kv as keys
from raycache.actors import mount_reports, rows, tier_reports
from raycache.actors.answers import answered
from raycache.actors.catalog import Catalog, Change, document_from_wire
from raycache.actors.events import Events
from raycache.actors.kv import RayKv, get_json, put_json
from raycache.actors.loads import Loads
from raycache.actors.reconciler import Reconciler
from raycache.actors.reservation import release_all
from raycache.actors.scan import Scans
from raycache.actors.signing import Signing
from raycache.actors.views import DOCUMENT_KINDS, Views
from raycache.actors.volumes import Purge
from raycache.client import Client, ClusterState
from raycache.errors import (
    NotFoundError,
    OperationFailedError,
    RaycacheError,
    SpecError,
    WorkerUnavailableError,
)
from raycache.settings import NAMESPACE, Settings
from raycache.spec import DataLoad, Document, ResolvedDataset, TierSpec
from raycache.ufs import DatasetSource

log = logging.getLogger(__name__)

NAME = "raycache-coordinator"
CONCURRENCY = 32
"""Calls served at a time; most of them only look."""

SETTLE_S = 60.0
"""Longest wait of an apply or a delete for the workers to follow; they go on after it."""

EVICT_TIMEOUT_S = 120.0

TELL_S = 5.0
"""Longest wait of an invalidation for the workers to say that they have heard of it; those late hear of it from
whoever asks them."""

HEARD_S = 2.0
"""Seconds after which everybody has heard of an invalidation who looks every second, as clients
(`peers.REFRESH_INTERVAL_S`) and mounts (`fuse.server.LOOK_S`) do."""
STOP_TIMEOUT_S = 60.0


class Coordinator:
    """See above. Takes no arguments; `configure` tells it the cluster's defaults, which it keeps in the GCS."""

    def __init__(self) -> None:
        logging.getLogger("raycache").setLevel(Settings.from_environ().log_level)
        self._started = time.time()
        self._kv = RayKv()
        if self._kv.get(keys.TOKEN) is None:
            self._kv.put(keys.TOKEN, secrets.token_urlsafe(32).encode())
        self._applying = threading.Lock()
        """One change of the catalog at a time."""
        stored = get_json(self._kv, keys.DOCUMENTS)
        self._catalog = Catalog() if stored is None else Catalog.from_wire(stored)
        self._datasets = self._catalog.datasets()
        self._events = Events()
        self._reconciler = Reconciler(self._kv, self._events)
        self._reconciler.want(self._datasets)
        self._token = (self._kv.get(keys.TOKEN) or b"").decode()
        self._signing = Signing(self._kv)
        self._scans = Scans()
        self._loads = Loads(self._kv, self._events, self._connect, self._await_holders)
        self._views = Views(self._reconciler, self._loads, self._scans, self._events)
        self._reconciler.start()
        self._scans.want(self._datasets)
        self._loads.resume()

    # -- orders -------------------------------------------------------------------------------------------

    @answered
    def configure(self, default_tiers: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, Any]:
        """Take the cluster's default tiers (none: leave them), and wait until every node has its worker."""
        if default_tiers:
            tiers = [TierSpec.model_validate(tier) for tier in default_tiers]
            with self._applying:
                self._take(self._catalog.with_default_tiers(tiers))
        self._reconciler.look(timeout_s)
        self._reconciler.wait(self._reconciler.staffed, timeout_s)
        seats = self._reconciler.seats()
        return {
            "nodes": len(seats),
            "workers": sum(seat.report is not None for seat in seats),
            "problems": {seat.node.id: seat.trouble for seat in seats if seat.trouble},
        }

    @answered
    def apply(self, wires: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Make documents so: all of them, or, if one cannot be, none."""
        documents = [document_from_wire(wire) for wire in wires]
        with self._applying:
            catalog, changes = self._catalog.applied(
                [document for document in documents if document.kind != "DataLoad"], time.time()
            )
            datasets = catalog.datasets()
            self._check_loads(documents, datasets)
            changed = {n: d for n, d in datasets.items() if self._datasets.get(n) != d}
            empty = self._check(changed)
            self._take(catalog)
            changes += [self._start_load(d) for d in documents if d.kind == "DataLoad"]
        self._reconciler.wait(lambda: self._reconciler.settled(changed), SETTLE_S)
        warnings = {name: empty[name] + self._not_held(name) for name in changed}
        for change in changes:
            if change.action != "unchanged":
                self._events.add(change.kind, change.name, change.action.capitalize(), "by an apply")
        order = {(d.kind, d.name): position for position, d in enumerate(documents)}
        changes = [
            replace(c, warnings=c.warnings + warnings.get(c.name, ())) if c.kind == "Dataset" else c
            for c in sorted(changes, key=lambda c: order[c.kind, c.name])
        ]
        return [c.to_wire() for c in changes]

    @answered
    def delete(self, kind: str, name: str) -> None:
        """Delete an object; of a dataset, what is cached of it too."""
        if kind == "loads":
            self._loads.delete(name)
            return
        document_kind = DOCUMENT_KINDS[kind]
        with self._applying:
            dataset = self._datasets.get(name)
            self._take(self._catalog.without(document_kind, name))
        self._events.forget(document_kind, name)
        if document_kind == "Dataset" and dataset is not None:
            self._loads.delete_of(name)
            self._reconciler.wait(lambda: self._reconciler.released(name), SETTLE_S)
            self._reconciler.ask_workers("sweep", {name: dataset.wire()}, "everything", timeout_s=SETTLE_S)

    @answered
    def load(self, name: str, dataset: str, spec: Mapping[str, Any]) -> str:
        """Start a load; what became of it (`Loads.submit`)."""
        self._catalog.entry("Dataset", dataset)
        return self._loads.submit(name, dataset, spec)

    @answered
    def evict(self, dataset: str, path: str) -> int:
        """Drop what is cached at and below a path, everywhere; bytes freed."""
        self._catalog.entry("Dataset", dataset)
        freed = 0
        with closing(self._connect()) as client:
            for worker in client.peers.membership.workers_for(dataset):
                try:
                    payload = {"dataset": dataset, "path": path}
                    freed += int(client.peers.call(worker, "evict", payload, EVICT_TIMEOUT_S)["bytes"])
                except WorkerUnavailableError as error:
                    log.warning("nothing evicted at %s: %s", worker.address, error)
        return freed

    @answered
    def invalidate(self, dataset: str, paths: Sequence[str], wait: bool) -> dict[str, str]:
        """Have everybody forget the names at and below paths; nodes whose worker did not say that it has, and why.

        Args:
            dataset: name of the dataset.
            paths: in it; "" is all of it.
            wait: until who is not told, but looks, has heard of it.
        """
        self._catalog.entry("Dataset", dataset)
        epoch = self._reconciler.announce(SETTLE_S, [(dataset, path) for path in paths])
        published = time.monotonic()
        late = self._tell(epoch)
        if wait:
            time.sleep(max(0.0, published + HEARD_S - time.monotonic()))
        return late

    @answered
    def issue_token(self, name: str, datasets: Sequence[str], verbs: Sequence[Verb], ttl_s: float) -> str:
        """A signed token for callers outside the Ray cluster; see `access.TokenClaims`."""
        claims = TokenClaims(tuple(datasets), tuple(verbs), ttl_s, name)
        for dataset in set(datasets) - {EVERY}:
            self._catalog.entry("Dataset", dataset)
        return self._signing.keys.issue(claims)

    @answered
    def signing_keys(self) -> dict[str, float]:
        """When each key was made, seconds since the epoch, by its id; the last one signs."""
        return self._signing.keys.ages

    @answered
    def change_keys(self, drop: str | None, revoke: bool) -> dict[str, str]:
        """Drop a key, or sign with a new one from now on (`revoke`: and drop all others).

        Returns:
            The nodes whose worker did not say that it has heard of it, and why.
        """
        if drop is None:
            self._signing.rotate(revoke)
        else:
            self._signing.drop(drop)
        return self._tell(self._reconciler.announce(SETTLE_S))

    @answered
    def drain(self, node: str, timeout_s: float) -> str:
        """Have a node's worker move what it holds to the others and end. Returns the node's id.

        Args:
            node: its id, or the beginning of it, or the id of its worker.
            timeout_s: seconds after which the rest is left behind.
        """
        node_id = self._node(node)
        self._reconciler.departures.drain(node_id, timeout_s)
        self._events.add("Worker", node_id, "Draining", f"within {timeout_s:g} s")
        self._reconciler.look(SETTLE_S)
        return node_id

    @answered
    def undrain(self, node: str) -> str:
        """Let a drained node hold datasets again. Returns the node's id."""
        node_id = self._node(node)
        if not self._reconciler.departures.undrain(node_id):
            by_ray = node_id in self._reconciler.departures.drains
            raise NotFoundError(
                "Ray drains this node, and cannot be asked not to" if by_ray else "the node is not drained",
                where=node_id,
            )
        self._events.add("Worker", node_id, "Undrained", "it may hold datasets again")
        self._reconciler.look(SETTLE_S)
        return node_id

    @answered
    def drained(self, node_id: str) -> dict[str, Any] | None:
        """How far the drain of a node is; None if it is not drained, or not there any more."""
        drain = self._reconciler.departures.drains.get(node_id)
        return None if drain is None else drain.to_wire()

    @answered
    def scale(self, dataset: str, replicas: Any) -> dict[str, Any]:
        """Change on how many nodes a dataset is held, and nothing else of its spec. Returns the change."""
        with self._applying:
            catalog, change = self._catalog.scaled(dataset, replicas, time.time())
            self._take(catalog)
        wanted = {dataset: self._datasets[dataset]}
        self._reconciler.wait(lambda: self._reconciler.settled(wanted), SETTLE_S)
        self._events.add("Dataset", dataset, "Scaled", f"to {replicas} nodes")
        return replace(change, warnings=change.warnings + self._not_held(dataset)).to_wire()

    @answered
    def stop(self, purge: bool) -> dict[str, Any]:
        """End all workers: memory is given back, disks are kept unless `purge`. The caller then kills this actor."""
        what: Purge = "everything" if purge else "memory"
        with self._applying:
            self._reconciler.close()
            self._loads.close()
            self._scans.close()
            wires = {name: dataset.wire() for name, dataset in self._datasets.items()}
            swept = self._reconciler.ask_workers("sweep", wires, what, timeout_s=STOP_TIMEOUT_S)
            stopped = self._reconciler.ask_workers("stop", what, timeout_s=STOP_TIMEOUT_S)
            for seat in self._reconciler.seats():
                seat.dismiss()
            self._reconciler.asking.want([])
            release_all()
            put_json(self._kv, keys.LAST, self._reconciler.membership.to_wire())
            for key in keys.RUNNING:
                self._kv.delete(key)
        problems = {
            node: str(error) for node, error in (swept | stopped).items() if isinstance(error, Exception)
        }
        return {"workers": len(stopped), "problems": problems}

    # -- questions ----------------------------------------------------------------------------------------

    @answered
    def get(self, kind: str, name: str | None) -> list[dict[str, Any]]:
        """Rows of a kind, or of one object."""
        return self._views.get(self._catalog, self._datasets, kind, name)

    @answered
    def describe(self, kind: str, name: str) -> dict[str, Any]:
        """Everything about one object, without secrets."""
        return self._views.describe(self._catalog, self._datasets, kind, name)

    @answered
    def status(self) -> dict[str, Any]:
        """How the cluster is."""
        seats = self._reconciler.seats()
        context = ray.get_runtime_context()
        return {
            "version": raycache.__version__,
            "ray_version": ray.__version__,
            "ray_address": context.gcs_address,
            "epoch": self._reconciler.membership.epoch,
            "coordinator": {
                "node_id": context.get_node_id(),
                "pid": os.getpid(),
                "started": self._started,
                "restarted": bool(context.was_current_actor_reconstructed),
            },
            "nodes": len(seats),
            "workers": sum(seat.report is not None for seat in seats),
            "datasets": len(self._datasets),
            "loads": sum(not load.ended for load in self._loads.all()),
            "problems": {
                seat.node.id: told
                for seat in seats
                if (told := seat.trouble or tier_reports.problem(seat.report))
            },
        }

    # -- inside -------------------------------------------------------------------------------------------

    def _tell(self, epoch: int) -> dict[str, str]:
        """Have the workers hear of an epoch now; the nodes whose worker did not say that it has, and why."""
        answers = self._reconciler.ask_workers("ping", epoch, timeout_s=TELL_S)
        return {node: str(answer) for node, answer in answers.items() if isinstance(answer, RaycacheError)}

    def _take(self, catalog: Catalog) -> None:
        """Make a catalog the one that holds: stored first, then carried out. `_applying` is held."""
        put_json(self._kv, keys.DOCUMENTS, catalog.to_wire())
        self._catalog, self._datasets = catalog, catalog.datasets()
        self._reconciler.want(self._datasets)
        self._scans.want(self._datasets)

    def _check(self, datasets: Mapping[str, ResolvedDataset]) -> dict[str, tuple[str, ...]]:
        """See that datasets can be read and held, before anything changes. Raises what is wrong with one.

        Returns:
            Warnings, by dataset, of mounts that hold nothing: a misspelt prefix looks like that.
        """
        self._reconciler.recall(datasets)
        self._reconciler.wait(self._reconciler.staffed, SETTLE_S)

        def check(dataset: ResolvedDataset) -> tuple[str, ...]:
            with closing(DatasetSource(dataset)) as source:
                empty = source.check()
            self._reconciler.check(dataset)
            return tuple(
                f"dataset {dataset.name}: there is nothing (yet) in {uri}; is the mount point right?"
                for uri in empty
            )

        with ThreadPoolExecutor(8, thread_name_prefix="raycache-check") as pool:
            futures = {name: pool.submit(check, dataset) for name, dataset in datasets.items()}
            return {name: future.result() for name, future in futures.items()}

    def _not_held(self, name: str) -> tuple[str, ...]:
        """Warnings of nodes that do not hold a dataset, or have not mounted it."""
        seats = self._reconciler.seats()
        held = rows.by_reason(name, "cached", self._reconciler.problems(name))
        return held + rows.by_reason(name, "mounted", mount_reports.problems(name, seats))

    def _check_loads(self, documents: Sequence[Document], datasets: Mapping[str, ResolvedDataset]) -> None:
        for document in documents:
            model = document.model
            if isinstance(model, DataLoad) and model.spec.dataset.name not in datasets:
                known = ", ".join(sorted(datasets)) or "none"
                raise SpecError(
                    f"no dataset {model.spec.dataset.name!r}",
                    where=f"{document.where}: spec.dataset.name",
                    hint=f"apply it first, or in the same file; applied are: {known}",
                )

    def _start_load(self, document: Document) -> Change:
        model = document.model
        assert isinstance(model, DataLoad)
        spec = {
            "target": [{"path": target.path, "replicas": target.replicas} for target in model.spec.target],
            "loadMetadata": model.spec.load_metadata,
        }
        action = self._loads.submit(document.name, model.spec.dataset.name, spec)
        return Change("DataLoad", document.name, action, tuple(document.warnings))  # type: ignore[arg-type]

    def _node(self, name: str) -> str:
        """The id of the one node that is meant. Raises NotFoundError."""
        found = [
            seat.node.id
            for seat in self._reconciler.seats()
            if seat.node.id.startswith(name) or (seat.report and seat.report["worker"]["id"] == name)
        ]
        if len(found) != 1 or not name:
            what = "more than one node's id begins so" if len(found) > 1 else "no such node"
            raise NotFoundError(what, where=name, hint="see `raycache get workers -o wide`")
        return found[0]

    def _dataset(self, name: str) -> ResolvedDataset:
        self._catalog.entry("Dataset", name)
        return self._datasets[name]

    def _await_holders(self, name: str) -> None:
        """Wait until a load of a dataset makes sense: its workers have it, as far as they can, and those that have just
        been lost are back, or given up: all nodes are more than those that are there at this moment."""
        dataset = {name: self._dataset(name)}
        reconciler = self._reconciler
        if reconciler.scaling.wake(name):
            reconciler.wait(lambda: bool(reconciler.holders(name) or reconciler.problems(name)), SETTLE_S)
        reconciler.wait(lambda: reconciler.all_back() and reconciler.settled(dataset), SETTLE_S)
        if not self._reconciler.holders(name):
            problems = "; ".join(sorted(set(self._reconciler.problems(name).values())))
            raise OperationFailedError(
                f"no worker holds the dataset{': ' + problems if problems else ''}",
                where=name,
                hint="see `raycache describe dataset`",
            )

    def _connect(self) -> Client:
        """A client of this cluster: for names and for asking workers. Close it."""
        return Client(self._state(), refresh=self._state_if_newer)

    def _state(self) -> ClusterState:
        membership, invalidations = self._reconciler.membership, self._reconciler.invalidations
        return ClusterState(membership, self._datasets, self._token, invalidations)

    def _state_if_newer(self, known_epoch: int) -> ClusterState | None:
        return None if self._reconciler.membership.epoch == known_epoch else self._state()


def start_coordinator() -> Any:
    """The cluster's coordinator, started if it does not run. Returns its actor handle."""
    return (
        ray.remote(Coordinator)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CONCURRENCY,
        )
        .remote()
    )
