"""Which names have been declared changed, and when: what everybody who hears of a new epoch has to forget.

A plain value without clock or network. The coordinator adds to it and publishes it with the membership; its epochs are
the membership's. Whoever takes a published state forgets what was added since the epoch that it knew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from raycache.errors import RaycacheError

KEPT = 128
"""Entries that are remembered, 10 to 100 KB of the published state. Who has missed more than that forgets all."""


class Invalidation(NamedTuple):
    """Names at and below `path` of a dataset ("" is all of it) were declared changed at `epoch`."""

    epoch: int
    dataset: str
    path: str


@dataclass(frozen=True)
class Invalidations:
    """The last of them, oldest first. None of them is `NONE`.

    Args:
        since: epoch from which on they are complete: who knew an earlier one has missed some.
        entries: the invalidations.
    """

    since: int = 0
    entries: tuple[Invalidation, ...] = ()

    def added(self, epoch: int, names: Iterable[tuple[str, str]]) -> Invalidations:
        """With pairs of dataset and path that are declared changed at `epoch`, which is later than all before."""
        entries = (*self.entries, *(Invalidation(epoch, dataset, path) for dataset, path in names))
        lost = entries[:-KEPT]
        return Invalidations(lost[-1].epoch if lost else self.since, entries[-KEPT:])

    def after(self, epoch: int, dataset: str) -> list[str]:
        """The paths of a dataset that whoever knows `epoch` has to forget; [""] for all of it."""
        if epoch < self.since:
            return [""]
        return [entry.path for entry in self.entries if entry.epoch > epoch and entry.dataset == dataset]

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"since": self.since, "entries": [list(entry) for entry in self.entries]}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Invalidations:
        """The value that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            entries = [
                Invalidation(int(epoch), str(name), str(path)) for epoch, name, path in data["entries"]
            ]
            return cls(int(data["since"]), tuple(entries))
        except (KeyError, TypeError, ValueError):
            raise RaycacheError("an answer is not a valid list of invalidations") from None


NONE = Invalidations()
