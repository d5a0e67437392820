"""How large a dataset is in its object store: counted in the background, because a bucket may take minutes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from raycache.errors import RaycacheError
from raycache.spec import ResolvedDataset
from raycache.ufs import DatasetSource

log = logging.getLogger(__name__)

PARALLEL = 4
"""Datasets counted at a time."""

FRESH_S = 300.0
"""Seconds after which somebody who asks makes it be counted again."""


@dataclass
class _Scan:
    generation: int
    size: int | None = None
    files: int | None = None
    found_size: int = 0
    found_files: int = 0
    running: bool = True
    finished: float = 0.0
    error: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Scans:
    """The sizes of all datasets. Thread-safe.

    Args:
        open_source: makes the reader of a dataset's object stores.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        open_source: Callable[[ResolvedDataset], Any] = DatasetSource,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_source = open_source
        self._clock = clock
        self._lock = threading.Lock()
        self._scans: dict[str, _Scan] = {}
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="raycache-scan")

    def want(self, datasets: Mapping[str, ResolvedDataset]) -> None:
        """Know the sizes of these datasets: count those that are new or changed, or were counted long ago."""
        now = self._clock()
        with self._lock:
            for name in [name for name in self._scans if name not in datasets]:
                self._scans.pop(name).cancelled.set()
            for name, dataset in datasets.items():
                scan = self._scans.get(name)
                if scan is not None and scan.generation == dataset.generation:
                    if scan.running or now - scan.finished < FRESH_S:
                        continue
                    scan.running, scan.found_size, scan.found_files = True, 0, 0
                else:
                    if scan is not None:
                        scan.cancelled.set()
                    scan = self._scans[name] = _Scan(dataset.generation)
                self._pool.submit(self._run, dataset, scan)

    def row(self, name: str) -> dict[str, Any]:
        """What is known: `ufs_total_size` (bytes) and `ufs_total_files`, so far if `ufs_scanning`; and `error`."""
        scan = self._scans.get(name)
        if scan is None:
            return {"ufs_total_size": None, "ufs_total_files": None, "ufs_scanning": False, "error": ""}
        first = scan.size is None and scan.running
        return {
            "ufs_total_size": scan.found_size if first else scan.size,
            "ufs_total_files": scan.found_files if first else scan.files,
            "ufs_scanning": first,
            "error": scan.error,
        }

    def close(self) -> None:
        """Stop counting."""
        with self._lock:
            for scan in self._scans.values():
                scan.cancelled.set()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, dataset: ResolvedDataset, scan: _Scan) -> None:
        try:
            with closing(self._open_source(dataset)) as source:
                for info in source.walk(""):
                    if scan.cancelled.is_set():
                        return
                    scan.found_size += info.size
                    scan.found_files += 1
            scan.size, scan.files, scan.error = scan.found_size, scan.found_files, ""
        except RaycacheError as error:
            scan.error = str(error)
            log.warning("the size of dataset %s is not known: %s", dataset.name, error)
        except Exception as error:
            # A thread of a pool: nobody else would hear of it.
            scan.error = f"internal error: {type(error).__name__}"
            log.exception("counting dataset %s", dataset.name)
        finally:
            scan.finished = self._clock()
            scan.running = False
