"""Which workers end because their node holds nothing, so that Ray's autoscaler can take the node.

For Ray a node is idle while no worker process is leased on it and no resource is in use
(`LocalResourceManager` in Ray's src/ray/raylet/scheduling/local_resource_manager.cc: NODE_WORKERS, and the resources
that a placement group reserves). An actor keeps it busy by being there, whatever it asks for: with `num_cpus=0`, too.

The worker of the head node stays: Ray never takes that node, and somebody must be there to hear that a dataset which
nobody holds is read. No Ray here.
"""

from __future__ import annotations

from collections.abc import Collection

from raycache.actors import kv as keys
from raycache.actors.kv import Kv, get_json, put_json


class Retiring:
    """See above. Not thread-safe: the reconciler owns it.

    Args:
        kv: the cluster's key-value store: a coordinator that is killed does not start the workers again.
        retire_s: seconds for which a worker must have held nothing.
    """

    def __init__(self, kv: Kv, retire_s: float) -> None:
        self._kv = kv
        self._retire_s = retire_s
        self._retired: set[str] = set(get_json(kv, keys.RETIRED) or ())
        self._empty_since: dict[str, float] = {}

    def __contains__(self, node: object) -> bool:
        """Whether the worker of a node has ended, or is to end."""
        return node in self._retired

    def due(self, empty: Collection[str], now: float) -> list[str]:
        """Nodes whose worker is to end now.

        Args:
            empty: nodes with a worker that holds nothing, is not about to, and may end.
            now: seconds of any clock that does not jump.
        """
        self._empty_since = {node: self._empty_since.get(node, now) for node in empty}
        due = sorted(node for node, since in self._empty_since.items() if now - since >= self._retire_s)
        if due:
            self._retired |= set(due)
            self._save()
        return due

    def recall(self, nodes: Collection[str]) -> None:
        """These are to have a worker again."""
        for node in nodes:
            self._empty_since.pop(node, None)
        if self._retired & set(nodes):
            self._retired -= set(nodes)
            self._save()

    def retain(self, nodes: Collection[str]) -> None:
        """These are the nodes that are alive."""
        if self._retired - set(nodes):
            self._retired &= set(nodes)
            self._save()

    def _save(self) -> None:
        put_json(self._kv, keys.RETIRED, sorted(self._retired))
