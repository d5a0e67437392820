"""Fetching the rest of objects that are being read, so that their next open is the kernel's to serve."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading

from raycache.blocks import ObjectVersion
from raycache.client import Client, ObjectReader
from raycache.errors import RaycacheError

log = logging.getLogger(__name__)


class Completion:
    """One thread that completes objects one after the other. What it fetches, readers do not fetch again: the blocks
    they wait for and the ones it wants are the same fetches.

    Args:
        client: reads the cache.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[ObjectVersion | None] = queue.SimpleQueue()
        self._wanted: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, version: ObjectVersion) -> None:
        """Have an object completed, unless it is already wanted. Returns at once."""
        with self._lock:
            if self._closed or version.object_id in self._wanted:
                return
            self._wanted.add(version.object_id)
            if self._thread is None:
                # A daemon: a process must be able to end while an object store lets it wait.
                self._thread = threading.Thread(
                    target=self._run, name="raycache-fuse-completion", daemon=True
                )
                self._thread.start()
        self._queue.put(version)

    def close(self) -> None:
        """Begin nothing more; what is being completed goes on for as long as the process does."""
        with self._lock:
            self._closed = True
        self._queue.put(None)

    def _run(self) -> None:
        while (version := self._queue.get()) is not None and not self._closed:
            try:
                with contextlib.closing(ObjectReader(self._client, version)) as reader:
                    if reader.local_file() is None:
                        log.info("%s cannot be held complete here", version.path)
            except (RaycacheError, OSError) as error:
                log.info("%s is not completed: %s", version.path, error)
            finally:
                with self._lock:
                    self._wanted.discard(version.object_id)
