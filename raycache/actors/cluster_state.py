"""The cluster's state on the wire: what the coordinator publishes and clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycache.actors import kv as keys
from raycache.actors.kv import Kv, get_json, put_json
from raycache.client import ClusterState
from raycache.errors import ClusterUnavailableError
from raycache.invalidations import NONE, Invalidations
from raycache.membership import Membership
from raycache.spec import ResolvedDataset


def to_wire(
    membership: Membership, datasets: Mapping[str, ResolvedDataset], invalidations: Invalidations
) -> dict[str, Any]:
    """State as plain data WITH the stores' secrets, for the GCS."""
    return {
        "invalidations": invalidations.to_wire(),
        "membership": membership.to_wire(),
        "datasets": {name: dataset.wire() for name, dataset in datasets.items()},
    }


def without_secrets(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a client outside the cluster: it reads through workers and needs no credentials."""
    datasets = {
        name: {**dataset, "mounts": [{**mount, "secret_options": {}} for mount in dataset["mounts"]]}
        for name, dataset in state["datasets"].items()
    }
    return {**state, "datasets": datasets}


def from_wire(state: Mapping[str, Any], token: str) -> ClusterState:
    """The state that `to_wire` described."""
    datasets = {name: ResolvedDataset.from_wire(dataset) for name, dataset in state["datasets"].items()}
    return ClusterState(
        Membership.from_wire(state["membership"]),
        datasets,
        token,
        Invalidations.from_wire(state["invalidations"]),
    )


def publish(
    kv: Kv,
    membership: Membership,
    datasets: Mapping[str, ResolvedDataset],
    invalidations: Invalidations = NONE,
) -> None:
    """Make a state the current one. The epoch comes last: who sees it finds a state at least as new."""
    put_json(kv, keys.STATE, to_wire(membership, datasets, invalidations))
    put_json(kv, keys.EPOCH, membership.epoch)


def read(kv: Kv) -> ClusterState:
    """The current state. Raises ClusterUnavailableError if raycache does not run on this cluster."""
    state, token = get_json(kv, keys.STATE), kv.get(keys.TOKEN)
    if state is None or token is None:
        raise ClusterUnavailableError(
            "raycache does not run on this Ray cluster", hint="start it with `raycache start`"
        )
    return from_wire(state, token.decode())


def read_if_newer(kv: Kv, known_epoch: int) -> ClusterState | None:
    """The current state, unless its epoch is `known_epoch` (or there is none any more)."""
    epoch = get_json(kv, keys.EPOCH)
    if epoch is None or epoch <= known_epoch:
        return None
    return read(kv)
