"""The cluster's memory: raycache's keys in the key-value store of Ray's GCS.

All of the coordinator's state is here, so it can be killed at any time; clients inside Ray read it themselves,
so they need no coordinator.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from raycache.errors import ClusterUnavailableError
from raycache.settings import NAMESPACE

STATE = "state"
"""Membership, resolved datasets and what was invalidated: what a client must know (`cluster_state`)."""
EPOCH = "epoch"
"""Only the number, for a cheap look whether `STATE` has changed."""
DOCUMENTS = "documents"
"""What was applied, with secrets (`catalog`)."""
OPERATIONS = "operations"
"""Loads (`raycache.operations`)."""
TOKEN = "token"
"""Bearer token of the data plane; made once per cluster."""
SIGNING = "signing"
"""Keys of the signed tokens (`raycache.access`); they outlive a stop, as the token does."""
SEATS = "seats"
"""Which worker id each node had last, so that a worker that comes back gets its own share again."""
LEAVING = "leaving"
"""Which nodes are drained and which datasets are being left, until when (`departures`)."""
SCALING = "scaling"
"""How many nodes hold each dataset that is scaled, and what the next decision must know of it (`scaling`)."""
RETIRED = "retired"
"""Nodes whose worker has ended because it held nothing (`retiring`)."""
ASKED = "asked"
"""The nodes that Ray's autoscaler was asked for last (`asking`)."""
TUNING = "tuning"
"""What scaling goes by, where that is not the default (`tuning`). Nothing in raycache writes it."""
LAST = "last"
"""The membership that was when raycache was stopped: epochs go on from it, and owners find what they owned."""

RUNNING = (STATE, EPOCH, DOCUMENTS, OPERATIONS, LEAVING, SCALING, RETIRED, ASKED)
"""Keys that a stop removes: there is a `STATE` while raycache runs. The token stays, because processes that read
before a stop may read again after the next start."""


class Kv(Protocol):
    """A key-value store of bytes. Methods raise ClusterUnavailableError when it does not answer."""

    def get(self, key: str) -> bytes | None:
        """The value, or None."""

    def put(self, key: str, value: bytes) -> None:
        """Set the value."""

    def delete(self, key: str) -> None:
        """Remove the key, if it is there."""


def get_json(kv: Kv, key: str) -> Any:
    """The value as JSON; None if the key is not there."""
    data = kv.get(key)
    return None if data is None else json.loads(data)


def put_json(kv: Kv, key: str, value: Any) -> None:
    """Set the value to compact JSON."""
    kv.put(key, json.dumps(value, separators=(",", ":")).encode())


class RayKv:
    """The store of the Ray cluster that this process is part of (after `ray.init`, or in a task or actor)."""

    def get(self, key: str) -> bytes | None:
        from ray.experimental import internal_kv

        value: bytes | None = self._call(internal_kv._internal_kv_get, key)
        return value

    def put(self, key: str, value: bytes) -> None:
        from ray.experimental import internal_kv

        self._call(internal_kv._internal_kv_put, key, value, overwrite=True)

    def delete(self, key: str) -> None:
        from ray.experimental import internal_kv

        self._call(internal_kv._internal_kv_del, key)

    @staticmethod
    def _call(function: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        import ray

        if not ray.is_initialized():
            raise ClusterUnavailableError(
                "this process has left its Ray cluster", hint="call ray.init() again before reading"
            )
        try:
            return function(key.encode(), *args, namespace=NAMESPACE.encode(), **kwargs)
        except (ray.exceptions.RaySystemError, ConnectionError, RuntimeError) as error:
            raise _gone() from error


class GcsKv:
    """The store of a Ray cluster that this process is not part of. Costs no driver, only a connection.

    Args:
        address: `host:port` of the GCS.
    """

    def __init__(self, address: str) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

        self._address = address
        try:
            self._client = GcsClient(address=address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _gone(address) from error

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._call("internal_kv_get", key.encode())
        return value

    def put(self, key: str, value: bytes) -> None:
        self._call("internal_kv_put", key.encode(), value, True)

    def delete(self, key: str) -> None:
        self._call("internal_kv_del", key.encode(), False)

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        try:
            return getattr(self._client, method)(*args, NAMESPACE.encode())
        except (ray.exceptions.RaySystemError, ConnectionError, RuntimeError) as error:
            raise _gone(self._address) from error


def _gone(where: str = "") -> ClusterUnavailableError:
    return ClusterUnavailableError(
        "the Ray cluster does not answer", where=where, hint="is it still running? see `ray status`"
    )
