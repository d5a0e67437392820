"""Memory that Ray's scheduler knows of: one placement group per node and dataset, as large as its memory tier.

A placement group cannot be resized, so each dataset has its own on each node. The worker does not run inside
it: nothing does. It is there so that Ray does not give the same memory to tasks that ask for some.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

log = logging.getLogger(__name__)

_PREFIX = "raycache/"

Key = tuple[str, str]
"""Dataset and node id."""

Verdict = Literal["reserved", "pending", "refused"]


@dataclass
class _Reservation:
    group: PlacementGroup
    memory: int
    since: float
    refused: bool = False


class Reservations:
    """The placement groups of this cluster's datasets. Not thread-safe: the reconciler owns it.

    Args:
        patience_s: seconds a group may stay unscheduled before the node counts as having no memory to give.
        retry_s: seconds after which a refused one is tried again.
    """

    def __init__(self, patience_s: float = 3.0, retry_s: float = 15.0) -> None:
        self._patience_s = patience_s
        self._retry_s = retry_s
        self._held: dict[Key, _Reservation] = {}
        self._adopt()

    def reserve(self, dataset: str, node_id: str, memory: int, now: float) -> Verdict:
        """Have `memory` bytes of a node reserved for a dataset; ask again until the answer is not `pending`.

        Args:
            dataset: its name.
            node_id: a node that is alive (a made-up id would abort this process).
            memory: bytes; 0 needs no reservation.
            now: monotonic seconds.
        """
        key = (dataset, node_id)
        held = self._held.get(key)
        if held is not None and (
            held.memory != memory or (held.refused and now - held.since > self._retry_s)
        ):
            self.release(key)
            held = None
        if memory <= 0:
            return "reserved"
        if held is None:
            group = placement_group(
                [{"memory": memory}],
                name=f"{_PREFIX}{dataset}/{node_id}",
                lifetime="detached",
                bundle_label_selector=[{"ray.io/node-id": node_id}],
            )
            held = self._held[key] = _Reservation(group, memory, now)
        if held.refused:
            return "refused"
        if placement_group_table(held.group).get("state") == "CREATED":
            return "reserved"
        if now - held.since <= self._patience_s:
            return "pending"
        held.refused = True
        held.since = now
        remove_placement_group(held.group)
        return "refused"

    def retain(self, wanted: Collection[Key]) -> None:
        """Give up all reservations but these."""
        for key in [key for key in self._held if key not in wanted]:
            self.release(key)

    def release(self, key: Key) -> None:
        """Give one up."""
        held = self._held.pop(key, None)
        if held is not None and not held.refused:
            remove_placement_group(held.group)

    def _adopt(self) -> None:
        """Take over what a coordinator before this one reserved."""
        for group_id, row in _table().items():
            dataset, _, node_id = row["name"].removeprefix(_PREFIX).partition("/")
            memory = int(sum(bundle.get("memory", 0) for bundle in row["bundles"].values()))
            self._held[dataset, node_id] = _Reservation(_group(group_id), memory, 0.0)


def release_all() -> int:
    """Give up everything that raycache reserved on this cluster; how many groups that was."""
    table = _table()
    for group_id in table:
        remove_placement_group(_group(group_id))
    return len(table)


def _table() -> dict[str, Any]:
    return {
        group_id: row
        for group_id, row in placement_group_table().items()
        if row["name"].startswith(_PREFIX) and row["state"] != "REMOVED"
    }


def _group(group_id: str) -> PlacementGroup:
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id)))
