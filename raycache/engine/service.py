"""An engine on the wire: what a worker answers to other workers and to clients over Flight."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from raycache import metrics as m
from raycache import wire
from raycache.blocks import ObjectVersion, clean_path
from raycache.engine import holdings
from raycache.engine.engine import Engine, Keep
from raycache.engine.metadata import ttl_to_wire
from raycache.engine.tracker import Tracker
from raycache.engine.traffic import Traffic
from raycache.errors import DatasetNotFoundError, ElsewhereError, RaycacheError

Answer = dict[str, Any]

UNHELD_S = 60.0
"""Seconds for which it is told that somebody read a dataset that is not held here."""


class EngineService:
    """The actions and the stream that a worker's Flight server offers.

    Args:
        engine: serves them.
        state: the cluster's state for a client outside Ray: membership and datasets, without any secret.
    """

    def __init__(self, engine: Engine, state: Callable[[], Answer]) -> None:
        self._engine = engine
        self._state = state
        self._started = time.time()
        self.tracker = Tracker(engine.peers.reachable)
        self._unheld: dict[str, float] = {}

    @property
    def actions(self) -> Mapping[str, Callable[[dict[str, Any]], Answer]]:
        """Name of each action, with the function that answers it."""
        handlers = {
            "state": self._get_state,
            "info": self._info,
            "list": self._list,
            "ensure": self._ensure,
            "release": self._release,
            "cached": self._cached,
            "holdings": self._holdings,
            "present": self._present,
            "take": self._take,
            "recheck": self._recheck,
            "reads": self._reads,
            "evict": self._evict,
            "invalidate": self._invalidate,
            "usage": self._usage,
        }
        return {name: self._with_epoch(handler) for name, handler in handlers.items()}

    def stream(self, ticket: dict[str, Any]) -> Iterator[tuple[int, memoryview]]:
        """The blocks a ticket asks for, each with its CRC32C. Raises what `Engine.stream` raises."""
        request = wire.StreamTicket.from_wire(ticket)
        traffic = self._engine.volume(request.version.dataset).traffic
        if request.held:
            return traffic.sent(self._engine.stream_held(request.version, request.blocks, request.arriving))
        traffic.read()
        self._engine.peers.catch_up(request.epoch)
        return self._as_owner(request, traffic)

    def _as_owner(self, request: wire.StreamTicket, traffic: Traffic) -> Iterator[tuple[int, memoryview]]:
        version, blocks = request.version, request.blocks
        asker = request.asker if self._engine.peers.membership.worker(request.asker) else ""
        if request.missed:
            self.tracker.missed(version.object_id, blocks, request.missed)
        shares = request.shares and not request.missed
        with self.tracker.request(version.object_id, blocks, asker, shares) as named:
            if named:
                self._engine.metrics.add(m.REDIRECTS)
                raise ElsewhereError.at(named)
            yield from traffic.sent(self._engine.stream(version, blocks, hop=request.hops > 0))

    def traffic(self) -> Answer:
        """What the autoscaler must know of the datasets that it scales (`Traffic.report`), by name."""
        reports = {}
        membership = self._engine.peers.membership
        for volume in self._engine.volumes:
            if volume.dataset.autoscaled:
                name = volume.dataset.name
                room = sum(membership.weights_for(name).values())
                hit, missed = self._engine.reads(name)
                reports[name] = volume.traffic.report(volume.store, room, max(0, hit), max(0, missed))
        return reports

    def unheld(self) -> dict[str, float]:
        """Datasets that somebody reads and this worker does not hold, with the seconds since it was told so."""
        now = time.monotonic()
        self._unheld = {name: at for name, at in self._unheld.items() if now - at < UNHELD_S}
        return {name: now - at for name, at in self._unheld.items()}

    def usage(self) -> Answer:
        """Tiers, counters and totals of this worker, by dataset."""
        datasets = {}
        for volume in self._engine.volumes:
            objects = volume.store.objects()
            hit, missed = self._engine.reads(volume.dataset.name)
            datasets[volume.dataset.name] = {
                "generation": volume.dataset.generation,
                "tiers": [asdict(tier) for tier in volume.store.usage()],
                "primary_bytes": sum(o.bytes_cached for o in objects if not o.secondary),
                "secondary_bytes": sum(o.bytes_cached for o in objects if o.secondary),
                "objects": len(objects),
                "hit_bytes": max(0, hit),
                "missed_bytes": max(0, missed),
            }
        return {
            "pid": os.getpid(),
            "started": self._started,
            "datasets": datasets,
            "metrics": self._engine.metrics.snapshot(),
        }

    def _with_epoch(self, handler: Callable[[dict[str, Any]], Answer]) -> Callable[[dict[str, Any]], Answer]:
        # Every answer tells the epoch, so that whoever talks to any worker learns of changes without asking.
        def answer(payload: dict[str, Any]) -> Answer:
            return {**handler(payload), "epoch": self._engine.peers.membership.epoch}

        return answer

    def _get_state(self, payload: dict[str, Any]) -> Answer:
        known_epoch = int(payload.get("known_epoch", -1))
        if known_epoch < 0:  # who connects now is to see what was invalidated before, heard of here or not
            self._engine.peers.look()
        if known_epoch == self._engine.peers.membership.epoch:
            return {}
        return self._state()

    def _info(self, payload: dict[str, Any]) -> Answer:
        as_of = self._caught_up(payload)
        info, ttl = self._engine.info(
            payload["dataset"], clean_path(payload["path"]), bool(payload.get("hop"))
        )
        return {"info": info.to_wire(), "ttl": ttl_to_wire(ttl), "as_of": as_of}

    def _list(self, payload: dict[str, Any]) -> Answer:
        as_of = self._caught_up(payload)
        infos, ttl = self._engine.list(
            payload["dataset"], clean_path(payload["path"]), bool(payload.get("hop"))
        )
        return {"infos": [info.to_wire() for info in infos], "ttl": ttl_to_wire(ttl), "as_of": as_of}

    def _caught_up(self, payload: dict[str, Any]) -> int:
        """The epoch up to which what was invalidated is forgotten here: the asker's, if that can be had."""
        self._engine.peers.catch_up(int(payload.get("epoch", 0)))
        return self._engine.volume(payload["dataset"]).metadata.epoch

    def _ensure(self, payload: dict[str, Any]) -> Answer:
        version = wire.version_from_wire(payload.get("version"))
        blocks, ahead = _blocks(version, payload, "blocks"), _blocks(version, payload, "ahead")
        patience_s = payload.get("patience")
        keep = Keep(payload["keep"], _blocks(version, payload, "kept")) if payload.get("keep") else None
        absent = self._engine.absent(version, blocks, ahead)
        self._engine.volume(version.dataset).traffic.read()
        ready = self._engine.ensure(version, blocks, ahead, patience_s, keep)
        return {"ready": ready, "absent": [[run.start, run.stop] for run in absent]}

    def _release(self, payload: dict[str, Any]) -> Answer:
        self._engine.volume(payload["dataset"]).store.release(payload["load"])
        return {}

    def _cached(self, payload: dict[str, Any]) -> Answer:
        # Each item is a version, with the range of its blocks that is asked for ("blocks"; absent: all).
        counts = []
        for item in payload["items"]:
            version = wire.version_from_wire(item.get("version"))
            blocks = _blocks(version, item, "blocks") if "blocks" in item else None
            counts.append(self._engine.cached_bytes(version, blocks))
        return {"bytes": counts}

    def _holdings(self, payload: dict[str, Any]) -> Answer:
        roots = [clean_path(path) for path in payload["paths"][: holdings.MAX_ROOTS]]
        store = self._engine.volume(payload["dataset"]).store
        return {"held": [one.to_wire() for one in holdings.held(store, roots)]}

    def _present(self, payload: dict[str, Any]) -> Answer:
        version = wire.version_from_wire(payload.get("version"))
        found = self._engine.present(version, _blocks(version, payload, "blocks"))
        return {"runs": [[run.start, run.stop] for run in found]}

    def _take(self, payload: dict[str, Any]) -> Answer:
        version = wire.version_from_wire(payload.get("version"))
        self._engine.peers.catch_up(int(payload.get("epoch", 0)))
        return self._engine.take(version, _blocks(version, payload, "blocks"), payload["source"])._asdict()

    def _recheck(self, payload: dict[str, Any]) -> Answer:
        version = wire.version_from_wire(payload.get("version"))
        return {"bad": self._engine.recheck(version, _blocks(version, payload, "blocks"))}

    def _reads(self, payload: dict[str, Any]) -> Answer:
        name = payload["dataset"]
        try:
            self._engine.count_reads(name, int(payload["hit"]), int(payload["missed"]))
        except DatasetNotFoundError:
            if name not in self._state()["datasets"]:
                raise
            self._unheld = {**self._unheld, name: time.monotonic()}  # another thread may be going through it
        return {}

    def _evict(self, payload: dict[str, Any]) -> Answer:
        path = clean_path(payload.get("path", ""))
        volume = self._engine.volume(payload["dataset"])
        volume.metadata.invalidate(path)
        return {"bytes": volume.store.evict(lambda version: is_below(version.path, path))}

    def _invalidate(self, payload: dict[str, Any]) -> Answer:
        path = clean_path(payload.get("path", ""))
        hop, thorough = bool(payload.get("hop")), bool(payload.get("thorough"))
        self._engine.invalidate(payload["dataset"], path, hop, thorough)
        return {}

    def _usage(self, payload: dict[str, Any]) -> Answer:
        return self.usage()


def ensure_to_wire(
    version: ObjectVersion,
    blocks: range,
    ahead: range,
    patience_s: float | None = None,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """The payload of the action `ensure`.

    Its answer's `ready` is false if the blocks did not come in `patience_s` seconds; None: as long as it may take.
    `absent` is which of them were not there when it was asked, as pairs of bounds.
    What `keep` names stays until the action `release` (dataset, load).
    """
    kept = {} if keep is None else {"keep": keep.load, "kept": [keep.blocks.start, keep.blocks.stop]}
    return {
        **kept,
        "version": version.to_wire(),
        "blocks": [blocks.start, blocks.stop],
        "ahead": [ahead.start, ahead.stop],
        "patience": patience_s,
    }


def _blocks(version: ObjectVersion, payload: dict[str, Any], name: str) -> range:
    start, stop = (int(bound) for bound in payload.get(name, (0, 0)))
    if start < 0 or stop > version.block_count:
        raise RaycacheError(
            f"no blocks {start}..{stop} in an object of {version.block_count} blocks", where=version.path
        )
    return range(start, stop)


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` itself or lies below it; everything lies below ""."""
    return not directory or path == directory or path.startswith(directory + "/")
