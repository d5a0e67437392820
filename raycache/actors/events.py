"""What happened to each object lately: the `events` of `raycache describe`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

log = logging.getLogger(__name__)

KEPT = 50
"""Events kept per object."""


class Events:
    """The latest events of each object. Thread-safe; they are not kept over a restart of the coordinator.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events: dict[tuple[str, str], deque[dict[str, Any]]] = {}

    def add(
        self,
        kind: str,
        name: str,
        reason: str,
        message: str,
        *,
        type: Literal["Normal", "Warning"] = "Normal",
    ) -> None:
        """Note that something happened; the same as the last time is only counted."""
        with self._lock:
            events = self._events.setdefault((kind, name), deque(maxlen=KEPT))
            if events and (events[-1]["reason"], events[-1]["message"]) == (reason, message):
                events[-1]["count"] += 1
                events[-1]["time"] = self._clock()
                return
            events.append(
                {"time": self._clock(), "type": type, "reason": reason, "message": message, "count": 1}
            )
        log.log(logging.WARNING if type == "Warning" else logging.INFO, "%s %s: %s", kind, name, message)

    def of(self, kind: str, name: str) -> list[dict[str, Any]]:
        """The events of an object, oldest first."""
        with self._lock:
            return [dict(event) for event in self._events.get((kind, name), ())]

    def forget(self, kind: str, name: str) -> None:
        """Drop the events of an object that was deleted."""
        with self._lock:
            self._events.pop((kind, name), None)
