"""Sending work to the bytes, in Ray's terms: options of tasks and actors, and placement groups. Always soft."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from raycache.errors import SpecError
from raycache.locality.files import Urls
from raycache.locality.homes import nodes_for
from raycache.locality.nodes import NODE_ID, ZONE, Node, live_nodes
from raycache.locality.sharing import place_bundles

log = logging.getLogger(__name__)

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

PATIENCE_S = 5.0
"""Seconds for which a placement group may wait for the nodes it wants: Ray reserves one in well under a second where
there is room."""


def scheduling_options(urls: Urls, planned: bool = True) -> dict[str, Any]:
    """Where a task or an actor that reads some files should run: `task.options(**scheduling_options(urls)).remote()`.

    The node with most of their bytes; where it has no free resources, or is gone, a node of its zone
    (`ray.io/availability-zone`); else any. Ray goes on to the next at once: nothing waits for locality.

    Args:
        urls: as for `nodes_for`.
        planned: count bytes that are not cached yet for the node that will keep them.

    Returns:
        `label_selector` and `fallback_strategy`; nothing if no live node has any of the bytes.

    Raises:
        As `nodes_for`.
    """
    nodes = live_nodes()
    shares = nodes_for(urls).by_node(planned)
    best = next((node for node, count in shares.items() if count and node in nodes), None)
    return {} if best is None else node_options(best, nodes)


def node_options(
    node_id: str, nodes: Mapping[str, Node], also: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Options for a node, then its zone, then any.

    Args:
        node_id: the node.
        nodes: those that are alive.
        also: labels that are required wherever it runs.
    """
    required = dict(also or {})
    zone = nodes[node_id].zone if node_id in nodes else ""
    fallback = [{"label_selector": {**required, ZONE: zone}}] if zone else []
    return {
        "label_selector": {**required, NODE_ID: node_id},
        "fallback_strategy": [*fallback, {"label_selector": required}],
    }


def placement_group(
    urls: Urls,
    bundles: Sequence[Mapping[str, float]],
    strategy: Strategy = "PACK",
    *,
    planned: bool = True,
    patience_s: float = PATIENCE_S,
    name: str = "",
    lifetime: Literal["detached"] | None = None,
) -> Any:
    """A Ray placement group whose bundles lie on the nodes that hold most bytes of some files, in proportion to them.

    It is tried with these nodes first, then with their zones, and at last without any wish: each for `patience_s`
    seconds, and the last is returned as it is, ready or not, as Ray's own is. So the call may take twice
    `patience_s`, and the group never waits longer for the sake of locality.

    Args:
        urls: as for `nodes_for`.
        bundles: resources of each bundle.
        strategy: Ray's. PACK and SPREAD follow the bytes alike; STRICT_PACK takes the node with most bytes that has
            room for all bundles; STRICT_SPREAD takes each node once, those with most bytes first.
        planned: count bytes that are not cached yet for the node that will keep them.
        patience_s: see above.
        name: of the group.
        lifetime: Ray's.

    Raises:
        SpecError: no bundles.
        As `nodes_for`.
    """
    import ray

    if not bundles:
        raise SpecError("a placement group needs a bundle", hint="give resources, such as [{'CPU': 1}]")
    nodes = live_nodes()
    weights = nodes_for(urls).by_node(planned)
    capacity = {node_id: node.resources for node_id, node in nodes.items()}
    placed = place_bundles(bundles, weights, capacity, strategy)
    given = [dict(bundle) for bundle in bundles]
    for selectors in _wishes(placed, nodes):
        group = ray.util.placement_group(
            given, strategy=strategy, name=name, lifetime=lifetime, bundle_label_selector=selectors
        )
        if group.wait(patience_s):
            return group
        log.info("no placement group at %s within %g s: asking for less", selectors, patience_s)
        ray.util.remove_placement_group(group)
    return ray.util.placement_group(given, strategy=strategy, name=name, lifetime=lifetime)


def _wishes(placed: Sequence[str | None], nodes: Mapping[str, Node]) -> list[list[dict[str, str]]]:
    """Label selectors of the bundles, from the most that is wished for to the least that is a wish at all."""
    by_node = [{NODE_ID: node} if node else {} for node in placed]
    by_zone = [{ZONE: nodes[node].zone} if node and nodes[node].zone else {} for node in placed]
    return [wish for wish in (by_node, by_zone) if any(wish)]
