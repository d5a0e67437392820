"""The container that the webhook adds, and the volumes that are its own. What it is told: docs/sidecar.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycache.webhook.policy import Policy
from raycache.webhook.wishes import CONTAINER, Wish

MOUNTS = "/raycache/volumes"
"""Below it, in the sidecar, the pod's volumes by their names."""
CACHE, TOKEN, TLS = "raycache-cache", "raycache-token", "raycache-tls"
"""Names of the sidecar's own volumes."""
_CACHE_DIR, _TOKEN_DIR, _TLS_DIR = "/var/cache/raycache", "/etc/raycache/token", "/etc/raycache/tls"
_COMMAND = ["raycache", "sidecar"]
_CHECK = [*_COMMAND, "--check"]
_CHECK_S = 2
"""Seconds between checks while it starts."""


def container(policy: Policy, wishes: Sequence[Wish], *, ends_with_application: bool) -> dict[str, Any]:
    """The container.

    Args:
        policy: how it is to run.
        wishes: the datasets it is to show, each in its volume.
        ends_with_application: whether it has to end by itself when the application's processes have ended.
    """
    copies = policy.profile == "copy"
    env = {
        "RAYCACHE_ADDRESS": policy.cache_address,
        "RAYCACHE_DATASETS": datasets(wishes),
        "RAYCACHE_SIDECAR_MODE": "copy" if copies else "mount",
        "RAYCACHE_START_TIMEOUT": f"{policy.start_timeout_s}s",
    }
    mounts: list[dict[str, Any]] = []
    for wish in wishes:
        mount = {"name": wish.volume, "mountPath": f"{MOUNTS}/{wish.volume}"}
        # The API server accepts Bidirectional of privileged containers only.
        mounts.append(
            mount | ({"mountPropagation": "Bidirectional"} if policy.profile == "privileged" else {})
        )
    if not copies:
        env |= {"RAYCACHE_CACHE_DIR": _CACHE_DIR, "RAYCACHE_CACHE_SIZE": str(policy.cache_bytes)}
        mounts.append({"name": CACHE, "mountPath": _CACHE_DIR})
    if ends_with_application:
        env["RAYCACHE_END_WITH_APPLICATION"] = "1"
    if policy.token_secret:
        env["RAYCACHE_TOKEN_FILE"] = f"{_TOKEN_DIR}/token"
        mounts.append({"name": TOKEN, "mountPath": _TOKEN_DIR, "readOnly": True})
    if policy.tls_secret:
        env["RAYCACHE_TLS_CA"] = f"{_TLS_DIR}/ca.crt"
        if policy.tls_client:
            env |= {"RAYCACHE_TLS_CERT": f"{_TLS_DIR}/tls.crt", "RAYCACHE_TLS_KEY": f"{_TLS_DIR}/tls.key"}
        mounts.append({"name": TLS, "mountPath": _TLS_DIR, "readOnly": True})
    limits = dict(policy.limits) | ({policy.device: "1"} if policy.device else {})
    return {
        "name": CONTAINER,
        "image": policy.image,
        "command": list(_COMMAND),
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "resources": {"requests": dict(policy.requests), "limits": limits},
        "securityContext": _security(policy),
        "volumeMounts": mounts,
        **({} if copies else _life(policy)),
    }


def datasets(wishes: Sequence[Wish]) -> str:
    """`RAYCACHE_DATASETS`: `name=directory,…`."""
    return ",".join(f"{wish.dataset}={MOUNTS}/{wish.volume}" for wish in wishes)


def own_volumes(policy: Policy) -> list[dict[str, Any]]:
    """The volumes of the sidecar itself. Each pod has its own: an emptyDir is the pod's, and ends with it."""
    volumes: list[dict[str, Any]] = []
    if policy.profile != "copy":
        # A quarter more than the store may take: its indexes, and a block too much, must not evict the pod.
        directory: dict[str, Any] = {"sizeLimit": str(policy.cache_bytes + policy.cache_bytes // 4)}
        if policy.cache_medium:
            directory["medium"] = policy.cache_medium
        volumes.append({"name": CACHE, "emptyDir": directory})
    for name, secret in ((TOKEN, policy.token_secret), (TLS, policy.tls_secret)):
        if secret:
            volumes.append({"name": name, "secret": {"secretName": secret}})
    return volumes


def _security(policy: Policy) -> dict[str, Any]:
    if policy.profile == "copy":
        return {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    # Root, whatever the pod's own context says: mount(2) needs it.
    root = {"runAsUser": 0, "runAsNonRoot": False}
    if policy.profile == "privileged":
        return {"privileged": True, **root}
    return {"privileged": False, "capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]}, **root}


def _life(policy: Policy) -> dict[str, Any]:
    """How Kubernetes knows that the data is there. By a command: a port might be taken, by the pod's own programs or,
    in the host's network, by another pod."""
    check = {"exec": {"command": list(_CHECK)}, "timeoutSeconds": 10}
    readiness = {"readinessProbe": check | {"periodSeconds": 30}}
    if policy.sidecar == "native":
        tries = -(-policy.start_timeout_s // _CHECK_S)
        return {
            "restartPolicy": "Always",
            "startupProbe": check | {"periodSeconds": _CHECK_S, "failureThreshold": tries},
            **readiness,
        }
    # The kubelet starts containers in order, and the next one when this hook has ended.
    wait = {"exec": {"command": [*_CHECK, "--wait", f"{policy.start_timeout_s}s"]}}
    return {"lifecycle": {"postStart": wait}, **readiness}
