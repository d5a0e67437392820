"""The nodes of the Ray cluster, as Ray tells of them."""

from __future__ import annotations

import logging

import ray

from raycache.actors.assignment import Node

log = logging.getLogger(__name__)

_HEAD = "node:__internal_head__"
"""Resource that Ray gives to the head node only (`HEAD_NODE_RESOURCE_NAME` in ray._private.resource_spec)."""


def alive() -> dict[str, Node]:
    """The nodes that are alive, by id."""
    return {
        row["NodeID"]: Node(
            row["NodeID"],
            row["NodeManagerAddress"],
            row.get("Labels") or {},
            int(row["Resources"].get("memory", 0)),
            _HEAD in row["Resources"],
        )
        for row in ray.nodes()
        if row["Alive"]
    }


def drains() -> dict[str, int]:
    """The nodes that Ray is draining, with the deadline of each in milliseconds since the epoch; 0: it has none."""
    from ray._private.state import state

    try:
        found: dict[str, int] = state.get_draining_nodes()
    except (ray.exceptions.RaySystemError, ConnectionError, RuntimeError) as error:
        log.warning("Ray does not say which nodes it drains: %s", error)
        return {}
    return found
