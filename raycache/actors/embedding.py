"""A cache in the process that reads, without a cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from raycache.actors import volumes
from raycache.client import Client, ClusterState
from raycache.engine import Engine, Peers
from raycache.flight import PeerPool
from raycache.membership import Membership
from raycache.metrics import Metrics
from raycache.settings import Settings
from raycache.spec import (
    CacheRuntime,
    Dataset,
    ResolvedDataset,
    Secret,
    TierSpec,
    load_files,
    resolve,
    runtime_for,
)


def open_embedded(datasets: Sequence[ResolvedDataset], cache_dir: str, quota: int | None) -> Client:
    """See `raycache.api.embedded`."""
    metrics = Metrics()
    engine = _EmbeddedEngine(Peers(PeerPool(), Membership()), metrics)
    try:
        for dataset in datasets:
            if cache_dir:
                os.makedirs(cache_dir, mode=0o700, exist_ok=True)
                free = shutil.disk_usage(cache_dir).free // 2
                tier = TierSpec(medium="SSD", path=os.path.abspath(cache_dir), quota=quota or free)
                dataset = dataset.model_copy(update={"tiers": [tier]})
            volume = volumes.LocalVolume(dataset, metrics)
            engine.volumes_here.append(volume)
            engine.attach(dataset, volume.store)
            engine.guard.attach(dataset.name, volume.store, volume.memory)
    except BaseException:
        engine.close()
        raise
    state = ClusterState(Membership(), {dataset.name: dataset for dataset in datasets})
    return Client(state, engine=engine)


def default_tier() -> TierSpec:
    """Where a cache without a cluster is, unless something is said: a tenth of the disk of the user's home."""
    return TierSpec(medium="SSD", path=Settings.from_environ().cache_home, quota_ratio=0.1)


def datasets_in(path: str) -> list[ResolvedDataset]:
    """The datasets of a spec file. Raises SpecError and NotFoundError."""
    documents = load_files([path])
    models = [document.model for document in documents]
    runtimes = {model.name: model for model in models if isinstance(model, CacheRuntime)}
    secrets = {model.name: model for model in models if isinstance(model, Secret)}
    tiers = [default_tier()]
    return [
        resolve(model, runtime_for(model, runtimes), secrets, tiers)
        for model in models
        if isinstance(model, Dataset)
    ]


class _EmbeddedEngine(Engine):
    """An engine that gives its directories up when it is closed."""

    def __init__(self, peers: Peers, metrics: Metrics) -> None:
        super().__init__(peers, metrics)
        self.volumes_here: list[volumes.LocalVolume] = []
        self.guard = volumes.memory_guard(metrics)

    def close(self) -> None:
        super().close()
        self.guard.close()
        for volume in self.volumes_here:
            volume.close("memory")
        self.volumes_here.clear()
