"""Where a dataset of a cluster is: what a process needs that reads it from outside Ray, such as a mount."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from raycache.actors import cluster_state, joining, outside
from raycache.actors.kv import GcsKv, Kv
from raycache.errors import ClusterUnavailableError, DatasetNotFoundError
from raycache.settings import Settings
from raycache.spec import ResolvedDataset


@dataclass(frozen=True)
class Whereabouts:
    """What a process outside Ray needs to read a dataset of a cluster.

    Args:
        dataset: the dataset; from inside the cluster with the store's credentials.
        addresses: `host:port` of the workers, those that hold it first.
        token: of the data plane; kept out of `repr`.
    """

    dataset: ResolvedDataset
    addresses: list[str]
    token: str = field(repr=False)


def whereabouts(dataset: str, ray_address: str | None = None) -> Whereabouts:
    """Where a dataset is. This process does not join the Ray cluster.

    Args:
        dataset: its name.
        ray_address: `host:port` of the Ray cluster. Default: `RAYCACHE_ADDRESS` (workers' addresses), else the Ray
            cluster that `joining.find_address` finds.

    Raises:
        ClusterUnavailableError: no cluster, no raycache on it, or no worker.
        AccessDeniedError: `RAYCACHE_TOKEN` is wrong.
        DatasetNotFoundError: no dataset of that name has been applied.
    """
    settings = Settings.from_environ()
    if ray_address is None and settings.address:
        asker = outside.StateOverFlight(lambda: outside.seeds(settings.address), settings.token)
        with contextlib.closing(asker):
            state = asker(-1)
        assert state is not None  # no cluster's epoch is -1
    else:
        state = cluster_state.read(_kv(ray_address))
    if dataset not in state.datasets:
        known = ", ".join(sorted(state.datasets)) or "none"
        raise DatasetNotFoundError(
            "no such dataset",
            where=dataset,
            hint=f"apply its spec with `raycache apply -f`; applied are: {known}",
        )
    workers = [*state.membership.workers_for(dataset), *state.membership.workers]
    addresses = list(dict.fromkeys(worker.address for worker in workers))
    if not addresses:
        raise ClusterUnavailableError("no cache worker runs", hint="see `raycache status`")
    return Whereabouts(state.datasets[dataset], addresses, state.token)


def _kv(ray_address: str | None) -> Kv:
    found = joining.find_address(ray_address)
    if found is None:
        raise ClusterUnavailableError(
            "no Ray cluster was found, and no address of raycache is set",
            hint="run `raycache start`, or set RAY_ADDRESS or RAYCACHE_ADDRESS",
        )
    if found.startswith("ray://"):
        raise ClusterUnavailableError(
            "this is the address of a Ray client server, which a mount cannot use",
            where=found,
            hint="give host:port of the cluster's GCS, or set RAYCACHE_ADDRESS to the address of a worker",
        )
    if not joining.answers(found):  # Ray's own client would try for a minute
        raise ClusterUnavailableError(
            "no Ray cluster answers at this address", where=found, hint="is it running, and the port right?"
        )
    return GcsKv(found)
