"""The spec: what a user writes (`apiVersion: raycache.io/v1`). Strict and frozen; every field says what it is for.

Field names in YAML are camelCase, attributes in Python snake_case. An unknown field is an error. `raycache.spec.loader`
reads YAML into these models, and turns their complaints into errors with file, line and path.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from raycache.blocks import MiB
from raycache.errors import SpecError
from raycache.spec import options as option_names
from raycache.spec.fields import (
    AbsolutePath,
    BlockSize,
    Count,
    CountOrNone,
    DataPath,
    Duration,
    FieldError,
    Hidden,
    Labels,
    Mode,
    MountPoint,
    Name,
    Namespace,
    Quota,
    Ratio,
    SpecModel,
    TypeName,
    absolute,
    at_least_one,
    data_path,
)

API_VERSION: Literal["raycache.io/v1"] = "raycache.io/v1"


class Metadata(SpecModel):
    """Name and labels of an object, as in Kubernetes."""

    name: Name = Field(description="Name; what `raycache://<name>/…`, `get` and `describe` call the object.")
    namespace: Namespace = Field(
        default="default",
        description="Kept and shown. Names are unique in the whole cluster, whatever the namespace.",
    )
    labels: Labels = Field(default_factory=dict, description="Labels, kept and shown.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations, kept.", repr=False)


class SecretKeyRef(SpecModel):
    """One key of a Secret."""

    name: Name = Field(description="Name of the Secret.")
    key: str = Field(description="Key in the Secret's `data` or `stringData`.", min_length=1)


class ValueFrom(SpecModel):
    """Where a value comes from."""

    secret_key_ref: SecretKeyRef = Field(description="The Secret, and the key in it.")


class EncryptOption(SpecModel):
    """A mount option whose value is in a Secret."""

    name: str = Field(description="Name of the option, as in `options`.", min_length=1)
    value_from: ValueFrom = Field(description="Where its value is.")


class Mount(SpecModel):
    """One place in an object store, and where it appears in the dataset."""

    mount_point: MountPoint = Field(
        description="What to cache: `s3://bucket/prefix`, `oss://`, `gs://`, `az://`, `https://`, `file:///…`, or any"
        " protocol that fsspec knows. Never credentials."
    )
    name: str | None = Field(
        default=None, description="Name of the mount; gives the default of `path`.", min_length=1
    )
    path: DataPath | None = Field(
        default=None,
        description="Where it appears in the dataset. Default: `/` for the only mount, else `/<name>`.",
    )
    read_only: bool = Field(
        default=True, description="Always true: a dataset is read through, never written to."
    )
    options: dict[str, str | Hidden] = Field(
        default_factory=dict,
        description="Options of the store: `endpoint`, `region`, `pathStyle`, `anonymous`, `profile`, `allowHttp`, and"
        " the names Fluid's users know (see below). Values that may be credentials are treated as secrets.",
    )
    encrypt_options: list[EncryptOption] = Field(
        default_factory=list,
        description="Options whose values are in Secrets. They win over `options` of the same name.",
    )

    @field_validator("read_only")
    @classmethod
    def _only_reading(cls, value: bool) -> bool:
        if not value:
            raise SpecError(
                "a dataset is read-only", hint="remove readOnly: false; write to the object store itself"
            )
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _options(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        result: dict[str, SecretStr | str] = {}
        for key, item in value.items():
            # `pathStyle: true`; but `profile: on` is a name that YAML took for a boolean.
            if isinstance(item, bool) and option_names.canonical(str(key)) in option_names.FLAGS:
                item = str(item).lower()
            if isinstance(item, str):
                item = SecretStr(item) if option_names.is_secret(key, item) else item
            elif not isinstance(item, SecretStr):
                # Not converted: YAML has already read 0123 as 83, and a key ID may look like a number.
                hint = "it belongs one level up" if key == "encryptOptions" else "put it in quotes"
                raise FieldError("an option must be a string", at=(str(key),), hint=hint)
            result[key] = item
        return result


class Consistency(SpecModel):
    """When a change in the object store is seen."""

    mode: Literal["ttl", "strict", "immutable"] = Field(
        default="ttl",
        description="`ttl`: listings and versions are believed for `metadataTTL`. `strict`: every open asks the store."
        " `immutable`: objects never change, nothing is asked twice, until"
        " [`raycache invalidate`](cli.md#invalidate) says so.",
    )
    metadata_ttl: Duration = Field(
        default=30.0,
        alias="metadataTTL",
        description="How long a listing or an object's version is believed, for mode `ttl`.",
    )


ID_MAX = 0xFFFFFFFE
"""The largest user or group ID: the kernel's are 32 bits, and all of them set stands for none (chown(2))."""


