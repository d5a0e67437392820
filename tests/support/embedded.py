"""A client with an engine and a local store of its own, in this process: the read path without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from raycache.blocks import MiB
from raycache.client import Client, ClusterState
from raycache.engine import Engine, Peers
from raycache.flight import PeerPool
from raycache.membership import Membership
from raycache.metrics import Metrics
from raycache.spec import MountSource, ResolvedDataset, TierSpec
from raycache.store import LocalStore, TierConfig

SECRET_OPTIONS = frozenset({"access_key_id", "secret_access_key", "session_token"})


def dataset_of(
    name: str, mounts: Mapping[str, str], options: Mapping[str, str] | None = None, **changes: Any
) -> ResolvedDataset:
    """A dataset as the spec resolves one.

    Args:
        name: its name.
        mounts: what is mounted, by path; "" is the root.
        options: canonical options of every mount.
        changes: other fields of `ResolvedDataset`.
    """
    options = options or {}
    return ResolvedDataset(
        name=name,
        mounts=[
            MountSource(
                path=path,
                uri=uri,
                options={key: value for key, value in options.items() if key not in SECRET_OPTIONS},
                secret_options={
                    key: SecretStr(value) for key, value in options.items() if key in SECRET_OPTIONS
                },
            )
            for path, uri in mounts.items()
        ],
        tiers=[TierSpec(medium="MEM", path="/unused", quota=64 * MiB)],
        **changes,
    )


class Embedded:
    """An embedded cache.

    Args:
        tier: directory of its one tier, or several, fastest first.
        datasets: what it serves, each from a store of its own below `tier`.
        quota: bytes of each tier.
    """

    def __init__(self, tier: Path | list[Path], *datasets: ResolvedDataset, quota: int = 1024 * MiB) -> None:
        self.metrics = Metrics()
        self._tiers = tier if isinstance(tier, list) else [tier]
        self._quota = quota
        self.engine = Engine(Peers(PeerPool(""), Membership()), self.metrics)
        self.stores: dict[str, LocalStore] = {}
        for dataset in datasets:
            self.attach(dataset)
        state = ClusterState(Membership(), {dataset.name: dataset for dataset in datasets})
        self.client = Client(state, engine=self.engine)

    def attach(self, dataset: ResolvedDataset) -> None:
        """Serve a dataset."""
        media = ["MEM", "SSD", "HDD"]
        configs = [
            TierConfig(media[rank], str(path / dataset.name), self._quota)
            for rank, path in enumerate(self._tiers)
        ]
        store = LocalStore(configs, dataset.eviction_policy, self.metrics)
        self.stores[dataset.name] = store
        self.engine.attach(dataset, store)

    def files(self, dataset: str) -> list[Path]:
        """Data files of a dataset's store."""
        return [path for root in self.stores[dataset].paths for path in sorted(Path(root).glob("*/*.data"))]

    def __enter__(self) -> Embedded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, and with it the engine and the stores."""
        self.client.close()
