"""A dataset with everything it refers to filled in: what the rest of the system consumes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from raycache.blocks import DEFAULT_BLOCK_SIZE, clean_path
from raycache.errors import SpecError
from raycache.spec import options as option_names
from raycache.spec.checks import name_hint
from raycache.spec.fields import Hidden
from raycache.spec.models import CacheRuntime, Dataset, Level, Mount, Owner, ReplicaRange, Secret
from raycache.spec.quantities import format_size

Medium = Literal["MEM", "SSD", "HDD"]
MEDIA: tuple[Medium, ...] = ("MEM", "SSD", "HDD")
"""Kinds of tier, fastest first."""


AUTO_SHARE = 0.5
"""Share of a node's memory that a tier with `quota: auto` may have at most: what the kernel gives a tmpfs, too."""


class _Resolved(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TierSpec(_Resolved):
    """One directory of one tier, on every node that holds the dataset."""

    medium: Medium = Field(description="Kind of device.")
    path: str = Field(description="Directory, absolute.")
    quota: int | None = Field(default=None, description="Bytes; None if the quota is a share of the device.")
    quota_ratio: float | None = Field(
        default=None,
        description="Share of the device (of the node's memory, for MEM); resolved on the node. None if bytes.",
    )
    auto: bool = Field(
        default=False,
        description="Whether the quota follows spare memory; `quota_ratio` is then the most it may be.",
    )
    high: float = Field(default=0.95, description="Share of the quota at which eviction starts.")
    low: float = Field(default=0.7, description="Share of the quota at which eviction stops.")
    huge_pages: bool = Field(
        default=False, description="Whether to use a tmpfs with huge pages where possible."
    )


class MountSource(_Resolved):
    """One mount of a dataset, with its options resolved."""

    path: str = Field(description='Where it appears in the dataset, normalised; "" is the root.')
    uri: str = Field(description="What to read, as written, less a trailing slash.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Options by canonical name; none is secret."
    )
    secret_options: dict[str, Hidden] = Field(default_factory=dict, description="Secret ones.")

    def all_options(self) -> dict[str, str]:
        """Every option, secrets revealed: for the object store's client, and for nothing else."""
        return {
            **self.options,
            **{key: value.get_secret_value() for key, value in self.secret_options.items()},
        }


class ResolvedDataset(_Resolved):
    """A dataset, its runtime and its secrets as one value."""

    name: str = Field(description="Name of the dataset.")
    namespace: str = Field(default="default", description="Its namespace.")
    mounts: list[MountSource] = Field(description="At least one; paths are unique.")
    block_size: int = Field(default=DEFAULT_BLOCK_SIZE, description="Bytes.")
    consistency_mode: Literal["ttl", "strict", "immutable"] = Field(
        default="ttl", description="When changes are seen."
    )
    metadata_ttl: float = Field(
        default=30.0, description="Seconds for which metadata is believed, in mode ttl."
    )
    owner: Owner | None = Field(default=None, description="Owner shown for files.")
    tiers: list[TierSpec] = Field(description="Fastest first.")
    eviction_policy: Literal["sieve", "lru"] = Field(
        default="sieve", description="What leaves a full tier first."
    )
    replicas: int | Literal["all"] | ReplicaRange = Field(
        default="all", description="On how many nodes workers hold it."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Ray node labels a holder must have."
    )
    placement: Literal["Shared", "Exclusive"] = Field(
        default="Shared", description="Whether the nodes that hold it may hold others."
    )
    generation: int = Field(
        default=1, description="Counts the versions of this spec; the coordinator raises it."
    )
    mount_path: str | None = Field(default=None, description="Where the FUSE shim mounts it.")

    @property
    def replica_bounds(self) -> tuple[int, int | None]:
        """Least and greatest number of holders; None is no bound. `all` is (1, None)."""
        if isinstance(self.replicas, ReplicaRange):
            return self.replicas.min, self.replicas.max
        return (1, None) if self.replicas == "all" else (self.replicas, self.replicas)

    @property
    def autoscaled(self) -> bool:
        """Whether the number of holders follows what is read. Not with a `mountPath`: nodes that hold the dataset mount
        it, and a mount must not go away from under those who use it."""
        least, most = self.replica_bounds
        return isinstance(self.replicas, ReplicaRange) and least != most and self.mount_path is None

    def wire(self) -> dict[str, Any]:
        """As data for JSON, WITH secrets: for use between processes of the cluster. `from_wire` reverses it."""
        return self.model_dump(mode="json", by_alias=True, context={"reveal": True})

    def public(self) -> dict[str, Any]:
        """As data for JSON, secrets shown as `********`."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Self:
        """The dataset that `wire` described."""
        return cls.model_validate(dict(data))


def runtime_for(dataset: Dataset, runtimes: Mapping[str, CacheRuntime]) -> CacheRuntime | None:
    """The runtime that holds a dataset: the one it names, else its namesake, else None.

    Raises:
        SpecError: it names one that does not exist.
    """
    wanted = dataset.spec.runtime
    if wanted is None:
        return runtimes.get(dataset.name)
    if wanted not in runtimes:
        raise SpecError(
            f"no CacheRuntime {wanted!r}",
            where=f"Dataset {dataset.name}: spec.runtime",
            hint=name_hint(wanted, runtimes) or "apply it first, or in the same file",
        )
    return runtimes[wanted]


def resolve(
    dataset: Dataset,
    runtime: CacheRuntime | None,
    secrets: Mapping[str, Secret],
    default_tiers: Sequence[TierSpec],
) -> ResolvedDataset:
    """Everything about a dataset in one value.

    Args:
        dataset: what to cache.
        runtime: what holds it; None takes `default_tiers` and every node.
        secrets: by name.
        default_tiers: the cluster's own, for a runtime that has none.

    Raises:
        SpecError: a Secret or a key in it is missing, options contradict one another, a quota is smaller than a block,
            or there is no tier.
    """
    spec = dataset.spec
    where = f"Dataset {dataset.name}: spec"
    paths = spec.mount_paths()
    mounts = [
        _source(mount, path, secrets, f"{where}.mounts[{index}]")
        for index, (mount, path) in enumerate(zip(spec.mounts, paths, strict=True))
    ]
    return ResolvedDataset(
        name=dataset.name,
        namespace=dataset.metadata.namespace,
        mounts=mounts,
        block_size=spec.block_size,
        consistency_mode=spec.consistency.mode,
        metadata_ttl=spec.consistency.metadata_ttl,
        owner=spec.owner,
        tiers=_tiers(runtime, default_tiers, spec.block_size, dataset.name),
        eviction_policy=runtime.spec.eviction_policy if runtime else "sieve",
        replicas=runtime.spec.replicas if runtime else "all",
        node_selector=dict(runtime.spec.node_selector) if runtime else {},
        placement=spec.placement,
        mount_path=spec.mount_path,
    )


def _tiers(
    runtime: CacheRuntime | None, default_tiers: Sequence[TierSpec], block_size: int, dataset: str
) -> list[TierSpec]:
    levels = runtime.spec.tieredstore.levels if runtime and runtime.spec.tieredstore else []
    tiers = [tier for level in levels for tier in _tiers_of(level)] or list(default_tiers)
    if not tiers:
        raise SpecError(
            "no tier to cache in",
            where=f"Dataset {dataset}",
            hint="give a CacheRuntime tieredstore levels, or start the cluster with tiers",
        )
    for tier in tiers:
        if tier.quota is not None and tier.quota < block_size:
            raise SpecError(
                f"the quota of {tier.path} ({format_size(tier.quota)}) is smaller than one block"
                f" ({format_size(block_size)})",
                where=f"{runtime.kind} {runtime.name}: spec.tieredstore.levels"
                if runtime
                else f"Dataset {dataset}",
                hint="raise the quota, or lower the dataset's blockSize",
            )
    return sorted(tiers, key=lambda tier: MEDIA.index(tier.medium))


def _tiers_of(level: Level) -> list[TierSpec]:
    paths = level.paths()
    return [
        TierSpec(
            medium=level.mediumtype,
            path=path,
            quota=None if level.quota.size is None else level.quota.size // len(paths),
            quota_ratio=AUTO_SHARE if level.quota.auto else level.quota.ratio,
            auto=level.quota.auto,
            high=level.high,
            low=level.low,
            huge_pages=level.mediumtype == "MEM" and level.huge_pages == "auto",
        )
        for path in paths
    ]


def _source(mount: Mount, path: str, secrets: Mapping[str, Secret], where: str) -> MountSource:
    given = _Options(where)
    for name, value in mount.options.items():
        given.set(name, value)
    overrides = _Options(where)
    for index, option in enumerate(mount.encrypt_options):
        ref = option.value_from.secret_key_ref
        overrides.set(
            option.name, _secret_value(ref.name, ref.key, secrets, f"{where}.encryptOptions[{index}]")
        )
    options = _normalised({**given.values, **overrides.values}, where)
    plain = {name: value for name, value in options.items() if isinstance(value, str)}
    hidden = {name: value for name, value in options.items() if isinstance(value, SecretStr)}
    scheme, _, rest = mount.mount_point.partition("://")
    uri = f"{scheme.lower()}://{rest.rstrip('/') or '/' * rest.startswith('/')}"
    return MountSource(path=clean_path(path), uri=uri, options=plain, secret_options=hidden)


class _Options:
    """Options by canonical name; two spellings of one that differ in value are an error."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.values: dict[str, str | SecretStr] = {}
        self._spelt: dict[str, str] = {}

    def set(self, name: str, value: str | SecretStr) -> None:
        key = option_names.canonical(name)
        if key in self.values and _revealed(self.values[key]) != _revealed(value):
            raise SpecError(
                f"options {self._spelt[key]!r} and {name!r} mean the same and differ",
                where=self.where,
                hint="keep one",
            )
        self.values[key] = value
        self._spelt[key] = name


def _revealed(value: str | SecretStr) -> str:
    return value if isinstance(value, str) else value.get_secret_value()


def _secret_value(name: str, key: str, secrets: Mapping[str, Secret], where: str) -> SecretStr:
    if name not in secrets:
        raise SpecError(
            f"no Secret {name!r}",
            where=where,
            hint=name_hint(name, secrets) or "apply it first, or in the same file",
        )
    values = secrets[name].values()
    if key not in values:
        raise SpecError(f"Secret {name!r} has no key {key!r}", where=where, hint=name_hint(key, values))
    return values[key]


_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})


