"""What a pod asks for: its labels, the volumes that claim datasets, its annotation."""

from __future__ import annotations

from collections.abc import Container as Holds
from dataclasses import dataclass
from typing import Any

from raycache.errors import SpecError
from raycache.spec.kubernames import check_name

LABEL = "raycache.io/inject"
FLUID_LABEL = "serverless.fluid.io/inject"
ARTICLE_LABEL = "alibabacloud.com/fluid-sidecar-target"
DATASETS = "raycache.io/datasets"
"""Annotation: `name[:mountPath],…`."""
INJECTED = "raycache.io/injected"
"""Annotation that the webhook writes: `volume=dataset,…`, what each volume has been made of."""
CONTAINER = "raycache-sidecar"
"""Name of the container that the webhook adds."""
ADDED = "raycache-data-"
"""How volumes are named that the annotation needs; a number follows."""
DEFAULT_MOUNTS = "/raycache"
"""Where a dataset of the annotation is mounted that names no path: below here, by its name."""


@dataclass(frozen=True)
class Wish:
    """One dataset for one volume.

    Args:
        dataset: its name.
        volume: the pod's volume that is to hold it.
        path: where all containers are to mount it; "" for a volume of the pod's own, which its containers mount.
    """

    dataset: str
    volume: str
    path: str = ""


def asked(pod: dict[str, Any]) -> bool:
    """Whether the pod's labels ask for datasets. raycache's own label decides, where it is there."""
    labels = mapping(mapping(pod, "metadata"), "labels")
    if LABEL in labels:
        return bool(labels[LABEL] == "true")
    return labels.get(FLUID_LABEL) == "true" or labels.get(ARTICLE_LABEL) == "eci"


def wishes(pod: dict[str, Any], known: Holds[str]) -> list[Wish]:
    """What the pod asks for, in the order of its volumes, then of its annotation.

    Args:
        pod: a pod.
        known: the names of the datasets that there are. A claim of another name is some other volume.

    Raises:
        SpecError: the annotation, or the pod, is malformed.
    """
    made = already_made(pod)
    found = []
    for volume in items(mapping(pod, "spec"), "volumes", "spec"):
        name = text(volume, "name")
        claim = mapping(volume, "persistentVolumeClaim").get("claimName")
        if isinstance(claim, str) and claim in known:
            found.append(Wish(claim, name))
        elif name in made and "emptyDir" in volume and not name.startswith(ADDED):
            found.append(Wish(made[name], name))
    return [*found, *_annotated(pod)]


def claims(pod: dict[str, Any]) -> list[str]:
    """The names of all volume claims of the pod."""
    volumes = items(mapping(pod, "spec"), "volumes", "spec")
    names = [mapping(volume, "persistentVolumeClaim").get("claimName") for volume in volumes]
    return [name for name in names if isinstance(name, str)]


def already_made(pod: dict[str, Any]) -> dict[str, str]:
    """Volumes that an earlier call made directories, and their datasets; none unless its sidecar is there too."""
    if not has_container(pod, CONTAINER):
        return {}
    record = mapping(mapping(pod, "metadata"), "annotations").get(INJECTED)
    pairs = (part.partition("=") for part in record.split(",")) if isinstance(record, str) else ()
    return {volume: dataset for volume, equals, dataset in pairs if equals}


def has_container(pod: dict[str, Any], name: str) -> bool:
    """Whether a container or init container of the pod has that name."""
    spec = mapping(pod, "spec")
    both = [*items(spec, "initContainers", "spec"), *items(spec, "containers", "spec")]
    return any(container.get("name") == name for container in both)


def _annotated(pod: dict[str, Any]) -> list[Wish]:
    annotation = mapping(mapping(pod, "metadata"), "annotations").get(DATASETS)
    if annotation is None:
        return []
    where = f"metadata.annotations[{DATASETS}]"
    if not isinstance(annotation, str):
        raise SpecError("must be a string", where=where)
    found: list[Wish] = []
    for index, part in enumerate(annotation.split(",")):
        name, _, path = (word.strip() for word in part.partition(":"))
        try:
            check_name(name)
        except SpecError as error:
            hint = error.hint or "write name[:mountPath],…"
            raise SpecError(error.what, where=where, hint=hint) from None
        path = path or f"{DEFAULT_MOUNTS}/{name}"
        # Kubernetes refuses a colon in a mountPath; `..` and doubled slashes would hide that two paths are one.
        steps = path.split("/")[1:]
        if not path.startswith("/") or ":" in path or any(step in ("", ".", "..") for step in steps):
            raise SpecError(
                f"{path[:80]!r} is no mount path",
                where=where,
                hint=f"write {name}:/data, say, absolute and plain",
            )
        if any(path == other.path for other in found):
            raise SpecError(f"{path[:80]} is named twice", where=where, hint="give each its own mount path")
        found.append(Wish(name, f"{ADDED}{index}", path))
    return found


# -- reading what may be malformed --------------------------------------------------------------------------


def mapping(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping at `key`; {} where there is none, or null.

    Raises:
        SpecError: something else is there.
    """
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SpecError("must be a mapping", where=key)
    return found


def items(value: dict[str, Any], key: str, where: str = "") -> list[dict[str, Any]]:
    """The list of mappings at `key`; [] where there is none, or null.

    Raises:
        SpecError: something else is there.
    """
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise SpecError("must be a list of mappings", where=f"{where}.{key}" if where else key)
    return found


def text(value: dict[str, Any], key: str) -> str:
    """The string at `key`.

    Raises:
        SpecError: it is not there, or something else is.
    """
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise SpecError("must be a string", where=key)
    return found
