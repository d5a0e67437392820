"""The nodes of the Ray cluster that are alive, as far as locality is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raycache.actors import joining

NODE_ID = "ray.io/node-id"
ZONE = "ray.io/availability-zone"
"""Labels that Ray puts on nodes (ray-constants; the zone only where KubeRay or the operator knows it)."""


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Args:
        node_id: Ray node id.
        zone: its `ray.io/availability-zone`, or "".
        resources: what it offers Ray's scheduler in all.
    """

    node_id: str
    zone: str
    resources: Mapping[str, float]

    @property
    def cpus(self) -> int:
        """Whole CPUs it offers, at least 1."""
        return max(1, int(self.resources.get("CPU", 0)))


def live_nodes() -> dict[str, Node]:
    """The nodes that are alive now, by id. This process joins the Ray cluster if it has not.

    Raises:
        ClusterUnavailableError: there is no Ray cluster.
    """
    import ray

    if not ray.is_initialized():
        joining.join(None)
    return {
        row["NodeID"]: Node(row["NodeID"], (row.get("Labels") or {}).get(ZONE, ""), dict(row["Resources"]))
        for row in ray.nodes()
        if row["Alive"]
    }
