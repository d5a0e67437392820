"""The core: a pod and what datasets there are, in; the operations that give it its datasets, or why not, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycache.errors import SpecError
from raycache.webhook.container import container, datasets, own_volumes
from raycache.webhook.editing import Editing
from raycache.webhook.policy import Policy
from raycache.webhook.wishes import (
    ADDED,
    CONTAINER,
    DATASETS,
    INJECTED,
    Wish,
    already_made,
    asked,
    claims,
    has_container,
    items,
    mapping,
    text,
    wishes,
)

_KINDS = ("initContainers", "containers")


@dataclass(frozen=True)
class Decision:
    """What becomes of a pod.

    Args:
        operations: JSON Patch (RFC 6902); empty where the pod stays as it is.
        refusal: why the pod is refused; "" where it is not.
        warnings: for who creates the pod.
    """

    operations: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = ""
    warnings: tuple[str, ...] = ()


def inject(pod: Any, catalog: Mapping[str, str], policy: Policy) -> Decision:
    """Decide about a pod. Pure, and never half: all its datasets, or none.

    Done twice it is as if done once; containers and volumes that another webhook added in between are seen to.

    Args:
        pod: as the API server sends it.
        catalog: the datasets that there are; the value says why one is not ready, "" if it is.
        policy: how.
    """
    try:
        if not isinstance(pod, dict):
            raise SpecError("a pod must be a mapping")
        if not asked(pod):
            return Decision()
        wanted = wishes(pod, catalog)
        trouble = _trouble(pod, wanted, catalog)
        if trouble and policy.on_unknown == "refuse":
            return Decision(refusal=trouble)
        if trouble:
            return Decision(warnings=(f"raycache: the pod stays as it is: {trouble}",))
        editing = Editing(pod)
        _Injection(editing, wanted, policy).run()
        return Decision(editing.operations)
    except SpecError as error:
        return Decision(refusal=f"raycache: {error}")


def _trouble(pod: dict[str, Any], wanted: Sequence[Wish], catalog: Mapping[str, str]) -> str:
    """Why it cannot have what it asks for; "" if it can."""
    if not wanted:
        claimed = ", ".join(claims(pod)) or "none"
        return (
            f"raycache: the pod's label asks for datasets, and it names none: its volume claims ({claimed}) are not"
            f" datasets, and it has no annotation {DATASETS}"
        )
    names = list(dict.fromkeys(wish.dataset for wish in wanted))
    bad = [f"there is no dataset {name}" for name in names if name not in catalog]
    bad += [f"dataset {name} is not ready: {catalog[name]}" for name in names if catalog.get(name)]
    return f"raycache: {'; '.join(bad)}" if bad else ""


class _Injection:
    """One pod being given its datasets."""

    def __init__(self, editing: Editing, wanted: Sequence[Wish], policy: Policy) -> None:
        self._edit = editing
        self._pod = editing.document
        self._wanted = wanted
        self._policy = policy
        self._volumes = [wish.volume for wish in wanted]  # no set: what is asked of it may be unhashable
        self._had = already_made(self._pod)
        self._classic = policy.sidecar == "classic" and policy.profile != "copy"

    def run(self) -> None:
        """Make all changes.

        Raises:
            SpecError: they cannot be made.
        """
        self._check()
        for kind in _KINDS:
            for index, one in enumerate(items(self._spec, kind, "spec")):
                if one.get("name") != CONTAINER:
                    self._application((kind, index), one)
        self._make_volumes()
        self._place_sidecar()
        self._record()

    @property
    def _spec(self) -> dict[str, Any]:
        return mapping(self._pod, "spec")

    def _check(self) -> None:
        spec = self._spec
        if not items(spec, "containers", "spec"):
            raise SpecError("a pod must have containers", where="spec.containers")
        if has_container(self._pod, CONTAINER) and not self._had:
            raise SpecError(
                f"the name {CONTAINER} is taken by a container that the webhook did not add",
                where="spec",
                hint="give it another name, or leave the label out",
            )
        if mapping(spec, "os").get("name") == "windows":
            raise SpecError("Windows has no FUSE", where="spec.os.name", hint="leave the label out")
        names = [text(volume, "name") for volume in items(spec, "volumes", "spec")]
        ours = {volume["name"] for volume in own_volumes(self._policy)}
        taken = [name for name in names if name in ours or name.startswith(ADDED)] if not self._had else []
        if taken:
            raise SpecError(f"the name {taken[0]} is the webhook's", where="spec.volumes", hint="rename it")
        if self._ends_with_application and spec.get("shareProcessNamespace") is False:
            raise SpecError(
                "a sidecar of an old cluster must see when the application ends",
                where="spec.shareProcessNamespace",
                hint="leave it out",
            )
        if self._ends_with_application and spec.get("hostPID"):
            raise SpecError(
                "a sidecar of an old cluster cannot tell the application's processes from the host's",
                where="spec.hostPID",
                hint="leave it out",
            )

    @property
    def _ends_with_application(self) -> bool:
        """A pod that is done when its containers have ended, and has a classic container for a sidecar."""
        return self._classic and self._spec.get("restartPolicy") in ("Never", "OnFailure")

    def _application(self, at: tuple[str, int], one: dict[str, Any]) -> None:
        """Have one of the pod's own containers see the mounts."""
        path = ("spec", *at, "volumeMounts")
        where = f"spec.{at[0]}[{at[1]}]"
        for device in items(one, "volumeDevices", where):
            if device.get("name") in self._volumes:
                raise SpecError("a dataset is a directory, no block device", where=f"{where}.volumeDevices")
        waits = at[0] == "initContainers" and self._classic
        for index, mount in enumerate(items(one, "volumeMounts", where)):
            if mount.get("name") not in self._volumes:
                continue
            if waits:
                raise SpecError(
                    "an init container cannot read a dataset on a cluster without native sidecars: the sidecar"
                    " starts after it",
                    where=where,
                    hint="read it in a container, or have the webhook run with --profile copy",
                )
            self._propagate((*path, index), mount)
        for wish in self._wanted:
            if not wish.path or waits:
                continue
            mounts = items(one, "volumeMounts", where)
            at_path = [mount for mount in mounts if str(mount.get("mountPath")).rstrip("/") == wish.path]
            if any(mount.get("name") == wish.volume for mount in at_path):
                continue
            if at_path:
                raise SpecError(
                    f"something is mounted at {wish.path} already",
                    where=where,
                    hint=f"name another path in the annotation {DATASETS}",
                )
            mount = {"name": wish.volume, "mountPath": wish.path, "readOnly": True}
            if self._policy.profile == "privileged":
                mount["mountPropagation"] = "HostToContainer"
            self._edit.insert((*path, len(mounts)), mount)

    def _propagate(self, at: tuple[str | int, ...], mount: dict[str, Any]) -> None:
        if self._policy.profile != "privileged":
            return  # `device`: the platform's matter; `copy`: there is no mount
        if (
            "recursiveReadOnly" in mount
        ):  # Kubernetes refuses it together with propagation; datasets are read-only
            self._edit.remove((*at, "recursiveReadOnly"))
        if mount.get("mountPropagation") != "Bidirectional":  # which receives mounts as well
            self._edit.set((*at, "mountPropagation"), "HostToContainer")

    def _make_volumes(self) -> None:
        there = {text(one, "name"): n for n, one in enumerate(items(self._spec, "volumes", "spec"))}
        for wish in self._wanted:
            at = there.get(wish.volume)
            if at is None:
                self._append_volume({"name": wish.volume, "emptyDir": {}})
            elif "emptyDir" not in self._spec["volumes"][at]:
                self._edit.set(("spec", "volumes", at), {"name": wish.volume, "emptyDir": {}})
        for volume in own_volumes(self._policy):
            if volume["name"] not in there:
                self._append_volume(volume)

    def _append_volume(self, volume: dict[str, Any]) -> None:
        self._edit.insert(("spec", "volumes", len(items(self._spec, "volumes"))), volume)

    def _place_sidecar(self) -> None:
        """Before everything that reads the data: the first init container, or the first container."""
        made = container(self._policy, self._wanted, ends_with_application=self._ends_with_application)
        kind = "containers" if self._classic else "initContainers"
        there = items(self._spec, kind, "spec")
        index = next((n for n, one in enumerate(there) if one.get("name") == CONTAINER), None)
        first_reader = 0
        if index is not None:
            if self._shows_all(there[index]):
                made = there[index]  # as it is: another webhook may have had its say
            first_reader = next(
                (n for n, one in enumerate(there) if n != index and self._reads(one)), len(there)
            )
        if index is not None and index < first_reader:
            self._edit.set(("spec", kind, index), made)
        else:
            if index is not None:
                self._edit.remove(("spec", kind, index))
            self._edit.insert(("spec", kind, 0), made)
        if self._ends_with_application:
            self._edit.set(("spec", "shareProcessNamespace"), True)

    def _shows_all(self, sidecar: dict[str, Any]) -> bool:
        told = {"name": "RAYCACHE_DATASETS", "value": datasets(self._wanted)}
        return told in items(sidecar, "env", CONTAINER)

    def _reads(self, one: dict[str, Any]) -> bool:
        return any(mount.get("name") in self._volumes for mount in items(one, "volumeMounts"))

    def _record(self) -> None:
        if not isinstance(self._pod.get("metadata"), dict):
            self._edit.set(("metadata",), {})
        if not isinstance(self._pod["metadata"].get("annotations"), dict):
            self._edit.set(("metadata", "annotations"), {})
        record = ",".join(f"{wish.volume}={wish.dataset}" for wish in self._wanted)
        self._edit.set(("metadata", "annotations", INJECTED), record)
