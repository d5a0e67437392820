"""What the operator decides for all pods: the image, where the cache is, how the sidecar runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raycache.errors import SpecError
from raycache.spec.kubernames import check_label_key, check_name

Profile = Literal["privileged", "device", "copy"]
Sidecar = Literal["native", "classic"]
OnUnknown = Literal["refuse", "admit"]


def _requests() -> Mapping[str, str]:
    return {"cpu": "100m", "memory": "256Mi"}


def _limits() -> Mapping[str, str]:
    return {"memory": "2Gi"}


@dataclass(frozen=True)
class Policy:
    """How pods get their datasets.

    Args:
        image: container image that has raycache.
        cache_address: comma-separated `host:port` of workers' Flight servers, for `RAYCACHE_ADDRESS`.
        token_secret: Secret in the pod's namespace whose key `token` is the tenant's token; "" for none.
        tls_secret: Secret in the pod's namespace with `ca.crt`; "" where the data plane has no TLS.
        tls_client: whether that Secret has `tls.crt` and `tls.key` too, for mutual TLS.
        profile: `privileged`: the sidecar mounts by itself, and the mount propagates. `device`: the platform supplies
            /dev/fuse and shows a container's mounts to the pod's others. `copy`: no FUSE, data is copied first.
        device: resource that stands for /dev/fuse, for profile `device`.
        sidecar: `native`: an init container that stays (Kubernetes 1.29 and newer). `classic`: a container.
        on_unknown: what becomes of a pod that asks for a dataset that is unknown or not ready.
        cache_bytes: size of the sidecar's own store, in bytes.
        cache_medium: medium of its emptyDir: "" for the node's disk, `Memory`.
        requests: resource requests of the sidecar.
        limits: resource limits of the sidecar.
        start_timeout_s: seconds a mount, or a copy, may take before the pod is given up.

    Raises:
        SpecError: something of it cannot be.
    """

    image: str
    cache_address: str
    token_secret: str = "raycache-token"
    tls_secret: str = ""
    tls_client: bool = False
    profile: Profile = "privileged"
    device: str = ""
    sidecar: Sidecar = "native"
    on_unknown: OnUnknown = "refuse"
    cache_bytes: int = 1 << 30
    cache_medium: Literal["", "Memory"] = ""
    requests: Mapping[str, str] = field(default_factory=_requests)
    limits: Mapping[str, str] = field(default_factory=_limits)
    start_timeout_s: int = 600

    def __post_init__(self) -> None:
        for what, value in (("image", self.image), ("address of the cache", self.cache_address)):
            if not value.strip():
                raise SpecError(f"the {what} is missing", hint="see docs/webhook.md")
        for secret in (self.token_secret, self.tls_secret):
            if secret:
                check_name(secret)
        if self.tls_client and not self.tls_secret:
            raise SpecError("a client's certificate needs a Secret", hint="name it with --tls-secret")
        if (self.profile == "device") != bool(self.device):
            raise SpecError(
                "profile `device` and the resource that stands for /dev/fuse go together",
                hint="such as --profile device --device example.com/fuse",
            )
        if self.device:
            check_label_key(self.device)
        if self.cache_bytes < 1 or self.start_timeout_s < 1:
            raise SpecError("sizes and times must be positive")