def _normalised(options: dict[str, str | SecretStr], where: str) -> dict[str, str | SecretStr]:
    """Flags as `true` or `false`, and an endpoint as a URL."""
    result = dict(options)
    for name in option_names.FLAGS & options.keys():
        flag = _revealed(options[name]).strip().lower()
        if flag not in _TRUE | _FALSE:
            raise SpecError(f"option for {name} must be true or false", where=f"{where}.options")
        result[name] = "true" if flag in _TRUE else "false"
    tls = result.pop(option_names.TLS, None)
    if tls is not None:
        result.setdefault("allow_http", "false" if tls == "true" else "true")
    endpoint = result.get("endpoint")
    if endpoint is not None:
        url = _revealed(endpoint).strip().rstrip("/")
        if not re.match(r"https?://", url, re.IGNORECASE):
            if "://" in url or not url:
                raise SpecError(
                    "endpoint must be a host, or an http:// or https:// URL", where=f"{where}.options"
                )
            # As written for Fluid: oss-cn-hangzhou.aliyuncs.com, and TLS unless it was turned off.
            url = f"{'http' if result.get('allow_http') == 'true' else 'https'}://{url}"
        elif url.lower().startswith("http://"):
            result.setdefault("allow_http", "true")
        result["endpoint"] = url if isinstance(endpoint, str) else SecretStr(url)
    return result