class Owner(SpecModel):
    """Who owns the files, for programs that look."""

    uid: Annotated[int, Field(ge=0, le=ID_MAX)] = Field(description="Numeric user ID.")
    gid: Annotated[int, Field(ge=0, le=ID_MAX)] = Field(description="Numeric group ID.")
    mode: Mode | None = Field(default=None, description="Permission bits of files. Default: 0444.")


AccessMode = Literal["ReadOnlyMany"]


def _read_only_many() -> list[AccessMode]:
    return ["ReadOnlyMany"]


class DatasetSpec(SpecModel):
    """What to cache."""

    mounts: list[Mount] = Field(
        description="The places that make up the dataset; at least one.", min_length=1
    )
    runtime: Name | None = Field(
        default=None,
        description="Name of the CacheRuntime that holds it. Default: the one with the dataset's name, else the"
        " cluster's own default.",
    )
    access_modes: list[AccessMode] = Field(
        default_factory=_read_only_many,
        description="As of a Kubernetes volume. Only `ReadOnlyMany`.",
    )
    consistency: Consistency = Field(
        default_factory=Consistency, description="When changes in the store are seen."
    )
    owner: Owner | None = Field(
        default=None, description="Owner shown for files; default: the user who reads."
    )
    placement: Literal["Shared", "Exclusive"] = Field(
        default="Shared",
        description="`Shared`: nodes may hold other datasets, too, each with its own quota. `Exclusive`: the nodes that"
        " hold this one hold no other; of two that want the same node, who was there first stays.",
    )
    block_size: BlockSize = Field(
        default=4 * MiB, description="Unit of fetching and caching: a power of two, 64Ki to 64Mi."
    )
    mount_path: AbsolutePath | None = Field(
        default=None,
        description="Directory at which every node that holds the dataset mounts it, read-only, for"
        " [any program](mount.md). It is made if it is not there, and must be empty.",
    )

    @model_validator(mode="after")
    def _paths_are_unique(self) -> DatasetSpec:
        taken: dict[str, int] = {}
        for index, path in enumerate(self.mount_paths()):
            if path in taken:
                raise FieldError(
                    f"appears at {path}, where mounts[{taken[path]}] is already",
                    at=("mounts", index),
                    hint="give each mount its own path",
                )
            taken[path] = index
        return self

    def mount_paths(self) -> list[str]:
        """Where each mount appears in the dataset: `/`, `/images`.

        Raises:
            SpecError: one of several mounts has neither a path nor a name.
        """
        paths = []
        for index, mount in enumerate(self.mounts):
            path = mount.path or ("/" if len(self.mounts) == 1 else mount.name and data_path(mount.name))
            if not path:
                raise FieldError(
                    "needs a path or a name", at=("mounts", index), hint="with a name it appears at /<name>"
                )
            paths.append(path)
        return paths


