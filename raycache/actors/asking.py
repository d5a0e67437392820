"""Asking Ray's autoscaler for the nodes that datasets want beyond those there are.

Ray keeps one list of such requests for the whole cluster (`ray.autoscaler.sdk.request_resources`); what is asked for
stays asked for until another list takes its place. So whoever uses `askForNodes` must not call it in a program.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycache.actors import kv as keys
from raycache.actors.assignment import Node, eligible
from raycache.actors.kv import Kv, get_json, put_json
from raycache.errors import ClusterUnavailableError
from raycache.spec import ResolvedDataset

log = logging.getLogger(__name__)

RETRY_S = 30.0
"""Seconds after which Ray is asked again when it did not take the request."""


@dataclass(frozen=True)
class Bundle:
    """What a node that is asked for must have.

    Args:
        memory: bytes of Ray's resource of that name.
        labels: its labels.
    """

    memory: int
    labels: Mapping[str, str]


def bundles(dataset: ResolvedDataset, count: int, nodes: Sequence[Node], quota: int) -> list[Bundle]:
    """What to ask for so that `count` nodes can hold a dataset, those that can now among them.

    Ray fits several bundles into one node if it can. So each is as large as the smallest of the nodes that there are:
    a node of that size has room for one.

    Args:
        dataset: which.
        count: how many nodes.
        nodes: those there are.
        quota: bytes of its memory tiers, the least that a node must have.
    """
    sizes = [node.memory for node in eligible(dataset, nodes)]
    return [Bundle(max(1, quota, min(sizes, default=0)), dataset.node_selector)] * count


class Asking:
    """What was asked for last. Not thread-safe: the reconciler owns it.

    Args:
        kv: the cluster's key-value store, so that a coordinator that is killed knows what is to be taken back.
        request: tells Ray. Raises ClusterUnavailableError.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        kv: Kv,
        request: Callable[[list[Bundle]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kv = kv
        self._request = request
        self._clock = clock
        self._not_before = -1.0
        self._asked: Any = get_json(kv, keys.ASKED) or []

    def want(self, wanted: list[Bundle]) -> None:
        """Ask for exactly these, if that is not what was asked for last."""
        wire = [[bundle.memory, dict(bundle.labels)] for bundle in wanted]
        if wire == self._asked or self._clock() < self._not_before:
            return
        try:
            self._request(wanted)
        except ClusterUnavailableError as error:
            self._not_before = self._clock() + RETRY_S
            log.warning("Ray's autoscaler is not asked for %d nodes: %s", len(wanted), error)
            return
        log.info("Ray's autoscaler is asked for %d nodes", len(wanted))
        self._asked = wire
        put_json(self._kv, keys.ASKED, wire)


def ask_ray(wanted: list[Bundle]) -> None:
    """Put these in the place of what Ray was asked for before. The first autoscaler (not v2) ignores the labels.

    Raises:
        ClusterUnavailableError: Ray does not take it.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(
            bundles=[{"memory": bundle.memory} for bundle in wanted],
            bundle_label_selectors=[dict(bundle.labels) for bundle in wanted],
        )
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterUnavailableError(f"Ray does not take a request for nodes: {error}") from error
