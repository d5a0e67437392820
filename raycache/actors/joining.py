"""Finding the Ray cluster, and becoming part of it."""

from __future__ import annotations

import logging
import socket
from typing import Any

from raycache.actors import local_cluster
from raycache.errors import ClusterUnavailableError
from raycache.settings import NAMESPACE, Settings

PROBE_TIMEOUT_S = 5.0
"""Seconds after which a cluster that does not answer is not there. `ray.init` itself would try for a minute."""


def find_address(address: str | None = None) -> str | None:
    """`host:port` of the Ray cluster to use; None if there is none.

    In this order: the one given, the one this process is part of, `RAY_ADDRESS`, the one `raycache start`
    started on this machine, the one `ray start` started last on this machine (if it still runs).
    """
    if address and address != "auto":
        return address
    import ray

    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    given = Settings.from_environ().ray_address
    if given and given not in ("auto", "local"):
        return given
    local = local_cluster.running()
    if local is not None:
        return str(local["address"])
    from ray._private import services

    latest: str | None = services.find_bootstrap_address(None)
    return latest if latest and answers(latest) else None


def join(address: str | None = None) -> str:
    """Make this process part of the Ray cluster, as a driver, if it is not yet. Returns the cluster's address.

    Raises:
        ClusterUnavailableError: there is none, it does not answer, or this process is part of another one.
    """
    import ray

    found = find_address(address)
    if found is None:
        raise ClusterUnavailableError(
            "no Ray cluster was found", hint="give --address, set RAY_ADDRESS, or run `raycache start`"
        )
    if ray.is_initialized():
        current = str(ray.get_runtime_context().gcs_address)
        if _resolved(found) != _resolved(current):
            raise ClusterUnavailableError(
                f"this process is already part of the Ray cluster at {current}", where=found
            )
        return current
    if not found.startswith("ray://") and not answers(found):
        raise ClusterUnavailableError(
            "no Ray cluster answers at this address", where=found, hint="is it running, and the port right?"
        )
    options: dict[str, Any] = {"namespace": NAMESPACE}
    if not found.startswith("ray://"):
        options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=found, **options)
    except Exception as error:
        # ray.init raises many kinds, of Ray's, of gRPC's and plain ones; all mean the same to the caller.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ClusterUnavailableError(
            f"the Ray cluster cannot be joined: {reason[:300]}", where=found
        ) from error
    return str(ray.get_runtime_context().gcs_address)


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        return socket.gethostbyname(host), port
    except OSError:
        return host, port


def answers(address: str) -> bool:
    """Whether something listens at `host:port`. Raises ClusterUnavailableError if it is no such address."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ClusterUnavailableError(
            "not an address of a Ray cluster", where=address, hint="write host:port"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S):
            return True
    except (OSError, OverflowError):
        return False
