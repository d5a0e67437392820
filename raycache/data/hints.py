"""Where the consumers of a dataset are, or should be: the `locality_hints` of `Dataset.streaming_split`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycache.locality import apportion, live_nodes, nodes_for


def locality_hints(urls: str | Sequence[str], workers: int | Sequence[Any]) -> list[str] | None:
    """Node ids for `Dataset.streaming_split(n, locality_hints=…)`: one for each worker.

    With these, a worker gets the blocks that were read on its own node first. Ray ignores them under `preserve_order`.

    Args:
        urls: what the dataset is read from; as for `raycache.nodes_for`.
        workers: handles of the actors that consume it, for the nodes they run on; or only how many there will be, for
            the nodes on which to start them: those that have most bytes, in proportion to them.

    Returns:
        The ids; None where `workers` is a number and no live node has any of the bytes.

    Raises:
        As `raycache.nodes_for`; and what Ray raises for an actor that has died.
    """
    nodes = live_nodes()
    if isinstance(workers, int):
        weights = {node: count for node, count in nodes_for(urls).by_node().items() if node in nodes}
        return apportion(weights, workers) or None
    import ray

    return list(ray.get([worker.__ray_call__.remote(_node_id) for worker in workers]))


def _node_id(_: Any) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
