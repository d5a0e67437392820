"""Fluid's documents (https://github.com/fluid-cloudnative/fluid), mapped to raycache's.

A field that has no meaning here is named in a warning; a misspelt one is an error. What is mapped how is described, for
users, in `raycache.spec.reference`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from raycache.spec import fluid_fields as known
from raycache.spec.checks import Place, name_hint, nearest, unknown_field
from raycache.spec.yamltree import Path, dotted

API_VERSION = "data.fluid.io/v1alpha1"

_KINDS = {"Dataset": known.DATASET, "DataLoad": known.DATALOAD, **known.RUNTIMES}
_SECRET = {"apiVersion": None, "kind": None, "metadata": known.METADATA}
_SECRET |= dict.fromkeys(("data", "stringData", "type", "immutable"))

_WHY = {
    "nodeAffinity": "choose nodes by Ray's labels in a CacheRuntime's nodeSelector",
    "nodeSelector": "it means Kubernetes nodes; choose Ray nodes in a CacheRuntime's nodeSelector",
    "schedule": "the load runs once, when it is applied",
    "policy": "the load runs once, when it is applied",
    "runAfter": "the load starts when it is applied",
    "data": "copies are asked for in a DataLoad's target.replicas",
    "user": "the numeric uid is used",
    "group": "the numeric gid is used",
}


def is_runtime(kind: str) -> bool:
    """Whether a kind is one of Fluid's runtimes that can be mapped to a CacheRuntime."""
    return kind.endswith("Runtime") and len(kind) > len("Runtime") and kind not in known.NO_COUNTERPART


def check_kind(kind: str, place: Place) -> None:
    """Raises SpecError for a kind of Fluid's that is misspelt or has no counterpart."""
    if kind in known.NO_COUNTERPART:
        raise place.error(f"Fluid's kind {kind} has no counterpart", ("kind",), known.NO_COUNTERPART[kind])
    if kind in _KINDS or kind in known.OTHER_RUNTIMES:
        return
    names = [*_KINDS, *known.OTHER_RUNTIMES]
    # Anything may call itself a runtime; but AluxioRuntime is a slip of the pen.
    if not is_runtime(kind) or nearest(kind, names, cutoff=0.9):
        raise place.error(f"unknown kind {kind[:80]!r} of {API_VERSION}", ("kind",), name_hint(kind, names))


def translate(
    kind: str, value: dict[str, Any], place: Place, warnings: list[str]
) -> tuple[str, dict[str, Any], dict[Path, Path]]:
    """A document of Fluid's as one of raycache's, not validated yet.

    Args:
        kind: Fluid's kind, checked by `check_kind`.
        value: the document.
        place: where it stands.
        warnings: is appended to.

    Returns:
        The kind it becomes, its content, and which of its values stand elsewhere in the document.

    Raises:
        SpecError: a misspelt field, or something that cannot be mapped.
    """
    fields = _KINDS.get(kind, known.ANY_RUNTIME)
    top = {"apiVersion": None, "kind": None, "metadata": known.METADATA, "spec": fields, "status": None}
    _check_fields(value, top, (), place, tolerant=() if kind in _KINDS else ("spec",))
    translation = _Translation(place, warnings)
    spec = translation.mapping(value.get("spec"), ("spec",))
    if kind == "Dataset":
        becomes, mapped = "Dataset", translation.dataset(spec)
    elif kind == "DataLoad":
        becomes, mapped = "DataLoad", translation.dataload(spec)
    else:
        becomes, mapped = "CacheRuntime", translation.runtime(spec)
    translation.ignore(value, (), used=("apiVersion", "kind", "metadata", "spec"))
    result = {"kind": becomes, "metadata": translation.metadata(value.get("metadata")), "spec": mapped}
    return becomes, {"apiVersion": "raycache.io/v1", **result}, translation.moved


def from_kubernetes(value: dict[str, Any], place: Place, warnings: list[str]) -> dict[str, Any]:
    """A Secret of Kubernetes' without the fields that its API server adds; each is named in a warning."""
    _check_fields(value, _SECRET, (), place)
    translation = _Translation(place, warnings)
    translation.ignore(value, (), used=("apiVersion", "kind", "metadata", "type", "data", "stringData"))
    kept = {key: item for key, item in value.items() if key != "immutable"}
    return {**kept, "metadata": translation.metadata(value.get("metadata"))}


