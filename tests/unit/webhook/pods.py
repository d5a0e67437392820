"""Pods for the webhook's tests."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch

from raycache.webhook import Decision, Policy

CATALOG = {"imagenet": "", "models": "", "cold": "NotReady, 0 nodes hold it"}
POLICY = Policy(image="example.com/raycache:1", cache_address="raycache-workers.ray:7777")


def pod(
    *claims: str, labels: dict[str, str] | None = None, annotation: str | None = None, **spec: Any
) -> dict[str, Any]:
    """A pod whose container and init container mount volumes that claim `claims`."""
    mounts = [{"name": f"v{n}", "mountPath": f"/data/{n}"} for n in range(len(claims))]
    metadata: dict[str, Any] = {
        "name": "train",
        "labels": {"raycache.io/inject": "true"} if labels is None else labels,
    }
    if annotation is not None:
        metadata["annotations"] = {"raycache.io/datasets": annotation, "other/one": "kept"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "initContainers": [
                {"name": "prepare", "image": "busybox", "volumeMounts": copy.deepcopy(mounts)}
            ],
            "containers": [
                {"name": "main", "image": "python:3.12", "volumeMounts": copy.deepcopy(mounts)},
                {"name": "logger", "image": "busybox"},
            ],
            "volumes": [
                {"name": f"v{n}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
                for n, claim in enumerate(claims)
            ],
            **spec,
        },
    }


def patched(original: dict[str, Any], decision: Decision) -> dict[str, Any]:
    """The pod after the patch; by an implementation that is not raycache's."""
    assert not decision.refusal
    result: dict[str, Any] = jsonpatch.apply_patch(original, decision.operations)
    return result


def sidecar(result: dict[str, Any]) -> dict[str, Any]:
    """The one container that was added."""
    spec = result["spec"]
    every = [*spec.get("initContainers", []), *spec["containers"]]
    (found,) = [one for one in every if one["name"] == "raycache-sidecar"]
    return dict(found)


def env(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"]}
