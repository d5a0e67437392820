"""A node's worker without Ray: an engine, its Flight server, and the stores of the datasets it holds."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from raycache.access import Gate
from raycache.actors import cluster_state, host, signing, tier_reports, volumes
from raycache.actors import kv as keys
from raycache.actors.kv import Kv, get_json
from raycache.actors.mounting import Mounter, NodeMounts, run_program
from raycache.actors.tuning import Tuning
from raycache.actors.volumes import LocalVolume, Purge
from raycache.engine import Engine, EngineService, Leaving, Peers
from raycache.errors import ClusterUnavailableError, RaycacheError, to_wire
from raycache.flight import FlightServer, PeerPool
from raycache.invalidations import Invalidations
from raycache.membership import Membership, Worker
from raycache.metrics import Metrics
from raycache.settings import Settings
from raycache.spec import ResolvedDataset

log = logging.getLogger(__name__)


class NodeWorker:
    """What a cache worker does. Thread-safe.

    Args:
        kv: the cluster's key-value store.
        node_id: Ray node id.
        address: IP address, or name, to listen on.
        mounter: mounts the datasets that have a `mountPath`.

    Raises:
        ClusterUnavailableError: the cluster has no token: raycache was not started on it, or is being stopped.
    """

    def __init__(self, kv: Kv, node_id: str, address: str, mounter: Mounter = run_program) -> None:
        token = kv.get(keys.TOKEN)
        if token is None:
            raise ClusterUnavailableError("raycache is not started on this Ray cluster")
        settings = Settings.from_environ()
        self.id = f"{node_id[:8]}-{uuid.uuid4().hex[:8]}"
        self._kv = kv
        self._node_id = node_id
        self._started = time.time()
        self._lock = threading.Lock()
        """One change of what is attached at a time."""
        self._taking = threading.Lock()
        """One state is taken at a time."""
        self._volumes: dict[str, LocalVolume] = {}
        self._leaving: dict[str, Leaving] = {}
        self._failures: dict[str, dict[str, Any]] = {}
        self._closed = False
        self._state: dict[str, Any] = {"membership": Membership().to_wire(), "datasets": {}}
        self.metrics = Metrics()
        self._peers = Peers(
            PeerPool(token.decode(), tls=settings.tls),
            Membership(),
            self_id=self.id,
            refresh=self._newer_membership,
        )
        self.engine = Engine(self._peers, self.metrics, Tuning.of(kv).policy.keep_s)
        self._guard = volumes.memory_guard(self.metrics)
        self._service = EngineService(self.engine, lambda: self._state)
        self._gate = Gate(
            token.decode(), others=settings.ray_tokens, keys=signing.read(kv), renew=partial(signing.read, kv)
        )
        self._server = FlightServer(
            address,
            actions=self._service.actions,
            stream=self._service.stream,
            gate=self._gate,
            tls=settings.tls,
        )
        self._mounts = NodeMounts(
            node_id, token.decode(), self._server.address, self._addresses_of_others, mounter
        )
        self._learn(-1)
        self._server.start()

    def ping(self, epoch: int, traffic: bool = False) -> dict[str, Any]:
        """Who this is and what it holds; takes the membership of `epoch` if it has not heard of it yet.

        Args:
            epoch: the latest there is.
            traffic: tell, too, what the autoscaler must know (`EngineService.traffic`); that takes some milliseconds.
        """
        if epoch > self._peers.membership.epoch:
            self._learn(self._peers.membership.epoch)
        volumes = dict(self._volumes)
        worker = Worker(
            id=self.id,
            address=self._server.address,
            node_id=self._node_id,
            host_id=host.host_id(),
            weights={name: volume.weight for name, volume in volumes.items()},
            stores={name: tuple(volume.paths) for name, volume in volumes.items()},
        )
        report = {"traffic": self._service.traffic()} if traffic else {}
        return {
            **report,
            "unheld": self._service.unheld(),
            "worker": worker.to_wire(),
            "pid": os.getpid(),
            "started": self._started,
            "generations": {name: volume.dataset.generation for name, volume in volumes.items()},
            "since": {name: volume.since for name, volume in volumes.items()},
            "failures": dict(self._failures),
            "leaving": {name: one.report().to_wire() for name, one in dict(self._leaving).items()},
            "mounts": self._mounts.report(),
            "memory": host.memory_size(),
            "yielding": {name: asdict(told) for name, told in self._guard.report().items()},
            "sick_tiers": tier_reports.sick({name: volume.store.usage() for name, volume in volumes.items()}),
        }

    def check(self, dataset: Mapping[str, Any]) -> dict[str, int]:
        """Bytes by medium that a dataset would take here. Raises SpecError if that is more than there is."""
        return volumes.check(ResolvedDataset.from_wire(dataset))

    def sync(self, wanted: Mapping[str, Mapping[str, Any]], purge: Purge = "everything") -> dict[str, Any]:
        """Hold exactly the datasets that are wanted.

        Args:
            wanted: datasets (`ResolvedDataset.wire`), by name.
            purge: what to remove of those that are not wanted any more.

        Returns:
            As `ping`. A dataset that could not be attached is in its `failures`. What is to be unmounted is; what is
            to be mounted will be, and `ping` tells when.
        """
        with self._lock:
            if self._closed:
                raise ClusterUnavailableError("the worker is stopping")
            datasets = {name: ResolvedDataset.from_wire(wire) for name, wire in wanted.items()}
            self._mounts.leave(datasets)
            for name in [name for name in self._volumes if name not in wanted]:
                self._detach(name, purge)
            self._failures = {}
            for name, dataset in datasets.items():
                try:
                    self._attach(dataset)
                except (RaycacheError, OSError) as error:
                    log.warning("dataset %s is not attached: %s", name, error)
                    known = (
                        error if isinstance(error, RaycacheError) else RaycacheError(str(error), where=name)
                    )
                    self._failures[name] = {"generation": dataset.generation, "error": to_wire(known)}
            # One that could not be attached too: it is read from other workers, or the store.
            self._mounts.want(datasets)
        return self.ping(-1)

    def leave(self, name: str, timeout_s: float, epoch: int) -> None:
        """Begin to move a dataset to the workers that own it as of `epoch`; `ping` tells how far it is. It is served
        on until `sync` takes it away.

        Args:
            name: of the dataset. Nothing happens if it is not held, or on its way already.
            timeout_s: seconds after which the rest is left behind.
            epoch: of a membership in which this worker owns nothing of it.
        """
        with self._lock:
            if self._closed or name not in self._volumes or name in self._leaving:
                return
            self._peers.catch_up(epoch)
            self._leaving[name] = Leaving(self.engine.volume(name), self._peers, timeout_s)

    def stay(self, name: str) -> None:
        """Go on to hold a dataset that was to be left. What has moved has moved."""
        with self._lock:
            leaving = self._leaving.pop(name, None)
        if leaving is not None:
            leaving.stop()

    def usage(self) -> dict[str, Any]:
        """Tiers, objects and counters, by dataset, as the Flight action of that name."""
        return self._service.usage()

    def sweep(self, datasets: Mapping[str, Mapping[str, Any]], purge: Purge) -> list[str]:
        """Remove what dead workers of this machine left of datasets; the directories that were emptied."""
        self._mounts.sweep(list(datasets))
        swept = []
        for wire in datasets.values():
            swept += volumes.sweep_left(ResolvedDataset.from_wire(wire), purge)
        return swept

    def stop(self, purge: Purge) -> None:
        """Finish, give everything up, and remove what `purge` says. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._mounts.close()
            self._server.close()
            self._guard.close()
            for name in list(self._volumes):
                self._detach(name, purge)
            self.engine.close()
            self._peers.close()

    def _attach(self, dataset: ResolvedDataset) -> None:
        volume = self._volumes.get(dataset.name)
        if volume is not None and volume.dataset == dataset:
            return
        if volume is not None and not volume.resize(dataset):
            # Other directories: what is cached cannot be kept, and must not be forgotten on the disk either.
            same_place = [t.path for t in volume.dataset.tiers] == [t.path for t in dataset.tiers]
            self._detach(dataset.name, "nothing" if same_place else "everything")
            volume = None
        if volume is None:
            volume = LocalVolume(dataset, self.metrics)
        self.engine.attach(dataset, volume.store)
        self._volumes[dataset.name] = volume
        self._guard.attach(dataset.name, volume.store, volume.memory)
        log.info("dataset %s (generation %d) attached", dataset.name, dataset.generation)

    def _detach(self, name: str, purge: Purge) -> None:
        volume = self._volumes.pop(name)
        self._guard.detach(name)
        leaving = self._leaving.pop(name, None)
        if leaving is not None:
            leaving.stop()
        self.engine.detach(name)
        volume.close(purge)
        log.info("dataset %s detached, %s removed", name, purge)

    def _addresses_of_others(self) -> dict[str, str]:
        workers = self._peers.membership.workers
        return {worker.node_id: worker.address for worker in workers if worker.node_id != self._node_id}

    def _newer_membership(self, known_epoch: int) -> Membership | None:
        self._learn(known_epoch)
        return self._peers.membership

    def _learn(self, known_epoch: int) -> None:
        """Read the published state, if it is newer."""
        epoch = get_json(self._kv, keys.EPOCH)
        if epoch is None or epoch <= known_epoch:
            return
        state = get_json(self._kv, keys.STATE)
        if state is not None:
            membership = Membership.from_wire(state["membership"])
            with self._taking:
                if membership.epoch < self._state["membership"]["epoch"]:
                    return  # another thread has read a newer one meanwhile
                self.engine.keep_up(membership.epoch, Invalidations.from_wire(state["invalidations"]))
                self._gate.take(signing.read(self._kv))
                self._state = cluster_state.without_secrets(state)
                self._peers.update(membership)