def _check_fields(
    value: Any, fields: known.Fields, path: Path, place: Place, tolerant: Path | None = None
) -> None:
    """Raises SpecError for a field that Fluid doesn't have. At the path `tolerant`, only for near misses."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_fields(item, fields, (*path, index), place, tolerant)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        here = (*path, key)
        if key not in fields:
            if tolerant and path == tolerant and nearest(key, fields) is None:
                continue
            raise unknown_field(place, here, fields)
        if fields[key] is not None:
            _check_fields(item, fields[key], here, place, tolerant)


class _Translation:
    """One document on its way; collects warnings, and where things came from."""

    def __init__(self, place: Place, warnings: list[str]) -> None:
        self.place = place
        self.warnings = warnings
        self.moved: dict[Path, Path] = {}

    def mapping(self, value: Any, path: Path) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.place.error("must be a mapping", path)
        return value

    def sequence(self, value: Any, path: Path) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.place.error("must be a list", path, "begin each item with '- '")
        return value

    def warn(self, path: Path, why: str) -> None:
        self.warnings.append(f"{self.place.where(path)}: {why}")

    def ignore(self, value: dict[str, Any], path: Path, used: Sequence[str]) -> None:
        """Warns of every field that is not among the `used` ones."""
        for key, item in value.items():
            if key in used or item is None:
                continue
            why = _WHY.get(key)
            self.warn((*path, key), "has no meaning here and is ignored" + (f": {why}" if why else ""))

    def metadata(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        used = ("name", "namespace", "labels", "annotations")
        self.ignore(value, ("metadata",), used)
        return {key: item for key, item in value.items() if key in used}

    def dataset(self, spec: dict[str, Any]) -> dict[str, Any]:
        path: Path = ("spec",)
        self.ignore(
            spec,
            path,
            (
                "mounts",
                "owner",
                "accessModes",
                "sharedOptions",
                "sharedEncryptOptions",
                "runtimes",
                "placement",
            ),
        )
        mounts = self.sequence(spec.get("mounts"), (*path, "mounts"))
        result: dict[str, Any] = {}
        if spec.get("mounts") is not None:
            result["mounts"] = [
                self.mount(item, (*path, "mounts", index), spec) for index, item in enumerate(mounts)
            ]
        if spec.get("owner") is not None:
            owner = self.mapping(spec["owner"], (*path, "owner"))
            self.ignore(owner, (*path, "owner"), ("uid", "gid"))
            result["owner"] = {key: owner[key] for key in ("uid", "gid") if key in owner}
        if spec.get("placement"):
            # Where Fluid's default is Exclusive, ours is Shared: each dataset has its own quota on a node.
            result["placement"] = spec["placement"]
        for index, mode in enumerate(self.sequence(spec.get("accessModes"), (*path, "accessModes"))):
            if mode != "ReadOnlyMany":
                if mode not in ("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"):
                    hint = name_hint(
                        str(mode), ["ReadOnlyMany", "ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]
                    )
                    raise self.place.error("unknown access mode", (*path, "accessModes", index), hint)
                self.warn((*path, "accessModes", index), f"{mode}: the dataset is read-only all the same")
        result |= self.runtime_name(
            self.sequence(spec.get("runtimes"), (*path, "runtimes")), (*path, "runtimes")
        )
        return result

    def runtime_name(self, runtimes: list[Any], path: Path) -> dict[str, Any]:
        for index, item in enumerate(runtimes):
            runtime = self.mapping(item, (*path, index))
            if index:
                self.warn((*path, index), "has no meaning here and is ignored: a dataset has one runtime")
            else:
                self.ignore(runtime, (*path, index), ("name",))
        if runtimes and runtimes[0].get("name") is not None:
            self.moved["spec", "runtime"] = (*path, 0, "name")
            return {"runtime": runtimes[0]["name"]}
        return {}

    def mount(self, value: Any, path: Path, spec: dict[str, Any]) -> dict[str, Any]:
        mount = self.mapping(value, path)
        self.ignore(mount, path, ("mountPoint", "name", "path", "readOnly", "options", "encryptOptions"))
        if mount.get("readOnly") is False:
            self.warn((*path, "readOnly"), "the dataset is read-only all the same")
        result: dict[str, Any] = {key: mount[key] for key in ("name",) if mount.get(key) is not None}
        if "mountPoint" in mount:
            result["mountPoint"] = self.mount_point(mount["mountPoint"], (*path, "mountPoint"))
        # Fluid's rule: an absolute path is used, anything else gives way to the name.
        where = mount.get("path")
        if isinstance(where, str) and not where.startswith("/"):
            self.warn((*path, "path"), "not absolute; the mount's name is used, as Fluid does")
            where = None
        if where is None:
            name = mount.get("name")
            where = f"/{name}" if isinstance(name, str) else "/"
            self.moved[(*path, "path")] = (*path, "name") if name is not None else path
        result["path"] = where
        result["options"] = self.shared_and_own_options(mount, path, spec)
        result["encryptOptions"] = self.shared_and_own_secrets(mount, path, spec)
        return result

    def mount_point(self, value: Any, path: Path) -> Any:
        if not isinstance(value, str):
            return value
        if re.match(r"local://", value):
            self.warn(path, "read as file://; the directory must be there on every node with a worker")
            return "file://" + value.removeprefix("local://")
        for scheme, hint in {
            "pvc": "mount the volume into the Ray pods and name its directory: file:///...",
            "dataset": "name the other dataset's own mount point",
            "juicefs": "name the object store, or mount JuiceFS on the nodes and name its directory: file:///...",
        }.items():
            if value.startswith(f"{scheme}://"):
                raise self.place.error(f"a {scheme}:// mount point can't be read without Fluid", path, hint)
        return value

    def shared_and_own_options(
        self, mount: dict[str, Any], path: Path, spec: dict[str, Any]
    ) -> dict[str, Any]:
        shared = self.mapping(spec.get("sharedOptions"), ("spec", "sharedOptions"))
        own = self.mapping(mount.get("options"), (*path, "options"))
        for key in shared:
            if key not in own:
                self.moved[(*path, "options", key)] = ("spec", "sharedOptions", key)
        return {**shared, **own}

    def shared_and_own_secrets(self, mount: dict[str, Any], path: Path, spec: dict[str, Any]) -> list[Any]:
        here = (*path, "encryptOptions")
        own = self.sequence(mount.get("encryptOptions"), here)
        named = {option.get("name") for option in own if isinstance(option, dict)}
        result = list(own)
        shared = self.sequence(spec.get("sharedEncryptOptions"), ("spec", "sharedEncryptOptions"))
        for index, option in enumerate(shared):
            if isinstance(option, dict) and option.get("name") in named:
                continue
            self.moved[(*here, len(result))] = ("spec", "sharedEncryptOptions", index)
            result.append(option)
        return result

    def runtime(self, spec: dict[str, Any]) -> dict[str, Any]:
        path: Path = ("spec",)
        self.ignore(spec, path, ("replicas", "tieredstore"))
        result: dict[str, Any] = {}
        if spec.get("replicas") is None:
            self.warn(path, "replicas is not set: every node with a worker holds the dataset")
        else:
            result["replicas"] = spec["replicas"]
        store = self.mapping(spec.get("tieredstore"), (*path, "tieredstore"))
        levels: list[Any] = []
        here = (*path, "tieredstore", "levels")
        for index, level in enumerate(self.sequence(store.get("levels"), here)):
            for item in self.levels(self.mapping(level, (*here, index)), (*here, index)):
                self.moved[(*here, len(levels))] = (*here, index)
                levels.append(item)
        if levels:
            result["tieredstore"] = {"levels": levels}
        else:
            self.warn(
                path, f"{dotted(('tieredstore', 'levels'))} is not set: the cluster's default tiers are used"
            )
        return result

    def levels(self, level: dict[str, Any], path: Path) -> list[dict[str, Any]]:
        """A level of Fluid's: one of raycache's, or one for each entry of its quotaList."""
        self.ignore(level, path, ("mediumtype", "path", "quota", "quotaList", "high", "low"))
        common = {key: level[key] for key in ("mediumtype", "high", "low") if level.get(key) is not None}
        quota_list = level.get("quotaList")
        if quota_list is None:
            return [common | {key: level[key] for key in ("path", "quota") if level.get(key) is not None}]
        if not isinstance(quota_list, str) or not isinstance(level.get("path"), str):
            raise self.place.error("quotaList and path must be strings, with commas between the items", path)
        paths, quotas = level["path"].split(","), quota_list.split(",")
        if len(paths) != len(quotas):
            raise self.place.error(
                f"quotaList has {len(quotas)} quotas for {len(paths)} paths",
                (*path, "quotaList"),
                "one for each path",
            )
        if level.get("quota") is not None:
            self.warn((*path, "quota"), "has no meaning here and is ignored: quotaList says more")
        return [
            common | {"path": one.strip(), "quota": quota.strip()}
            for one, quota in zip(paths, quotas, strict=True)
        ]

    def dataload(self, spec: dict[str, Any]) -> dict[str, Any]:
        path: Path = ("spec",)
        once = ("policy",) if spec.get("policy") in ("", "Once") else ()
        self.ignore(spec, path, ("dataset", "loadMetadata", "target", *once))
        return {key: spec[key] for key in ("dataset", "loadMetadata", "target") if spec.get(key) is not None}