class Level(SpecModel):
    """One tier of the cache."""

    mediumtype: Literal["MEM", "SSD", "HDD"] = Field(
        description="Kind of device. Tiers are used in this order, whatever their order in the list."
    )
    path: str = Field(
        description="Directory on every node, such as `/dev/shm` or `/mnt/nvme0`; several, separated by commas, share"
        " the quota evenly."
    )
    quota: Quota = Field(
        description="How much to use: `10Gi`, or `20%` of the device (of the node's memory, for `MEM`). `auto`, for"
        " `MEM`: what is spare, up to half of the node's memory, none of it reserved in Ray."
    )
    high: Ratio = Field(default=0.95, description="Share of the quota at which eviction starts.")
    low: Ratio = Field(default=0.7, description="Share of the quota at which eviction stops.")
    huge_pages: Literal["auto", "never"] = Field(
        default="auto",
        description="`MEM` only. `auto`: a tmpfs with huge pages where the worker may mount one.",
    )

    def paths(self) -> list[str]:
        """The level's directories, normalised."""
        return [posixpath.normpath(part.strip()) for part in self.path.split(",")]

    @field_validator("path")
    @classmethod
    def _directories(cls, value: str) -> str:
        parts = [absolute(part.strip()) for part in value.split(",")]
        if len(set(parts)) < len(parts):
            raise SpecError("names a directory twice")
        if "/" in parts:
            raise SpecError("must be a directory below /", hint="for example /var/cache/raycache")
        return ",".join(parts)

    @model_validator(mode="after")
    def _consistent(self) -> Level:
        if not 0 < self.low < self.high:
            raise FieldError(
                f"low {self.low:g} must be above 0 and below high {self.high:g}",
                at=("low",),
                hint="0.7 and 0.95 are usual",
            )
        if self.quota.auto and self.mediumtype != "MEM":
            raise FieldError(
                "auto is for MEM only", at=("quota",), hint="give a size, or a percentage such as 20%"
            )
        if self.quota.size is None and "," in self.path:
            raise FieldError(
                f"{'auto' if self.quota.auto else 'a percentage'} is of one device, and there are several paths",
                at=("quota",),
                hint="write one level per path",
            )
        return self


class TieredStore(SpecModel):
    """The cache's tiers."""

    levels: list[Level] = Field(description="At least one tier. No directory may appear twice.", min_length=1)

    @model_validator(mode="after")
    def _directories_are_unique(self) -> TieredStore:
        taken: dict[str, int] = {}
        for index, level in enumerate(self.levels):
            for path in level.paths():
                if path in taken:
                    raise FieldError(
                        f"directory {path} is already used by levels[{taken[path]}]",
                        at=("levels", index, "path"),
                    )
                taken[path] = index
        return self


