"""From a mount's config.json (`configs`) to a client: over the workers of a cluster, or with a cache of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from raycache.actors import embedding, host
from raycache.actors.outside import StateOverFlight
from raycache.client import Client, ClusterState
from raycache.errors import ClusterUnavailableError, SpecError
from raycache.fuse import statefiles
from raycache.fuse.configs import cluster_config, embedded_config
from raycache.fuse.tree import Ownership
from raycache.membership import Membership
from raycache.spec import ResolvedDataset
from raycache.ufs import DatasetSource

__all__ = ["check", "client_for", "cluster_config", "embedded_config", "ownership_of", "problem_of"]

log = logging.getLogger(__name__)


def client_for(config: Mapping[str, Any], directory: str, *, first: bool) -> Client:
    """A client that can read the config's dataset.

    Args:
        config: see `configs`.
        directory: the mount's state directory, where the config is kept up to date.
        first: whether nobody relies on the mount yet, so that a cluster that does not answer is worth an error.

    Raises:
        ClusterUnavailableError: no worker answers, and it is the first time.
        SpecError, AccessDeniedError, CacheFullError, StoreBusyError: the mount's own cache cannot be opened.
    """
    dataset = ResolvedDataset.from_wire(config["dataset"])
    if "embedded" in config:
        own = config["embedded"]
        return embedding.open_embedded([dataset], own.get("cache_dir", ""), own.get("quota"))
    if "cluster" not in config:
        raise SpecError("the mount's config names neither a cluster nor a cache", hint="mount it anew")
    cluster = config["cluster"]
    asker = _Asker(StateOverFlight(lambda: _addresses(config, directory), cluster["token"]), dataset)
    state = ClusterState(Membership(), {dataset.name: dataset}, cluster["token"])
    try:
        state = asker(-1) or state
    except ClusterUnavailableError as error:
        if first:
            asker.close()
            raise
        # Files that are whole here are read as ever; for the rest the object store is asked, and the workers again.
        log.warning("%s", error)
    return Client(state, refresh=asker, host_id=host.host_id(), on_close=asker.close)


def check(config: Mapping[str, Any]) -> list[str]:
    """See that the store can be read before anybody relies on the mount. (What a cluster has, was checked by `apply`.)

    Returns:
        What is odd and no error.

    Raises:
        BucketNotFoundError, AccessDeniedError, UnderStoreError: it cannot.
    """
    if "embedded" not in config:
        return []
    with closing(DatasetSource(ResolvedDataset.from_wire(config["dataset"]))) as source:
        return [f"there is nothing (yet) in {uri}; is it the right place?" for uri in source.check()]


def problem_of(client: Client, dataset: str) -> str:
    """What is wrong with a mount that answers, as far as is known; "" if nothing is. Asks nobody."""
    return "" if client.knows(dataset) else "the dataset has been deleted"


def ownership_of(config: Mapping[str, Any]) -> Ownership:
    """Whose files a mount shows: the spec's `owner`, else the user's who mounted it."""
    dataset = ResolvedDataset.from_wire(config["dataset"])
    made_ns = int(config.get("made_ns", 0))
    owner = dataset.owner
    if owner is None:
        uid, gid = config.get("uid", os.geteuid()), config.get("gid", os.getegid())
        return Ownership(int(uid), int(gid), made_ns=made_ns)
    return Ownership(owner.uid, owner.gid, 0o444 if owner.mode is None else owner.mode & 0o7555, made_ns)


def _addresses(config: Mapping[str, Any], directory: str) -> list[str]:
    """Where workers are by now: those that restarted elsewhere have had it written down (`keeping`)."""
    now = statefiles.read_json(os.path.join(directory, statefiles.CONFIG))
    found: list[str] = now.get("cluster", config["cluster"])["addresses"]
    return found


class _Asker:
    """The cluster's state as workers tell it, which is without the store's credentials, with those that the mount was
    given: so that it reads on when there is no worker."""

    def __init__(self, asker: StateOverFlight, dataset: ResolvedDataset) -> None:
        self._asker = asker
        self._secrets = {(mount.path, mount.uri): mount.secret_options for mount in dataset.mounts}
        self._name = dataset.name

    def __call__(self, known_epoch: int) -> ClusterState | None:
        state = self._asker(known_epoch)
        told = state.datasets.get(self._name) if state is not None else None
        if state is None or told is None:
            return state
        mounts = [
            mount.model_copy(
                update={
                    "secret_options": self._secrets.get((mount.path, mount.uri), {}) | mount.secret_options
                }
            )
            for mount in told.mounts
        ]
        known = told.model_copy(update={"mounts": mounts})
        return replace(state, datasets={**state.datasets, self._name: known})

    def close(self) -> None:
        self._asker.close()
