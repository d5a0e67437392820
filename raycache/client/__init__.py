"""A client's read path. It imports no Ray: `raycache.api` finds the cluster for it."""

from raycache.client.client import Client, ClusterState
from raycache.client.reader import ObjectReader

__all__ = ["Client", "ClusterState", "ObjectReader"]