class ReplicaRange(SpecModel):
    """Bounds between which the number of workers follows what is read.

    Not for a dataset with a `mountPath`, which is mounted where it is held: that is held on `max` nodes.
    """

    min: CountOrNone = Field(
        default=1, description="At least this many; 0: none when nothing has been read for a while."
    )
    max: Count | None = Field(default=None, description="At most this many; default: one on every node.")
    ask_for_nodes: bool = Field(
        default=False,
        description="Whether to ask Ray's autoscaler for nodes when more would help than there are; needs `max`.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaRange:
        if self.max is not None and self.max < self.min:
            raise FieldError(f"max {self.max} is below min {self.min}", at=("max",))
        if self.ask_for_nodes and self.max is None:
            raise FieldError(
                "without a max there is no end to the nodes that could be asked for",
                at=("askForNodes",),
                hint="set max",
            )
        return self


def _replicas(value: object) -> object:
    """One clear complaint instead of three, one per member of the union."""
    if isinstance(value, str) and value != "all":
        raise SpecError(
            'must be an integer >= 1 or "all"', hint="remove the quotes" if value.isdigit() else ""
        )
    if isinstance(value, bool) or not isinstance(value, int | str | Mapping | ReplicaRange):
        raise SpecError('must be an integer >= 1 or "all"')
    if isinstance(value, int):
        at_least_one(value)
    return value


class CacheRuntimeSpec(SpecModel):
    """Where the cache lives, and how much it may use."""

    replicas: Annotated[
        int | Literal["all"] | ReplicaRange,
        BeforeValidator(_replicas),
        TypeName("integer >= 1, `all`, or `{min, max, askForNodes}`"),
    ] = Field(
        default="all",
        description="On how many nodes workers hold the dataset; with bounds the number follows what is read.",
    )
    node_selector: Labels = Field(
        default_factory=dict,
        description="Ray node labels that a node must have, all of them, to hold the dataset.",
    )
    tieredstore: TieredStore | None = Field(
        default=None, description="The tiers. Default: the ones `raycache start` was given."
    )
    eviction_policy: Literal["sieve", "lru"] = Field(
        default="sieve", description="What leaves a full tier first."
    )


class DatasetRef(SpecModel):
    """A dataset, by name."""

    name: Name = Field(description="Name of the Dataset.")
    namespace: Namespace | None = Field(default=None, description="Its namespace; kept, not used to find it.")


class LoadTarget(SpecModel):
    """One path to load."""

    path: DataPath = Field(default="/", description="File or directory in the dataset.")
    replicas: Annotated[
        int | Literal["all"], BeforeValidator(_replicas), TypeName("integer >= 1 or `all`")
    ] = Field(default=1, description="How many nodes get a copy.")


class DataLoadSpec(SpecModel):
    """What to fetch ahead of use."""

    dataset: DatasetRef = Field(description="The dataset to load from.")
    load_metadata: bool = Field(
        default=False, description="List the object store afresh first, whatever is believed of it."
    )
    target: list[LoadTarget] = Field(
        default_factory=lambda: [LoadTarget()],
        description="What to load; default: everything, one copy.",
        min_length=1,
    )


class Resource(SpecModel):
    """Base of the top-level objects."""

    api_version: str
    kind: str
    metadata: Metadata

    @property
    def name(self) -> str:
        """The object's name."""
        return self.metadata.name


class Dataset(Resource):
    """What to cache: places in object stores, as one tree of files."""

    api_version: Literal["raycache.io/v1"] = Field(default=API_VERSION, description="`raycache.io/v1`.")
    kind: Literal["Dataset"] = Field(default="Dataset", description="`Dataset`.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: DatasetSpec = Field(description="What to cache.")


class CacheRuntime(Resource):
    """Where a dataset is cached: nodes, tiers, quotas. Bound to the dataset of the same name, or by its `runtime`."""

    api_version: Literal["raycache.io/v1"] = Field(default=API_VERSION, description="`raycache.io/v1`.")
    kind: Literal["CacheRuntime"] = Field(default="CacheRuntime", description="`CacheRuntime`.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: CacheRuntimeSpec = Field(default_factory=CacheRuntimeSpec, description="Nodes and tiers.")


class DataLoad(Resource):
    """A one-off operation that fetches data before it is read."""

    api_version: Literal["raycache.io/v1"] = Field(default=API_VERSION, description="`raycache.io/v1`.")
    kind: Literal["DataLoad"] = Field(default="DataLoad", description="`DataLoad`.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: DataLoadSpec = Field(description="What to load.")


class Secret(Resource):
    """Values that are never shown. A Kubernetes Secret is one as it stands."""

    api_version: Literal["v1", "raycache.io/v1"] = Field(
        default="v1", description="`v1`, as in Kubernetes, or `raycache.io/v1`."
    )
    kind: Literal["Secret"] = Field(default="Secret", description="`Secret`.")
    metadata: Metadata = Field(description="Name and labels.")
    type: str = Field(default="Opaque", description="Kubernetes' type of secret; kept, not used.")
    data: dict[str, Hidden] = Field(default_factory=dict, description="Values in base64, of UTF-8 text.")
    string_data: dict[str, Hidden] = Field(
        default_factory=dict, description="Values as they are. They win over `data`, as in Kubernetes."
    )

    @field_validator("data", "string_data", mode="before")
    @classmethod
    def _strings(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(item, str | SecretStr):
                    raise FieldError("must be a string", at=(str(key),), hint="put it in quotes")
            return {
                key: item if isinstance(item, SecretStr) else SecretStr(item) for key, item in value.items()
            }
        return value

    @field_validator("data")
    @classmethod
    def _base64(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for key, item in value.items():
            _decode(key, item)
        return value

    def values(self) -> dict[str, SecretStr]:
        """Every key with its value, `data` decoded."""
        decoded = {key: SecretStr(_decode(key, item)) for key, item in self.data.items()}
        return {**decoded, **self.string_data}


def _decode(key: str, value: SecretStr) -> str:
    problem = ""
    try:
        # Kubernetes' JSON decoder skips line breaks in base64, and nothing else.
        text = value.get_secret_value().replace("\n", "").replace("\r", "")
        return base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        problem = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "is not base64"
    # Outside the handler, so that the error does not carry the value along as its context.
    hint = "put plain text in stringData" if problem == "is not base64" else "a credential must be text"
    raise FieldError(problem, at=(key,), hint=hint)


KINDS: Mapping[str, type[Resource]] = {
    "Dataset": Dataset,
    "CacheRuntime": CacheRuntime,
    "DataLoad": DataLoad,
    "Secret": Secret,
}
"""The models by kind."""
