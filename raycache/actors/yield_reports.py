"""What the workers tell of memory that they have given back to other processes."""

from __future__ import annotations

from collections.abc import Sequence

from raycache.actors.events import Events
from raycache.actors.seat import Seat


class YieldEvents:
    """Notes, once an episode, that a dataset's memory tier shrinks on a node because the memory is needed there.

    Args:
        events: gets what happens to datasets.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._known: dict[tuple[str, str, int], int] = {}

    def look(self, seats: Sequence[Seat]) -> None:
        """Compare with what was told the last time."""
        for seat in seats:
            report = seat.report or {}
            for name, told in report.get("yielding", {}).items():
                key = (name, seat.node.id, int(report["pid"]))
                if told["episodes"] > self._known.get(key, 0):
                    self._known[key] = told["episodes"]
                    self._events.add(
                        "Dataset",
                        name,
                        "MemoryPressure",
                        f"node {seat.node.id[:12]}: memory is needed by other processes; the MEM tier shrinks, and"
                        " grows back when they are done",
                        type="Warning",
                    )
        there = {seat.node.id for seat in seats}
        self._known = {key: count for key, count in self._known.items() if key[1] in there}
