"""The cluster's loads: kept in the GCS, run one after another or side by side, taken up again after a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from raycache import operations
from raycache.actors import kv as keys
from raycache.actors.events import Events
from raycache.actors.kv import Kv, get_json, put_json
from raycache.actors.loader import Cancelled, Load, targets_from_wire
from raycache.client import Client
from raycache.errors import NotFoundError, RaycacheError, SpecError
from raycache.operations import Operation

log = logging.getLogger(__name__)

PARALLEL = 4
"""Loads that run at a time; the others wait in Pending."""

SAVE_EVERY_S = 2.0
"""Longest time between two writes of a running load's progress to the GCS."""

KEPT = 200
"""Ended loads that are remembered."""


class Loads:
    """See above. Thread-safe.

    Args:
        kv: the cluster's key-value store.
        events: gets what happens to loads.
        connect: makes a client that knows the cluster as it is then; closed after use.
        ready: waits until a dataset's holders have it, as long as that makes sense; raises DatasetNotFoundError.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        kv: Kv,
        events: Events,
        connect: Callable[[], Client],
        ready: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kv = kv
        self._events = events
        self._connect = connect
        self._ready = ready
        self._clock = clock
        self._lock = threading.Lock()
        self._saved = 0.0
        self._cancelled: dict[str, threading.Event] = {}
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="raycache-dataload")
        stored = [Operation.from_wire(data) for data in get_json(kv, keys.OPERATIONS) or []]
        self._loads = {load.name: operations.recovered(load) for load in stored}

    def resume(self) -> None:
        """Run again what had not ended."""
        with self._lock:
            waiting = [load for load in self._loads.values() if load.phase == "Pending"]
            for load in waiting:
                self._submit(load.name)
        for load in waiting:
            log.warning("load %s goes on", load.name)

    def submit(self, name: str, dataset: str, spec: Mapping[str, Any]) -> str:
        """Ask for a load.

        Args:
            name: of the load.
            dataset: to load from; known to exist.
            spec: `target` (list of path and replicas) and `loadMetadata`.

        Returns:
            `created`; `unchanged` if there is the same one already and it has not failed; else `configured`,
            and it is run again.
        """
        now = self._clock()
        with self._lock:
            known = self._loads.get(name)
            action = "created"
            if known is not None:
                same = (known.dataset, dict(known.spec)) == (dataset, dict(spec))
                if same and known.phase != "Failed":
                    return "unchanged"
                if not known.ended:
                    raise SpecError(
                        "is still running with another spec",
                        where=f"DataLoad {name}",
                        hint="wait for it, or delete it first",
                    )
                action = "configured"
            self._loads[name] = Operation(name=name, dataset=dataset, spec=dict(spec), created=now)
            self._trim()
            self._save()
            self._submit(name)
        return action

    def get(self, name: str) -> Operation:
        """A load. Raises NotFoundError."""
        load = self._loads.get(name)
        if load is None:
            known = ", ".join(sorted(self._loads)) or "none"
            raise NotFoundError("no such load", where=name, hint=f"there are: {known}")
        return load

    def all(self) -> list[Operation]:
        """All loads, oldest first."""
        return sorted(self._loads.values(), key=lambda load: (load.created, load.name))

    def delete(self, name: str) -> None:
        """Forget a load; end it if it runs. Raises NotFoundError."""
        self.get(name)
        with self._lock:
            cancelled = self._cancelled.get(name)
            if cancelled is not None:
                cancelled.set()
            self._loads.pop(name, None)
            self._save()
        self._events.forget("DataLoad", name)

    def delete_of(self, dataset: str) -> None:
        """Forget all loads of a dataset that is being deleted."""
        for load in self.all():
            if load.dataset == dataset:
                self.delete(load.name)

    def close(self) -> None:
        """End all that runs; it stays stored as it is, to be resumed."""
        with self._lock:
            for cancelled in self._cancelled.values():
                cancelled.set()
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, name: str) -> None:
        self._cancelled[name] = threading.Event()
        self._pool.submit(self._run, name, self._cancelled[name])

    def _run(self, name: str, cancelled: threading.Event) -> None:
        def step(function: Callable[..., Operation], *args: Any, save: bool = True) -> None:
            with self._lock:
                load = self._loads.get(name)
                if load is None or cancelled.is_set():
                    raise Cancelled("the load was deleted while it ran", where=name)
                self._loads[name] = function(load, *args)
                if save or self._clock() - self._saved > SAVE_EVERY_S:
                    self._save()

        try:
            step(operations.started, self._clock())
            load = self._loads[name]
            self._events.add("DataLoad", name, "Executing", f"loading from dataset {load.dataset}")
            self._ready(load.dataset)
            with closing(self._connect()) as client:
                outcome = Load(
                    client,
                    load.dataset,
                    targets_from_wire(load.spec),
                    load_metadata=bool(load.spec["loadMetadata"]),
                    sized=lambda files, size, final: step(operations.sized, files, size, final, save=final),
                    progressed=lambda size: step(operations.progressed, size, save=False),
                    cancelled=cancelled,
                ).run()
            step(operations.completed, self._clock(), outcome.bytes_cached, outcome.missing)
        except Cancelled:
            return
        except RaycacheError as error:
            self._fail(step, name, str(error), type(error).__name__)
        except Exception as error:
            # A thread of a pool: nobody else would hear of it, and the load would run for ever.
            log.exception("load %s", name)
            self._fail(step, name, f"internal error: {type(error).__name__}")
        load = self._loads.get(name) or Operation(name, "")
        if load.phase == "Complete":
            self._events.add("DataLoad", name, "Complete", f"{load.files} files, {load.bytes_total} bytes")
        elif load.phase == "Failed":
            self._events.add("DataLoad", name, "Failed", load.message, type="Warning")

    def _fail(self, step: Callable[..., None], name: str, message: str, kind: str = "") -> None:
        try:
            step(operations.failed, self._clock(), message, kind)
        except RaycacheError as error:
            log.info("load %s: %s, after: %s", name, error, message)

    def _trim(self) -> None:
        ended = [load for load in self.all() if load.ended]
        for load in ended[: max(0, len(ended) - KEPT)]:
            del self._loads[load.name]

    def _save(self) -> None:
        self._saved = self._clock()
        put_json(self._kv, keys.OPERATIONS, [load.to_wire() for load in self._loads.values()])


def row(load: Operation) -> dict[str, Any]:
    """A load as `raycache get loads` shows it."""
    return {
        "name": load.name,
        "dataset": load.dataset,
        "phase": load.phase,
        "created": load.created,
        "started": load.started,
        "finished": load.finished,
        "bytes_total": load.bytes_total if load.sized or load.ended else None,
        "bytes_cached": load.bytes_cached,
        "files_total": load.files,
        "missing": [{"path": item.path, "bytes": item.bytes, "reason": item.reason} for item in load.missing],
        "missing_count": load.missing_count,
        "reason": load.message,
        "error": load.error,
        "target": load.spec.get("target", []),
    }
